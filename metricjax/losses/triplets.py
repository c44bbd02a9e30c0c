"""Losses that compare the distance to a positive with the distance to a negative."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import distances, mining, similarities
from metricjax.anchors import AnchorOptions, Mean, over_pairs, over_triplets
from metricjax.engine.devices import varying
from metricjax.engine.pairs import ChosenTriplets
from metricjax.engine.positives import each_positive, summed_over_positives
from metricjax.engine.reductions import Loss
from metricjax.engine.selecting import counted_by_comparing, counted_by_sorting
from metricjax.engine.sizes import LIST
from metricjax.ground.numerics import logsumexp, softplus
from metricjax.losses.pairs import check_average, hinge_mean

__all__ = ["angular", "quadruplet", "triplet"]


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
    every = _all_swapped_rows if swap else _all_soft_rows if margin is None else _all_rows
    how: dict[str, Any] = {"distance": distance, "swap": swap, "every": every}
    return over_triplets(_terms, triplets, embeddings, labels, margin, average, **how, **options)


def _terms(chosen, margin, average) -> Mean:
    if margin is None:
        return hinge_mean(softplus(chosen.d_ap - chosen.d_an), chosen.valid, "valid")
    return hinge_mean(jnp.maximum(chosen.d_ap - chosen.d_an + margin, 0), chosen.valid, average)


def _all_swapped_rows(pairs, margin, average) -> Mean:
    def pair(there, positive):
        d_ap = jnp.take_along_axis(pairs.scores, positive[:, None], axis=1)
        d_an = jnp.minimum(pairs.scores, pairs.row_of(positive)[0])
        return _terms(ChosenTriplets(d_ap, d_an, there[:, None] & pairs.negatives, pairs.labels), margin, average)

    return summed_over_positives(pair, pairs.listed, pairs.positive_columns)


def _all_rows(pairs, margin, average) -> Mean:
    """Every triplet of a row, without listing them.

    With limits t_p = d_p + margin the sum Σ_p Σ_n [t_p − d_n]₊ is Σ_p w_p t_p − Σ_n c_n d_n, where w_p counts the
    negatives nearer than t_p and c_n the limits farther than d_n. The counts are piecewise constant, so the gradient
    of this linear form, with the counts held fixed, is the gradient of the sum.
    """
    d_positive, positives, d_negative, negatives = pairs.apart
    fixed, limits = lax.stop_gradient((d_negative, d_positive + margin))
    count = counted_by_comparing if limits.shape[1] <= LIST else counted_by_sorting
    nearer, reached = count(jnp.where(positives, limits, -jnp.inf), jnp.where(negatives, fixed, jnp.inf))
    active = jnp.sum(nearer, axis=-1)
    total = jnp.sum(nearer * d_positive, axis=-1) - jnp.sum(reached * d_negative, axis=-1) + margin * active
    number = jnp.sum(positives, axis=-1) * jnp.sum(negatives, axis=-1)
    return Mean(total, active if average == "active" else number)


def _all_soft_rows(pairs, margin, average) -> Mean:
    """Every triplet of a row with the soft margin."""
    d_positive, positives, d_negative, negatives = pairs.apart
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
    rows = jnp.arange(len(positives), dtype=jnp.int32)[:, None]

    def add(carry, column, there):
        total, pulls, pushes = carry
        gaps = jnp.take_along_axis(d_positive, column, axis=1) - d_negative
        where = negatives & there
        slopes = jnp.where(where, jax.nn.sigmoid(gaps), 0)
        total += jnp.sum(jnp.where(where, softplus(gaps), 0), axis=-1)
        pulls = pulls.at[rows, column].add(jnp.sum(slopes, axis=-1, keepdims=True))
        return total, pulls, pushes + slopes

    zeros = (jnp.zeros_like(d_negative[:, 0]), jnp.zeros_like(d_positive), jnp.zeros_like(d_negative))
    return each_positive(add, varying(zeros, (d_positive, d_negative)), positives)


# --- an anchor's positive or negative is compared with other columns in its turn ------------------------------------


def _picked(scores: Float[Array, "r m"], column: Array) -> Float[Array, " r"]:
    return jnp.take_along_axis(scores, column[:, None], axis=1)[:, 0]


def _angular_rows(pairs, angle):
    square = jnp.square(jnp.tan(angle))

    def pair(there, positive):
        sums = pairs.scores + pairs.row_of(positive)[0]
        rest = logsumexp(4 * square * sums, pairs.negatives)
        terms = softplus(rest - 2 * (1 + square) * _picked(pairs.scores, positive))
        return Mean(jnp.where(there, terms, 0), there.astype(terms.dtype))

    return summed_over_positives(pair, pairs.listed, pairs.positive_columns)


def angular(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    angle: ArrayLike = jnp.pi / 4,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Angular loss: mean over positive pairs of log(1 + Σ_n e^{4 tan²α (a + p)·n − 2 (1 + tan²α) a·p}).

    All three vectors are normalised, the negatives too. α is `angle`, in radians: an upper bound on the angle at the
    negative. A pair whose anchor has no negatives adds 0 and counts. The paper's best results add it to `n_pairs`.
    Options: `AnchorOptions`; time grows with the number of positives of an anchor.

    Wang et al. 2017, arXiv:1708.01682 (α between 36 and 55 degrees).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(angular(z, jnp.array([0, 0, 1])))  # log(1 + e^{0 − 4})
    0.01815
    """
    return over_pairs(_angular_rows, embeddings, labels, angle, similarity=similarity, heavy=True, **options)


def _quadruplet_rows(pairs, margin, second_margin, average):
    chosen = mining.batch_hard(pairs.scores, pairs.positives, pairs.negatives)
    d_ap, d_an = _picked(pairs.scores, chosen.positive), _picked(pairs.scores, chosen.negative)
    others, _, other_negatives = pairs.row_of(chosen.negative)
    strangers = other_negatives & pairs.negatives & chosen.valid[:, None]
    some = jnp.any(strangers, axis=-1)
    d_nn = jnp.min(jnp.where(strangers, others, jnp.inf), axis=-1)
    one = lambda terms, where: hinge_mean(jnp.maximum(terms, 0)[:, None], where[:, None], average)
    second = jnp.where(some, d_ap - jnp.where(some, d_nn, 0) + second_margin, 0)
    return one(d_ap - d_an + margin, chosen.valid), one(second, some)


def quadruplet(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 1.0,
    second_margin: ArrayLike = 0.5,
    distance: Callable[[Array, Array], Array] = distances.squared_chord,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Quadruplet loss, batch-hard: mean over anchors of [d_ap − d_an + m]₊, plus mean of [d_ap − d_nn' + m']₊.

    p is the anchor's farthest positive and n its closest negative; n' is the column closest to n among those that are
    negatives of both n and the anchor. Each mean is over its non-zero terms, or over all with `average="valid"`; an
    anchor without n' has no second term. Options: `AnchorOptions`.

    Chen et al. 2017, arXiv:1704.01719 (m = 1, m' = 0.5 for a learned measure in place of the distance; the paper adapts
    its margins while mining).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> y = jnp.array([0, 0, 1, 2])  # d_ap = 0, d_an = 2, d_nn' = 4
    >>> float(quadruplet(z, y, margin=3.0, second_margin=5.0))
    2.0
    """
    check_average(average)
    hyper = (margin, second_margin, average)
    return over_pairs(_quadruplet_rows, embeddings, labels, *hyper, distance=distance, **options)
