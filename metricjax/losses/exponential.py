"""Losses that weigh a row's similarities by exponentials of them."""

from collections.abc import Callable
from typing import Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import similarities
from metricjax.anchors import AnchorOptions, Mean, over_anchors
from metricjax.numerics import logsumexp, softplus


def _nt_xent_rows(positive_scores, positives, negative_scores, negatives, temperature):
    rest = logsumexp(negative_scores / temperature, negatives)[:, None]
    terms = jnp.where(positives, softplus(rest - positive_scores / temperature), 0)
    return Mean(jnp.sum(terms, axis=-1), jnp.sum(positives, axis=-1))


def nt_xent(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    temperature: ArrayLike = 0.1,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Float[Array, ""]:
    """NT-Xent (InfoNCE): mean over positive pairs of −log(e^{s_ap/τ} / (e^{s_ap/τ} + Σ_n e^{s_an/τ})).

    Other positives of the anchor are not in the denominator. A pair whose anchor has no negatives adds 0 and counts.
    Options: `AnchorOptions`.

    Chen et al. 2020 (SimCLR), arXiv:2002.05709 (τ = 0.1 for ImageNet); van den Oord et al. 2018, arXiv:1807.03748.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(nt_xent(z, jnp.array([0, 0, 1]), temperature=1.0))  # log(1 + 1/e)
    0.3133
    """
    return over_anchors(_nt_xent_rows, embeddings, labels, temperature, similarity=similarity, apart=True, **options)


def _supcon_rows(positive_scores, positives, negative_scores, negatives, temperature):
    logits = positive_scores / temperature
    count = jnp.sum(positives, axis=-1)
    some = count > 0
    own = jnp.where(some, logsumexp(logits, positives), 0)
    everything = own + softplus(logsumexp(negative_scores / temperature, negatives) - own)
    mean_positive = jnp.sum(jnp.where(positives, logits, 0), axis=-1) / jnp.maximum(count, 1).astype(logits.dtype)
    return Mean(jnp.where(some, everything - mean_positive, 0), some)


def supcon(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    temperature: ArrayLike = 0.1,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Float[Array, ""]:
    """Supervised contrastive loss: mean over anchors of (1/|P|) Σ_p −log(e^{s_ap/τ} / Σ_{j≠a} e^{s_aj/τ}).

    The mean is over anchors that have a positive. This is the paper's better form, with the sum over positives
    outside the logarithm, and without its constant factor. Options: `AnchorOptions`.

    Khosla et al. 2020, arXiv:2004.11362 (τ = 0.1).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(supcon(z, jnp.array([0, 0, 1]), temperature=1.0))  # log(1 + 1/e)
    0.3133
    """
    return over_anchors(_supcon_rows, embeddings, labels, temperature, similarity=similarity, apart=True, **options)


def _multi_similarity_rows(positive_scores, positives, negative_scores, negatives, alpha, beta, base):
    pull = softplus(logsumexp(-alpha * (positive_scores - base), positives)) / alpha
    push = softplus(logsumexp(beta * (negative_scores - base), negatives)) / beta
    return Mean(pull + push, jnp.any(positives, axis=-1) | jnp.any(negatives, axis=-1))


def multi_similarity(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    alpha: ArrayLike = 2.0,
    beta: ArrayLike = 50.0,
    base: ArrayLike = 0.5,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Float[Array, ""]:
    """Multi-similarity loss: mean over anchors of log(1 + Σ_p e^{−α(s_ap−λ)})/α + log(1 + Σ_n e^{β(s_an−λ)})/β.

    The mean is over anchors that have a pair of either kind. λ is `base`. Options: `AnchorOptions`.

    Wang et al. 2019, arXiv:1904.06627 (α = 2, β = 50, λ = 0.5).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(multi_similarity(z, jnp.array([0, 0])))  # log(1 + e) / 2
    0.6566
    """
    return over_anchors(
        _multi_similarity_rows, embeddings, labels, alpha, beta, base, similarity=similarity, apart=True, **options
    )


def _circle_rows(positive_scores, positives, negative_scores, negatives, margin, scale):
    pull_weights = jnp.maximum(1 + margin - lax.stop_gradient(positive_scores), 0)
    push_weights = jnp.maximum(lax.stop_gradient(negative_scores) + margin, 0)
    pull = -scale * pull_weights * (positive_scores - (1 - margin))
    push = scale * push_weights * (negative_scores - margin)
    terms = softplus(logsumexp(pull, positives) + logsumexp(push, negatives))
    return Mean(terms, jnp.any(positives, axis=-1) & jnp.any(negatives, axis=-1))


def circle(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 0.4,
    scale: ArrayLike = 80.0,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Float[Array, ""]:
    """Circle loss: mean over anchors of log(1 + Σ_n e^{γ α_n (s_an − m)} Σ_p e^{−γ α_p (s_ap − 1 + m)}).

    α_p = [1 + m − s_ap]₊ and α_n = [s_an + m]₊ carry no gradient; γ is `scale`. The mean is over anchors that have
    both a positive and a negative. Options: `AnchorOptions`.

    Sun et al. 2020, arXiv:2002.10857 (m = 0.4, γ = 80 for fine-grained retrieval; 0.25 and 256 for faces).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(circle(z, jnp.array([0, 0, 1]), scale=1.0))  # log(1 + e^{-0.16 - 0.16})
    0.5459
    """
    return over_anchors(_circle_rows, embeddings, labels, margin, scale, similarity=similarity, apart=True, **options)
