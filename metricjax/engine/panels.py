"""Panels of rows: a loss over a few anchors at a time, and its gradient taken while the panel is still in cache.

Reverse-mode differentiation through a scan would keep every panel. A sum over anchors has its gradient taken in the
same pass, in the rule of its tangent, which is the gradient times the tangent: so both modes of differentiation work.
For one Mean of each anchor, the backward pass computes each panel again.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from metricjax.engine.devices import summed, varying
from metricjax.engine.pairs import (
    Mean,
    Problem,
    as_distances,
    chosen_triplets,
    distances_of,
    given_of,
    mean_of_ends,
    means_of,
    scores_and_masks,
    unwrapped,
)
from metricjax.engine.positives import Side, one_by_one, with_lists_if_short
from metricjax.mining.compound import needs_batch, prepared_by

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


def prepared(problem: Problem, size: int, x, columns, row: Side, column: Side, axis_name) -> Problem:
    """The problem with a miner for one row at a time, where its own has to look at the whole batch first."""
    if problem.miner is None or not needs_batch(problem.miner):
        return problem
    bare = dataclasses.replace(problem, miner=None)

    def total(f):
        """Σ of f(distances, positives, negatives, row_of) over panels and devices."""

        def of_panel(x, row):
            scores, *masks = scores_and_masks(bare, _rows(x, columns, row), columns, row, column)
            return f(as_distances(problem, scores), *masks, partial(distances_of, problem, columns))

        def step(sums, block):
            return jax.tree.map(jnp.add, sums, of_panel(*block)), None

        first = jax.tree.map(lambda a: a[:size], (x, row))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_panel, *first))
        return summed(sweep(step, varying(zeros, columns), size, (x, row))[0], axis_name)

    return dataclasses.replace(problem, miner=prepared_by(total, problem.miner))


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
    sums, (dx, means) = sweep(step, varying(zeros, columns), size, (x, cotangents, row))
    return (dx, *sums), means


def _rows(x, columns, row: Side):
    return columns[row.ids] if x is None else x


def _height(size: int, problem: Problem, column: Side) -> int:
    """Anchors per panel: fewer where a panel also has the rows of their positives."""
    slots = 0 if column.slots is None or problem.kind != "reaching" else len(column.slots)
    return max(1, size // (1 + slots))


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

        return _gradient_sweep(panel, _height(size, problem, column), x, columns, hyper, cotangents, row)

    return with_lists_if_short(all_panels, row, column, problem.lengths)


def panels(size, problem, x, columns, hyper, row, column):
    """The Means of all anchors. The gradient computes each panel again, so that nothing of size n·m is kept.

    `x` is None where the rows are the columns.
    """

    def all_panels(row, column):
        @jax.checkpoint
        def step(_, block):
            x, row = block
            return (), means_of(problem, _rows(x, columns, row), columns, hyper, row, column)

        return sweep(step, (), _height(size, problem, column), (x, row))[1]

    return with_lists_if_short(all_panels, row, column, problem.lengths)


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
        return sweep(step, varying(zeros, weights), _height(size, problem, column), (x, weights, row))[0]

    return with_lists_if_short(all_panels, row, column, problem.lengths)


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

        given = given_of(problem, row, column)

        def add(sums, dx, mean, positive, negative, valid):
            def total(x, ends, hyper):
                found = mean_of_ends(problem, x, ends, given + unwrapped(hyper), valid)
                return found.total, found

            ends = columns[positive], columns[negative]
            _, pull, found = jax.vjp(total, x, ends, hyper, has_aux=True)
            more, (to_positive, to_negative), dhyper = pull(weights)
            columns_sum = sums[0].at[positive].add(to_positive).at[negative].add(to_negative)
            return (columns_sum, jax.tree.map(jnp.add, sums[1], dhyper)), dx + more, jax.tree.map(jnp.add, mean, found)

        nothing = Mean(jnp.zeros_like(weights), jnp.zeros_like(weights))
        before = jnp.full((len(x), 1), -1, jnp.int32)
        before, *found = varying((before, sums, jnp.zeros_like(x), nothing), (weights, columns))
        if problem.negative_of is None:
            return add(*found, *chosen_triplets(problem, scores, positives, negatives, row))
        count, following = one_by_one(positives, row, column)

        def take(p, carry):
            last, *found = carry
            positive = following(p, last)
            negative = problem.negative_of(jnp.take_along_axis(scores, positive, axis=1), scores, negatives)[:, None]
            valid = jnp.take_along_axis(positives, positive, axis=1) & jnp.take_along_axis(negatives, negative, axis=1)
            return positive, *add(*found, positive, negative, valid & (positive > last))

        return lax.fori_loop(0, count, take, (before, *found))[1:]

    return _gradient_sweep(panel, size, x, columns, hyper, weights, row)
