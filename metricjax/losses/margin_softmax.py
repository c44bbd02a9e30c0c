"""Softmax losses over class prototypes, with and without a margin on the target. Angles are in radians."""

from typing import Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from metricjax import similarities
from metricjax.numerics import safe_sqrt
from metricjax.prototypes import SoftmaxOptions, over_prototypes
from metricjax.reductions import Loss


def _scaled(scores, scale):
    return scale * scores


def _others_scaled(scores, own, scale, *margins):
    return scale * scores


def softmax(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    bias: Float[Array, " c"] | None = None,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """The plain softmax loss: mean over rows of −log softmax(W x + b)_y, the baseline that the others improve on.

    Neither embeddings nor prototypes (W) are normalised. Options: `SoftmaxOptions`.

    >>> import jax.numpy as jnp
    >>> float(softmax(jnp.zeros((1, 2)), jnp.array([0]), jnp.ones((4, 2))))  # log 4
    1.3863
    """
    if bias is not None:
        if bias.shape != prototypes.shape[:1]:
            raise ValueError(f"bias has shape {bias.shape}; wanted one value for each of {len(prototypes)} prototypes")
        one = jnp.ones((len(embeddings), 1), embeddings.dtype)
        embeddings = jnp.concatenate([embeddings, one], axis=1)
        prototypes = jnp.concatenate([prototypes, bias[:, None].astype(prototypes.dtype)], axis=1)
    return over_prototypes(
        _scaled, _others_scaled, embeddings, labels, prototypes, 1.0, similarity=similarities.dot, **options
    )


def normalized_softmax(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    temperature: ArrayLike = 0.05,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """Softmax over cosines: mean over rows of −log softmax(cos θ_j / τ)_y. Options: `SoftmaxOptions`.

    Zhai & Wu 2018, arXiv:1811.12649 (τ = 0.05); also known as NormFace.

    >>> import jax.numpy as jnp
    >>> float(normalized_softmax(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), temperature=1.0))  # log(1 + 1/e)
    0.3133
    """
    scale = 1 / jnp.asarray(temperature)
    return over_prototypes(
        _scaled, _others_scaled, embeddings, labels, prototypes, scale, similarity=similarities.cosine, **options
    )


def _cosface_target(own, scale, margin):
    return scale * (own - margin)


def cosface(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.35,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """CosFace (AM-softmax): softmax over s·cos θ_j with the target s·(cos θ_y − m), mean over rows.

    Options: `SoftmaxOptions`.

    Wang et al. 2018, arXiv:1801.09414 (s = 64, m = 0.35).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 1.0]])  # as near to one class as to the other
    >>> float(cosface(z, jnp.array([0]), jnp.eye(2), scale=1.0))  # log(1 + e^0.35)
    0.8834
    """
    hyper = (scale, margin)
    return over_prototypes(
        _cosface_target,
        _others_scaled,
        embeddings,
        labels,
        prototypes,
        *hyper,
        similarity=similarities.cosine,
        **options,
    )


def _arcface_target(own, scale, margin):
    turned = own * jnp.cos(margin) - safe_sqrt(1 - jnp.square(own)) * jnp.sin(margin)
    return scale * jnp.where(own > -jnp.cos(margin), turned, own - margin * jnp.sin(margin))


def arcface(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.5,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """ArcFace: softmax over s·cos θ_j with the target s·cos(θ_y + m), mean over rows; m in radians.

    cos(θ + m) is computed as cos θ cos m − sin θ sin m, without an arccos; where θ > π − m, cos θ − m sin m takes its
    place, which keeps the target falling with θ. Options: `SoftmaxOptions`.

    Deng et al. 2019, arXiv:1801.07698 (s = 64, m = 0.5).

    >>> import jax.numpy as jnp
    >>> float(arcface(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), scale=1.0))  # log(1 + e^-cos 0.5)
    0.3477
    """
    hyper = (scale, margin)
    return over_prototypes(
        _arcface_target,
        _others_scaled,
        embeddings,
        labels,
        prototypes,
        *hyper,
        similarity=similarities.cosine,
        **options,
    )


def _circle_target(own, scale, margin):
    return scale * jnp.maximum(1 + margin - lax.stop_gradient(own), 0) * (own - (1 - margin))


def _circle_others(scores, own, scale, margin):
    return scale * jnp.maximum(lax.stop_gradient(scores) + margin, 0) * (scores - margin)


def circle_class(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 256.0,
    margin: ArrayLike = 0.25,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """Circle loss with class labels: softmax over γ α_j (s_j − Δ_j) of the cosines s_j, mean over rows.

    Target: α = [1 + m − s_y]₊, Δ = 1 − m; others: α = [s_j + m]₊, Δ = m. The weights α carry no gradient; γ is
    `scale`. Options: `SoftmaxOptions`.

    Sun et al. 2020, arXiv:2002.10857 (m = 0.25, γ = 256 for faces).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0]])  # target: α = 0.25, other: α = 0.25
    >>> float(circle_class(z, jnp.array([0]), jnp.eye(2), scale=1.0))  # log(1 + e^{-0.0625 - 0.0625})
    0.6326
    """
    hyper = (scale, margin)
    return over_prototypes(
        _circle_target,
        _circle_others,
        embeddings,
        labels,
        prototypes,
        *hyper,
        similarity=similarities.cosine,
        **options,
    )
