"""The batches of a training, from any position on."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from metricjax import data, samplers
from metricjax.training.recipe import Recipe

__all__ = ["Batches"]


class Batches:
    """Batches without end, of each this process's part, from a position that `get_state` gave.

    The batch of a step depends on the data, the seed and the step alone: any number of processes and workers may go on
    where another one ended.
    """

    def __init__(
        self, recipe: Recipe, source: data.Source, position: dict[str, int] | None = None, *, workers: int = 0
    ):
        self.next_index = 0 if position is None else position["next_index"]
        if len(recipe.batch) == 1:
            sampler = partial(samplers.uniform_batches, len(source), *recipe.batch, seed=recipe.seed)
        else:
            people, each = recipe.batch
            sampler = partial(_people_and_others, source.labels, people, each, seed=recipe.seed)
        if self.next_index:
            sampler = partial(_shifted, sampler, self.next_index)
        part = {"shard": jax.process_index(), "shards": jax.process_count()}
        try:
            self._batches = data.batches(source, sampler, workers=workers, **part)
        except ValueError as error:  # the sampler's: more people than there are, or parts that are not equal
            raise ValueError(f"--batch: {error}") from None

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        self.next_index += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.next_index}


def _people_and_others(
    labels: np.ndarray, people: int, each: int, *, seed: int, epoch: int, shard: int, shards: int
) -> np.ndarray:
    """P × K batches of the people with several photographs; where there are others, a third as many rows of them.

    Of a person with one photograph a P × K batch would hold that one K times, which teaches nothing, and most people of
    a collection may be such: alone in a row they are somebody else for everybody, and have a prototype of their own.
    """
    several = np.bincount(labels)[labels] > 1
    if several.all():
        return samplers.pk_batches(labels, people, each, seed=seed, epoch=epoch, shard=shard, shards=shards)
    places, lone = np.flatnonzero(several), np.flatnonzero(~several)
    part = {"epoch": epoch, "shard": shard, "shards": shards}
    pairs = places[samplers.pk_batches(labels[places], people, each, seed=seed, **part)]
    rows = min(people * each // 3, len(lone)) // shards * shards
    rng = np.random.default_rng([seed, epoch, 1])
    rounds = -(-len(pairs) * rows // len(lone))
    order = np.concatenate([rng.permutation(lone) for _ in range(rounds)]) if rounds else lone[:0]
    drawn = order[: len(pairs) * rows].reshape(len(pairs), rows)
    return np.concatenate([pairs, drawn[:, rows // shards * shard : rows // shards * (shard + 1)]], axis=1)


def _shifted(sampler: Callable[..., np.ndarray], start: int, *, epoch: int, **part) -> np.ndarray:
    """Epochs that begin at batch `start` of those of the sampler: the end of one and the beginning of the next."""
    first, place = divmod(start, len(sampler(epoch=0, **part)))
    now, then = (sampler(epoch=first + epoch + i, **part) for i in (0, 1))
    return np.concatenate([now[place:], then[:place]])
