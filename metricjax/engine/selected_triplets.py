"""Panels of rows for selected triplets: mined without a gradient, then only the chosen pairs are differentiated."""

from functools import partial

import jax
import jax.numpy as jnp

from metricjax.engine.devices import varying
from metricjax.engine.pairs import (
    Mean,
    chosen_triplets,
    mean_of_gathered_triplets,
    scores_and_masks,
    unwrapped,
    with_key_per_row,
)
from metricjax.engine.positives import each_positive
from metricjax.engine.sweeps import added, as_one, gradient_sweep, sum_and_tangent, weighted_sum

__all__ = ["sum_of_triplets"]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def sum_of_triplets(size, loss, x, columns, hyper, weights, row, column) -> Mean:
    """The weighted sum of the Mean of selected triplets; neither pass has a matrix product but that of the scores.

    A selection that can be run for one positive takes one of each row after the other. `x` is None where the rows
    are the columns.
    """
    mean = _gradients(size, loss, x, columns, hyper, weights, row, column)[1]
    return weighted_sum((mean,), (weights,))


@partial(sum_of_triplets.defjvp, symbolic_zeros=True)
def _sum_of_triplets_tangent(size, primals, tangents):
    gradients, mean = as_one(partial(_gradients, size), *primals)
    return sum_and_tangent((mean,), (primals[4],), gradients, (*tangents[1:4], (tangents[4],)))


def _gradients(size, loss, x, columns, hyper, weights, row, column):
    """`gradient_sweep` that differentiates the chosen triplets."""

    def panel(sums, x, weights, row):
        scores, positives, negatives = scores_and_masks(loss, x, columns, row, column)

        def add(found, positive, negative, valid):
            def total(x, ends, hyper):
                mean = mean_of_gathered_triplets(loss, x, ends, unwrapped(hyper), valid, row)
                return mean.total, mean

            sums, dx, mean = found
            _, pull, more = jax.vjp(total, x, (columns[positive], columns[negative]), hyper, has_aux=True)
            to_x, (to_positive, to_negative), to_hyper = pull(weights)
            to_columns = sums[0].at[positive].add(to_positive).at[negative].add(to_negative)
            sums = to_columns, added(sums[1], to_hyper)
            return sums, dx + to_x, jax.tree.map(jnp.add, mean, more)

        one = with_key_per_row(loss.select, row).one

        def take(found, positive, there):
            negative = one(jnp.take_along_axis(scores, positive, axis=1), scores, negatives)[:, None]
            return add(found, positive, negative, there & jnp.take_along_axis(negatives, negative, axis=1))

        nothing = Mean(jnp.zeros_like(weights), jnp.zeros_like(weights))
        found = varying((sums, jnp.zeros_like(x), nothing), (weights, columns))
        if one is None:
            return add(found, *chosen_triplets(loss, scores, positives, negatives, row))
        return each_positive(take, found, positives, (row, column))

    return gradient_sweep(panel, size, x, columns, hyper, weights, row)
