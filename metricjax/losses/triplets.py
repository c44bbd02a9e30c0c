"""Losses that compare the distance to a positive with the distance to a negative."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import distances, mining
from metricjax.anchors import AnchorOptions, Mean, over_anchors, over_triplets
from metricjax.engine.devices import varying
from metricjax.engine.positives import summed_over_positives
from metricjax.engine.reductions import Loss
from metricjax.engine.selecting import counted_by_comparing, counted_by_sorting, next_marked
from metricjax.engine.sizes import LIST
from metricjax.ground.numerics import softplus
from metricjax.losses.pairs import check_average, hinge_mean


def triplet(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike | None = 0.2,
    distance: Callable[[Array, Array], Array] = distances.squared_chord,
    triplets: Callable[[Array, Array, Array], mining.Triplets] = mining.batch_hard,
    swap: bool = False,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Triplet loss: mean of [d_ap − d_an + m]₊ over the triplets that `triplets` selects.

    The mean is over non-zero terms, or over all selected triplets with `average="valid"`. `margin=None` is the soft
    margin log(1 + exp(d_ap − d_an)), averaged over all selected triplets. The default distance is FaceNet's squared
    chord, and the default selection batch-hard; `mining.all_triplets` is summed without listing the triplets. With
    `swap`, min(d_an, d_pn) takes the place of d_an in the triplets selected; for all triplets, time then grows with the
    number of positives of an anchor. Options: `AnchorOptions`.

    Schroff, Kalenichenko, Philbin 2015, arXiv:1503.03832 (margin 0.2); batch-hard and soft margin: Hermans, Beyer,
    Leibe 2017, arXiv:1703.07737; swap: Balntas et al. 2016, "Learning local feature descriptors with triplets and
    shallow convolutional neural networks".

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # the positive is as far as the negative for one anchor
    >>> float(triplet(z, jnp.array([0, 0, 1])))
    0.2
    """
    check_average(average)
    hyper: tuple = (margin, average)
    if triplets is mining.all_triplets and swap:
        return over_anchors(_all_swapped_rows, embeddings, labels, *hyper, distance=distance, reaching=True, **options)
    if triplets is mining.all_triplets:
        rows = _all_rows if margin is not None else _all_soft_rows
        return over_anchors(rows, embeddings, labels, *hyper, distance=distance, apart=True, **options)
    negative_of = mining.semi_hard_negative if triplets is mining.semi_hard else None
    how: dict[str, Any] = {"distance": distance, "swap": swap, "negative_of": negative_of}
    return over_triplets(_terms, triplets, embeddings, labels, *hyper, **how, **options)


def _terms(d_ap, d_an, valid, margin, average) -> Mean:
    if margin is None:
        return hinge_mean(softplus(d_ap - d_an), valid, "valid")
    return hinge_mean(jnp.maximum(d_ap - d_an + margin, 0), valid, average)


def _all_swapped_rows(scores, positives, negatives, reach, margin, average) -> Mean:
    def pair(there, positive):
        d_ap = jnp.take_along_axis(scores, positive[:, None], axis=1)
        d_an = jnp.minimum(scores, reach.row_of(positive)[0])
        return _terms(d_ap, d_an, there[:, None] & negatives, margin, average)

    return summed_over_positives(pair, reach.there, reach.positive)


def _all_rows(d_positive, positives, d_negative, negatives, margin, average) -> Mean:
    """Every triplet of a row, without listing them.

    With limits t_p = d_p + margin the sum Σ_p Σ_n [t_p − d_n]₊ is Σ_p w_p t_p − Σ_n c_n d_n, where w_p counts the
    negatives nearer than t_p and c_n the limits farther than d_n. The counts are piecewise constant, so the gradient
    of this linear form, with the counts held fixed, is the gradient of the sum.
    """
    fixed, limits = lax.stop_gradient((d_negative, d_positive + margin))
    count = counted_by_comparing if limits.shape[1] <= LIST else counted_by_sorting
    nearer, reached = count(jnp.where(positives, limits, -jnp.inf), jnp.where(negatives, fixed, jnp.inf))
    active = jnp.sum(nearer, axis=-1)
    total = jnp.sum(nearer * d_positive, axis=-1) - jnp.sum(reached * d_negative, axis=-1) + margin * active
    pairs = jnp.sum(positives, axis=-1) * jnp.sum(negatives, axis=-1)
    return Mean(total, active if average == "active" else pairs)


def _all_soft_rows(d_positive, positives, d_negative, negatives, margin, average) -> Mean:
    """Every triplet of a row with the soft margin."""
    total = _soft_sums(d_positive, d_negative, positives, negatives)
    return Mean(total, jnp.sum(positives, axis=-1) * jnp.sum(negatives, axis=-1))


@jax.custom_jvp
def _soft_sums(d_positive, d_negative, positives, negatives):
    """Σ_p Σ_n softplus(d_p − d_n) of each row [r]."""
    return _soft_sums_and_weights(d_positive, d_negative, positives, negatives)[0]


@_soft_sums.defjvp
def _(primals, tangents):
    total, pulls, pushes = _soft_sums_and_weights(*primals)
    return total, jnp.sum(pulls * tangents[0], axis=-1) - jnp.sum(pushes * tangents[1], axis=-1)


def _soft_sums_and_weights(d_positive, d_negative, positives, negatives):
    """The sums, Σ_n sigmoid(d_p − d_n) [r, p] and Σ_p sigmoid(d_p − d_n) [r, m]: one positive of each row at a time."""
    p = positives.shape[1]
    rows = jnp.arange(len(positives), dtype=jnp.int32)[:, None]

    def visit(last, total, pulls, pushes):
        column = next_marked(positives, last)
        there, place = column < p, jnp.minimum(column, p - 1)
        gaps = jnp.take_along_axis(d_positive, place, axis=1) - d_negative
        where = negatives & there
        slopes = jnp.where(where, jax.nn.sigmoid(gaps), 0)
        total += jnp.sum(jnp.where(where, softplus(gaps), 0), axis=-1)
        pulls = pulls.at[rows, place].add(jnp.sum(slopes, axis=-1, keepdims=True))
        return column, total, pulls, pushes + slopes

    def add(carry, _):
        return lax.cond(jnp.any(carry[0] < p), visit, lambda *carry: carry, *carry), None

    zeros = (rows * 0 - 1, jnp.zeros_like(d_negative[:, 0]), jnp.zeros_like(d_positive), jnp.zeros_like(d_negative))
    (_, total, pulls, pushes), _ = lax.scan(add, varying(zeros, d_negative), length=p)
    return total, pulls, pushes
