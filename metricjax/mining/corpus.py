"""Mining of a whole corpus, beforehand: which of its rows are hard negatives of each query."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from metricjax import similarities
from metricjax.engine import devices, sizes
from metricjax.engine.devices import of_all, row_ids
from metricjax.ground.checks import check_array, check_fits, check_labels, check_per_row, check_rows
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import existing, finite_rows, widen
from metricjax.ground.one_line import one_line
from metricjax.ground.pairwise import Pairwise, exactly
from metricjax.ground.precision import Precision
from metricjax.search import Neighbours, top_k

__all__ = ["HardNegatives", "hard_negatives"]


class HardNegatives(NamedTuple):
    """Rows of a corpus that are hard negatives of each query, closest first: −1, score −∞, where there are no more.

    `positive_scores` are those of the positives, in their shape, −∞ where there is none; None if none were given.
    """

    indices: Int[Array, "q k"]
    scores: Float[Array, "q k"]
    positive_scores: Float[Array, "q ..."] | None

    def __repr__(self) -> str:
        return one_line(self)


class _Static(NamedTuple):
    """What is static in one call."""

    score: Pairwise
    window: int
    ranks: tuple[int, int]
    negatives: int
    block_size: int | str
    memory_budget: int
    axis_name: str | tuple[str, ...] | None


class _Candidates(NamedTuple):
    """The rows closest to each query, which are not positives, and what is known of those."""

    scores: Float[Array, "q c"]
    indices: Int[Array, "q c"]
    positive: Bool[Array, "q c"]
    positives: Int[Array, "q p"]
    positive_scores: Float[Array, "q p"]


def hard_negatives(
    queries: Float[Array, "q d"],
    corpus: Float[Array, "m d"],
    positives: Integer[Array, "q ..."] | None = None,
    *,
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int | None = None,
    min_score: ArrayLike | None = None,
    max_score: ArrayLike | None = None,
    absolute_margin: ArrayLike | None = None,
    relative_margin: ArrayLike | None = None,
    query_labels: Integer[Array, " q"] | None = None,
    corpus_labels: Integer[Array, " m"] | None = None,
    documents: Integer[Array, " m"] | None = None,
    where: Bool[Array, " m"] | None = None,
    key: Key[Array, ""] | None = None,
    rescore: Callable[[Array], Array] | None = None,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    block_size: int | Literal["auto"] = "auto",
    memory_budget: int = sizes.BUDGET,
    precision: Precision = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> HardNegatives:
    """Rows of a corpus that are close to a query and not its positives, by `search.top_k`: exact, in linear memory.

    Arguments have the names and the meaning that they have in `mine_hard_negatives` of sentence-transformers:

    1. Candidates are the `range_max` + p rows closest to the query, where p is the number of columns of `positives`.
    2. Left out are its positives, and scores above `max_score`, below `min_score`, above s − `absolute_margin`, or
       above s − |s| `relative_margin`, where s is the score of the query's positive: the lowest of several.
    3. Of those that are left, in order of their scores, the first `range_min` are skipped, and those past the first
       `range_max` too: both are ranks among the rows that are left.
    4. Negatives are the first `num_negatives` of the rest or, with a `key`, as many of them at random.

    A margin finds no negatives for a query whose positive's score is not known.

    Args:
      positives: [q] or [q, p], which rows of the corpus belong with each query, −1 for none. A query that comes with
        several of them names all in each of its rows.
      range_max: None is `range_min` + `num_negatives` + p, or `range_min` + 10 `num_negatives` + p with a margin or
        `max_score`.
      min_score, max_score, absolute_margin, relative_margin: numbers, traced ones too. `relative_margin=0.05` is
        TopK-PercPos of 95 %, the best of NV-Retriever (Moreira et al. 2024, arXiv:2407.15831).
      query_labels, corpus_labels: rows with the query's own label are not searched, and so have no ranks. This copies
        the corpus once. Queries that are themselves in the corpus never find themselves then.
      documents: which document each row of the corpus is, for those that come several times: only its first row is
        searched, and it is a positive wherever one of the others is. Of equal rows these are
        `np.unique(corpus, axis=0, return_inverse=True)[1]`, of near-duplicates `clusters.connected_components(corpus,
        0.98)`.
      where: which rows of the corpus may be negatives.
      rescore: `rescore(indices [q, c]) -> scores [q, c]`, of the rows of the corpus `indices` with each query, −1 for
        none: a cross encoder, say. It is called once with all candidates and once with the positives, and all scores
        are its then. Without `jit` around all this it may be any function on the host.
      similarity: all-pairs function, larger is closer.
      block_size, memory_budget, precision: as in `search.top_k`.
      axis_name: mesh axis (or axes) inside `jax.shard_map`, over which queries and corpus are split by rows, and what
        belongs to each with them; rows of the corpus are numbered over all devices. The result is that of one device.

    That is their version of August 2026; older ones took limits of queries with several positives from the wrong
    scores, and raised a limit below 0 by a relative margin. On purpose different here: `rescore` counts without a
    margin too; rows are compared, not texts, so that `documents` says which are the same; equal scores stand in the
    order of their rows; and a query for which too few negatives are found has −1.

    To train with them, gather rows (images, texts) by `indices`, embed them, and give them to a loss as references: see
    the guide to miners.

    >>> import jax.numpy as jnp
    >>> corpus = jnp.array([[1.0, 0.0], [0.96, 0.28], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> found = hard_negatives(jnp.array([[1.0, 0.0]]), corpus, jnp.array([1]), num_negatives=2, relative_margin=0.05)
    >>> found.indices.tolist(), found.scores.tolist(), found.positive_scores.tolist()
    ([[2, 3]], [[0.8, 0.6]], [0.96])
    """
    check_rows("queries", queries)
    check_rows("corpus", corpus)
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries has {queries.shape[1]} features, corpus {corpus.shape[1]}; they must agree")
    rows = devices.count(axis_name) * len(corpus)
    if not rows:
        raise ValueError("corpus has no rows; wanted at least one")
    _check_positives(positives, len(queries), rows)
    if (query_labels is None) != (corpus_labels is None):
        raise TypeError("one of query_labels and corpus_labels came; wanted both")
    _check_numbers("query_labels", query_labels, len(queries))
    _check_numbers("corpus_labels", corpus_labels, len(corpus))
    _check_numbers("documents", documents, len(corpus))
    check_per_row("where", where, len(corpus))
    if positives is None and query_labels is None:
        raise TypeError("positives and query_labels are None; wanted one of them: what is not a negative of a query?")
    margins = {"absolute_margin": absolute_margin, "relative_margin": relative_margin}
    for name, margin in margins.items():
        if margin is not None and positives is None:
            raise TypeError(f"{name} came without positives, with whose scores it compares; wanted both")
    numbers = dict(margins, max_score=max_score, min_score=min_score)
    for name, number in numbers.items():
        if number is not None and jnp.ndim(number):
            raise ValueError(f"{name} has shape {jnp.shape(number)}; wanted one number")
    listed = jnp.zeros((len(queries), 0), jnp.int32) if positives is None else jnp.asarray(positives)
    listed = listed[:, None] if listed.ndim == 1 else listed
    p = listed.shape[1]
    if range_max is None:
        often = any(limit is not None for limit in (absolute_margin, relative_margin, max_score))
        range_max = range_min + num_negatives * (10 if often else 1) + p
    if not (range_min >= 0 and num_negatives >= 1 and range_max >= range_min + num_negatives):
        came = f"range_min is {range_min}, range_max {range_max} and num_negatives {num_negatives}"
        raise ValueError(f"{came}; wanted 0 <= range_min, 1 <= num_negatives <= range_max - range_min")

    score = exactly(similarity, "similarity").at(precision)
    window = min(range_max + p, rows)
    static = _Static(score, window, (range_min, range_max), num_negatives, block_size, memory_budget, axis_name)
    arrays = lax.stop_gradient((queries, corpus)), listed, query_labels, corpus_labels, documents, where
    candidates = _candidates(static, *arrays)
    if rescore is not None:
        candidates = candidates._replace(
            scores=_rescored(rescore, candidates.indices, candidates.scores),
            positive_scores=_rescored(rescore, candidates.positives, candidates.scores),
        )
    indices, scores = _chosen(static, candidates, numbers, key)
    own = None if positives is None else candidates.positive_scores.reshape(positives.shape)
    return HardNegatives(indices, scores, own)


# --- what is searched -----------------------------------------------------------------------------------------------


@jitted
def _candidates(static: _Static, both, positives, query_labels, corpus_labels, documents, where) -> _Candidates:
    """The rows closest to each query, closest first, and which of them are its positives."""
    (queries, corpus), axis = both, static.axis_name
    rows = devices.count(axis) * len(corpus)
    listed = jnp.where((positives >= 0) & (positives < rows), positives, -1).astype(jnp.int32)
    same = listed  # the row that is searched in place of each positive
    if documents is not None:
        first = _first_of_each(documents, where, axis)
        is_first = devices.mine(first, len(corpus), axis) == row_ids(len(corpus), axis)
        where = is_first if where is None else is_first & where
        same = jnp.where(listed < 0, -1, first[listed])
    x, y, score = queries, corpus, static.score
    if query_labels is not None:
        dtype = np.promote_types(np.promote_types(query_labels.dtype, corpus_labels.dtype), np.int32)
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        x, y = _with_labels(queries, query_labels, dtype), _with_labels(corpus, corpus_labels, dtype)
        score = _of_other_labels(score, dtype.itemsize)
    how: dict[str, Any] = {"block_size": static.block_size, "memory_budget": static.memory_budget, "axis_name": axis}
    best: Neighbours = top_k(x, y, static.window, similarity=score, where=where, **how)
    positive = jnp.any(best.indices[:, :, None] == same[:, None], axis=2)
    return _Candidates(*best, positive, listed, _scores_of(static, queries, corpus, listed))


def _scores_of(static: _Static, queries, corpus, listed: Int[Array, "q p"]) -> Float[Array, "q p"]:
    """The score of each query with the rows of the corpus that are listed for it; −∞ for −1, NaN and infinity.

    Queries and lists travel to all devices, each of which scores what is listed of its own rows.
    """
    axis, m = static.axis_name, len(corpus)
    x = of_all(widen(queries), axis)
    if not listed.size:
        return jnp.zeros(listed.shape, x.dtype)
    here = of_all(listed, axis) - devices.index(axis) * m
    here = jnp.where((here >= 0) & (here < m), here, -1)

    def one(pair):
        row, index = pair
        both = x[row][None], corpus[index][None].astype(x.dtype)
        sound = (index >= 0) & finite_rows(both[0]) & finite_rows(both[1])
        scores = static.score.compare(*(static.score.embed(existing(a, sound)) for a in both))[0]
        return jnp.where(sound & ~jnp.isnan(scores), scores, -jnp.inf)[0]

    own = lax.broadcasted_iota(jnp.int32, here.shape, 0)
    scores = lax.map(one, (own.reshape(-1), here.reshape(-1)), batch_size=sizes.pairs_at_once())
    return jnp.max(devices.for_mine(scores.reshape(here.shape), axis), axis=0)


def _first_of_each(documents, where, axis) -> Int[Array, " m"]:
    """For each row, on any device, the first row of the same document, of those that may be negatives if there are."""
    out = jnp.zeros(len(documents), jnp.int32) if where is None else (~where).astype(jnp.int32)
    documents, out = of_all((documents, out), axis)
    number = jnp.arange(len(documents), dtype=jnp.int32)
    documents, _, order = lax.sort((documents, out, number), num_keys=2, is_stable=True)
    begins = jnp.append(True, documents[1:] != documents[:-1])
    return jnp.zeros_like(number).at[order].set(order[lax.cummax(jnp.where(begins, number, 0))])


def _with_labels(rows, labels, dtype):
    """Rows with columns for the bytes of their labels, which any floating-point dtype holds exactly."""
    labels = labels.astype(dtype)
    shifts = 8 * jnp.arange(dtype.itemsize, dtype=dtype)
    parts = (labels[:, None] >> shifts[None]) & jnp.asarray(255, dtype)
    return jnp.concatenate([rows, parts.astype(rows.dtype)], axis=1)


def _of_other_labels(score: Pairwise, count: int) -> Pairwise:
    """A score of rows that end with the bytes of their labels, so many: −∞ for those of one label."""
    return Pairwise(partial(_embed, score, count), partial(_compare, score, count), symmetric=score.symmetric)


def _embed(score: Pairwise, count: int, rows):
    """Embedded rows that end with their labels, two bytes to a number."""
    embedded, parts = score.embed(rows[:, :-count]), rows[:, -count:]
    return jnp.concatenate([embedded, (parts[:, ::2] + 256 * parts[:, 1::2]).astype(embedded.dtype)], axis=1)


def _compare(score: Pairwise, count: int, x, y):
    numbers = count // 2
    alike = [x[:, None, -i] == y[None, :, -i] for i in range(1, numbers + 1)]
    return jnp.where(reduce(jnp.logical_and, alike), -jnp.inf, score.compare(x[:, :-numbers], y[:, :-numbers]))


def _rescored(rescore: Callable[[Array], Any], indices: Int[Array, "q c"], like: Array) -> Float[Array, "q c"]:
    scores = jnp.asarray(rescore(indices), like.dtype)
    if scores.shape != indices.shape:
        raise ValueError(f"rescore gave scores of shape {scores.shape}; wanted that of the indices, {indices.shape}")
    return jnp.where((indices < 0) | jnp.isnan(scores), -jnp.inf, scores)


# --- what is chosen -------------------------------------------------------------------------------------------------


@jitted
def _chosen(static: _Static, candidates: _Candidates, numbers, key) -> tuple[Int[Array, "q k"], Float[Array, "q k"]]:
    """The negatives among the candidates."""
    scores, indices, positive, positives, positive_scores = candidates
    number = lambda name: jnp.asarray(numbers[name], scores.dtype)
    none = ~jnp.any(positives >= 0, axis=1, keepdims=True)
    least = jnp.min(jnp.where(positives >= 0, positive_scores, jnp.inf), axis=1, keepdims=True, initial=jnp.inf)
    least = jnp.where(none, -jnp.inf, least)
    out = positive
    if numbers["absolute_margin"] is not None:
        out |= scores + number("absolute_margin") > least
    if numbers["relative_margin"] is not None:
        part = number("relative_margin")
        out |= scores > least * jnp.where(least < 0, 1 + part, 1 - part)
    if numbers["max_score"] is not None:
        out |= scores > number("max_score")
    if numbers["min_score"] is not None:
        out |= scores < number("min_score")

    scores, places = lax.top_k(jnp.where(out, -jnp.inf, scores), static.window)
    start, end = static.ranks
    scores, places = scores[:, start:end], places[:, start:end]
    if key is not None and scores.shape[1] > static.negatives:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids(len(scores), static.axis_name))
        lots = jax.vmap(lambda key: jax.random.uniform(key, scores.shape[1:], scores.dtype))(keys)
        drawn = jnp.sort(lax.top_k(jnp.where(scores == -jnp.inf, -1, lots), static.negatives)[1])
        scores, places = (jnp.take_along_axis(a, drawn, axis=1) for a in (scores, places))
    scores, places = scores[:, : static.negatives], places[:, : static.negatives]
    indices = jnp.where(scores == -jnp.inf, -1, jnp.take_along_axis(indices, places, axis=1))
    missing = [(0, 0), (0, static.negatives - scores.shape[1])]
    return jnp.pad(indices, missing, constant_values=-1), jnp.pad(scores, missing, constant_values=-jnp.inf)


# --- what came ------------------------------------------------------------------------------------------------------


def _check_positives(positives: Any, queries: int, rows: int) -> None:
    if positives is None:
        return
    check_array("positives", positives, "an array with one index for each query, or several")
    if not jnp.issubdtype(positives.dtype, jnp.integer):
        raise TypeError(f"positives has dtype {positives.dtype}; wanted integers, which rows of the corpus they are")
    if positives.ndim not in (1, 2) or len(positives) != queries:
        raise ValueError(f"positives has shape {positives.shape}; wanted [{queries}] or [{queries}, several]")
    known = isinstance(positives, np.ndarray) and positives.size  # nothing waits for what a device has
    if known and not -1 <= positives.min() <= positives.max() < rows:
        came = f"positives go from {positives.min()} to {positives.max()}"
        raise ValueError(f"{came}; wanted rows of the corpus, 0 to {rows - 1}, or -1 for none")


def _check_numbers(name: str, numbers: Any, rows: int) -> None:
    """`numbers` is None or holds one integer for each row."""
    if numbers is None:
        return
    check_labels(name, numbers, rows)
    check_fits(name, numbers)
    if numbers.ndim != 1:
        raise ValueError(f"{name} has shape {numbers.shape}; wanted ({rows},), one integer for each row")
