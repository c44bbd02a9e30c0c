"""Losses that sum a term for each pair."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from metricjax import distances, similarities
from metricjax.anchors import AnchorOptions, Mean, Statistic, over_pairs, over_statistics, over_triplets
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_positive, refuse_options
from metricjax.ground.numerics import logsumexp
from metricjax.mining import Triplets

__all__ = [
    "check_average",
    "contrastive",
    "hinge_mean",
    "log_ratio",
    "margin",
    "ranked_list",
    "signal_to_noise",
    "threshold_consistent_margin",
]


def check_average(average: str) -> None:
    """`average` is one of the two words."""
    if average not in ("active", "valid"):
        raise ValueError(f"average is {average!r}; wanted 'active' (over non-zero terms) or 'valid' (over all terms)")


def hinge_mean(terms: Float[Array, "n m"], where: Bool[Array, "n m"], average: str) -> Mean:
    """Each row's sum of the marked non-negative terms, and how many count: the non-zero ones or all marked ones."""
    check_average(average)
    counted = where & (terms > 0) if average == "active" else where
    return Mean(jnp.sum(jnp.where(where, terms, 0), axis=-1), jnp.sum(counted, axis=-1))


def _far(distances, margin, positive_margin, squared, _):
    far = jnp.maximum(distances - positive_margin, 0)
    return jnp.square(far) / 2 if squared else far


def _near(distances, margin, positive_margin, squared, _):
    near = jnp.maximum(margin - distances, 0)
    return jnp.square(near) / 2 if squared else near


_CONTRASTIVE = {
    "far": Statistic("sum", "positives", _far),
    "near": Statistic("sum", "negatives", _near),
    "too_far": Statistic("sum", "positives", lambda *a: (_far(*a) > 0).astype(a[0].dtype)),
    "too_near": Statistic("sum", "negatives", lambda *a: (_near(*a) > 0).astype(a[0].dtype)),
}


def _contrastive(row, margin, positive_margin, squared, average):
    counts = (row.too_far, row.too_near) if average == "active" else (row.positives, row.negatives)
    return Mean(row.far, counts[0]), Mean(row.near, counts[1])


def contrastive(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 1.0,
    positive_margin: ArrayLike = 0.0,
    squared: bool = True,
    distance: Callable[[Array, Array], Array] = distances.chord,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Contrastive loss: mean over positive pairs of ½[d − m₊]₊², plus mean over negative pairs of ½[m − d]₊².

    With `squared=False`, [d − m₊]₊ and [m − d]₊. Each mean is over its non-zero terms, or over all of its pairs with
    `average="valid"`. `distance` is the chord unless another is given; options: `AnchorOptions`.

    Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping" (m₊ = 0).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(contrastive(z, jnp.array([0, 0, 1])))  # no positive is far, no negative nearer than 1
    0.0
    """
    check_average(average)
    hyper = (margin, positive_margin, squared, average)
    how: dict[str, Any] = {"distance": distance, "by_pair": True}
    return over_statistics(_CONTRASTIVE, _contrastive, embeddings, labels, *hyper, **how, **options)


def signal_to_noise(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 1.0,
    positive_margin: ArrayLike = 0.0,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Contrastive loss on signal-to-noise: mean over positives of [d − m₊]₊, plus over negatives of [m − d]₊.

    d = var(x − y) / var(x) with the anchor as the signal x: it is not symmetric, and embeddings are not normalised. The
    paper adds `losses.zero_mean` with a small weight. Means and options as for `contrastive`.

    Yuan et al. 2019, "Signal-to-noise ratio: a robust distance metric for deep metric learning", arXiv:1904.02616.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, -1.0], [2.0, -2.0]])  # var([-1, 1]) / var([1, -1]) = 1, and for the other anchor 1/4
    >>> float(signal_to_noise(z, jnp.array([0, 0])))
    0.625
    """
    return contrastive(
        embeddings, labels, margin=margin, positive_margin=positive_margin, squared=False, distance=distances.snr,
        average=average, **options,
    )  # fmt: skip


def _boundaries(beta, labels):
    """Each row's β [r, 1]: the one for all, or that of its class."""
    return beta[None, None] if beta.ndim == 0 else beta[labels][:, None]


def _margin_rows(pairs, margin, beta, nu, average):
    beyond = pairs.scores - _boundaries(beta, pairs.labels)
    terms = jnp.maximum(jnp.where(pairs.positives, beyond, -beyond) + margin, 0)
    return _regularized(hinge_mean(terms, pairs.positives | pairs.negatives, average), pairs.labels, beta, nu)


def _margin_terms(chosen, margin, beta, nu, average):
    boundary = _boundaries(beta, chosen.labels)
    far = hinge_mean(jnp.maximum(chosen.d_ap - boundary + margin, 0), chosen.valid, average)
    near = hinge_mean(jnp.maximum(boundary - chosen.d_an + margin, 0), chosen.valid, average)
    return _regularized(Mean(far.total + near.total, far.count + near.count), chosen.labels, beta, nu)


def _regularized(mean: Mean, labels, beta, nu) -> Mean:
    return Mean(mean.total + nu * _boundaries(beta, labels)[:, 0] * mean.count.astype(nu.dtype), mean.count)


def margin(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 0.2,
    beta: ArrayLike = 1.2,
    nu: ArrayLike = 0.0,
    distance: Callable[[Array, Array], Array] = distances.chord,
    triplets: Callable[[Array, Array, Array], Triplets] | None = None,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Margin loss: mean over pairs of [m ± (d − β)]₊ + ν β, with + for positive and − for negative pairs.

    The mean is over the non-zero terms of both kinds together, or over all pairs with `average="valid"`. β, the
    distance between positives and negatives, is one number or one for each class, `[c]`, of which an anchor takes that
    of its label (an integer from 0 to c − 1); it has a gradient, so that it can be learned, and ν keeps it small. The
    pairs are all pairs, or those of selected `triplets`: the paper's are `mining.distance_weighted`. Options:
    `AnchorOptions`.

    Wu et al. 2017, "Sampling matters in deep embedding learning", arXiv:1706.07567 (m = 0.2, β starts at 1.2, ν = 0).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # a positive pair √2 apart
    >>> float(margin(z, jnp.array([0, 0])))  # 0.2 + √2 − 1.2
    0.4142
    """
    beta = jnp.asarray(beta)
    if beta.ndim > 1 or (beta.ndim == 1 and labels.ndim > 1):
        raise ValueError(f"beta has shape {beta.shape}; wanted one number, or one for each class of integer labels")
    check_average(average)
    hyper = (margin, beta, nu, average)
    if triplets is None:
        return over_pairs(_margin_rows, embeddings, labels, *hyper, distance=distance, **options)
    return over_triplets(_margin_terms, triplets, embeddings, labels, *hyper, distance=distance, **options)


_THRESHOLDS = {
    "pull": Statistic("sum", "positives", lambda s, limit, *_: jnp.where(s <= limit, limit - s, 0)),
    "push": Statistic("sum", "negatives", lambda s, limit, ceiling, *_: jnp.where(s >= ceiling, s - ceiling, 0)),
    "low": Statistic("sum", "positives", lambda s, limit, *_: (s <= limit).astype(s.dtype)),
    "high": Statistic("sum", "negatives", lambda s, limit, ceiling, *_: (s >= ceiling).astype(s.dtype)),
}


def _thresholds(row, limit, ceiling, positive_weight, negative_weight):
    return Mean(positive_weight * row.pull, row.low), Mean(negative_weight * row.push, row.high)


def threshold_consistent_margin(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    positive_margin: ArrayLike = 0.9,
    negative_margin: ArrayLike = 0.5,
    positive_weight: ArrayLike = 1.0,
    negative_weight: ArrayLike = 1.0,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Threshold-consistent margin: λ₊ · mean of (m₊ − s) over positives with s ≤ m₊, plus λ₋ · mean of (s − m₋) over
    negatives with s ≥ m₋.

    A regulariser to add to another loss, so that one threshold suits all classes. Options: `AnchorOptions`.

    Zhang et al. 2024, arXiv:2307.04047 (m₊ = 0.9, m₋ = 0.5, λ = 1).

    >>> import jax.numpy as jnp
    >>> float(threshold_consistent_margin(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])))
    0.9
    """
    hyper = (positive_margin, negative_margin, positive_weight, negative_weight)
    how: dict[str, Any] = {"similarity": similarity, "by_pair": True}
    return over_statistics(_THRESHOLDS, _thresholds, embeddings, labels, *hyper, **how, **options)


def _ranked_rows(pairs, margin, alpha, temperature, pull_temperature, balance):
    d_positive, positives, d_negative, negatives = pairs.apart
    far, near = d_positive - (alpha - margin), alpha - d_negative
    pull = _weighted_mean(far, positives & (far > 0), pull_temperature)
    push = _weighted_mean(near, negatives & (near > 0), temperature)
    some = jnp.any(positives, axis=-1) | jnp.any(negatives, axis=-1)
    return Mean((1 - balance) * pull + balance * push, some)


def _weighted_mean(terms, where, temperature):
    """Σ w t / Σ w over the marked terms of each row, with w = e^{T t} held fixed; 0 for a row without any."""
    exponents = temperature * lax.stop_gradient(terms)
    top = logsumexp(exponents, where)[:, None]
    weights = jnp.where(where, jnp.exp(jnp.where(where, exponents - top, 0)), 0)
    return jnp.sum(weights * terms, axis=-1)


def ranked_list(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 0.4,
    alpha: ArrayLike = 1.2,
    temperature: ArrayLike = 10.0,
    positive_temperature: ArrayLike = 0.0,
    balance: ArrayLike = 0.5,
    distance: Callable[[Array, Array], Array] = distances.chord,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Ranked list loss: mean over anchors of (1 − λ) · mean_p of (d_ap − (α − m)) + λ · mean_n of (α − d_an).

    The means are over positives farther than α − m and negatives nearer than α, weighted by e^{T_p (d_ap − α + m)} and
    e^{T_n (α − d_an)}, which carry no gradient; T_n is `temperature` and λ is `balance`. The outer mean is over anchors
    that have a pair of either kind. Options: `AnchorOptions`.

    Wang et al. 2019, "Ranked list loss for deep metric learning", arXiv:1903.03238 (α = 1 + m/2; T_n = 10, T_p = 0).
    The authors' code moves the anchor only; here the gradient reaches both ends of a pair.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # a positive pair √2 apart
    >>> float(ranked_list(z, jnp.array([0, 0])))  # (√2 − 0.8) / 2
    0.3071
    """
    hyper = (margin, alpha, temperature, positive_temperature, balance)
    return over_pairs(_ranked_rows, embeddings, labels, *hyper, distance=distance, heavy=True, **options)


def _log_ratio_rows(pairs, epsilon, label_distance):
    d, others = pairs.scores, pairs.positives | pairs.negatives
    apart = label_distance(pairs.labels, pairs.column_labels).astype(d.dtype)
    gaps = jnp.log(d + epsilon) - jnp.log(apart + epsilon)
    count = jnp.sum(others, axis=-1).astype(d.dtype)
    mean = jnp.sum(jnp.where(others, gaps, 0), axis=-1) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(others, jnp.square(gaps - mean[:, None]), 0), axis=-1)
    return Mean(2 * count * squares, count * (count - 1))


def _never(a: Array, b: Array) -> Array:
    return jnp.zeros((), bool)


def _squared_label_distances(rows: Array, columns: Array) -> Array:
    flat = lambda labels: labels.astype(jnp.result_type(float)).reshape(len(labels), -1)
    return distances.squared_euclidean(flat(rows), flat(columns))


def log_ratio(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    epsilon: ArrayLike = 1e-6,
    label_distance: Callable[[Array, Array], Array] = _squared_label_distances,
    distance: Callable[[Array, Array], Array] = distances.squared_euclidean,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Log-ratio loss for continuous labels: mean over anchors a and i ≠ j of (log D_ai/D_aj − log Y_ai/Y_aj)².

    D are distances of embeddings and Y of labels, `label_distance(row labels [r, ...], column labels [m, ...]) ->
    [r, m]`: the squared Euclidean distance unless another is given; ε is added to each. There are no classes: labels
    are floats of any shape (poses, scores, captions' embeddings), i and j run over all columns but the anchor's
    own, and `same` is not an option. All n · m² triplets are summed in the time of n · m. The scale of embeddings
    does not matter while D is far above ε and in the range of float32 (embeddings below 10¹⁸). Other options:
    `AnchorOptions`.

    Kim et al. 2019, "Deep metric learning beyond binary supervision", arXiv:1904.09626.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[0.0], [1.0], [2.0]])
    >>> float(log_ratio(z, jnp.array([0.0, 10.0, 20.0])))  # distances in proportion
    0.0
    """
    check_positive(epsilon=epsilon)
    refuse_options("log_ratio compares labels by label_distance alone", options, "same")
    options["same"] = _never
    return over_pairs(_log_ratio_rows, embeddings, labels, epsilon, label_distance, distance=distance, **options)
