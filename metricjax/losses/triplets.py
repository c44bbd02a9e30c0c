"""Losses that compare the distance to a positive with the distance to a negative."""

from collections.abc import Callable
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import distances, mining
from metricjax.anchors import AnchorOptions, Mean, over_anchors, over_triplets
from metricjax.losses.pairs import check_average, hinge_mean
from metricjax.numerics import ordered_integers, softplus


def triplet(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike | None = 0.2,
    distance: Callable[[Array, Array], Array] = distances.squared_chord,
    triplets: Callable[[Array, Array, Array], mining.Triplets] = mining.batch_hard,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Float[Array, ""]:
    """Triplet loss: mean of [d_ap − d_an + m]₊ over the triplets that `triplets` selects.

    The mean is over non-zero terms, or over all selected triplets with `average="valid"`. `margin=None` is the soft
    margin log(1 + exp(d_ap − d_an)), averaged over all selected triplets. The default distance is FaceNet's squared
    chord, and the default selection batch-hard; `mining.all_triplets` is summed without listing the triplets.
    Options: `AnchorOptions`.

    Schroff, Kalenichenko, Philbin 2015, arXiv:1503.03832 (margin 0.2); batch-hard and soft margin: Hermans, Beyer,
    Leibe 2017, arXiv:1703.07737.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # the positive is as far as the negative for one anchor
    >>> float(triplet(z, jnp.array([0, 0, 1])))
    0.2
    """
    check_average(average)
    hyper: tuple = (margin, average)
    if triplets is mining.all_triplets:
        rows = _all_rows if margin is not None else _all_soft_rows
        return over_anchors(rows, embeddings, labels, *hyper, distance=distance, **options)
    each = mining.semi_hard_of_one if triplets is mining.semi_hard else None
    return over_triplets(
        _terms, triplets, embeddings, labels, *hyper, distance=distance, for_each_positive=each, **options
    )


def _terms(d_ap, d_an, valid, margin, average) -> Mean:
    if margin is None:
        return hinge_mean(softplus(d_ap - d_an), valid, "valid")
    return hinge_mean(jnp.maximum(d_ap - d_an + margin, 0), valid, average)


def _all_rows(distances, positives, negatives, margin, average) -> Mean:
    """Every triplet of a row, without listing them.

    With thresholds t_p = d_p + margin the sum Σ_p Σ_n [t_p − d_n]₊ is Σ_p w_p t_p − Σ_n c_n d_n, where w_p counts the
    negatives nearer than t_p and c_n the thresholds farther than d_n. The counts are piecewise constant, so the
    gradient of this linear form, with the counts held fixed, is the gradient of the sum.
    """
    fixed, limits = lax.stop_gradient((distances, distances + margin))
    few = jnp.max(jnp.sum(positives, axis=-1, dtype=jnp.int32)) <= _FEW
    weights, active = lax.cond(few, _weights_by_comparing, _weights_by_sorting, fixed, limits, positives, negatives)
    total = jnp.sum(weights * distances, axis=-1) + margin * active
    pairs = jnp.sum(positives, axis=-1) * jnp.sum(negatives, axis=-1)
    return Mean(total, active if average == "active" else pairs)


_FEW = 32  # positives of a row, up to which comparing with each in turn beats sorting


def _weights_by_comparing(d, limits, positives, negatives):
    """w on positives and −c on negatives [r, m], and Σ w [r]: one pass over the row for each of its positives."""
    column = jnp.arange(d.shape[1], dtype=jnp.int32)[None]

    def add(carry):
        last, weights, active = carry
        at = jnp.min(jnp.where(positives & (column > last[:, None]), column, column.size), axis=-1)
        limit = jnp.take_along_axis(limits, jnp.minimum(at, column.size - 1)[:, None], axis=1)
        hit = (negatives & (d < limit) & (at[:, None] < column.size)).astype(d.dtype)
        near = jnp.sum(hit, axis=-1)
        return at, weights + jnp.where(column == at[:, None], near[:, None], -hit), active + near

    zeros = jnp.zeros_like(d[:, 0]) + 0 * d[:, 0]  # varies over a mesh axis as the distances do
    start = (zeros.astype(jnp.int32) - 1, jnp.zeros_like(d) + zeros[:, None], zeros)
    _, weights, active = lax.while_loop(lambda carry: jnp.any(carry[0] < column.size), add, start)
    return weights, active


def _weights_by_sorting(d, limits, positives, negatives):
    """The same for many positives: ranks by bisection in a row's sorted distances and its sorted thresholds."""

    def row(arguments):
        d, limits, positives, negatives = arguments
        key, limit = ordered_integers(d), ordered_integers(limits)
        bounds = jnp.iinfo(key.dtype)
        nearer = jnp.searchsorted(jnp.sort(jnp.where(negatives, key, bounds.max)), limit)
        reached = jnp.searchsorted(jnp.sort(jnp.where(positives, limit, bounds.min)), key, side="right")
        near = jnp.where(positives, nearer, 0).astype(d.dtype)
        return near - jnp.where(negatives, d.size - reached, 0).astype(d.dtype), jnp.sum(near)

    return lax.map(row, (d, limits, positives, negatives), batch_size=8)


def _all_soft_rows(distances, positives, negatives, margin, average) -> Mean:
    """Every triplet of a row with the soft margin, one positive column at a time."""

    @jax.checkpoint
    def add(total, column):
        d_p, positive = column
        terms = jnp.where(negatives, softplus(d_p[:, None] - distances), 0)
        return total + jnp.where(positive, jnp.sum(terms, axis=-1), 0), None

    zero = 0 * jnp.sum(jnp.where(positives, distances, 0), axis=-1)  # varies over a mesh axis as the distances do
    total, _ = lax.scan(add, zero, (distances.T, positives.T))
    return Mean(total, jnp.sum(positives, axis=-1) * jnp.sum(negatives, axis=-1))
