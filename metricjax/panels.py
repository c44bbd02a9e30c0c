"""Panels of rows: a loss over a few anchors at a time, and its gradient taken while the panel is still in cache.

Reverse-mode differentiation through a scan would keep every panel. The custom rules here keep none. A sum over anchors
has its gradient taken in the same pass, in the rule of its tangent, which is the gradient times the tangent: so
both modes of differentiation work. For one Mean of each anchor, the backward pass computes each panel again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Shaped

from metricjax.pairwise import Pairwise
from metricjax.sides import LIST, Side, listed_positives, one_by_one, with_lists_if_short


class Mean(NamedTuple):
    """A quotient in the making. Means add over blocks and devices; divide once, at the end."""

    total: Float[Array, "..."]
    count: Shaped[Array, "..."]  # type: ignore[assignment]  # hides tuple.count


class Problem(NamedTuple):
    """The functions of one loss: hashable, so that they can be static arguments.

    apart: the row function gets positives and negatives as two arrays of scores, each with its mask.
    mirrored: score, terms and cotangent of the pair (i, j) are those of (j, i).
    """

    rows: Callable[..., Any]  # the row function, or the terms of selected triplets
    score: Pairwise
    is_similarity: bool
    apart: bool
    mirrored: bool
    same: Callable[[Array, Array], Array] | None
    miner: Callable[[Array, Array, Array], tuple[Array, Array]] | None


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
    match = jax.vmap(lambda a: jax.vmap(lambda b: same(a, b))(column.labels))(row.labels)
    exist = row.where[:, None] & column.where[None]
    other = exist & (row.ids[:, None] != column.ids[None])
    positives, negatives = match & other, ~match & (exist if problem.same is None else other)
    if problem.miner is not None:
        distances = lax.stop_gradient(1 - scores if problem.is_similarity else scores)
        positives, negatives = problem.miner(distances, positives, negatives)
    return scores, positives, negatives


def means_of(problem: Problem, x, columns, hyper, row: Side, column: Side) -> tuple[Mean, ...]:
    """The Means of some anchors: [r] arrays."""
    scores, positives, negatives = scores_and_masks(problem, x, columns, row, column)
    if not problem.apart:
        means = problem.rows(scores, positives, negatives, *unwrapped(hyper))
    elif row.span is None:
        means = problem.rows(scores, positives, scores, negatives, *unwrapped(hyper))
    else:
        index, listed = listed_positives(row, column, jnp.arange(LIST, dtype=jnp.int32))
        if problem.miner is not None:
            listed &= jnp.take_along_axis(positives, index, axis=1)
        means = problem.rows(jnp.take_along_axis(scores, index, axis=1), listed, scores, negatives, *unwrapped(hyper))
    return tuple(counted(mean, x) for mean in ((means,) if isinstance(means, Mean) else means))


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


def _gradients_of_rows(problem, size, x, columns, hyper, cotangents, row, column):
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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def panels(problem, size, x, columns, hyper, row, column):
    """The Means of all anchors. The backward rule computes each panel again, so that nothing of size n·m is kept.

    `x` is None where the rows are the columns.
    """

    def all_panels(row, column):
        def step(_, block):
            x, row = block
            return (), means_of(problem, _rows(x, columns, row), columns, hyper, row, column)

        return sweep(step, (), size, (x, row))[1]

    return with_lists_if_short(all_panels, row, column)


def _panels_forward(problem, size, x, columns, hyper, row, column):
    return panels(problem, size, x, columns, hyper, row, column), (x, columns, hyper, row, column)


def _panels_backward(problem, size, saved, cotangents):
    x, columns, hyper, row, column = saved
    totals = [mean.total for mean in cotangents]
    gradients, _ = _gradients_of_rows(problem, size, x, columns, hyper, totals, row, column)
    return *gradients, None, None


panels.defvjp(_panels_forward, _panels_backward)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def summed_panels(problem, size, x, columns, hyper, weights, row, column) -> Mean:
    """The sum of the Means of all anchors, weighted by one array for each Mean: value and gradient in one pass."""
    return _weighted_sum(panels(problem, size, x, columns, hyper, row, column), weights)


@partial(summed_panels.defjvp, symbolic_zeros=True)
def _summed_panels_tangent(problem, size, primals, tangents):
    x, columns, hyper, weights, row, column = primals
    arguments = (x, columns, hyper, list(weights), row, column)
    gradients, means = _as_one(partial(_gradients_of_rows, problem, size), *arguments)
    if problem.mirrored and x is not None:
        gradients = (gradients[0], None, gradients[2])
    return _sum_and_tangent(means, weights, gradients, tangents[:4])


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


def _terms(problem, x, ends, hyper, valid) -> Mean:
    pair = jax.vmap(lambda a, b: problem.score.compare(a[None], b)[0])
    return counted(problem.rows(pair(x, ends[0]), pair(x, ends[1]), valid, *unwrapped(hyper)), x)


def chosen_triplets(select: Callable, scores, positives, negatives):
    """Columns of the positive and the negative, and validity, each [r, t]."""
    chosen = select(scores, positives, negatives)
    return jax.tree.map(lambda a: a.reshape(len(scores), -1), (chosen.positive, chosen.negative, chosen.valid))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def summed_triplets(problem, select, negative_of, size, x, columns, hyper, weights, row, column) -> Mean:
    """The weighted sum of the Mean of selected triplets; neither pass has a matrix product but that of the scores.

    Instead of `select`, `negative_of` chooses for one positive of each row after the other. `x` is None where the rows
    are the columns.
    """
    mean = _gradients_of_triplets(problem, select, negative_of, size, x, columns, hyper, weights, row, column)[1]
    return _weighted_sum((mean,), (weights,))


@partial(summed_triplets.defjvp, symbolic_zeros=True)
def _summed_triplets_tangent(problem, select, negative_of, size, primals, tangents):
    gradients, mean = _as_one(partial(_gradients_of_triplets, problem, select, negative_of, size), *primals)
    return _sum_and_tangent((mean,), (primals[3],), gradients, (*tangents[:3], (tangents[3],)))


def _gradients_of_triplets(problem, select, negative_of, size, x, columns, hyper, weights, row, column):
    """`_gradient_sweep` that differentiates the chosen triplets."""

    def panel(sums, x, weights, row):
        scores, positives, negatives = scores_and_masks(problem, x, columns, row, column)

        def add(sums, dx, mean, positive, negative, valid):
            def total(*inexact):
                found = _terms(problem, *inexact, valid)
                return found.total, found

            ends = columns[positive], columns[negative]
            _, pull, found = jax.vjp(total, x, ends, hyper, has_aux=True)
            more, (to_positive, to_negative), dhyper = pull(weights)
            columns_sum = sums[0].at[positive].add(to_positive).at[negative].add(to_negative)
            return (columns_sum, jax.tree.map(jnp.add, sums[1], dhyper)), dx + more, jax.tree.map(jnp.add, mean, found)

        nothing = Mean(jnp.zeros_like(weights), jnp.zeros_like(weights))
        before = jnp.full((len(x), 1), -1, jnp.int32)
        before, *found = varying((before, sums, jnp.zeros_like(x), nothing, weights, columns))[:4]
        if negative_of is None:
            return add(*found, *chosen_triplets(select, scores, positives, negatives))
        count, following = one_by_one(positives, row, column)

        def take(p, carry):
            last, *found = carry
            positive = following(p, last)
            negative = negative_of(jnp.take_along_axis(scores, positive, axis=1), scores, negatives)[:, None]
            valid = jnp.take_along_axis(positives, positive, axis=1) & jnp.take_along_axis(negatives, negative, axis=1)
            return positive, *add(*found, positive, negative, valid & (positive > last))

        return lax.fori_loop(0, count, take, (before, *found))[1:]

    return _gradient_sweep(panel, size, x, columns, hyper, weights, row)
