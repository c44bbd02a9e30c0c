"""Losses on ranks: smooth forms of average precision and of recall at k.

All leave an anchor's own column out: it is not a positive and has no rank.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from metricjax import distances, similarities
from metricjax.anchors import AnchorOptions, Mean, over_pairs
from metricjax.engine.devices import varying
from metricjax.engine.positives import each_positive
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_positive
from metricjax.losses.pairs import hinge_mean

__all__ = ["fast_ap", "pnp", "recall_at_k", "roadmap", "smooth_ap"]


def _fast_ap_rows(pairs, edges):
    d_positive, positives, d_negative, negatives = pairs.apart
    width = edges[1] - edges[0]

    def within(d, where):
        """How many distances are at most each edge [b, r]: a triangular pulse, summed up, is a ramp."""
        count = lambda edge: jnp.sum(jnp.where(where, jnp.clip((edge + width - d) / width, 0, 1), 0), axis=-1)
        return lax.map(jax.checkpoint(count), edges)

    own, other = within(d_positive, positives), within(d_negative, negatives)
    some = own > 0
    precision = jnp.where(some, own / jnp.where(some, own + other, 1), 0)
    gained = jnp.diff(own, axis=0, prepend=jnp.zeros_like(own[:1]))
    count = jnp.sum(positives, axis=-1)
    average = jnp.sum(gained * precision, axis=0) / jnp.maximum(count, 1).astype(own.dtype)
    return Mean(jnp.where(count > 0, 1 - average, 0), count > 0)


def fast_ap(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    bins: int = 10,
    distance: Callable[[Array, Array], Array] = distances.squared_chord,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """FastAP: mean over anchors of 1 − (1/|P|) Σ_b h⁺_b H⁺_b / H_b, average precision from histograms of distances.

    h⁺_b is how many positives lie in bin b, H⁺_b and H_b how many positives and how many columns lie in it or nearer.
    The bins are soft: triangles around `bins + 1` points from 0 to 4, the range of the squared chord; another
    `distance` has to keep to it. The mean is over anchors that have a positive. Options: `AnchorOptions`.

    Cakir, He, Xia, Kulis, Sclaroff 2019, "Deep Metric Learning to Rank" (10 bins).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # the only positive comes after the only negative
    >>> float(fast_ap(z, jnp.array([0, 0, 1])))
    0.5
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; wanted at least 1")
    edges = np.linspace(0, 4, bins + 1)
    return over_pairs(_fast_ap_rows, embeddings, labels, edges, distance=distance, heavy=True, **options)


def _smooth_rank(own, scores, where, temperature):
    """Σ σ((s − own) / τ): softly, how many of the marked scores come before."""
    return jnp.sum(jnp.where(where, jax.nn.sigmoid((scores - own) / temperature), 0))


def _smooth_miss(own, positive_scores, negative_scores, temperature, positives, negatives):
    right = _smooth_rank(own, positive_scores, positives, temperature) + 0.5  # `own` itself added σ(0) = ½
    wrong = _smooth_rank(own, negative_scores, negatives, temperature)
    return wrong / (right + wrong)


def _smooth_ap_rows(pairs, temperature):
    positive_scores, positives, negative_scores, negatives = pairs.apart
    numbers = (positive_scores, negative_scores, temperature)
    return _mean_over_positives(_smooth_miss, positives, positive_scores, numbers, (positives, negatives))


def smooth_ap(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    temperature: ArrayLike = 0.01,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Smooth-AP: mean over anchors of 1 − (1/|P|) Σ_p R⁺_p / (R⁺_p + R⁻_p), average precision with soft ranks.

    R⁺_p = 1 + Σ_{q∈P, q≠p} σ((s_q − s_p)/τ) and R⁻_p = Σ_n σ((s_n − s_p)/τ). The mean is over anchors that have a
    positive. The authors' code counts an anchor among its own positives, which makes the loss smaller (as the batch as
    its own `references` does here), and needs classes of equal size, in order. Options: `AnchorOptions`.

    Brown, Xie, Kalogeiton, Zisserman 2020, arXiv:2007.12163 (τ = 0.01).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # the only positive comes after the only negative
    >>> float(smooth_ap(z, jnp.array([0, 0, 1])))
    0.5
    """
    check_positive(temperature=temperature)
    return over_pairs(_smooth_ap_rows, embeddings, labels, temperature, similarity=similarity, heavy=True, **options)


def _recall_miss(own, positive_scores, negative_scores, share, ks, temperature, k_temperature, positives, negatives):
    rank = _smooth_rank(own, positive_scores, positives, temperature) + 0.5
    rank += _smooth_rank(own, negative_scores, negatives, temperature)
    return jnp.sum(jax.nn.sigmoid((ks - rank) / k_temperature) * share)


def _recall_at_k_rows(pairs, ks, temperature, k_temperature):
    positive_scores, positives, negative_scores, negatives = pairs.apart
    count = jnp.sum(positives, axis=-1)
    some = count > 0
    share = 1 / (len(ks) * jnp.minimum(ks[None], jnp.maximum(count, 1).astype(ks.dtype)[:, None]))
    numbers = (positive_scores, negative_scores, share, ks, temperature, k_temperature)
    recall = _sum_over_positives(_recall_miss, positives, positive_scores, numbers, (positives, negatives))
    return Mean(jnp.where(some, 1 - recall, 0), some)


def recall_at_k(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    ks: tuple[ArrayLike, ...] = (1, 2, 4, 8, 16),
    temperature: ArrayLike = 0.01,
    k_temperature: ArrayLike = 1.0,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Recall@k surrogate: mean over anchors and `ks` of 1 − Σ_p σ((k − r_p)/τ₁) / min(k, |P|), with soft ranks r_p.

    r_p = 1 + Σ_{j≠p} σ((s_j − s_p)/τ₂) over all positives and negatives j; τ₁ is `k_temperature`, τ₂ `temperature`.
    The mean is over anchors that have a positive. The authors' code also ranks the anchor itself, before all others,
    sets τ₁ = k and limits Σ_p to k. Options: `AnchorOptions`.

    Patel, Tolias, Matas 2022, arXiv:2108.11179 (k ∈ {1, 2, 4, 8, 16}, τ₁ = 1, τ₂ = 0.01).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # the only positive has rank 2
    >>> float(recall_at_k(z, jnp.array([0, 0, 1]), ks=(1,)))  # 1 − σ(−1)
    0.7311
    """
    check_positive(temperature=temperature, k_temperature=k_temperature, **{f"ks[{i}]": k for i, k in enumerate(ks)})
    if not ks:
        raise ValueError("ks is empty; wanted at least one k")
    hyper = (ks, temperature, k_temperature)
    return over_pairs(_recall_at_k_rows, embeddings, labels, *hyper, similarity=similarity, heavy=True, **options)


def _upper_rank(own, scores, where, temperature, slope, delta):
    """An upper bound on how many of the marked scores come before; it does not saturate."""
    gap = scores - own
    soft = jax.nn.sigmoid(jnp.minimum(gap, delta) / temperature) + jnp.where(gap > 0, 0.5, 0)
    return jnp.sum(jnp.where(where, soft + slope * jnp.maximum(gap - delta, 0), 0))


def _upper_miss(own, negative_scores, temperature, slope, delta, positive_scores, positives, negatives):
    right = jnp.maximum(jnp.sum(positives & (positive_scores >= own)), 1).astype(own.dtype)
    wrong = _upper_rank(own, negative_scores, negatives, temperature, slope, delta)
    return wrong / (right + wrong)


def _roadmap_rows(pairs, temperature, slope, delta, positive_margin, negative_margin, calibration, average):
    positive_scores, positives, negative_scores, negatives = pairs.apart
    numbers, fixed = (negative_scores, temperature, slope, delta), (positive_scores, positives, negatives)
    ranks = _mean_over_positives(_upper_miss, positives, positive_scores, numbers, fixed)
    far = hinge_mean(jnp.maximum(positive_margin - positive_scores, 0), positives, average)
    near = hinge_mean(jnp.maximum(negative_scores - negative_margin, 0), negatives, average)
    weighted = lambda mean, weight: Mean(weight * mean.total, mean.count)
    return weighted(ranks, 1 - calibration), weighted(far, calibration), weighted(near, calibration)


def roadmap(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    temperature: ArrayLike = 0.01,
    slope: ArrayLike = 100.0,
    delta: ArrayLike = 0.05,
    positive_margin: ArrayLike = 0.9,
    negative_margin: ArrayLike = 0.6,
    calibration: ArrayLike = 0.5,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Loss:
    """ROADMAP: (1 − λ) SupAP + λ (mean over positive pairs of [m₊ − s]₊ + mean over negative pairs of [s − m₋]₊).

    SupAP is the mean, over anchors that have a positive, of 1 − (1/|P|) Σ_p R⁺_p / (R⁺_p + R⁻_p). R⁺_p, without a
    gradient, counts the positives with s_q ≥ s_p; R⁻_p = Σ_n h(s_n − s_p), with h(t) = σ(t/τ) where t ≤ 0,
    σ(t/τ) + ½ where t ≤ δ, and ρ(t − δ) + σ(δ/τ) + ½ beyond, counts more than the negatives before p and does not
    saturate. λ is `calibration`, ρ `slope`. Pairs are averaged over those that are not zero, as in the authors' code,
    or over all with `average="valid"`. Options: `AnchorOptions`.

    Ramzi, Thome, Rambour, Audebert, Bitot 2021, arXiv:2110.01445 (τ = 0.01, ρ = 100, δ = 0.05, margins 0.9 and 0.6,
    λ = 0.5; their code has 1.44 for σ(δ/τ) + ½).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> float(roadmap(z, jnp.array([0, 0, 1]), calibration=1.0))  # 0.9 − 0 and √½ − 0.6
    1.0071
    """
    check_positive(temperature=temperature)
    hyper = (temperature, slope, delta, positive_margin, negative_margin, calibration, average)
    return over_pairs(_roadmap_rows, embeddings, labels, *hyper, similarity=similarity, heavy=True, **options)


_PENALTIES = {
    "O": lambda r, alpha, b: r,
    "Iu": lambda r, alpha, b: (1 + r) * jnp.log1p(r),
    "Ib": lambda r, alpha, b: (b * r - jnp.log1p(b * r)) / jnp.square(b),
    "Ds": lambda r, alpha, b: jnp.log1p(r),
    "Dq": lambda r, alpha, b: -jnp.expm1(-alpha * jnp.log1p(r)),
}


def _penalty(variant, own, negative_scores, temperature, alpha, b, negatives):
    return _PENALTIES[variant](_smooth_rank(own, negative_scores, negatives, temperature), alpha, b)


def _pnp_rows(pairs, variant, temperature, alpha, b):
    positive_scores, positives, negative_scores, negatives = pairs.apart
    numbers = (negative_scores, temperature, alpha, b)
    return _mean_over_positives(partial(_penalty, variant), positives, positive_scores, numbers, (negatives,))


def pnp(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    variant: Literal["O", "Iu", "Ib", "Ds", "Dq"] = "Dq",
    temperature: ArrayLike = 0.01,
    alpha: ArrayLike = 4.0,
    b: ArrayLike = 2.0,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """PNP: mean over anchors of (1/|P|) Σ_p f(R_p), where R_p = Σ_n σ((s_n − s_p)/τ) softly counts negatives before p.

    f(R) by `variant`: "O": R; "Iu": (1 + R) log(1 + R); "Ib": (bR − log(1 + bR)) / b²; "Ds": log(1 + R);
    "Dq": 1 − (1 + R)^−α. The slope of I rises with R, that of D falls. The mean is over anchors that have a positive.
    The authors' code counts an anchor among its own positives, with f ≈ 0 (as the batch as its own `references` does
    here). Options: `AnchorOptions`.

    Li et al. 2021, arXiv:2102.04640 (τ = 0.01, b = 2; Dq is best, with α = 4 in the authors' example).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # the only positive comes after the only negative
    >>> float(pnp(z, jnp.array([0, 0, 1])))  # 1 − 1/2⁴
    0.9375
    """
    check_positive(temperature=temperature, b=b)
    if variant not in _PENALTIES:
        raise ValueError(f"variant is {variant!r}; wanted one of {sorted(_PENALTIES)}")
    hyper = (variant, temperature, alpha, b)
    return over_pairs(_pnp_rows, embeddings, labels, *hyper, similarity=similarity, heavy=True, **options)


# --- sums over positives --------------------------------------------------------------------------------------------


def _mean_over_positives(f, positives, scores, numbers, fixed) -> Mean:
    """The mean of `f` over the positives of each row that has one."""
    count = jnp.sum(positives, axis=-1)
    total = _sum_over_positives(f, positives, scores, numbers, fixed)
    return Mean(total / jnp.maximum(count, 1).astype(total.dtype), count > 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_over_positives(
    f: Callable[..., Array],
    positives: Bool[Array, "r p"],
    scores: Float[Array, "r p"],
    numbers: tuple[Float[Array, "..."], ...],
    fixed: tuple[Shaped[Array, "r _"], ...],
) -> Float[Array, " r"]:
    """Σ_p f(score of p, *numbers, *fixed) over the positives of each row.

    `f` is written for one positive of one row, and gets that row of each matrix, and other numbers whole; its gradient
    in `fixed` has to be 0. It runs for one positive of each row after the other, as often as some row has one, and
    its gradient is taken at once: differentiated as it stands, the scan would add a panel of zeros for each step left
    out, and keep the panels that enter its condition.
    """
    of_one = _by_row(partial(_if_there, f), numbers)

    def add(total, column, there):
        own = jnp.take_along_axis(scores, column, axis=1)
        return total + of_one(there[:, 0], own[:, 0], numbers, fixed)

    return each_positive(add, varying(jnp.zeros_like(scores[:, 0]), scores), positives)


@_sum_over_positives.defjvp
def _(f, primals, tangents):
    positives, scores, numbers, fixed = primals
    of_one = _by_row(jax.value_and_grad(partial(_if_there, f), (1, 2)), numbers)
    rows = jnp.arange(len(scores), dtype=jnp.int32)

    def add(carry, column, there):
        total, to_scores, to_numbers = carry
        own = jnp.take_along_axis(scores, column, axis=1)
        value, (to_own, more) = of_one(there[:, 0], own[:, 0], numbers, fixed)
        return total + value, to_scores.at[rows, column[:, 0]].add(to_own), jax.tree.map(jnp.add, to_numbers, more)

    zeros = [jnp.zeros(a.shape if a.ndim == 2 else (len(scores), *a.shape), a.dtype) for a in numbers]
    start = (jnp.zeros_like(scores[:, 0]), jnp.zeros_like(scores), tuple(zeros))
    total, *gradients = each_positive(add, varying(start, scores), positives)

    def change(gradient, tangent):
        tangent = tangent if tangent.ndim == 2 else tangent[None]
        return jnp.sum((gradient * tangent).reshape(len(rows), -1), axis=-1)

    return total, sum(jax.tree.leaves(jax.tree.map(change, tuple(gradients), tangents[1:3])))


def _if_there(f, there, own, numbers, fixed):
    return jnp.where(there, f(own, *numbers, *fixed), 0)


def _by_row(f, numbers):
    """`f(there, own, numbers, fixed)` of each row; numbers that are matrices have one row for each."""
    return jax.vmap(f, (0, 0, tuple(0 if a.ndim == 2 else None for a in numbers), 0))
