"""Sources made of a source: some of its people, and their mirror images."""

from typing import SupportsIndex

import numpy as np

from metricjax.data.people import of_chosen
from metricjax.data.photographs import Source

__all__ = ["mirrored", "of_people", "superlabels"]


def of_people(source: Source, chosen: np.ndarray) -> Source:
    """The photographs of some people only (a mask over people), who are then numbered from 0."""
    return _OfPeople(source, np.asarray(chosen))


def mirrored(source: Source) -> Source:
    """Twice the photographs, of twice the people: a mirrored face counts as somebody else's.

    With few people to learn from, that doubles what there is to tell apart.
    """
    return _Mirrored(source)


def superlabels(source: Source) -> np.ndarray | None:
    """The super-class of each image, where classes are named "SUPER-CLASS/CLASS"; None where any has none."""
    above = [name.rpartition("/")[0] for name in source.people]
    return np.unique(above, return_inverse=True)[1][source.labels] if all(above) else None


class _OfPeople:
    def __init__(self, source: Source, chosen: np.ndarray):
        self.source = source
        self.places, self.labels, self.people = of_chosen(source.labels, source.people, chosen)
        files = getattr(source, "files", None)
        self.files = [""] * len(self.places) if files is None else [files[i] for i in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        return self.source[self.places[index]]


class _Mirrored:
    def __init__(self, source: Source):
        self.source = source
        self.labels = np.concatenate([source.labels, source.labels + np.int32(len(source.people))])
        self.people = [*source.people, *(f"{name} mirrored" for name in source.people)]

    def __len__(self) -> int:
        return 2 * len(self.source)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        other, place = divmod(range(len(self))[index], len(self.source))
        image = self.source[place]
        return image[:, ::-1] if other else image
