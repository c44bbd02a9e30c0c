"""Losses that weigh a row's similarities by exponentials of them."""

import functools
from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import distances, similarities
from metricjax.anchors import AnchorOptions, Mean, over_anchors
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_positive, check_rows
from metricjax.ground.functions import by_content, check_function
from metricjax.ground.numerics import logsumexp, safe_sqrt, softplus


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
) -> Loss:
    """NT-Xent (InfoNCE): mean over positive pairs of −log(e^{s_ap/τ} / (e^{s_ap/τ} + Σ_n e^{s_an/τ})).

    Other positives of the anchor are not in the denominator. A pair whose anchor has no negatives adds 0 and counts.
    Options: `AnchorOptions`.

    Chen et al. 2020 (SimCLR), arXiv:2002.05709 (τ = 0.1 for ImageNet); van den Oord et al. 2018, arXiv:1807.03748.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(nt_xent(z, jnp.array([0, 0, 1]), temperature=1.0))  # log(1 + 1/e)
    0.3133
    """
    check_positive(temperature=temperature)
    return over_anchors(_nt_xent_rows, embeddings, labels, temperature, similarity=similarity, apart=True, **options)


def n_pairs(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    similarity: Callable[[Array, Array], Array] = similarities.dot,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Multi-class N-pair loss: mean over positive pairs of log(1 + Σ_n e^{s_an − s_ap}), with dot products.

    The paper's batch, one pair of each class, is `n_pairs(anchors, classes, references=positives,
    reference_labels=classes)`: the negatives of an anchor are then the other classes' positives. Without references all
    pairs of a batch serve. The paper adds `losses.embedding_norm`, since embeddings are not normalised. A pair whose
    anchor has no negatives adds 0 and counts. Options: `AnchorOptions`.

    Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective".

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(n_pairs(z, jnp.array([0, 0, 1])))  # log(1 + 1/e)
    0.3133
    """
    return over_anchors(_nt_xent_rows, embeddings, labels, 1.0, similarity=similarity, apart=True, **options)


def _decoupled_rows(positive_scores, positives, negative_scores, negatives, temperature, sigma, log_mean):
    pairs = positives & jnp.any(negatives, axis=-1, keepdims=True)
    rest = logsumexp(negative_scores / temperature, negatives)[:, None]
    weights = 1.0
    if sigma is not None:
        exponents = lax.stop_gradient(positive_scores / sigma - log_mean)
        weights = 2 - jnp.exp(jnp.where(pairs, exponents, 0))
    terms = jnp.where(pairs, rest - weights * positive_scores / temperature, 0)
    return Mean(jnp.sum(terms, axis=-1), jnp.sum(pairs, axis=-1))


def _log_exp_rows(positive_scores, positives, negative_scores, negatives, sigma):
    pairs = positives & jnp.any(negatives, axis=-1, keepdims=True)
    some = jnp.any(pairs, axis=-1)
    own = jnp.where(some, logsumexp(positive_scores / sigma, pairs), 0)
    return Mean(jnp.stack([own, some.astype(own.dtype)], axis=-1), jnp.sum(pairs, axis=-1))


def _log_mean_exp(mean: Mean) -> Float[Array, ""]:
    """log(Σ_i w_i e^{x_i} / Σ_i count_i) of totals w_i [x_i, 1], in which w_i are the anchors' weights."""
    weights = mean.total[:, 1]
    some = weights > 0
    weights = jnp.where(some, weights, 1)
    total = logsumexp((mean.total[:, 0] / weights + jnp.log(weights))[None], some[None])[0]
    count = jnp.sum(mean.count)
    return jnp.where(count > 0, total - jnp.log(jnp.where(count > 0, count, 1)), 0)


def decoupled_contrastive(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    temperature: ArrayLike = 0.1,
    sigma: ArrayLike | None = None,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Decoupled contrastive loss (DCL): mean over positive pairs of −w s_ap/τ + log Σ_n e^{s_an/τ}.

    The positive is not in the denominator. w is 1, or with `sigma` (DCLW) 2 − e^{s_ap/σ} / mean e^{s/σ}, the mean taken
    over the batch's positive pairs, without a gradient. Pairs whose anchor has no negatives do not count. The loss may
    be negative. Options: `AnchorOptions`.

    Yeh et al. 2022, arXiv:2110.06848 (τ = 0.1, σ = 0.5).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(decoupled_contrastive(z, jnp.array([0, 0, 1]), temperature=1.0))  # −1 + log e^0
    -1.0
    """
    check_positive(temperature=temperature, sigma=sigma)
    log_mean = None
    if sigma is not None:
        check_rows("embeddings", embeddings)
        own: dict[str, Any] = {**options, "reduction": _log_mean_exp}
        log_mean = over_anchors(
            _log_exp_rows, lax.stop_gradient(embeddings), labels, sigma, similarity=similarity, apart=True, **own
        )
    hyper = (temperature, sigma, log_mean)
    return over_anchors(_decoupled_rows, embeddings, labels, *hyper, similarity=similarity, apart=True, **options)


def _supcon_rows(positive_scores, positives, negative_scores, negatives, temperature, variant):
    logits = positive_scores / temperature
    count = jnp.sum(positives, axis=-1)
    weights = positives.astype(logits.dtype) / jnp.maximum(count, 1)[:, None].astype(logits.dtype)
    return _supcon(logits, positives, negative_scores / temperature, negatives, weights, count > 0, variant)


def _graded_supcon_rows(scores, positives, negatives, grades, temperature, variant):
    grades = jnp.where(positives, grades.astype(scores.dtype), 0)
    total = jnp.sum(grades, axis=-1, keepdims=True)
    weights = grades / jnp.where(total > 0, total, 1)
    logits = scores / temperature
    return _supcon(logits, positives, logits, negatives, weights, total[:, 0] > 0, variant)


def _supcon(logits, positives, other_logits, negatives, weights, some, variant) -> Mean:
    """−Σ_p w_p log q_p for "out" and −log Σ_p w_p q_p for "in", with q the softmax over all."""
    own = jnp.where(some, logsumexp(logits, positives), 0)
    everything = own + softplus(logsumexp(other_logits, negatives) - own)
    if variant == "out":
        pulled = jnp.sum(jnp.where(positives, weights * logits, 0), axis=-1)
    else:
        weighed = weights > 0
        pulled = logsumexp(logits + jnp.log(jnp.where(weighed, weights, 1)), weighed)
    return Mean(jnp.where(some, everything - jnp.where(some, pulled, 0), 0), some)


@functools.lru_cache(maxsize=256)
def _all_pairs(relation: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda rows, columns: jax.vmap(lambda a: jax.vmap(lambda b: relation(a, b))(columns))(rows)


@functools.lru_cache(maxsize=256)
def _related(grade: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: grade(a, b) > 0


def supcon(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    temperature: ArrayLike = 0.1,
    variant: Literal["out", "in"] = "out",
    grade: Callable[[Array, Array], Array] | None = None,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Supervised contrastive loss: mean over anchors of (1/|P|) Σ_p −log(e^{s_ap/τ} / Σ_{j≠a} e^{s_aj/τ}).

    The mean is over anchors that have a positive. This is the paper's better form, with the sum over positives
    outside the logarithm, and without its constant factor; `variant="in"` is −log((1/|P|) Σ_p e^{s_ap/τ} / Σ_j
    e^{s_aj/τ}). With `grade(a, b)`, a number from 0 up for two labels, positives are the columns whose grade is not 0
    (or those of `same`), weighted by their grade in place of 1/|P|: for labels that match more or less, see
    `mj.relations`. Options: `AnchorOptions`.

    Khosla et al. 2020, arXiv:2004.11362 (τ = 0.1).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(supcon(z, jnp.array([0, 0, 1]), temperature=1.0))  # log(1 + 1/e)
    0.3133
    """
    check_positive(temperature=temperature)
    if variant not in ("out", "in"):
        raise ValueError(f"variant is {variant!r}; wanted 'out' or 'in', where the sum over positives stands")
    hyper = (temperature, variant)
    if grade is None:
        return over_anchors(_supcon_rows, embeddings, labels, *hyper, similarity=similarity, apart=True, **options)
    check_function("grade", grade)
    grade = by_content(grade)
    if options.get("same") is None:
        options["same"] = _related(grade)
    return over_anchors(
        _graded_supcon_rows, embeddings, labels, *hyper, similarity=similarity, given=_all_pairs(grade), **options
    )


def _nca_rows(d_positive, positives, d_negative, negatives, temperature):
    some = jnp.any(positives, axis=-1)
    own = jnp.where(some, logsumexp(-d_positive / temperature, positives), 0)
    rest = logsumexp(-d_negative / temperature, negatives)
    return Mean(jnp.where(some, softplus(rest - own), 0), some)


def nca(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    temperature: ArrayLike = 1.0,
    distance: Callable[[Array, Array], Array] = distances.squared_euclidean,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """NCA, or soft nearest neighbours: mean over anchors of −log(Σ_p e^{−d_ap/T} / Σ_{j≠a} e^{−d_aj/T}).

    The mean is over anchors that have a positive, however far it is. Options: `AnchorOptions`.

    Goldberger et al. 2004, "Neighbourhood components analysis" (the logarithm of its objective, T = 1); Frosst,
    Papernot, Hinton 2019, "Analyzing and improving representations with the soft nearest neighbor loss",
    arXiv:1902.01889.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[0.0], [0.0], [1.0]])
    >>> float(nca(z, jnp.array([0, 0, 1])))  # log(1 + 1/e)
    0.3133
    """
    check_positive(temperature=temperature)
    return over_anchors(_nca_rows, embeddings, labels, temperature, distance=distance, apart=True, **options)


def _tuplet_rows(positive_scores, positives, negative_scores, negatives, margin, scale):
    turned = positive_scores * jnp.cos(margin) + safe_sqrt(1 - jnp.square(positive_scores)) * jnp.sin(margin)
    rest = logsumexp(scale * negative_scores, negatives)[:, None]
    terms = jnp.where(positives, softplus(rest - scale * turned), 0)
    return Mean(jnp.sum(terms, axis=-1), jnp.sum(positives, axis=-1))


def tuplet_margin(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 0.1,
    scale: ArrayLike = 64.0,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Tuplet margin loss: mean over positive pairs of log(1 + Σ_n e^{s (cos θ_an − cos(θ_ap − β))}).

    β is `margin`, in radians: the slack that a positive is given. cos(θ − β) is computed without an arccos. A pair
    whose anchor has no negatives adds 0 and counts. Options: `AnchorOptions`.

    Yu & Tao 2019, "Deep metric learning with tuplet margin loss" (β = 0.1, or 5.73 degrees, s = 64).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # cos(π/2 − 0.1) = 0.0998
    >>> y = jnp.array([0, 0, 1])
    >>> float(tuplet_margin(z, y, scale=1.0, weights=jnp.array([1.0, 0.0, 0.0])))  # log(1 + e^{1 − 0.0998})
    1.2413
    """
    check_positive(scale=scale)
    hyper = (margin, scale)
    return over_anchors(_tuplet_rows, embeddings, labels, *hyper, similarity=similarities.cosine, apart=True, **options)


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
    return over_anchors(
        _multi_similarity_rows, embeddings, labels, alpha, beta, base, similarity=similarity, apart=True, **options
    )


def _unified_rows(
    positive_scores, positives, negative_scores, negatives, scale, positive_margin, negative_margin, pull, push
):
    weight = lambda f, scores, margin: 1.0 if f is None else f(lax.stop_gradient(scores), margin)
    pulled = weight(pull, positive_scores, positive_margin) * (positive_scores - positive_margin)
    pushed = weight(push, negative_scores, negative_margin) * (negative_scores - negative_margin)
    terms = softplus(logsumexp(-scale * pulled, positives) + logsumexp(scale * pushed, negatives))
    return Mean(terms, jnp.any(positives, axis=-1) & jnp.any(negatives, axis=-1))


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
    return over_anchors(_unified_rows, embeddings, labels, *hyper, similarity=similarity, apart=True, **options)


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
