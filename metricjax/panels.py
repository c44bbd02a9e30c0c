"""Panels of rows: a loss over a few anchors at a time, and its gradient taken while the panel is still in cache.

Reverse-mode differentiation through a scan would keep every panel. A sum over anchors has its gradient taken in the
same pass, in the rule of its tangent, which is the gradient times the tangent: so both modes of differentiation work.
For one Mean of each anchor, the backward pass computes each panel again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Shaped

from metricjax.pairwise import Pairwise
from metricjax.sides import LIST, Side, listed_positives, one_by_one, summed_over_positives, with_lists_if_short


class Mean(NamedTuple):
    """A quotient in the making. Means add over blocks and devices; divide once, at the end."""

    total: Float[Array, "..."]
    count: Shaped[Array, "..."]  # type: ignore[assignment]  # hides tuple.count


@partial(
    jax.tree_util.register_dataclass,
    meta_fields=["rows", "score", "is_similarity", "kind", "mirrored", "swap", "negative_of"],
    data_fields=["same", "miner", "select", "given"],
)
@dataclass(frozen=True)
class Problem:
    """One loss. Its functions are static; those that may hold arrays (a miner's limits, a key) are pytrees.

    kind: what the row function gets besides hyper-parameters: "whole" (scores, positives, negatives), "apart"
        (positives and negatives as two arrays of scores, each with its mask), "reaching" ("whole", and `Reach`) or
        "triplets" (distances d_ap and d_an [r, t] of selected triplets, and which are valid).
    mirrored: score, terms and cotangent of the pair (i, j) are those of (j, i).
    swap: of triplets, d_an is min(d_an, d_pn).
    negative_of: selects the negative for one positive of each row.
    given: `(row labels, column labels) -> anything`, which the row function gets before its hyper-parameters.
    """

    rows: Callable[..., Any]
    score: Pairwise
    is_similarity: bool
    kind: Literal["whole", "apart", "reaching", "triplets"] = "whole"
    mirrored: bool = False
    swap: bool = False
    negative_of: Callable[[Array, Array, Array], Array] | None = None
    same: Partial | None = None
    miner: Partial | None = None
    select: Partial | None = None
    given: Partial | None = None


class Reach(NamedTuple):
    """How a row function reaches the rows of its columns.

    positive, there: the columns [r, p] of each row's positives, and which of them count.
    row_of: scores, positives and negatives [r, m] of one column for each row, given their indices [r], against all
        columns.
    """

    positive: Int[Array, "r p"]
    there: Bool[Array, "r p"]
    row_of: Callable[[Array], tuple[Array, Array, Array]]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A hyper-parameter that is not an array: part of the tree's structure instead of a leaf."""

    value: Any


def unwrapped(hyper: tuple) -> tuple:
    return tuple(h.value if isinstance(h, Static) else h for h in hyper)


# --- one panel of rows ----------------------------------------------------------------------------------------------


def scores_and_masks(problem: Problem, x, columns, row: Side, column: Side):
    """Scores of some rows against all columns, and the masks of their positives and negatives."""
    scores = problem.score.compare(x, columns)
    same = problem.same or (lambda a, b: jnp.all(a == b))
    related = jax.vmap(lambda a: jax.vmap(lambda b: same(a, b))(column.labels))(row.labels)
    match, differ = related if isinstance(related, tuple) else (related, ~related)
    exist = row.where[:, None] & column.where[None]
    other = exist & (row.ids[:, None] != column.ids[None])
    positives, negatives = match & other, differ & (exist if problem.same is None else other)
    if problem.miner is not None:
        distances = lax.stop_gradient(1 - scores if problem.is_similarity else scores)
        positives, negatives = keyed(problem.miner, row)(distances, positives, negatives)
    return scores, positives, negatives


def keyed(f: Partial, row: Side) -> Partial:
    """`f` with each random key among its leaves replaced by one for each row, the same wherever the row is computed."""
    is_key = lambda a: jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.vmap(jax.random.fold_in, (None, 0))(a, row.ids) if is_key(a) else a, f)


def means_of(problem: Problem, x, columns, hyper, row: Side, column: Side) -> tuple[Mean, ...]:
    """The Means of some anchors: [r] arrays."""
    hyper = _given(problem, row, column) + unwrapped(hyper)
    scores, positives, negatives = scores_and_masks(problem, x, columns, row, column)
    if problem.kind == "triplets":
        means = _means_of_triplets(problem, scores, positives, negatives, columns, hyper, row)
    elif problem.kind == "whole":
        means = problem.rows(scores, positives, negatives, *hyper)
    else:
        index, listed = _listed(problem, positives, row, column)
        if problem.kind == "reaching":
            reach = Reach(index, listed, partial(_row_of, problem, columns, column))
            means = problem.rows(scores, positives, negatives, reach, *hyper)
        else:
            picked = scores if row.span is None else jnp.take_along_axis(scores, index, axis=1)
            means = problem.rows(picked, listed, scores, negatives, *hyper)
    return tuple(counted(mean, x) for mean in ((means,) if isinstance(means, Mean) else means))


def _given(problem: Problem, row: Side, column: Side) -> tuple:
    return () if problem.given is None else (problem.given(row.labels, column.labels),)


def _listed(problem: Problem, positives, row: Side, column: Side):
    """Columns [r, p] of each row's positives and which count: a short list, or all columns and the mask."""
    if row.span is None:
        return jnp.broadcast_to(jnp.arange(positives.shape[1], dtype=jnp.int32), positives.shape), positives
    index, listed = listed_positives(row, column, jnp.arange(LIST, dtype=jnp.int32))
    return index, listed if problem.miner is None else listed & jnp.take_along_axis(positives, index, axis=1)


def _row_of(problem: Problem, columns, column: Side, index: Int[Array, " r"]):
    row = Side(column.labels[index], column.where[index], column.ids[index])
    return scores_and_masks(problem, columns[index], columns, row, column)


def counted(mean: Mean, x: Array) -> Mean:
    return Mean(mean.total, lax.stop_gradient(mean.count).astype(x.dtype))


def varying(tree: Any) -> Any:
    """Inside `shard_map`: every float array varies over each mesh axis that any of them varies over.

    A custom derivative rule cannot sum a gradient over devices for an argument that does not vary; with the change
    made here, outside the rule, ordinary differentiation does. Elsewhere this adds zero.
    """
    leaves = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    zero = sum((jnp.where(jnp.any(jnp.isnan(a.ravel()[:1])), 0, 0) for a in leaves), start=jnp.int32(0))
    return jax.tree.map(lambda a: a + zero.astype(a.dtype), tree)


# --- panel after panel ----------------------------------------------------------------------------------------------


def sweep(step: Callable, carry: Any, size: int, arrays: Any) -> tuple[Any, Any]:
    """Scan `step(carry, block)` over blocks of rows; padded rows do not exist (`where` is False)."""
    n = len(jax.tree.leaves(arrays)[0])
    count = math.ceil(n / size)

    def blocks(a):
        padded = jnp.pad(a, [(0, count * size - n)] + [(0, 0)] * (a.ndim - 1))
        return padded.reshape(count, size, *a.shape[1:])

    carry, out = lax.scan(step, carry, jax.tree.map(blocks, arrays))
    return carry, jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:n], out)


def _gradient_sweep(panel, size, x, columns, hyper, cotangents, row):
    """The Means of all anchors and the gradients of `x`, `columns` and `hyper`, taken while each panel is in cache.

    `panel(sums, x, cotangents, row) -> (sums, dx, means)` adds to the sums the gradients of columns and
    hyper-parameters. `x` is None where the rows are the columns: their gradient is then added to that of the columns.
    """

    def step(sums, block):
        x, cotangents, row = block
        sums, dx, means = panel(sums, _rows(x, columns, row), cotangents, row)
        if x is None:
            sums, dx = (sums[0].at[row.ids].add(dx), sums[1]), None
        return sums, (dx, means)

    zeros = jax.tree.map(jnp.zeros_like, (columns, hyper))
    sums, (dx, means) = sweep(step, varying((zeros, columns))[0], size, (x, cotangents, row))
    return (dx, *sums), means


def _rows(x, columns, row: Side):
    return columns[row.ids] if x is None else x


def _gradients_of_rows(size, problem, x, columns, hyper, cotangents, row, column):
    """`_gradient_sweep` that differentiates the row function."""

    def all_panels(row, column):
        def panel(sums, x, cotangents, row):
            totals = lambda *a: (lambda means: ([m.total for m in means], means))(means_of(problem, *a, row, column))
            if problem.mirrored:  # a pair counts once from each end, and both ends get the same gradient
                _, pull, means = jax.vjp(lambda x, hyper: totals(x, columns, hyper), x, hyper, has_aux=True)
                dx, dhyper = pull(cotangents)
                return (sums[0], jax.tree.map(jnp.add, sums[1], dhyper)), 2 * dx, means
            _, pull, means = jax.vjp(totals, x, columns, hyper, has_aux=True)
            dx, *rest = pull(cotangents)
            return jax.tree.map(jnp.add, sums, tuple(rest)), dx, means

        return _gradient_sweep(panel, size, x, columns, hyper, cotangents, row)

    return with_lists_if_short(all_panels, row, column)


def panels(size, problem, x, columns, hyper, row, column):
    """The Means of all anchors. The gradient computes each panel again, so that nothing of size n·m is kept.

    `x` is None where the rows are the columns.
    """

    def all_panels(row, column):
        @jax.checkpoint
        def step(_, block):
            x, row = block
            return (), means_of(problem, _rows(x, columns, row), columns, hyper, row, column)

        return sweep(step, (), size, (x, row))[1]

    return with_lists_if_short(all_panels, row, column)


def added_panels(size, problem, x, columns, hyper, weights, row, column) -> tuple[Mean, ...]:
    """The weighted sums over all anchors of Means whose totals are arrays, such as histograms."""

    def all_panels(row, column):
        @jax.checkpoint
        def step(sums, block):
            x, weights, row = block
            means = means_of(problem, _rows(x, columns, row), columns, hyper, row, column)
            return jax.tree.map(lambda a, b: a + jnp.tensordot(weights, b, axes=1), sums, means), None

        one = jax.tree.map(lambda a: a[:1], row)
        means = jax.eval_shape(lambda: means_of(problem, columns[:1], columns, hyper, one, column))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), means)
        zeros = varying((zeros, weights))[0]
        return sweep(step, zeros, size, (x, weights, row))[0]

    return with_lists_if_short(all_panels, row, column)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def summed_panels(size, problem, x, columns, hyper, weights, row, column) -> Mean:
    """The sum of the Means of all anchors, weighted by one array for each Mean: value and gradient in one pass."""
    return _weighted_sum(panels(size, problem, x, columns, hyper, row, column), weights)


@partial(summed_panels.defjvp, symbolic_zeros=True)
def _summed_panels_tangent(size, primals, tangents):
    problem, x, columns, hyper, weights, row, column = primals
    arguments = (problem, x, columns, hyper, list(weights), row, column)
    gradients, means = _as_one(partial(_gradients_of_rows, size), *arguments)
    if problem.mirrored and x is not None:
        gradients = (gradients[0], None, gradients[2])
    return _sum_and_tangent(means, weights, gradients, tangents[1:5])


def _as_one(f: Callable, *arguments):
    """`f(*arguments)`, taken as a whole by partial evaluation, which else draws what is constant out of the scans."""
    whole = jax.custom_jvp(f)
    whole.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
    return whole(*arguments)


def _weighted_sum(means: tuple[Mean, ...], weights: tuple[Float[Array, " n"], ...]) -> Mean:
    sums = [jax.tree.map(lambda a, w=w: jnp.sum(a * w), mean) for mean, w in zip(means, weights, strict=True)]
    return jax.tree.map(lambda *a: sum(a), *sums)


def _sum_and_tangent(means: tuple[Mean, ...], weights, gradients, tangents) -> tuple[Mean, Mean]:
    total, count = _weighted_sum(means, weights)
    gradients = (*gradients, tuple(mean.total for mean in means))
    pairs = [
        p for part in zip(gradients, tangents, strict=True) if part[0] is not None for p in _pairs_of_leaves(*part)
    ]
    # Left out where nothing is differentiated: then its gradient is not computed at all.
    change = sum((jnp.sum(g * t) for g, t in pairs if not isinstance(t, SymbolicZero)), start=jnp.zeros_like(total))
    counts = [jnp.sum(m.count * t) for m, t in zip(means, tangents[3], strict=True) if not isinstance(t, SymbolicZero)]
    return Mean(total, count), Mean(change, sum(counts, start=jnp.zeros_like(count)))


def _pairs_of_leaves(gradient, tangent):
    is_zero = lambda t: isinstance(t, SymbolicZero)
    return zip(jax.tree.leaves(gradient), jax.tree.leaves(tangent, is_leaf=is_zero), strict=True)


# --- selected triplets ----------------------------------------------------------------------------------------------


def _terms(problem: Problem, x, ends, hyper, valid) -> Mean:
    """The Mean of triplets whose ends [r, t, d] were gathered."""
    pair = jax.vmap(lambda a, b: problem.score.compare(a[None], b)[0])
    d_ap, d_an = pair(x, ends[0]), pair(x, ends[1])
    if problem.swap:
        d_an = jnp.minimum(d_an, jax.vmap(lambda a, b: pair(a, b[:, None])[:, 0])(*ends))
    return counted(problem.rows(d_ap, d_an, valid, *hyper), x)


def _means_of_triplets(problem: Problem, scores, positives, negatives, columns, hyper, row: Side) -> Mean:
    """The Mean of triplets whose distances are picked out of the scores."""
    positive, negative, valid = _chosen(problem, lax.stop_gradient(scores), positives, negatives, row)
    d_ap, d_an = (jnp.take_along_axis(scores, index, axis=1) for index in (positive, negative))
    if not problem.swap:
        return problem.rows(d_ap, d_an, valid, *hyper)

    def one(there, d_ap, d_an, positive, negative):
        d_pn = jax.vmap(lambda a, b: problem.score.compare(a[None], b[None])[0, 0])(
            columns[positive], columns[negative]
        )
        return problem.rows(d_ap[:, None], jnp.minimum(d_an, d_pn)[:, None], there[:, None], *hyper)

    return summed_over_positives(one, valid, d_ap, d_an, positive, negative)


def _chosen(problem: Problem, scores, positives, negatives, row: Side):
    """Columns of the positive and the negative, and validity, each [r, t]."""
    assert problem.select is not None
    chosen = keyed(problem.select, row)(scores, positives, negatives)
    return jax.tree.map(lambda a: a.reshape(len(scores), -1), (chosen.positive, chosen.negative, chosen.valid))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def summed_triplets(size, problem, x, columns, hyper, weights, row, column) -> Mean:
    """The weighted sum of the Mean of selected triplets; neither pass has a matrix product but that of the scores.

    With `negative_of` one positive of each row is taken after the other. `x` is None where the rows are the columns.
    """
    mean = _gradients_of_triplets(size, problem, x, columns, hyper, weights, row, column)[1]
    return _weighted_sum((mean,), (weights,))


@partial(summed_triplets.defjvp, symbolic_zeros=True)
def _summed_triplets_tangent(size, primals, tangents):
    gradients, mean = _as_one(partial(_gradients_of_triplets, size), *primals)
    return _sum_and_tangent((mean,), (primals[4],), gradients, (*tangents[1:4], (tangents[4],)))


def _gradients_of_triplets(size, problem, x, columns, hyper, weights, row, column):
    """`_gradient_sweep` that differentiates the chosen triplets."""

    def panel(sums, x, weights, row):
        scores, positives, negatives = scores_and_masks(problem, x, columns, row, column)

        given = _given(problem, row, column)

        def add(sums, dx, mean, positive, negative, valid):
            def total(x, ends, hyper):
                found = _terms(problem, x, ends, given + unwrapped(hyper), valid)
                return found.total, found

            ends = columns[positive], columns[negative]
            _, pull, found = jax.vjp(total, x, ends, hyper, has_aux=True)
            more, (to_positive, to_negative), dhyper = pull(weights)
            columns_sum = sums[0].at[positive].add(to_positive).at[negative].add(to_negative)
            return (columns_sum, jax.tree.map(jnp.add, sums[1], dhyper)), dx + more, jax.tree.map(jnp.add, mean, found)

        nothing = Mean(jnp.zeros_like(weights), jnp.zeros_like(weights))
        before = jnp.full((len(x), 1), -1, jnp.int32)
        before, *found = varying((before, sums, jnp.zeros_like(x), nothing, weights, columns))[:4]
        if problem.negative_of is None:
            return add(*found, *_chosen(problem, scores, positives, negatives, row))
        count, following = one_by_one(positives, row, column)

        def take(p, carry):
            last, *found = carry
            positive = following(p, last)
            negative = problem.negative_of(jnp.take_along_axis(scores, positive, axis=1), scores, negatives)[:, None]
            valid = jnp.take_along_axis(positives, positive, axis=1) & jnp.take_along_axis(negatives, negative, axis=1)
            return positive, *add(*found, positive, negative, valid & (positive > last))

        return lax.fori_loop(0, count, take, (before, *found))[1:]

    return _gradient_sweep(panel, size, x, columns, hyper, weights, row)
