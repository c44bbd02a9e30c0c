"""The anchor driver: runs a loss that is written for one block of rows over a whole batch.

A pair-based loss is a sum over anchors, and an anchor needs only its own row: its scores against the columns, and which
columns are its positives and its negatives. A *row function* does that arithmetic,

    rows(scores [r, m], positives [r, m], negatives [r, m], *hyper) -> Mean (or several, whose quotients are added)

and everything else is here: labels to masks, padding, self-exclusion, reference sets, mining, dense or blocked
evaluation, devices, reduction. Row functions are module-level, so that the jit cache hits, and get hyper-parameters as
arguments: numbers and arrays are traced (and have gradients), anything else (strings, functions, None) is static.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from metricjax.checks import check_batch
from metricjax.mining import Triplets
from metricjax.numerics import computing_dtype, widen
from metricjax.pairwise import Pairwise, as_pairwise
from metricjax.panels import Mean as Mean
from metricjax.panels import (
    Problem,
    Static,
    chosen_triplets,
    means_of,
    panels,
    summed_panels,
    summed_triplets,
    varying,
)
from metricjax.sides import Side, in_order_of_class, with_lists_if_short

_DENSE = 2**16  # scores in the whole matrix up to which "auto" stays dense, which compiles faster
_PANEL = 2**20  # scores in one panel above that


def quotient(mean: Mean) -> Float[Array, ""]:
    """The default reduction: Σ total / Σ count, and 0 where nothing counts."""
    total, count = jnp.sum(mean.total), jnp.sum(mean.count)
    return total / jnp.where(count > 0, count, 1)


def with_count(mean: Mean) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A reduction: the loss, and Σ count beside it (of a hinge loss, how many terms are active)."""
    return quotient(mean), jnp.sum(mean.count)


_OF_SUMS = (quotient, with_count)  # reductions that need no more than Σ total and Σ count


class AnchorOptions(TypedDict, total=False):
    """Options of every pair-based loss.

    where: [n] bool, rows that exist; a padded batch gives exactly the value and gradient of the unpadded one.
    weights: [n], multiplies each anchor's total and count.
    references, reference_labels, reference_where: the columns [m, d], [m], [m], where they are not the batch itself.
        An anchor's own column is left out only without them.
    same: `same(a, b) -> bool` says whether two labels match; default equality. With it, labels may have any dtype
        and trailing shape (multi-hot, hierarchy).
    miner: `(distances, positives, negatives) -> (positives, negatives)`, masks in, masks out, one row at a time,
        without a gradient; for a similarity s it gets 1 − s.
    reduction: function of the `Mean` of [n] totals and counts; default Σ total / Σ count. `mj.with_count` gives the
        count beside the loss. Any other costs a further matrix product in panels.
    block_size: anchors per panel; "auto" (dense while n × m is small, by the shapes alone), an int, or None (always
        dense: derivatives of any kind. Panels have no forward mode with a reduction of one's own, and their reverse
        mode over reverse mode may need memory of order n × m, or, for semi-hard triplets, be refused; forward over
        reverse is linear).
    axis_name: mesh axis (or axes) inside `jax.shard_map`, over which embeddings, labels, masks, weights and references
        are split by rows; the value and gradient are those of one device. `mj.over_mesh` writes the `shard_map`.
    """

    where: Bool[Array, " n"] | None
    weights: Float[Array, " n"] | None
    references: Float[Array, "m d"] | None
    reference_labels: Shaped[Array, "m ..."] | None
    reference_where: Bool[Array, " m"] | None
    same: Callable[[Array, Array], Array] | None
    miner: Callable[[Array, Array, Array], tuple[Array, Array]] | None
    reduction: Callable[[Mean], Any]
    block_size: int | Literal["auto"] | None
    axis_name: str | tuple[str, ...] | None


def over_anchors(
    rows: Callable[..., Mean | tuple[Mean, ...]],
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *hyper: Any,
    similarity: Callable[[Array, Array], Array] | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
    apart: bool = False,
    by_pair: bool = False,
    **options: Unpack[AnchorOptions],
) -> Float[Array, ""]:
    """The loss of `rows` over a batch. Give one of `similarity` and `distance`; options: `AnchorOptions`.

    With `apart` the row function is `rows(positive_scores, positives, negative_scores, negatives, *hyper)`: scores
    [r, p] and mask of the positives, in any order, and of the negatives. Where no class is large the positives come
    as a short list, and what is computed for them costs next to nothing.

    `by_pair` promises that each total is a sum of terms that depend on one score each, in the same way for all anchors:
    then panels need one matrix product less.
    """
    batch, how = _sorted_out(embeddings, labels, options)
    score, is_similarity = _score(similarity, distance)
    mirrored = by_pair and _is_symmetric(score, how, batch)
    problem = Problem(rows, score, is_similarity, apart, mirrored, how.same, how.miner)
    try:
        return _over_anchors(problem, how, batch, static_or_traced(hyper, embeddings))
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError("panels have no forward mode with a reduction of one's own; give block_size=None") from error


def over_triplets(
    terms: Callable[..., Mean],
    select: Callable[[Array, Array, Array], Triplets],
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *hyper: Any,
    distance: Callable[[Array, Array], Array],
    negative_of: Callable[[Array, Array, Array], Array] | None = None,
    **options: Unpack[AnchorOptions],
) -> Float[Array, ""]:
    """The loss `terms(d_ap [n, t], d_an [n, t], valid [n, t], *hyper) -> Mean` of [n] arrays over selected triplets.

    In panels, selection runs without a gradient; only the chosen pairs are then gathered and differentiated, so that
    no matrix product but that of the distances is needed. A selection of one negative for every positive is better run
    for one positive after the other: `negative_of(d_ap [r, 1], distances [r, m], negatives [r, m]) -> column [r]`.
    Options: `AnchorOptions`.
    """
    batch, how = _sorted_out(embeddings, labels, options)
    problem = Problem(terms, *_score(None, distance), False, False, how.same, how.miner)
    hyper = static_or_traced(hyper, embeddings)
    return _over_triplets(problem, select, negative_of, how, batch, hyper)


class Batch(NamedTuple):
    """The arrays of one call, as they came."""

    embeddings: Array
    labels: Array
    where: Array | None = None
    weights: Array | None = None
    references: Array | None = None
    reference_labels: Array | None = None
    reference_where: Array | None = None


class Settings(NamedTuple):
    """The options of one call that are not arrays."""

    same: Callable[[Array, Array], Array] | None = None
    miner: Callable[[Array, Array, Array], tuple[Array, Array]] | None = None
    reduction: Callable[[Mean], Any] = quotient
    block_size: int | str | None = "auto"
    axis_name: str | tuple[str, ...] | None = None


@jax.jit(static_argnums=(0, 1), inline=True)
def _over_anchors(problem, how, batch, hyper):
    x, columns, row, column, weights = _sides(problem.score, batch, how.axis_name)
    x, columns, weights, hyper = varying((x, columns, weights, hyper))
    size, rows = _panel_height(batch, how), None if _rows_are_columns(batch, how) else x
    if problem.apart and problem.same is None:
        row, column = in_order_of_class(row, column)
    if size is None:
        means = with_lists_if_short(partial(means_of, problem, x, columns, hyper), row, column)
        return reduced(means, weights, how.reduction, how.axis_name)
    if how.reduction not in _OF_SUMS:
        means = panels(problem, size, rows, columns, hyper, row, column)
        return reduced(means, weights, how.reduction, how.axis_name)
    number = len(jax.eval_shape(lambda *a: means_of(problem, *a), x, columns, hyper, row, column))
    if number == 1:
        mean = summed_panels(problem, size, rows, columns, hyper, (weights,), row, column)
        return reduced((mean,), None, how.reduction, how.axis_name)
    # Each total is divided by its own count, so that counts have to be known before totals are added.
    fixed = lax.stop_gradient((rows, columns, hyper))
    own = [jnp.sum(mean.count * weights) for mean in panels(problem, size, *fixed, row, column)]
    counts = own if how.axis_name is None else lax.psum(own, how.axis_name)
    shares = tuple(weights / jnp.where(count > 0, count, 1) for count in counts)
    total = summed_panels(problem, size, rows, columns, hyper, shares, row, column).total
    return reduced((Mean(total * sum(counts), sum(own)),), None, how.reduction, how.axis_name)


@jax.jit(static_argnums=(0, 1, 2, 3), inline=True)
def _over_triplets(problem, select, negative_of, how, batch, hyper):
    size = _panel_height(batch, how)
    gathers = negative_of is not None or not _selects_many(select)
    if size is None or how.reduction not in _OF_SUMS or not gathers:
        hyper = (Static(select), Static(problem.rows), *hyper)
        return _over_anchors(problem._replace(rows=_picked_rows), how, batch, hyper)
    x, columns, row, column, weights = _sides(problem.score, batch, how.axis_name)
    x, columns, weights, hyper = varying((x, columns, weights, hyper))
    rows = None if _rows_are_columns(batch, how) else x
    if negative_of is not None and problem.same is None:
        row, column = in_order_of_class(row, column)
    mean = summed_triplets(problem, select, negative_of, size, rows, columns, hyper, weights, row, column)
    return reduced((mean,), None, how.reduction, how.axis_name)


def _picked_rows(scores, positives, negatives, select, terms, *hyper) -> Mean:
    """Selected triplets as a row function: their distances are picked out of the scores."""
    positive, negative, valid = chosen_triplets(select, lax.stop_gradient(scores), positives, negatives)
    picked = lambda index: jnp.take_along_axis(scores, index, axis=1)
    return terms(picked(positive), picked(negative), valid, *hyper)


def _selects_many(select: Callable[[Array, Array, Array], Triplets], m: int = 64) -> bool:
    """Whether each row selects as many triplets as it has columns: then picking beats gathering embeddings."""
    scores, mask = jax.ShapeDtypeStruct((1, m), jnp.float32), jax.ShapeDtypeStruct((1, m), jnp.bool_)
    return math.prod(jax.eval_shape(select, scores, mask, mask).valid.shape) >= m


# --- from the caller's arrays to rows and columns -------------------------------------------------------------------


def _sorted_out(embeddings: Array, labels: Array, options: AnchorOptions) -> tuple[Batch, Settings]:
    """Options split into arrays and settings, once they fit together."""
    arrays = {name: options[name] for name in Batch._fields if name in options}  # type: ignore[literal-required]
    rest = {name: value for name, value in options.items() if name not in arrays}
    unknown = sorted(rest.keys() - set(Settings._fields))
    if unknown:
        raise TypeError(
            f"unknown options {unknown}; besides its own, a loss takes {sorted(AnchorOptions.__annotations__)}"
        )
    batch, how = Batch(embeddings, labels, **arrays), Settings(**rest)  # type: ignore[arg-type]
    check_batch(**batch._asdict(), same=how.same, block_size=how.block_size)
    return batch, how


def _score(similarity, distance) -> tuple[Pairwise, bool]:
    if (similarity is None) == (distance is None):
        raise TypeError("give exactly one of `similarity` (larger is closer) and `distance` (smaller is closer)")
    score = distance if similarity is None else similarity
    if not callable(score):
        raise TypeError(
            f"{'distance' if similarity is None else 'similarity'} is {score!r}; wanted a function of (x, y)"
        )
    return as_pairwise(score), similarity is not None


def static_or_traced(values: tuple, embeddings: Array) -> tuple:
    """Numbers and arrays as arrays of the computing dtype, anything else wrapped as `Static`."""
    dtype = computing_dtype(embeddings.dtype)
    is_static = lambda v: v is None or isinstance(v, bool | str) or callable(v)
    return tuple(Static(v) if is_static(v) else jnp.asarray(v, dtype=dtype) for v in values)


def _sides(score: Pairwise, batch: Batch, axis_name):
    """Rows, columns, what is known of each, and the anchors' weights; columns come from every device of the axis."""
    n = len(batch.embeddings)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    gathered = lambda a: a if axis_name is None else lax.all_gather(a, axis_name, tiled=True)
    present = lambda where, n: jnp.ones(n * devices, bool) if where is None else gathered(where)
    ids = jnp.arange(n * devices, dtype=jnp.int32)
    own = ids if axis_name is None else lax.dynamic_slice_in_dim(ids, lax.axis_index(axis_name) * n, n)
    x = score.embed(existing(widen(batch.embeddings), batch.where))
    row = Side(batch.labels, jnp.ones(n, bool) if batch.where is None else batch.where, own)
    weights = jnp.ones(n, x.dtype) if batch.weights is None else batch.weights.astype(x.dtype)
    if batch.references is None:
        return x, gathered(x), row, Side(gathered(batch.labels), present(batch.where, n), ids), weights
    columns = gathered(score.embed(existing(batch.references.astype(x.dtype), batch.reference_where)))
    labels, where = gathered(jnp.asarray(batch.reference_labels)), present(batch.reference_where, len(batch.references))
    return x, columns, row, Side(labels, where, jnp.full(len(columns), -1, jnp.int32)), weights


def existing(x: Float[Array, "n d"], where: Bool[Array, " n"] | None) -> Float[Array, "n d"]:
    """Rows that do not exist become 0: whatever stood there, NaN included, reaches neither value nor gradient."""
    return x if where is None else jnp.where(where[:, None], x, 0)


def _panel_height(batch: Batch, how: Settings) -> int | None:
    """Anchors per panel, None for the dense form."""
    n, m = len(batch.embeddings), len(batch.embeddings if batch.references is None else batch.references)
    if how.axis_name is not None:
        m *= lax.axis_size(how.axis_name)
    if isinstance(how.block_size, int):
        return min(how.block_size, n)
    if how.block_size is None or n * m <= _DENSE:
        return None
    return min(n, max(8, min(512, _PANEL // m // 8 * 8)))


def _rows_are_columns(batch: Batch, how: Settings) -> bool:
    """Then panels take their rows out of the columns, and need no array of rows besides."""
    return batch.references is None and how.axis_name is None


def _is_symmetric(score: Pairwise, how: Settings, batch: Batch) -> bool:
    """Whether score, masks and cotangents of (i, j) are those of (j, i)."""
    plain = how.same is None and how.miner is None and how.reduction in _OF_SUMS
    return score.symmetric and plain and batch.references is None and batch.weights is None


def reduced(means: tuple[Mean, ...], weights, reduction, axis_name=None):
    """The loss: anchors weighted, devices joined, each Mean reduced, and the results added."""
    if weights is not None:
        means = tuple(Mean(mean.total * weights, mean.count * weights) for mean in means)
    if axis_name is not None:
        if reduction in _OF_SUMS:
            means = jax.tree.map(jnp.sum, means)
        else:
            means = jax.tree.map(lambda a: _placed(a, axis_name), means)
        means = lax.psum(means, axis_name)
    return jax.tree.map(lambda *parts: sum(parts), *(reduction(mean) for mean in means))


def _placed(a: Float[Array, " n"], axis_name) -> Float[Array, " all"]:
    """This device's part of a long array of zeros: the sum over devices is the whole array, the same everywhere."""
    size, index = lax.axis_size(axis_name), lax.axis_index(axis_name)
    whole = jnp.zeros((size, len(a)), a.dtype)
    return jnp.where(jnp.arange(size)[:, None] == index, a[None], whole).ravel()
