"""How many scores lie below each of some levels, and how many at most at it: what a curve is made of."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from metricjax.engine import sizes

__all__ = ["Counts"]


class Counts:
    """How many scores lie below each of the rising levels, how many at most at it, and how many there are. Exact.

    Scores come as a list, which is sorted, or as a tile on the device. There one look into a table says between which
    levels a score lies: its buckets are so fine that most hold no level, or one. Scores of the other buckets are few
    enough to be sorted.
    """

    def __init__(self, levels: np.ndarray):
        self.levels, self.total = levels, 0
        self._below, self._at_most = np.zeros(len(levels), np.int64), np.zeros(len(levels), np.int64)
        self._unclear: list[np.ndarray] = []
        self._table: Any = _table(levels)
        self._placed = np.zeros(2 * (len(levels) if self._table is None else len(self._table[0]) - 2) + 1, np.int64)

    def below(self, levels: np.ndarray) -> np.ndarray:
        """How many scores lie below each of some of the levels."""
        self._settle()
        place = np.searchsorted(self.levels, levels)
        return (self._below + np.cumsum(self._placed)[: 2 * len(self.levels) : 2])[place]

    def at_most(self, levels: np.ndarray) -> np.ndarray:
        """How many scores lie below each of some of the levels, or at it."""
        self._settle()
        place = np.searchsorted(self.levels, levels)
        return (self._at_most + np.cumsum(self._placed)[1 : 2 * len(self.levels) : 2])[place]

    def add(self, scores: np.ndarray) -> None:
        self.total += len(scores)
        self._unclear.append(scores)
        if sum(map(len, self._unclear)) >= sizes.scores_sorted_at_once():
            self._settle()

    def started(self, scores: jax.Array, counts: jax.Array | None) -> tuple:
        """Of a tile and a mask of its scores that count, what `add_tile` needs, which the device works on."""
        return scores, counts, None if self._table is None else _places(scores, counts, *self._table)

    def add_tile(self, scores: jax.Array, counts: jax.Array | None, places: jax.Array | None) -> None:
        table = np.asarray(scores)
        if places is None:
            self.add(table[... if counts is None else np.asarray(counts)].ravel())
            return
        where, last = np.asarray(places), len(self._placed) + 1
        height = sizes.rows_in_tally(where.shape[1])
        for rows in (slice(start, start + height) for start in range(0, len(where), height)):
            found = np.bincount(where[rows].ravel(), minlength=last + 1)
            self._placed += found[: last - 1]
            self.total += int(np.sum(found[: last - 1]))
            if found[last]:
                self.add(table[rows].ravel()[np.flatnonzero(where[rows] == last)])

    def _settle(self) -> None:
        """Count the scores that wait: they are sorted together."""
        scores, self._unclear = np.sort(np.concatenate([self.levels[:0], *self._unclear])), []
        self._below += _lower(scores, self.levels, "left")
        self._at_most += _lower(scores, self.levels, "right")


def _lower(scores: np.ndarray, levels: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
    """`np.searchsorted(scores, levels, side)`, both sorted, by searching for the fewer of the two."""
    if len(levels) <= len(scores):
        return np.searchsorted(scores, levels, side)
    found = np.searchsorted(levels, scores, "right" if side == "left" else "left")
    return np.cumsum(np.bincount(found, minlength=len(levels) + 1))[:-1]


def _table(levels: np.ndarray) -> tuple | None:
    """The levels, filled up; how many lie below each bucket; the lowest, and buckets per unit. None if it would not do.

    A bucket with several levels has the last index, which is that of a NaN.
    """
    most, buckets = sizes.levels_and_buckets(len(levels))
    with np.errstate(over="ignore"):
        scale = (buckets - 1) / (levels[-1] - levels[0]) if len(levels) > 1 else levels.dtype.type(0)
    if len(levels) > most or not 0 < scale < np.inf:
        return None
    filled = np.concatenate([levels, np.full(most + 1 - len(levels), np.inf), [np.nan]]).astype(levels.dtype)
    first = np.asarray(levels[0]), np.asarray(scale, levels.dtype)
    held = np.bincount(np.asarray(_bucket(levels, *first, buckets)), minlength=buckets)
    table = np.where(held > 1, most + 1, np.cumsum(held) - held).astype(np.int32)
    return jnp.asarray(filled), jnp.asarray(table), *map(jnp.asarray, first)


@partial(jax.jit, static_argnums=3)
def _bucket(scores, lowest, scale, buckets: int):
    """Rising with the score: no step of its rounding reverses an order."""
    return jnp.clip((scores - lowest) * scale, 0, buckets - 1).astype(jnp.int32)


@jax.jit
def _places(scores, counts, levels, table, lowest, scale):
    """Twice the number of levels below each score, and one more if it is at a level.

    Past all these: the last but one for what does not count, and the last for what lies in a bucket of several levels.
    """
    bucket = _bucket(scores, lowest, scale, len(table))
    first = table.at[bucket].get(mode="promise_in_bounds")
    level = levels.at[first].get(mode="promise_in_bounds")
    one = lambda mask: mask.astype(jnp.int32)
    place = 2 * (first + one(level < scores)) + one(level == scores)
    return place if counts is None else jnp.where(counts, place, 2 * len(levels) - 3)
