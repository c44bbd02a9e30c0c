"""Ranks of the matches of each query among all references in order of their score: what retrieval measures are of."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metricjax.engine import sizes
from metricjax.engine.selecting import comes_before, counted_before
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import widen
from metricjax.ground.pairwise import Pairwise, all_pairs, exactly, positive_and_negative
from metricjax.metrics.sets import numbered, on_device

__all__ = ["Ranks", "ranks_of_matches"]


class Ranks(NamedTuple):
    """Of some queries, each of which has a match: the ranks of their matches, query after query, the first match first.

    queries: [q], which these are. relevant: [q], how many matches each has. rank: [sum of relevant], from 1.
    """

    queries: np.ndarray
    relevant: np.ndarray
    rank: np.ndarray


def ranks_of_matches(x, labels, references, similarity: Callable, same: Callable | None) -> Iterator[Ranks]:
    """Of all queries with a match, some at a time; `references` is (rows, labels), None for all rows but the query.

    A rank is 1 and the number of references that score higher, or as high with a lower index. These are counted while a
    panel of scores is in cache: each pair is scored once, and nothing is sorted. Where a query has hundreds of matches,
    one sort of its row takes less time.
    """
    alone = references is None
    y, reference_labels = (x, labels) if references is None else references
    if not len(x) or not len(y):
        return
    score = exactly(similarity, "similarity")
    y = _embedded(score, y)
    if same is None:
        yield from _of_classes(score, x, labels, y, reference_labels, alone)
    else:
        yield from _of_panels(score, x, np.arange(len(x)), y, _relation(same, labels, reference_labels), alone)


@jitted
def _embedded(score: Pairwise, rows):
    return score.embed(widen(rows))


# --- classes --------------------------------------------------------------------------------------------------------


def _of_classes(score: Pairwise, x, labels, y, reference_labels, alone: bool) -> Iterator[Ranks]:
    """Queries with about the same number of matches together, those with very many last."""
    of_query, of_reference = numbered(labels, reference_labels)
    order = np.argsort(of_reference, kind="stable")
    first, past = (np.searchsorted(of_reference[order], of_query, side) for side in ("left", "right"))
    relevant = past - first - alone
    place = np.argsort(order) if alone else np.full(len(x), len(y))  # of a query among the references, by class
    least = 0
    for length in sizes.LISTS_OF_MATCHES:
        queries = np.flatnonzero((relevant > least) & (relevant <= length))
        least = length
        if not len(queries):
            continue
        height = sizes.queries_in_ranking(len(queries), len(y), length)
        step = height * sizes.panels_in_ranking(len(queries), height, length)
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            index = first[some, None] + np.arange(length)
            index += index >= place[some, None]
            columns = order[np.minimum(index, len(y) - 1)]
            own = some if alone else np.full(len(some), -1)
            filled = (np.take(a, np.arange(step), axis=0, mode="clip") for a in (some, columns, relevant[some], own))
            before = _counted(score, x, y, *(a.reshape(-1, height, *a.shape[1:]) for a in filled))
            yield _as_ranks(some, relevant[some], before.reshape(step, length)[: len(some)])
    related = lambda rows: (of_query[rows, None] == of_reference[None], np.ones((len(rows), len(y)), bool))
    yield from _of_panels(score, x, np.flatnonzero(relevant > least), y, related, alone)


# --- any relation ---------------------------------------------------------------------------------------------------


def _of_panels(score: Pairwise, x, queries: np.ndarray, y, related: Callable, alone: bool) -> Iterator[Ranks]:
    """Panels of these queries; `related(panel)` are the masks of their matches, and of what counts at all."""
    height = sizes.rows_in_table(len(y))
    for start in range(0, len(queries), height):
        some = queries[start : start + height]
        matches, counted = related(some)
        if alone:
            counted[np.arange(len(some)), some] = False
        matches &= counted
        relevant = np.sum(matches, axis=1)
        if not np.any(relevant):
            continue
        length = next((length for length in sizes.LISTS_OF_MATCHES if np.max(relevant) <= length), None)
        found = relevant > 0
        if length is None:
            scores = _table(score, x, y, some)
            few = (slice(i, i + few) for few in [sizes.rows_sorted_on_host(len(y))] for i in range(0, len(some), few))
            places = [np.nonzero(_sorted(scores[rows], matches[rows], counted[rows]))[1] for rows in few]
            yield Ranks(some[found], relevant[found], 1 + np.concatenate(places))
        else:
            columns = np.zeros((len(some), length), np.int64)
            columns[np.arange(length) < relevant[:, None]] = np.nonzero(matches)[1]
            one = (a[None] for a in (some, columns, relevant, np.full_like(some, -1), ~counted))
            before = _counted(score, x, y, *one)[0]
            yield _as_ranks(some[found], relevant[found], before[found])


def _relation(same: Callable, labels, reference_labels) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Which references match some queries, and which count at all."""
    a, b = on_device("labels", labels), on_device("reference_labels", reference_labels)
    pairs = jax.jit(partial(all_pairs, same))

    def related(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        positives, negatives = positive_and_negative(pairs(a[queries], b))
        return np.array(positives), np.array(positives | negatives)

    return related


# --- counting -------------------------------------------------------------------------------------------------------


def _counted(score: Pairwise, x, y, queries, columns, relevant, own, left_out=None) -> np.ndarray:
    """[panels, r, p]: how many references come before those at `columns`, the query itself and what is left out aside.

    `relevant` says how many of the columns are asked for, `own` which reference is the query, −1 for none.
    """
    integers = (jnp.asarray(a, jnp.int32) for a in (columns, relevant, own))
    before, broken = _counted_in_panels(score, x[queries], y, (*integers, left_out))
    _check(broken)
    return np.asarray(before)


@jitted
def _counted_in_panels(score: Pairwise, x, y, lists):
    largest = jnp.max(jnp.abs(y))

    def panel(broken, given):
        x, (columns, relevant, own, left_out) = given
        x = score.embed(widen(x))
        scores = _scores(score, x, y)
        # A product that cannot overflow is no NaN: to look for one in all scores takes some time.
        known = score.product & (jnp.max(jnp.abs(x)) * largest < jnp.finfo(x.dtype).max / x.shape[1])
        broken |= lax.cond(known, lambda: jnp.zeros((), bool), lambda: jnp.any(jnp.isnan(scores)))
        if left_out is not None:
            whole = jnp.issubdtype(scores.dtype, jnp.integer)
            scores = jnp.where(left_out, jnp.iinfo(jnp.int32).min if whole else jnp.nan, scores)
        before = counted_before(scores, columns, jnp.max(relevant))
        value = lambda index: jnp.take_along_axis(scores, index, axis=1)
        own = own[:, None]
        own_before = (own >= 0) & comes_before(value(own), own, value(columns), columns)
        return broken, before - own_before.astype(before.dtype)

    broken, before = lax.scan(panel, jnp.zeros((), bool), (x, lists))
    return before, broken


def _scores(score: Pairwise, x, y):
    scores = score.compare(x, y)
    return scores.astype(jnp.int32) if jnp.issubdtype(scores.dtype, jnp.integer) else widen(scores)


def _as_ranks(queries: np.ndarray, relevant: np.ndarray, before: np.ndarray) -> Ranks:
    """From how many references come before each match: the lists are filled up with what is not asked for."""
    asked = np.arange(before.shape[1]) < relevant[:, None]
    rank = 1 + np.sort(np.where(asked, before, np.iinfo(before.dtype).max - 1), axis=1)
    return Ranks(queries, relevant, rank[asked])


def _check(broken) -> None:
    if broken:
        raise ValueError("similarity gives NaN for finite rows; nothing can be ranked by it")


# --- sorting --------------------------------------------------------------------------------------------------------


def _table(score: Pairwise, x, y, queries: np.ndarray) -> np.ndarray:
    scores, broken = _checked_scores(score, x[queries], y)
    _check(broken)
    return np.asarray(scores)


@jitted
def _checked_scores(score: Pairwise, x, y):
    scores = _scores(score, score.embed(widen(x)), y)
    return scores, jnp.any(jnp.isnan(scores))


def _sorted(scores: np.ndarray, matches: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """`matches` by falling score, ties by index, −0 being 0; what does not count comes last."""
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    keys = np.where(counted, 0 - scores, scores.dtype.type(np.nan))  # NumPy sorts NaN behind ∞
    if scores.dtype != np.float32:
        return np.take_along_axis(matches, np.argsort(keys, axis=1, kind="stable"), axis=1)
    # Integers in the order of the floats, then of the columns, the match riding along: sorting them is several times
    # faster than a stable argsort.
    bits = keys.view(np.int32)
    packed = (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64) << 32
    packed |= 2 * np.arange(keys.shape[1]) + matches
    packed.sort(axis=1)
    return (packed & 1).astype(bool)
