"""Contrastive losses that are a softmax over the similarities of an anchor: NT-Xent, SupCon, N-pair, NCA and others."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import distances, similarities
from metricjax.anchors import AnchorOptions, Mean, Statistic, over_pairs, over_statistics
from metricjax.engine.miners import as_partial
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_positive, check_rows
from metricjax.ground.functions import check_function
from metricjax.ground.numerics import logsumexp, safe_sqrt, softplus
from metricjax.ground.pairwise import all_pairs

__all__ = ["decoupled_contrastive", "n_pairs", "nca", "nt_xent", "supcon", "tuplet_margin"]


def _divided(scores, temperature, *_):
    return scores / temperature


_NT_XENT = {
    "rest": Statistic("logsumexp", "negatives", _divided),
    "terms": Statistic("sum", "positives", lambda s, rest, temperature: softplus(rest - s / temperature), ("rest",)),
}


def _mean_over_positives(row, *_):
    return Mean(row.terms, row.positives)


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
    declared = (_NT_XENT, _mean_over_positives)
    return over_statistics(*declared, embeddings, labels, temperature, similarity=similarity, **options)


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
    declared = (_NT_XENT, _mean_over_positives)
    return over_statistics(*declared, embeddings, labels, 1.0, similarity=similarity, **options)


def _pulled(scores, temperature, sigma, log_mean):
    weights = 1.0 if sigma is None else 2 - jnp.exp(lax.stop_gradient(scores / sigma - log_mean))
    return weights * scores / temperature


_DECOUPLED = {
    "rest": Statistic("logsumexp", "negatives", _divided),
    "pulled": Statistic("sum", "positives", _pulled),
}


def _decoupled(row, *_):
    counts = jnp.where(row.negatives > 0, row.positives, 0)
    some = counts > 0
    return Mean(jnp.where(some, counts * jnp.where(some, row.rest, 0) - row.pulled, 0), counts)


def _log_exp_rows(pairs, sigma):
    positive_scores, positives, _, negatives = pairs.apart
    counts = positives & jnp.any(negatives, axis=-1, keepdims=True)
    some = jnp.any(counts, axis=-1)
    own = jnp.where(some, logsumexp(positive_scores / sigma, counts), 0)
    return Mean(jnp.stack([own, some.astype(own.dtype)], axis=-1), jnp.sum(counts, axis=-1))


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
        log_mean = over_pairs(_log_exp_rows, lax.stop_gradient(embeddings), labels, sigma, similarity=similarity, **own)
    hyper = (temperature, sigma, log_mean)
    return over_statistics(_DECOUPLED, _decoupled, embeddings, labels, *hyper, similarity=similarity, **options)


_LOGITS = {"own": Statistic("logsumexp", "positives", _divided), "rest": Statistic("logsumexp", "negatives", _divided)}
_SUPCON = {"out": _LOGITS | {"pulled": Statistic("sum", "positives", _divided)}, "in": _LOGITS}


def _supcon(row, temperature, variant):
    """−Σ_p w_p log q_p for "out", −log Σ_p w_p q_p for "in"; q is the softmax over all, w_p 1/|P|."""
    number = jnp.maximum(row.positives, 1)
    pulled = row.pulled / number if variant == "out" else row.own - jnp.log(number)
    return _supcon_of(row.own, row.rest, pulled, row.positives > 0)


def _supcon_of(own, rest, pulled, some):
    own = jnp.where(some, own, 0)
    everything = own + softplus(rest - own)
    return Mean(jnp.where(some, everything - jnp.where(some, pulled, 0), 0), some)


def _graded_rows(pairs, temperature, variant, grade):
    """The same with w_p by grade."""
    positive_scores, positives, negative_scores, negatives = pairs.apart
    graded = pairs.pick(all_pairs(grade, pairs.labels, pairs.column_labels))
    grades = jnp.where(positives, graded.astype(positive_scores.dtype), 0)
    total = jnp.sum(grades, axis=-1)
    some = total > 0
    weights = grades / jnp.where(some, total, 1)[:, None]
    logits = positive_scores / temperature
    if variant == "out":
        pulled = jnp.sum(jnp.where(positives, weights * logits, 0), axis=-1)
    else:
        weighed = weights > 0
        pulled = logsumexp(logits + jnp.log(jnp.where(weighed, weights, 1)), weighed)
    rest = logsumexp(negative_scores / temperature, negatives)
    return _supcon_of(logsumexp(logits, positives), rest, pulled, some)


def _related(grade, a, b):
    return grade(a, b) > 0


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
    if grade is None:
        declared = (_SUPCON[variant], _supcon)
        return over_statistics(*declared, embeddings, labels, temperature, variant, similarity=similarity, **options)
    check_function("grade", grade)
    grade = as_partial(grade)
    if options.get("same") is None:
        options["same"] = Partial(_related, grade)
    hyper = (temperature, variant, grade)
    return over_pairs(_graded_rows, embeddings, labels, *hyper, similarity=similarity, **options)


def _near(distances, temperature):
    return -distances / temperature


_NCA = {"own": Statistic("logsumexp", "positives", _near), "rest": Statistic("logsumexp", "negatives", _near)}


def _nca(row, temperature):
    some = row.positives > 0
    return Mean(jnp.where(some, softplus(row.rest - jnp.where(some, row.own, 0)), 0), some)


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

    Goldberger et al. 2004, "Neighbourhood components analysis" (which maximises the sum of these probabilities, T = 1);
    Frosst, Papernot, Hinton 2019, "Analyzing and improving representations with the soft nearest neighbor loss",
    arXiv:1902.01889.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[0.0], [0.0], [1.0]])
    >>> float(nca(z, jnp.array([0, 0, 1])))  # log(1 + 1/e)
    0.3133
    """
    check_positive(temperature=temperature)
    return over_statistics(_NCA, _nca, embeddings, labels, temperature, distance=distance, **options)


def _tuplet(scores, rest, margin, scale):
    turned = scores * jnp.cos(margin) + safe_sqrt(1 - jnp.square(scores)) * jnp.sin(margin)
    return softplus(rest - scale * turned)


_TUPLET_MARGIN = {
    "rest": Statistic("logsumexp", "negatives", lambda scores, margin, scale: scale * scores),
    "terms": Statistic("sum", "positives", _tuplet, ("rest",)),
}


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
    declared = (_TUPLET_MARGIN, _mean_over_positives)
    return over_statistics(*declared, embeddings, labels, margin, scale, similarity=similarities.cosine, **options)
