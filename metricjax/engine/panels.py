"""Panels of rows: a loss over a few anchors at a time, and its gradient taken while the panel is still in cache.

Reverse-mode differentiation through a scan would keep every panel. A sum over anchors has its gradient taken in the
same pass, in the rule of its tangent, which is the gradient times the tangent: so both modes of differentiation work.
For one Mean of each anchor, the backward pass computes each panel again.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from metricjax.engine.devices import varying
from metricjax.engine.pairs import Mean, PairLoss, means_of
from metricjax.engine.positives import Side, with_short_lists
from metricjax.engine.sizes import Size, parts_of
from metricjax.engine.sweeps import added, as_one, gradient_sweep, rows_of, sum_and_tangent, sweep, weighted_sum

__all__ = ["gradients_in_panels", "means_in_panels", "sum_in_panels", "sums_in_panels"]


def means_in_panels(size, loss, x, columns, hyper, row, column) -> tuple[Mean, ...]:
    """The Means of all anchors. The gradient computes each panel again, so that nothing of size n·m is kept.

    `x` is None where the rows are the columns.
    """

    def all_panels(row, column):
        @jax.checkpoint
        def step(_, block):
            x, row = block
            return (), means_of(loss, rows_of(x, columns, row), columns, hyper, row, column)

        return sweep(step, (), _height(size, loss, column), (x, row))[1]

    return with_short_lists(all_panels, row, column, loss.lengths)


def sums_in_panels(size, loss, x, columns, hyper, weights, row, column) -> tuple[Mean, ...]:
    """The weighted sums over all anchors of Means whose totals are arrays, such as histograms."""

    def all_panels(row, column):
        @jax.checkpoint
        def step(sums, block):
            x, weights, row = block
            means = means_of(loss, rows_of(x, columns, row), columns, hyper, row, column)
            add = lambda a, b: a + jnp.tensordot(weights, b, axes=1, precision=lax.Precision.HIGHEST)
            return jax.tree.map(add, sums, means), None

        one = jax.tree.map(lambda a: a[:1], row)
        means = jax.eval_shape(lambda: means_of(loss, columns[:1], columns, hyper, one, column))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), means)
        return sweep(step, varying(zeros, weights), _height(size, loss, column), (x, weights, row))[0]

    return with_short_lists(all_panels, row, column, loss.lengths)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def sum_in_panels(size, loss, x, columns, hyper, weights, row, column) -> Mean:
    """The sum of the Means of all anchors, weighted by one array for each Mean: value and gradient in one pass."""
    return weighted_sum(means_in_panels(size, loss, x, columns, hyper, row, column), weights)


@partial(sum_in_panels.defjvp, symbolic_zeros=True)
def _sum_in_panels_tangent(size, primals, tangents):
    loss, x, columns, hyper, weights, row, column = primals
    gradients, means = as_one(partial(gradients_in_panels, size), loss, x, columns, hyper, list(weights), row, column)
    return sum_and_tangent(means, weights, gradients, tangents[1:5])


def gradients_in_panels(size, loss, x, columns, hyper, cotangents, row, column):
    """`gradient_sweep` that differentiates the row function."""

    def all_panels(row, column):
        def panel(sums, x, cotangents, row):
            totals = lambda *a: (lambda means: ([m.total for m in means], means))(means_of(loss, *a, row, column))
            if loss.mirrored:  # a pair counts once from each end, and both ends get the same gradient
                _, pull, means = jax.vjp(lambda x, hyper: totals(x, columns, hyper), x, hyper, has_aux=True)
                dx, dhyper = pull(cotangents)
                return (sums[0], added(sums[1], dhyper)), 2 * dx, means
            _, pull, means = jax.vjp(totals, x, columns, hyper, has_aux=True)
            dx, *rest = pull(cotangents)
            return added(sums, tuple(rest)), dx, means

        gradients, means = gradient_sweep(panel, _height(size, loss, column), x, columns, hyper, cotangents, row)
        if loss.mirrored and x is not None:
            gradients = (gradients[0], None, gradients[2])
        return gradients, means

    return with_short_lists(all_panels, row, column, loss.lengths)


def _height(size: Size, loss: PairLoss, column: Side) -> Size:
    """Anchors per panel: fewer where a panel also has the rows of their positives."""
    slots = 0 if column.slots is None or not loss.reaches else len(column.slots)
    return parts_of(size, 1 + slots)
