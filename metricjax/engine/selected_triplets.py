"""Selected triplets: mined without a gradient, in panels or a kernel; only the chosen pairs are differentiated."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metricjax.engine.devices import varying
from metricjax.engine.kernels.choice import Kernels
from metricjax.engine.kernels.row_sweeps import Backend, extremes
from metricjax.engine.pairs import (
    Mean,
    chosen_triplets,
    mean_of_gathered_triplets,
    scores_and_masks,
    unwrapped,
    with_key_per_row,
)
from metricjax.engine.positives import each_positive
from metricjax.engine.sizes import Size
from metricjax.engine.sweeps import added, as_one, gradient_sweep, no_gradients, sum_and_tangent, weighted_sum

__all__ = ["TripletWays", "sum_of_triplets"]


class TripletWays(NamedTuple):
    """Rows of a panel; and the kernels that find extremes, if any."""

    panel: Size
    kernels: Kernels | None = None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def sum_of_triplets(ways, loss, x, columns, hyper, weights, row, column) -> Mean:
    """The weighted sum of the Mean of selected triplets; neither pass has a matrix product but that of the scores.

    A selection that can be run for one positive takes one of each row after the other. `x` is None where the rows
    are the columns.
    """
    mean = _gradients(ways, loss, x, columns, hyper, weights, row, column)[1]
    return weighted_sum((mean,), (weights,))


@partial(sum_of_triplets.defjvp, symbolic_zeros=True)
def _sum_of_triplets_tangent(ways, primals, tangents):
    gradients, mean = as_one(partial(_gradients, ways), *primals)
    return sum_and_tangent((mean,), (primals[4],), gradients, (*tangents[1:4], (tangents[4],)))


def _gradients(ways, loss, x, columns, hyper, weights, row, column):
    """The gradients of rows, columns and hyper-parameters, and the Mean."""
    in_panels = lambda: _in_panels(ways.panel, loss, x, columns, hyper, weights, row, column)
    if ways.kernels is None:
        return in_panels()
    in_kernel = partial(_in_kernel, loss, columns, hyper, weights, row, column)
    kernels = {platform: partial(in_kernel, backend) for platform, backend in ways.kernels.backends().items()}
    return lax.platform_dependent(**kernels, default=in_panels)


def _in_kernel(loss, columns, hyper, weights, row, column, backend: Backend):
    """Extremes are found without the scores being written down."""
    which, fixed = loss.select.extremes, lax.stop_gradient(columns)
    chosen = (a[:, None] for a in extremes(backend, loss.score, which, fixed, column))
    none = varying(no_gradients((columns, hyper), columns.dtype), (weights, columns))
    found = none, *_nothing(columns, columns, weights)
    sums, dx, mean = _with_triplets(loss, columns, columns, hyper, weights, row, found, *chosen)
    return (None, sums[0] + dx, sums[1]), mean


def _in_panels(size, loss, x, columns, hyper, weights, row, column):
    """`gradient_sweep` that differentiates the chosen triplets."""

    def panel(sums, x, weights, row):
        scores, positives, negatives = scores_and_masks(loss, x, columns, row, column)
        add = partial(_with_triplets, loss, x, columns, hyper, weights, row)
        one = with_key_per_row(loss.select, row).one

        def take(found, positive, there):
            negative = one(jnp.take_along_axis(scores, positive, axis=1), scores, negatives)[:, None]
            return add(found, positive, negative, there & jnp.take_along_axis(negatives, negative, axis=1))

        found = varying(sums, (weights, columns)), *_nothing(x, columns, weights)
        if one is None:
            return add(found, *chosen_triplets(loss, scores, positives, negatives, row))
        return each_positive(take, found, positives, (row, column))

    return gradient_sweep(panel, size, x, columns, hyper, weights, row)


def _nothing(x, columns, weights):
    """The gradient of rows, and the Mean, of no triplets."""
    zeros = jnp.zeros_like(weights)
    return varying((jnp.zeros_like(x), Mean(zeros, zeros)), (weights, columns))


def _with_triplets(loss, x, columns, hyper, weights, row, found, positive, negative, valid):
    """What was found so far, with these triplets, [r, t] each."""

    def total(x, ends, hyper):
        mean = mean_of_gathered_triplets(loss, x, ends, unwrapped(hyper), valid, row)
        return mean.total, mean

    (of_columns, of_hyper), dx, mean = found
    _, pull, more = jax.vjp(total, x, (columns[positive], columns[negative]), hyper, has_aux=True)
    to_x, (to_positive, to_negative), to_hyper = pull(weights)
    of_columns = of_columns.at[positive].add(to_positive).at[negative].add(to_negative)
    return (of_columns, added(of_hyper, to_hyper)), dx + to_x, jax.tree.map(jnp.add, mean, more)
