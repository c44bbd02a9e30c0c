"""Losses that weigh each pair by how far it is from where it should be: multi-similarity and circle."""

from collections.abc import Callable
from typing import Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import similarities
from metricjax.anchors import AnchorOptions, Mean, Statistic, over_statistics
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_positive
from metricjax.ground.numerics import softplus

__all__ = ["circle", "multi_similarity", "unified_pair"]


_MULTI_SIMILARITY = {
    "pull": Statistic("logsumexp", "positives", lambda scores, alpha, beta, base: -alpha * (scores - base)),
    "push": Statistic("logsumexp", "negatives", lambda scores, alpha, beta, base: beta * (scores - base)),
}


def _multi_similarity(row, alpha, beta, base):
    return Mean(softplus(row.pull) / alpha + softplus(row.push) / beta, row.positives + row.negatives > 0)


def multi_similarity(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    alpha: ArrayLike = 2.0,
    beta: ArrayLike = 50.0,
    base: ArrayLike = 0.5,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Multi-similarity loss: mean over anchors of log(1 + Σ_p e^{−α(s_ap−λ)})/α + log(1 + Σ_n e^{β(s_an−λ)})/β.

    The mean is over anchors that have a pair of either kind. λ is `base`. Options: `AnchorOptions`.

    Wang et al. 2019, arXiv:1904.06627 (α = 2, β = 50, λ = 0.5).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(multi_similarity(z, jnp.array([0, 0])))  # log(1 + e) / 2
    0.6566
    """
    check_positive(alpha=alpha, beta=beta)
    hyper = (alpha, beta, base)
    return over_statistics(
        _MULTI_SIMILARITY, _multi_similarity, embeddings, labels, *hyper, similarity=similarity, **options
    )


def _weighed(scores, margin, weight):
    """The distance from where a score should be, times its weight, which carries no gradient."""
    return (scores - margin) * (1.0 if weight is None else weight(lax.stop_gradient(scores), margin))


_UNIFIED = {
    "pull": Statistic("logsumexp", "positives", lambda s, scale, at, _, pull, push: -scale * _weighed(s, at, pull)),
    "push": Statistic("logsumexp", "negatives", lambda s, scale, _, at, pull, push: scale * _weighed(s, at, push)),
}


def _unified(row, *_):
    return Mean(softplus(row.pull + row.push), (row.positives > 0) & (row.negatives > 0))


def unified_pair(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    scale: ArrayLike = 80.0,
    positive_margin: ArrayLike = 1.0,
    negative_margin: ArrayLike = 0.0,
    positive_weight: Callable[[Array, Array], Array] | None = None,
    negative_weight: Callable[[Array, Array], Array] | None = None,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Circle loss's general form: mean over anchors of log(1 + Σ_n Σ_p e^{γ (α_n (s_an − Δ_n) − α_p (s_ap − Δ_p))}).

    The weights are functions of a similarity and its margin, `positive_weight(s_ap, Δ_p)` and `negative_weight(s_an,
    Δ_n)`, which carry no gradient; None is 1. γ is `scale`. The mean is over anchors that have both a positive and a
    negative. With both weights 1 only m = Δ_p − Δ_n matters: over class prototypes as references this is then
    `cosface(scale=γ, margin=m)`, and γ → ∞ makes it γ times the triplet loss with batch-hard selection, cosine distance
    and margin m. `circle` is Δ_p = 1 − m, Δ_n = m with α_p = [2 − Δ_p − s]₊ and α_n = [s + Δ_n]₊. Options:
    `AnchorOptions`.

    Sun et al. 2020, arXiv:2002.10857, equations 1 to 6.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(unified_pair(z, jnp.array([0, 0, 1]), scale=1.0))  # log(1 + e^{0 − (1 − 1)})
    0.6931
    """
    check_positive(scale=scale)
    hyper = (scale, positive_margin, negative_margin, positive_weight, negative_weight)
    return over_statistics(_UNIFIED, _unified, embeddings, labels, *hyper, similarity=similarity, **options)


def _circle_pull(scores, positive_margin):
    return jnp.maximum(2 - positive_margin - scores, 0)


def _circle_push(scores, negative_margin):
    return jnp.maximum(scores + negative_margin, 0)


def circle(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 0.4,
    scale: ArrayLike = 80.0,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Circle loss: mean over anchors of log(1 + Σ_n e^{γ α_n (s_an − m)} Σ_p e^{−γ α_p (s_ap − 1 + m)}).

    α_p = [1 + m − s_ap]₊ and α_n = [s_an + m]₊ carry no gradient; γ is `scale`. The mean is over anchors that have
    both a positive and a negative. Options: `AnchorOptions`.

    Sun et al. 2020, arXiv:2002.10857 (m = 0.4, γ = 80 for fine-grained retrieval; 0.25 and 256 for faces).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(circle(z, jnp.array([0, 0, 1]), scale=1.0))  # log(1 + e^{-0.16 - 0.16})
    0.5459
    """
    margin = jnp.asarray(margin)
    return unified_pair(
        embeddings, labels, scale=scale, positive_margin=1 - margin, negative_margin=margin,
        positive_weight=_circle_pull, negative_weight=_circle_push, similarity=similarity, **options,
    )  # fmt: skip
