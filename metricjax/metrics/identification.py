"""Identification (1:N): whose face is it, if it is anybody's in the gallery? Scores are similarities."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.engine import sizes
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import widen
from metricjax.ground.one_line import one_line
from metricjax.ground.pairwise import Pairwise, exactly
from metricjax.metrics.sets import check_flat_labels, check_set, numbered, positive_ints
from metricjax.metrics.verification import real_scores

__all__ = ["Searches", "cmc", "dir_at_fpir", "fnir_at_fpir", "identification", "searches"]


class Searches(NamedTuple):
    """What a gallery answers to each query. A query is mated if someone of its label is in the gallery.

    rank: 1 + how many rows of other people score at least as high as the best mate; 0 without a mate.
    mate: score of the best mate, −∞ without one.
    other: highest score of other people's rows, −∞ if the gallery holds nobody else.
    """

    rank: np.ndarray
    mate: np.ndarray
    other: np.ndarray

    def __repr__(self) -> str:
        return one_line(self, lambda: f"<searches: {self.mated:,} queries with a mate, {self.non_mated:,} without>")

    @property
    def mated(self) -> int:
        """Number of queries with a mate."""
        return int(np.sum(self.rank > 0))

    @property
    def non_mated(self) -> int:
        """Number of queries without a mate."""
        return len(self.rank) - self.mated

    def cmc(self, ranks: Sequence[int] = (1, 5)) -> dict[str, float]:
        """Share of mated queries whose rank is at most k, for each of `ranks`; and how many queries have a mate or not.

        `ranks=range(1, g + 1)` are the points of the whole curve.
        """
        ranks = positive_ints("ranks", ranks)
        found = self.rank[self._is_mated()]
        rates = {f"rank-{k}": float(np.mean(found <= k)) for k in ranks}
        return {**rates, "mated": self.mated, "non_mated": self.non_mated}

    def threshold_at_fpir(self, fpir: float) -> float:
        """The lowest threshold that no more than the share `fpir` of non-mated queries reach, with any score.

        It is the next number above a score, in the dtype of the scores, or −∞ where all queries may.
        """
        n = self.non_mated
        if not n:
            raise ValueError("every query has a mate in the gallery; wanted queries without one for an FPIR")
        if not 1 / n <= fpir <= 1:
            raise ValueError(f"fpir is {fpir}; wanted {1 / n:.3g} to 1, with {n} non-mated queries")
        allowed = int(np.searchsorted(np.arange(n + 1) / n, fpir, side="right")) - 1
        if allowed == n:
            return -np.inf
        return float(np.nextafter(np.sort(self.other[self.rank == 0])[n - 1 - allowed], np.inf))

    def fnir_at_fpir(self, fpir: float, rank: int = 1) -> float:
        """Share of mated queries whose best mate is past `rank` or below the threshold of that FPIR."""
        if rank < 1:
            raise ValueError(f"rank is {rank}; wanted a positive number")
        mated = self._is_mated()
        threshold = self.threshold_at_fpir(fpir)
        return float(np.mean((self.rank[mated] > rank) | (self.mate[mated] < threshold)))

    def dir_at_fpir(self, fpir: float, rank: int = 1) -> float:
        """Detection and identification rate, 1 − FNIR: mates found within `rank` and at or above the threshold."""
        return 1 - self.fnir_at_fpir(fpir, rank)

    def _is_mated(self) -> np.ndarray:
        if not self.mated:
            raise ValueError(f"gallery has none of the labels of the {len(self.rank)} queries; there is nobody to find")
        return self.rank > 0


def searches(scores: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike) -> Searches:
    """What [q, g] scores of queries against a gallery tell about each query; a person may have several rows there.

    Ties count against the mate: a row of somebody else that scores the same comes first, so that equal scores for all
    are not a success (`retrieval` breaks ties by index). Ranks are of rows, not of people.

    >>> searches([[0.9, 0.9, 0.1], [0.2, 0.3, 0.4]], [0, 5], [0, 1, 2]).rank  # a tie; and nobody of that name
    array([2, 0])
    """
    scores, query_labels, gallery_labels = real_scores(scores), np.asarray(query_labels), np.asarray(gallery_labels)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores has shape {scores.shape}; wanted [queries, gallery], at least one of each")
    check_flat_labels("query_labels", query_labels, scores.shape[0])
    check_flat_labels("gallery_labels", gallery_labels, scores.shape[1])
    return _answers(scores, query_labels, gallery_labels)


def identification(
    queries: ArrayLike,
    query_labels: ArrayLike,
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    *,
    similarity: Callable = similarities.cosine,
) -> Searches:
    """`searches` of the scores of embeddings, in panels of queries and gallery: besides these, memory is one panel.

    A gallery of a million distractors takes little longer than the product of queries and gallery. That is computed
    once, and twice for the blocks that hold mates.

    Of the answer, `cmc(ranks)` is the closed-set figure, `fnir_at_fpir(fpir, rank)` the open-set one.

    >>> import numpy as np
    >>> gallery = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> found = identification(np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([0, 1]), gallery, np.array([0, 1]))
    >>> found.cmc(ranks=(1, 2))
    {'rank-1': 0.5, 'rank-2': 1.0, 'mated': 2, 'non_mated': 0}
    """
    queries, query_labels = check_set(queries, query_labels, "queries", "query_labels")
    gallery, gallery_labels = check_set(gallery, gallery_labels, "gallery", "gallery_labels")
    for name, rows in (("queries", queries), ("gallery", gallery)):
        if not len(rows):
            raise ValueError(f"{name} has shape {rows.shape}; wanted at least one row")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries has {queries.shape[1]} features, gallery {gallery.shape[1]}; they must agree")
    people, owners = numbered(query_labels, gallery_labels)
    # In order of people, so that the mates of a panel of queries are neighbours; whom nobody looks for comes last.
    by_person, order = np.argsort(people, kind="stable"), np.argsort(owners, kind="stable")
    owners = owners[order]
    height = sizes.queries_in_identification(len(queries))
    width = sizes.gallery_in_block(len(gallery), height)
    filled = lambda a, by: jnp.asarray(np.pad(a, (0, -len(a) % width), constant_values=by), jnp.int32)
    rows, owned = filled(order, 0), filled(owners, -1)
    parts = []
    for start in range(0, len(queries), height):
        panel = np.take(by_person, np.arange(start, start + height), mode="clip")
        mates = np.searchsorted(owners, people[panel[0]]), np.searchsorted(owners, people[panel[-1]], side="right")
        blocks = jnp.array([mates[0] // width, -(-mates[1] // width)], jnp.int32)
        who = jnp.asarray(people[panel], jnp.int32)
        how = exactly(similarity, "similarity"), width
        parts.append(_answers_in_blocks(how, queries[panel], who, gallery, rows, owned, blocks))
    ahead, mate, other = (np.concatenate(part)[np.argsort(by_person)] for part in zip(*parts, strict=True))
    if np.any(np.isnan(mate) | np.isnan(other)):
        raise ValueError("similarity gives NaN for finite rows; nobody can be identified by it")
    return Searches(np.where(np.isin(people, owners), 1 + ahead.astype(np.int64), 0), mate, other)


def cmc(
    scores: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike, ranks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Cumulative match characteristic: share of queries whose best mate is among the k highest scores.

    Queries whose label is not in the gallery are left out; `mated` counts the others, `non_mated` these. Ties count
    against the mate.

    >>> cmc([[0.9, 0.1], [0.8, 0.7], [0.5, 0.6]], [0, 1, 2], [0, 1], ranks=(1, 2))
    {'rank-1': 0.5, 'rank-2': 1.0, 'mated': 2, 'non_mated': 1}
    """
    return searches(scores, query_labels, gallery_labels).cmc(ranks)


def fnir_at_fpir(
    scores: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike, fpir: float, rank: int = 1
) -> float:
    """False negative identification rate at the lowest threshold whose false positive rate does not exceed `fpir`.

    - FPIR(t): share of non-mated queries with any score ≥ t. Mated queries have no part in it.
    - FNIR(t): share of mated queries whose best mate is not within `rank` or scores < t.

    `fpir` must be at least 1 / number of non-mated queries. Grother, Ngan, Hanaoka 2019, "Face Recognition Vendor Test
    Part 2: Identification" (NISTIR 8271).

    >>> fnir_at_fpir([[0.9, 0.1], [0.2, 0.25], [0.5, 0.8], [0.3, 0.1]], [0, 1, 2, 3], [0, 1], fpir=0.5)
    0.5
    """
    return searches(scores, query_labels, gallery_labels).fnir_at_fpir(fpir, rank)


def dir_at_fpir(
    scores: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike, fpir: float, rank: int = 1
) -> float:
    """Detection and identification rate, 1 − `fnir_at_fpir`.

    >>> dir_at_fpir([[0.9, 0.1], [0.2, 0.25], [0.5, 0.8], [0.3, 0.1]], [0, 1, 2, 3], [0, 1], fpir=1.0)
    1.0
    """
    return searches(scores, query_labels, gallery_labels).dir_at_fpir(fpir, rank)


def _answers(scores: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray) -> Searches:
    same = query_labels[:, None] == gallery_labels[None]
    others = np.where(same, -np.inf, scores)
    mate = np.max(scores, axis=1, initial=-np.inf, where=same)
    ahead = np.sum(others >= mate[:, None], axis=1)
    return Searches(np.where(np.any(same, axis=1), 1 + ahead, 0), mate, np.max(others, axis=1))


@jitted
def _answers_in_blocks(how: tuple[Pairwise, int], queries, people, gallery, rows, owners, mates):
    """(how many others score at least as high as the best mate, its score, the best other score) of each query.

    Blocks of `width` of the gallery's `rows` are scored in turn: first those of `mates`, first and past the last, which
    give the scores of the mates, then all. It is one loop, so that a score is the same to the last bit both times.
    """
    score, width = how
    x = score.embed(widen(queries))
    before = mates[1] - mates[0]
    lanes = sizes.lanes(width)

    lowest = jnp.full(len(x), -jnp.inf, x.dtype)
    nothing = jnp.int32(0), lowest[0], lowest[0]
    joined = lambda a, b: (a[0] + b[0], jnp.maximum(a[1], b[1]), jnp.maximum(a[2], b[2]))

    def step(i, found):
        counts = i >= before
        start = jnp.where(counts, i - before, mates[0] + i) * width
        part = lambda a: lax.dynamic_slice_in_dim(a, start, width)
        scores = score.compare(x, score.embed(widen(gallery[part(rows)]))).astype(x.dtype)
        is_mate = people[:, None] == part(owners)[None]
        is_other = ~is_mate & (part(owners) >= 0)[None]
        ahead = is_other & (scores >= found[1][:, None]) & counts
        panel = ahead.astype(jnp.int32), *(jnp.where(mask, scores, -jnp.inf) for mask in (is_mate, is_other))
        of_lanes = lax.reduce(tuple(a.reshape(len(x), -1, lanes) for a in panel), nothing, joined, (1,))
        return joined(found, lax.reduce(of_lanes, nothing, joined, (1,)))

    return lax.fori_loop(0, before + len(rows) // width, step, (jnp.zeros(len(x), jnp.int32), lowest, lowest))
