"""Softmax losses over class prototypes, with and without a margin on the target. Angles are in radians."""

from typing import Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from metricjax import similarities
from metricjax.numerics import safe_sqrt
from metricjax.prototypes import PrototypeOptions, over_prototypes


def _scaled(scores, target, is_target, scale):
    return scale * scores


def softmax(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    bias: Float[Array, " c"] | None = None,
    **options: Unpack[PrototypeOptions],
) -> Float[Array, ""]:
    """The plain softmax loss: mean over rows of −log softmax(W x + b)_y, the baseline that the others improve on.

    Neither embeddings nor prototypes (W) are normalised. Options: `PrototypeOptions`.

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
    return over_prototypes(_scaled, embeddings, labels, prototypes, 1.0, similarity=similarities.dot, **options)


def normalized_softmax(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    temperature: ArrayLike = 0.05,
    **options: Unpack[PrototypeOptions],
) -> Float[Array, ""]:
    """Softmax over cosines: mean over rows of −log softmax(cos θ_j / τ)_y. Options: `PrototypeOptions`.

    Zhai & Wu 2018, arXiv:1811.12649 (τ = 0.05); also known as NormFace.

    >>> import jax.numpy as jnp
    >>> float(normalized_softmax(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), temperature=1.0))  # log(1 + 1/e)
    0.3133
    """
    scale = 1 / jnp.asarray(temperature)
    return over_prototypes(_scaled, embeddings, labels, prototypes, scale, similarity=similarities.cosine, **options)


def _cosface_logits(scores, target, is_target, scale, margin):
    return scale * jnp.where(is_target, scores - margin, scores)


def cosface(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.35,
    **options: Unpack[PrototypeOptions],
) -> Float[Array, ""]:
    """CosFace (AM-softmax): softmax over s·cos θ_j with the target s·(cos θ_y − m), mean over rows.

    Options: `PrototypeOptions`.

    Wang et al. 2018, arXiv:1801.09414 (s = 64, m = 0.35).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 1.0]])  # as near to one class as to the other
    >>> float(cosface(z, jnp.array([0]), jnp.eye(2), scale=1.0))  # log(1 + e^0.35)
    0.8834
    """
    hyper = (scale, margin)
    return over_prototypes(
        _cosface_logits, embeddings, labels, prototypes, *hyper, similarity=similarities.cosine, **options
    )


def _arcface_logits(scores, target, is_target, scale, margin):
    turned = target * jnp.cos(margin) - safe_sqrt(1 - jnp.square(target)) * jnp.sin(margin)
    shifted = jnp.where(target > -jnp.cos(margin), turned, target - margin * jnp.sin(margin))
    return scale * jnp.where(is_target, shifted, scores)


def arcface(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.5,
    **options: Unpack[PrototypeOptions],
) -> Float[Array, ""]:
    """ArcFace: softmax over s·cos θ_j with the target s·cos(θ_y + m), mean over rows; m in radians.

    cos(θ + m) is computed as cos θ cos m − sin θ sin m, without an arccos; where θ > π − m, cos θ − m sin m takes its
    place, which keeps the target falling with θ. Options: `PrototypeOptions`.

    Deng et al. 2019, arXiv:1801.07698 (s = 64, m = 0.5).

    >>> import jax.numpy as jnp
    >>> float(arcface(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), scale=1.0))  # log(1 + e^-cos 0.5)
    0.3477
    """
    hyper = (scale, margin)
    return over_prototypes(
        _arcface_logits, embeddings, labels, prototypes, *hyper, similarity=similarities.cosine, **options
    )


def _circle_logits(scores, target, is_target, scale, margin):
    fixed = lax.stop_gradient(scores)
    pull = jnp.maximum(1 + margin - fixed, 0) * (scores - (1 - margin))
    push = jnp.maximum(fixed + margin, 0) * (scores - margin)
    return scale * jnp.where(is_target, pull, push)


def circle_class(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 256.0,
    margin: ArrayLike = 0.25,
    **options: Unpack[PrototypeOptions],
) -> Float[Array, ""]:
    """Circle loss with class labels: softmax over γ α_j (s_j − Δ_j) of the cosines s_j, mean over rows.

    Target: α = [1 + m − s_y]₊, Δ = 1 − m; others: α = [s_j + m]₊, Δ = m. The weights α carry no gradient; γ is
    `scale`. Options: `PrototypeOptions`.

    Sun et al. 2020, arXiv:2002.10857 (m = 0.25, γ = 256 for faces).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0]])  # target: α = 0.25, other: α = 0.25
    >>> float(circle_class(z, jnp.array([0]), jnp.eye(2), scale=1.0))  # log(1 + e^{-0.0625 - 0.0625})
    0.6326
    """
    hyper = (scale, margin)
    return over_prototypes(
        _circle_logits, embeddings, labels, prototypes, *hyper, similarity=similarities.cosine, **options
    )
