"""How many scores lie below each of some levels, and how many at most at it: what a curve is made of."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metricjax.engine import sizes
from metricjax.ground.functions import jitted

_LANES = 8  # counters that scores below all levels take turns at: they are many, and one would wait for itself

__all__ = ["Counts", "Started", "scored"]


class Started(NamedTuple):
    """A tile that the device works on: its scores, whether all are finite, which count, how many are yet unclear.

    `counts` is None if all do, `unclear` if none was looked at.
    """

    scores: jax.Array
    finite: jax.Array
    counts: jax.Array | None
    unclear: jax.Array | None


class Counts:
    """How many scores lie below each of the rising levels, how many at most at it, and how many there are. Exact.

    Scores come as a list, which is sorted, or as a tile on the device. There one look into a table says between which
    levels a score lies, and these places are tallied: the table's buckets are so fine that most hold no level, or one.
    Scores of the other buckets are few enough to be sorted.
    """

    def __init__(self, levels: np.ndarray):
        self.levels, self._sorted = levels, 0
        self._below, self._at_most = np.zeros(len(levels), np.int64), np.zeros(len(levels), np.int64)
        self._unclear: list[np.ndarray] = []
        self._table: Any = _table(levels)
        places = 2 * (len(levels) + 2 if self._table is None else len(self._table[0])) + _LANES - 2
        self._placed, self._tally, self._tallied = np.zeros(places, np.int64), jnp.zeros(places, jnp.int32), 0

    @property
    def total(self) -> int:
        self._settle()
        return self._sorted + int(np.sum(self._placed[:-2]))

    def below(self, levels: np.ndarray) -> np.ndarray:
        """How many scores lie below each of some of the levels."""
        self._settle()
        place = np.searchsorted(self.levels, levels)
        return (self._below + self._reached()[0])[place]

    def at_most(self, levels: np.ndarray) -> np.ndarray:
        """How many scores lie below each of some of the levels, or at it."""
        self._settle()
        place = np.searchsorted(self.levels, levels)
        return (self._at_most + self._reached()[1])[place]

    def add(self, scores: np.ndarray) -> None:
        self._unclear.append(scores)
        if sum(map(len, self._unclear)) >= sizes.scores_sorted_at_once():
            self._sort()

    def started(self, compare: Callable, rows, columns, counts: jax.Array | None) -> Started:
        """A tile of the scores of rows with columns, those that count; `add_tile` has to be told when it is done."""
        if self._table is None:
            scores, finite = scored(compare, rows, columns)
            return Started(scores, finite, counts, None)
        if self._tallied + len(rows) * len(columns) > np.iinfo(np.int32).max:
            self._collect()
        self._tallied += len(rows) * len(columns)
        found = _tallied(compare, self._tally, rows, columns, counts, self._table)
        self._tally, scores, finite, unclear = found
        return Started(scores, finite, counts, unclear)

    def add_tile(self, tile: Started) -> None:
        if tile.unclear is None:
            self.add(np.asarray(tile.scores)[... if tile.counts is None else np.asarray(tile.counts)].ravel())
        elif tile.unclear > 0:
            places = np.asarray(_places(tile.scores, tile.counts, *self._table))
            self.add(np.asarray(tile.scores)[places == len(self._placed) - 1])

    def _reached(self) -> np.ndarray:
        """[2, levels]: of the scores in tiles, how many lie below each level, and how many at most at it."""
        placed = np.cumsum(self._placed)[_LANES - 1 :]
        return placed[: 2 * len(self.levels)].reshape(-1, 2).T

    def _collect(self) -> None:
        """Take the device's tally over, before its numbers grow too large."""
        self._placed += np.asarray(self._tally)
        self._tally, self._tallied = jnp.zeros_like(self._tally), 0

    def _sort(self) -> None:
        """Count the scores that wait: they are sorted together."""
        scores, self._unclear = np.sort(np.concatenate([self.levels[:0], *self._unclear])), []
        self._sorted += len(scores)
        self._below += _lower(scores, self.levels, "left")
        self._at_most += _lower(scores, self.levels, "right")

    def _settle(self) -> None:
        self._collect()
        self._sort()


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


@jitted
def scored(compare, rows, columns):
    """Scores of rows with columns, and whether all are finite."""
    scores = compare(rows, columns).astype(rows.dtype)
    return scores, jnp.all(jnp.isfinite(scores))


@jitted
def _tallied(compare, tally, rows, columns, counts, table):
    """The tally with a tile, its scores, whether all are finite, and how many are unclear: one program, few buffers."""
    scores, finite = scored(compare, rows, columns)
    found, height = tally, sizes.rows_in_tally(len(scores))
    for start in range(0, len(scores), height):
        some, count = (None if a is None else a[start : start + height] for a in (scores, counts))
        found = found.at[_places(some, count, *table)].add(1, mode="promise_in_bounds")
    return found, scores, finite, found[-1] - tally[-1]


@jax.jit
def _places(scores, counts, levels, table, lowest, scale):
    """Of scores below all levels one of `_LANES` places, by turns. Of others twice the number of levels below, and one
    more if it is at a level, and the places before.

    Past all these: the last but one for what does not count, and the last for what lies in a bucket of several levels.
    """
    bucket = _bucket(scores, lowest, scale, len(table))
    first = table.at[bucket].get(mode="promise_in_bounds")
    level = levels.at[first].get(mode="promise_in_bounds")
    one = lambda mask: mask.astype(jnp.int32)
    place = 2 * (first + one(level < scores)) + one(level == scores)
    turn = jnp.arange(scores.shape[1], dtype=jnp.int32) & _LANES - 1
    place = jnp.where(place == 0, turn, place + _LANES - 1)
    return place if counts is None else jnp.where(counts, place, 2 * len(levels) + _LANES - 4)
