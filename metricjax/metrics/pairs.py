"""Verification of whole sets: all pairs of rows, streamed in square tiles of scores, counted and then forgotten."""

from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.engine import sizes
from metricjax.ground.checks import check_batch
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import widen
from metricjax.ground.pairwise import exactly
from metricjax.metrics.levels import Counts, Started, scored
from metricjax.metrics.sets import check_finite, check_flat_labels, numbered
from metricjax.metrics.thresholds import ErrorRates, as_threshold
from metricjax.metrics.verification import PairScores, Roc

__all__ = ["AllPairs", "Rows", "Tile", "group_pair_rates", "pair_scores", "scores_at_levels"]

_HISTOGRAM = np.linspace(-1, 1, 101)
T = TypeVar("T")


class Tile(NamedTuple):
    """Scores of consecutive rows with consecutive columns, whose labels rise, and which of them are pairs.

    `alone` says that these are the same rows, where a pair is once: in the columns past its row.
    """

    row: int
    column: int
    scores: np.ndarray
    people: np.ndarray
    others: np.ndarray
    alone: bool

    def genuine_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and the columns of the pairs of one person."""
        first, past = (np.searchsorted(self.others, self.people, side) for side in ("left", "right"))
        first = np.arange(1, len(first) + 1) if self.alone else first
        many = past - first
        rows = np.repeat(np.arange(len(many)), many)
        return rows, np.arange(len(rows)) + (first - np.cumsum(many) + many)[rows]

    def genuine(self) -> np.ndarray:
        return self.scores[self.genuine_pairs()]

    def impostor_mask(self) -> np.ndarray:
        differ = np.ones(self.scores.shape, bool)
        if self.people[0] <= self.others[-1] and self.others[0] <= self.people[-1]:
            differ = self.people[:, None] != self.others[None]
        return np.triu(differ, 1) if self.alone else differ

    def impostors(self) -> np.ndarray:
        return self.scores[self.impostor_mask()]


class Rows(NamedTuple):
    """A set in the order of its labels, embedded, in blocks of one shape; the last is filled up with its last row.

    In this order, people meet themselves in few tiles: the others need no masks, and genuine pairs no second pass.
    """

    labels: np.ndarray
    blocks: list[jax.Array]
    side: int

    def part(self, block: int) -> np.ndarray:
        return self.labels[block * self.side : (block + 1) * self.side]


class AllPairs:
    """The pairs of a set, each once, or of every row with every reference."""

    def __init__(
        self,
        embeddings: ArrayLike,
        labels: ArrayLike,
        similarity: Callable,
        references: ArrayLike | None = None,
        reference_labels: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reference_where: ArrayLike | None = None,
    ):
        on_device = lambda a: None if a is None else jnp.asarray(a)
        on_host = lambda a: None if a is None else np.asarray(a)
        x, y = on_device(embeddings), on_device(references)
        masks: Any = on_host(where), on_host(reference_where)
        both: Any = on_host(labels), on_host(reference_labels)
        check_batch(x, both[0], masks[0], None, y, both[1], masks[1], None, None)
        self.similarity = exactly(similarity, "similarity")
        self.alone = y is None
        self.rows = self._rows("embeddings", x, "labels", both[0], masks[0])
        self.columns = self.rows if y is None else self._rows("references", y, "reference_labels", both[1], masks[1])

    def _rows(self, name: str, x: Any, labels_name: str, labels: Any, where: Any) -> Rows:
        check_flat_labels(labels_name, labels, len(x))
        existing = slice(None) if where is None else where
        rows, labels = np.asarray(x)[existing], labels[existing]
        check_finite(name, jnp.asarray(rows))
        order = np.argsort(labels, kind="stable")
        rows, labels = rows[order], labels[order]
        side = sizes.rows_in_sorted_tile(len(rows))
        parts = [rows[start : start + side] for start in range(0, len(rows), side)]
        full = [np.pad(part, ((0, side - len(part)), (0, 0)), mode="edge") for part in parts]
        return Rows(labels, [_embedded(self.similarity.embed, part) for part in full], side)

    def _tiles(self, near: bool = False) -> Iterator[tuple[int, int]]:
        """(block of rows, block of columns); with `near` only where people meet themselves.

        Of a set alone, tiles below the diagonal are left out.
        """
        for i in range(len(self.rows.blocks)):
            for j in range(i if self.alone else 0, len(self.columns.blocks)):
                if not near or self._meet(i, j):
                    yield i, j

    def scores(self, near: bool = False) -> Iterator[tuple[int, int, jax.Array]]:
        """(block of rows, block of columns, their scores on the device)."""
        blocks = self.rows.blocks, self.columns.blocks
        tiles = ((i, j, *scored(self.similarity.compare, blocks[0][i], blocks[1][j])) for i, j in self._tiles(near))
        for i, j, scores, finite in _ahead(tiles):
            _check(finite)
            yield i, j, scores

    def tiles(self, near: bool = False) -> Iterator[Tile]:
        """`scores` on the host."""
        for i, j, scores in self.scores(near):
            a, b = self.rows.part(i), self.columns.part(j)
            part = np.asarray(scores)[: len(a), : len(b)]
            yield Tile(i * self.rows.side, j * self.columns.side, part, a, b, self.alone and i == j)

    def count_impostors(self, counts: Counts) -> None:
        """Add the scores of all pairs of different people."""
        filled = lambda who, rows: np.pad(who, (0, rows.side * len(rows.blocks) - len(who)), constant_values=-1)
        blocks = lambda who, rows: filled(who, rows).astype(np.int32).reshape(-1, rows.side)
        rows, columns = map(blocks, numbered(self.rows.labels, self.columns.labels), (self.rows, self.columns))

        def started(i: int, j: int) -> Started:
            x, y = self.rows.blocks[i], self.columns.blocks[j]
            whole = not self._meet(i, j) and (len(self.rows.part(i)), len(self.columns.part(j))) == (len(x), len(y))
            which = None if whole else _differ(rows[i], columns[j], self.alone and i == j)
            return counts.started(self.similarity.compare, x, y, which)

        for tile in _ahead(started(i, j) for i, j in self._tiles()):
            _check(tile.finite)
            counts.add_tile(tile)

    def _meet(self, i: int, j: int) -> bool:
        a, b = self.rows.part(i), self.columns.part(j)
        return bool(a[0] <= b[-1] and b[0] <= a[-1])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.rows.blocks[0].dtype) if self.rows.blocks else np.dtype(np.float32)


@jitted
def _embedded(embed, rows):
    return embed(widen(rows))


def _ahead(tiles: Iterator[T]) -> Iterator[T]:
    """The same; the device starts on each before the host looks at the one before it."""
    for tile, _ in pairwise(chain(tiles, [None])):
        yield cast(T, tile)


def _check(finite) -> None:
    if not finite:
        raise ValueError("similarity gives NaN or infinity for finite rows; no threshold can tell such scores")


@jax.jit
def _differ(people, others, diagonal):
    index = jnp.arange(len(people), dtype=jnp.int32)
    differ = (people[:, None] != others[None]) & (people >= 0)[:, None] & (others >= 0)[None]
    return differ & (~diagonal | (index[:, None] < jnp.arange(len(others), dtype=jnp.int32)[None]))


def pair_scores(
    embeddings: ArrayLike,
    labels: ArrayLike,
    similarity: Callable = similarities.cosine,
    *,
    references: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reference_where: ArrayLike | None = None,
    bins: int | ArrayLike | None = None,
) -> PairScores:
    """The ROC of all n(n − 1)/2 pairs of a set, or of all n · m pairs with references, and histograms from −1 to 1.

    Scores are computed in tiles, once, and those of genuine pairs twice; on the device, a table says between which
    genuine scores each lies, and the host tallies these places. The curve is exact at every genuine score and just
    above it, so that every rate of `Roc` is. Nothing but genuine scores is sorted: with a few rows of each person, time
    is two or three times that of the product of all rows with all rows, on any CPU. That is for the end of a
    training; each epoch `retrieval` takes less. Memory is that of the genuine scores and a few tiles. With `bins`
    genuine scores are not held either, and the curve is exact at the edges of the bins and just above them: a
    threshold for a FAR is then too high by less than a bin, 2/bins.

    Args:
      similarity: all-pairs function, larger is closer; symmetric, unless there are references.
      references, reference_labels: what rows are compared with, if not each other.
      where, reference_where: booleans, which rows exist.
      bins: None for every genuine score, or the number of equal bins from −1 to 1, or the [k] rising edges of bins, for
        a similarity with another range. Scores outside the edges count as below or above all of them.

    >>> import numpy as np
    >>> z = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> found = pair_scores(z, np.array([0, 0, 1, 1])).roc
    >>> found.genuine, found.impostors, found.auc()
    (2, 4, 1.0)
    """
    pairs = AllPairs(embeddings, labels, similarity, references, reference_labels, where, reference_where)
    return scores_at_levels(pairs, bins)


def scores_at_levels(pairs: AllPairs, bins: int | ArrayLike | None = None) -> PairScores:
    """How many pairs of each kind reach each genuine score, or the edges of bins; and histograms."""
    parts: Any = (tile.genuine() for tile in pairs.tiles(near=True))
    if bins is None:
        parts = [np.concatenate([np.zeros(0, pairs.dtype), *parts])]
        levels = np.unique(parts[0])
    else:
        levels = _edges(bins).astype(pairs.dtype)
    inner = _HISTOGRAM[1:-1].astype(pairs.dtype)
    genuine, impostors = (Counts(np.union1d(levels, inner)) for _ in range(2))
    for part in parts:
        genuine.add(part)
    if not genuine.total:
        n, m = len(pairs.rows.labels), len(pairs.columns.labels)
        among = f"no two rows of the same person among {n}" if pairs.alone else f"nobody of the {m} references"
        raise ValueError(f"labels has {among}; there is nothing to verify")
    pairs.count_impostors(impostors)
    if not impostors.total:
        raise ValueError("labels has one person only; wanted pairs of different people")
    # Devices take the number just above 0, which is not normal, for 0.
    above = np.where(levels == 0, np.finfo(levels.dtype).tiny, np.nextafter(levels, levels.dtype.type(np.inf)))
    falling = np.stack([above[::-1], levels[::-1]], axis=1).ravel()
    thresholds = np.concatenate([[np.inf], falling, [-np.inf]])
    curve = Roc(thresholds, *(_accepted(counts, levels) for counts in (impostors, genuine)))
    histograms = (np.diff(counts.below(inner), prepend=0, append=counts.total) for counts in (genuine, impostors))
    return PairScores(curve, _HISTOGRAM, *histograms)


def _accepted(counts: Counts, levels: np.ndarray) -> np.ndarray:
    """How many scores reach a falling threshold: ∞, just above each level and at it, −∞."""
    rejected = np.stack([counts.at_most(levels)[::-1], counts.below(levels)[::-1]], axis=1).ravel()
    return counts.total - np.concatenate([[counts.total], rejected, [0]])


def _edges(bins: int | ArrayLike) -> np.ndarray:
    edges = np.linspace(-1, 1, bins + 1) if isinstance(bins, int) and bins > 0 else np.asarray(bins)
    if edges.ndim != 1 or not len(edges) or not np.all(np.isfinite(edges)) or np.any(np.diff(edges) <= 0):
        raise ValueError(f"bins is {bins!r}; wanted None, a positive number of bins, or rising edges")
    return edges


def group_pair_rates(
    embeddings: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    threshold: float,
    *,
    similarity: Callable = similarities.cosine,
) -> dict[int | str, ErrorRates]:
    """False accept and false reject rate of the pairs within each group of rows, at one threshold for all.

    Both rows of a pair belong to the group: people are compared with those most like them, which shows more false
    accepts than pairs across groups. Grother, Ngan, Hanaoka 2019, "FRVT Part 3: Demographic Effects" (NISTIR 8280).
    All pairs of each group are streamed. A group without pairs of a kind has NaN for its rate.

    Args:
      groups: [n] integers or strings, the group of each row.
      threshold: a pair is accepted if its score is at least as high.
      similarity: symmetric, larger is closer.

    >>> import numpy as np
    >>> z = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2], [0.1, 1.0]])
    >>> group_pair_rates(z, np.array([0, 0, 0, 1, 1]), ["a", "a", "b", "a", "b"], threshold=0.9)["a"]
    ErrorRates(far=1.0, frr=0.0, impostors=2, genuine=1)
    """
    groups, threshold = np.asarray(groups), as_threshold(threshold)
    if groups.shape != np.shape(labels)[:1]:
        raise ValueError(f"groups has shape {groups.shape}; wanted one value for each of {np.shape(labels)[0]} rows")
    return {
        group: _rates(AllPairs(embeddings, labels, similarity, where=groups == group), threshold)
        for group in np.unique(groups).tolist()
    }


def _rates(pairs: AllPairs, threshold: float) -> ErrorRates:
    accepted, total = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for tile in pairs.tiles():
        both = tile.impostors(), tile.genuine()
        accepted += [np.count_nonzero(scores >= threshold) for scores in both]
        total += [len(scores) for scores in both]
    share = lambda part, whole: float(part / whole) if whole else float("nan")
    far, frr = share(accepted[0], total[0]), share(total[1] - accepted[1], total[1])
    return ErrorRates(far, frr, int(total[0]), int(total[1]))
