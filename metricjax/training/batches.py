"""The batches of a training, from any position on."""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from metricjax import data, samplers
from metricjax.training.recipe import Recipe

__all__ = ["Batches", "steps_per_epoch"]


class Batches:
    """Batches without end, of each this process's part, from a position that `get_state` gave.

    The batch of a step depends on the data, the seed and the step alone: any number of processes and workers may go on
    where another one ended.
    """

    def __init__(
        self, recipe: Recipe, source: data.Source, position: dict[str, int] | None = None, *, workers: int = 0
    ):
        self.next_index = 0 if position is None else position["next_index"]
        sampler = _sampler(recipe, source)
        if self.next_index:
            sampler = partial(_shifted, sampler, self.next_index)
        with _of_batch():
            self._batches = data.batches(source, sampler, workers=workers, **_part())

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        self.next_index += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.next_index}


def steps_per_epoch(recipe: Recipe, source: data.Source) -> int:
    """How many batches the sampler takes for an epoch."""
    with _of_batch():
        return len(_sampler(recipe, source)(epoch=0, **_part()))


def _part() -> dict[str, int]:
    return {"shard": jax.process_index(), "shards": jax.process_count()}


@contextlib.contextmanager
def _of_batch() -> Iterator[None]:
    """Errors of a sampler, of more people than there are or parts that are not equal, are about --batch."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--batch: {error}") from None


def _sampler(recipe: Recipe, source: data.Source) -> Callable[..., np.ndarray]:
    """Batches of an epoch, as the recipe wants them."""
    seeded: dict[str, Any] = {"seed": recipe.seed}
    labels = source.labels
    match recipe.batch:
        case (images,):
            return partial(samplers.uniform_batches, len(source), images, **seeded)
        case (people, each) if recipe.class_power is not None:
            seeded |= {"power": recipe.class_power, "per_class": each}
            return partial(samplers.weighted_batches, labels, people * each, **seeded)
        case (people, each):
            return partial(_people_and_others, labels, people, each, **seeded)
    superlabels = data.superlabels(source)
    if superlabels is None:
        raise ValueError(
            f"--batch is {recipe.batch}; wanted two numbers at most, as classes have no super-classes here"
        )
    return partial(samplers.hierarchical_batches, labels, superlabels, *recipe.batch, **seeded)


def _people_and_others(
    labels: np.ndarray, people: int, each: int, *, seed: int, epoch: int, shard: int, shards: int
) -> np.ndarray:
    """P × K batches, of whose rows a quarter is of people with one photograph, where there are enough of either kind.

    Of such a person a P × K batch would hold one photograph K times, which teaches little, and most people of a
    collection may be such: alone in a row they are somebody else for everybody, and have a prototype of their own.
    """
    several = np.bincount(labels)[labels] > 1
    places, lone = np.flatnonzero(several), np.flatnonzero(~several)
    given = {"seed": seed, "epoch": epoch, "shard": shard, "shards": shards}
    others = _in_place_of(people, len(lone) // each)
    if not others or people - others > len(np.unique(labels[places])):
        return samplers.pk_batches(labels, people, each, **given)
    pairs = places[samplers.pk_batches(labels[places], people - others, each, **given)]
    rng, rows, count = np.random.default_rng([seed, epoch, 1]), others * each, len(pairs)
    rounds = -(-count * rows // len(lone))
    drawn = np.concatenate([rng.permutation(lone) for _ in range(rounds)])[: count * rows].reshape(count, rows)
    return np.concatenate([pairs, drawn[:, shard * rows // shards : (shard + 1) * rows // shards]], axis=1)


def _in_place_of(people: int, there: int) -> int:
    """How many of the P people of a batch have only one photograph: a quarter at most, in equal parts for 8 processes.

    Of an odd P it is as many as fewer processes can share.
    """
    most = min(people // 4, there)
    parts = math.gcd(people, 8)
    while parts > most > 0:
        parts //= 2
    return most // max(parts, 1) * parts


def _shifted(sampler: Callable[..., np.ndarray], start: int, *, epoch: int, **part) -> np.ndarray:
    """Epochs that begin at batch `start` of those of the sampler: the end of one and the beginning of the next."""
    first, place = divmod(start, len(sampler(epoch=0, **part)))
    now, then = (sampler(epoch=first + epoch + i, **part) for i in (0, 1))
    return np.concatenate([now[place:], then[:place]])
