"""Losses in which an anchor's positives or negatives are compared with other columns in their turn."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import distances, similarities
from metricjax.anchors import AnchorOptions, Mean, over_anchors
from metricjax.engine.positives import summed_over_positives
from metricjax.engine.reductions import Loss
from metricjax.ground.numerics import a_row_for_none, logsumexp, softplus
from metricjax.losses.pairs import check_average, hinge_mean
from metricjax.mining import batch_hard


def _picked(scores: Float[Array, "r m"], column: Array) -> Float[Array, " r"]:
    return jnp.take_along_axis(scores, column[:, None], axis=1)[:, 0]


def _marked(terms: Float[Array, " r"], where: Array) -> Mean:
    return Mean(jnp.where(where, terms, 0), where.astype(terms.dtype))


def _values(mean: Mean) -> Float[Array, " m"]:
    """A reduction: each anchor's own value, −∞ where it has none."""
    return jnp.where(mean.count > 0, mean.total, -jnp.inf)


def _near_rows(d_positive, positives, d_negative, negatives, margin):
    some = jnp.any(negatives, axis=-1)
    return Mean(jnp.where(some, logsumexp(margin - d_negative, negatives), 0), some)


def _lifted_rows(scores, positives, negatives, reach, margin, near):
    own = logsumexp(margin - scores, negatives)[:, None]
    theirs = reach.pick(near)
    top = lax.stop_gradient(jnp.maximum(own, theirs))
    where = reach.there & (top > -jnp.inf)
    top = jnp.where(where, top, 0)
    both = jnp.exp(own - top) + jnp.exp(theirs - top)
    lifted = jnp.log(jnp.where(where, both, 1)) + top + reach.pick(scores)
    return hinge_mean(jnp.square(jnp.maximum(lifted, 0)) / 2, where, "valid")


def lifted_structure(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 1.0,
    distance: Callable[[Array, Array], Array] = distances.euclidean,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Lifted structured loss: mean over positive pairs of ½[log(Σ_n e^{m − d_an} + Σ_n' e^{m − d_pn'}) + d_ap]₊².

    n runs over the negatives of the anchor and n' over those of the positive, among the same columns. A pair without
    any negative does not count. Options: `AnchorOptions`.

    Song et al. 2016, arXiv:1511.06452 (m = 1).

    >>> import jax.numpy as jnp
        >>> z = jnp.array([[0.0], [0.0], [1.0]])
    >>> float(lifted_structure(z, jnp.array([0, 0, 1])))  # ½ (log 2)²
    0.2402
    """
    # First Σ_n' of each column, by the columns as anchors among themselves.
    columns: tuple[Any, ...] = (embeddings, labels)
    where = options.get("where")
    if options.get("references") is not None:
        columns = options.get("references"), options.get("reference_labels")
        where = options.get("reference_where")
    rest = ("same", "miner", "block_size", "axis_name")
    how: dict[str, Any] = {name: value for name, value in options.items() if name in rest} | {"where": where}
    near = over_anchors(_near_rows, *columns, margin, distance=distance, apart=True, reduction=_values, **how)
    near = a_row_for_none(near)  # as the driver does for columns
    return over_anchors(_lifted_rows, embeddings, labels, margin, near, distance=distance, reaching=True, **options)


def _generalized_rows(d_positive, positives, d_negative, negatives, margin):
    both = jnp.any(positives, axis=-1) & jnp.any(negatives, axis=-1)
    lifted = logsumexp(d_positive, positives) + logsumexp(margin - d_negative, negatives)
    return Mean(jnp.maximum(jnp.where(both, lifted, 0), 0), both)


def generalized_lifted_structure(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 1.0,
    distance: Callable[[Array, Array], Array] = distances.euclidean,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Generalised lifted structured loss: mean over anchors of [log Σ_p e^{d_ap} + log Σ_n e^{m − d_an}]₊.

    The mean is over anchors that have both a positive and a negative (the paper sums). Options: `AnchorOptions`.

    Hermans, Beyer, Leibe 2017, arXiv:1703.07737.

    >>> import jax.numpy as jnp
        >>> z = jnp.array([[0.0], [0.0], [0.5]])
    >>> float(generalized_lifted_structure(z, jnp.array([0, 0, 1])))  # 0 + 1 − 0.5
    0.5
    """
    return over_anchors(_generalized_rows, embeddings, labels, margin, distance=distance, apart=True, **options)


def _angular_rows(scores, positives, negatives, reach, angle):
    square = jnp.square(jnp.tan(angle))

    def pair(there, positive):
        sums = scores + reach.row_of(positive)[0]
        rest = logsumexp(4 * square * sums, negatives)
        return _marked(softplus(rest - 2 * (1 + square) * _picked(scores, positive)), there)

    return summed_over_positives(pair, reach.there, reach.positive)


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
    return over_anchors(_angular_rows, embeddings, labels, angle, similarity=similarity, reaching=True, **options)


def _quadruplet_rows(scores, positives, negatives, reach, margin, second_margin, average):
    chosen = batch_hard(scores, positives, negatives)
    d_ap, d_an = _picked(scores, chosen.positive), _picked(scores, chosen.negative)
    others, _, other_negatives = reach.row_of(chosen.negative)
    strangers = other_negatives & negatives & chosen.valid[:, None]
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
    return over_anchors(_quadruplet_rows, embeddings, labels, *hyper, distance=distance, reaching=True, **options)
