"""People by number, and which of their photographs are kept."""

import warnings

import numpy as np

from metricjax.ground.names import some

__all__ = ["numbered", "of_chosen", "with_several"]


def of_chosen(labels: np.ndarray, people: list[str], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Where the photographs of some people are (a mask over people), their labels, from 0 on, and the people."""
    if chosen.shape != (len(people),) or chosen.dtype != bool:
        raise ValueError(f"chosen is {chosen.dtype}{list(chosen.shape)}; wanted {len(people)} booleans")
    places = np.flatnonzero(chosen[labels])
    number = np.cumsum(chosen, dtype=np.int32) - 1
    return places, number[labels[places]], [people[i] for i in np.flatnonzero(chosen)]


def with_several(
    labels: np.ndarray, people: list[str], at_least: int, stacklevel: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`of_chosen` for the people with `at_least` photographs or more; a warning names the others."""
    several = np.bincount(labels, minlength=len(people)) >= at_least
    few = [people[i] for i in np.flatnonzero(~several)]
    if few:
        told = f"{len(few)} people with fewer than {at_least} images are left out: {some(few)}"
        warnings.warn(told, stacklevel=stacklevel + 1)
    return of_chosen(labels, people, several)


def numbered(
    names: list[str], files: list[str], at_least: int, stacklevel: int
) -> tuple[list[int], np.ndarray, list[str]]:
    """Photographs in order of people and files, `with_several`: their places, their labels, and the people."""
    people = sorted(set(names))
    number = {name: i for i, name in enumerate(people)}
    order = sorted(range(len(names)), key=lambda i: (number[names[i]], files[i]))
    labels = np.array([number[names[i]] for i in order], np.int32)
    places, labels, people = with_several(labels, people, at_least, stacklevel + 1)
    return [order[i] for i in places], labels, people
