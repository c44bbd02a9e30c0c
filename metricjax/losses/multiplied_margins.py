"""Class-based losses whose margin multiplies the angle: large-margin softmax and the SphereFace family."""

from typing import Literal, Unpack

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from metricjax import similarities
from metricjax.engine.devices import row_ids
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_positive
from metricjax.ground.numerics import norm, ratio, softplus
from metricjax.ground.pairwise import pairwise
from metricjax.losses.margin_softmax import Gradient, angle, others_scaled, scaled, with_gradient
from metricjax.losses.row_values import class_count, own_score, row_lengths, values_of_all
from metricjax.prototypes import PrototypeOptions, SoftmaxOptions, over_prototypes
from metricjax.similarities import cosine

__all__ = [
    "large_margin_softmax",
    "sphereface",
    "sphereface2",
    "sphereface2_bias",
    "sphereface_annealing",
    "sphereface_r",
]


def _multiplied(cosine, margin, annealing):
    """(λ cos θ + ψ(θ)) / (1 + λ)."""
    theta = angle(cosine)
    k = jnp.floor(margin * theta / jnp.pi)
    psi = jnp.where(k % 2 == 0, 1, -1) * jnp.cos(margin * theta) - 2 * k
    return (annealing * cosine + psi) / (1 + annealing)


@pairwise(symmetric=False)
def _prototype_lengths(x, y):
    return jnp.broadcast_to(norm(y).T, (len(x), len(y)))


def _large_margin_target(own, row_length, class_length, margin, annealing):
    product = row_length * class_length
    cosine = ratio(own, jnp.where(product == 0, 1, product))
    return product * _multiplied(cosine, margin, annealing)


def _as_they_are(scores, *rows_and_hyper):
    return scores


def large_margin_softmax(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    margin: ArrayLike = 4.0,
    annealing: ArrayLike = 0.0,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """L-softmax: softmax over w_j·x with the target ‖w_y‖ ‖x‖ (λ cos θ_y + ψ(θ_y)) / (1 + λ), mean over rows.

    ψ(θ) = (−1)^k cos mθ − 2k with k = ⌊mθ/π⌋, which falls with θ; λ is `annealing`. Products ‖w_j‖ ‖x‖ have to be in
    the range of float32, 10⁻³⁷ to 10³⁷. Options: `SoftmaxOptions`.

    Liu et al. 2016, arXiv:1612.02295 (m = 4, and less for hard data).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 1.0]])  # θ = π/4, so that ψ = -cos π - 2 = -1
    >>> float(large_margin_softmax(z, jnp.array([0]), jnp.eye(2)))  # log(1 + e^{1 + √2})
    2.4998
    """
    lengths = values_of_all(own_score, embeddings, labels, prototypes, options, similarity=_prototype_lengths).total
    rows = (row_lengths(embeddings, options), lengths[row_ids(len(embeddings), options.get("axis_name"))])
    batch, hyper = (embeddings, labels, prototypes), (margin, annealing)
    return over_prototypes(
        _large_margin_target, _as_they_are, *batch, *hyper, similarity=similarities.dot, rows=rows, **options
    )


def _sphereface_target(own, length, margin, annealing):
    return length * _multiplied(own, margin, annealing)


def _times_length(scores, own, length, *hyper):
    return length * scores


def sphereface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    margin: ArrayLike = 4.0,
    annealing: ArrayLike = 0.0,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """SphereFace (A-softmax): softmax over ‖x‖ cos θ_j, target ‖x‖ (λ cos θ_y + ψ(θ_y)) / (1 + λ), mean over rows.

    ψ(θ) = (−1)^k cos mθ − 2k with k = ⌊mθ/π⌋. It hardly trains from the start without λ, the `annealing`, which
    `sphereface_annealing` lets fall from 1000 to 5. ‖x‖ is the scale of the logits: for float32 rows longer than 10⁶
    they are too coarse for a softmax, and from 10⁹ on the loss may be infinite. Options: `SoftmaxOptions`.

    Liu et al. 2017, arXiv:1704.08063 (m = 4).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 1.0]])  # θ = π/4, so that ψ = -cos π - 2 = -1
    >>> float(sphereface(z, jnp.array([0]), 3 * jnp.eye(2)))  # log(1 + e^{√2 + 1})
    2.4998
    """
    length = row_lengths(embeddings, options)
    batch, hyper = (embeddings, labels, prototypes), (margin, annealing)
    return over_prototypes(
        _sphereface_target, _times_length, *batch, *hyper, similarity=cosine, rows=(length,), **options
    )


def sphereface_annealing(
    step: ArrayLike,
    *,
    base: ArrayLike = 1000.0,
    gamma: ArrayLike = 0.12,
    power: ArrayLike = 1.0,
    minimum: ArrayLike = 5.0,
) -> Float[Array, ""]:
    """SphereFace's schedule of λ: max(minimum, base (1 + γ step)^−power).

    Liu et al. 2017, arXiv:1704.08063 (the numbers are those of the authors' configuration for faces).

    >>> [round(float(sphereface_annealing(step))) for step in (0, 100, 10_000)]
    [1000, 77, 5]
    """
    step = jnp.asarray(step, float)
    return jnp.maximum(base * (1 + gamma * step) ** -jnp.asarray(power, float), minimum)


def _r1_target(own, scale, margin, gradient):
    changed = jnp.cos(jnp.minimum(margin * angle(own), jnp.pi))
    return scale * with_gradient(own, changed, gradient)


def _r2_others(scores, own, scale, margin, gradient):
    return scale * with_gradient(scores, jnp.cos(angle(scores) / margin), gradient)


def sphereface_r(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 30.0,
    margin: ArrayLike = 1.5,
    variant: Literal["v1", "v2"] = "v1",
    gradient: Gradient = "exact",
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """SphereFace-R with normalised embeddings: a softmax over s·cos θ_j, mean over rows, in which

    v1: the target is s·cos(min(m θ_y, π));
    v2: the others are s·cos(θ_j / m).

    `gradient="straight_through"` is the authors' characteristic gradient detachment: it differentiates as if there were
    no margin. Options: `SoftmaxOptions`.

    Liu et al. 2021, arXiv:2109.05565 (s = 30, m = 1.5; their code multiplies the loss by 50 / s).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 1.0]])  # θ = π/4
    >>> float(sphereface_r(z, jnp.array([0]), jnp.eye(2), scale=1.0, margin=2.0))  # log(1 + e^{cos π/4 - cos π/2})
    1.1079
    """
    check_positive(scale=scale, margin=margin)
    if variant not in ("v1", "v2"):
        raise ValueError(f"variant is {variant!r}; wanted 'v1' or 'v2'")
    target, others = (_r1_target, others_scaled) if variant == "v1" else (scaled, _r2_others)
    batch, hyper = (embeddings, labels, prototypes), (scale, margin, gradient)
    return over_prototypes(target, others, *batch, *hyper, similarity=cosine, **options)


def _raised(cosine, power):
    """g(c) = 2 ((c + 1) / 2)^t − 1, with the cosine kept inside ±1: near −1 a power has no gradient."""
    half = jnp.clip((cosine + 1) / 2, 0, 1)
    some = ~(half <= 0)  # and NaN
    return 2 * jnp.where(some, jnp.where(some, half, 1) ** power, 0) - 1


def _two_target(own, scale, margin, power, balance, bias):
    return balance / scale * softplus(-(scale * (_raised(own, power) - margin) + bias))


def _two_others(scores, own, scale, margin, power, balance, bias):
    return (1 - balance) / scale * softplus(scale * (_raised(scores, power) + margin) + bias)


def sphereface2(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 40.0,
    margin: ArrayLike = 0.4,
    power: ArrayLike = 3.0,
    balance: ArrayLike = 0.7,
    bias: ArrayLike | None = None,
    **options: Unpack[PrototypeOptions],
) -> Loss:
    """SphereFace2: for each class a binary problem of its own, mean over rows of

        λ/r log(1 + exp(−r (g(cos θ_y) − m) − b)) + (1 − λ)/r Σ_{j≠y} log(1 + exp(r (g(cos θ_j) + m) + b)),

    g(c) = 2 ((c + 1)/2)^t − 1, with r the `scale`, t the `power` and λ the `balance`. b is learnt in the paper; None
    is where it begins, `sphereface2_bias`. Options: `PrototypeOptions`.

    Wen et al. 2022, arXiv:2108.01513 (r = 40, m = 0.4, t = 3, λ = 0.7; their code multiplies the loss by 50).

    >>> import jax.numpy as jnp
    >>> z = jnp.eye(2)[:1]  # g(1) = 1 and g(0) = -0.75
    >>> loss = sphereface2(z, jnp.array([0]), jnp.eye(2), scale=1.0, margin=0.0, balance=0.5, bias=0.0)
    >>> float(loss)  # (log(1 + 1/e) + log(1 + e^-0.75)) / 2
    0.3501
    """
    check_positive(scale=scale, power=power)
    if bias is None:
        bias = sphereface2_bias(class_count(prototypes, options), scale, margin, power, balance)
    batch, hyper = (embeddings, labels, prototypes), (scale, margin, power, balance, bias)
    return over_prototypes(_two_target, _two_others, *batch, *hyper, similarity=cosine, join="sum", **options)


def sphereface2_bias(
    classes: ArrayLike,
    scale: ArrayLike = 40.0,
    margin: ArrayLike = 0.4,
    power: ArrayLike = 3.0,
    balance: ArrayLike = 0.7,
) -> Float[Array, ""]:
    """The bias at which `sphereface2` is smallest while all cosines are 0, given the number of `classes`.

    Wen et al. 2022, arXiv:2108.01513, in a form that does not cancel for few classes.

    >>> float(sphereface2_bias(10572))
    5.5817
    """
    numbers = (jnp.asarray(a, float) for a in (classes, scale, margin, power, balance))
    classes, scale, margin, power, balance = numbers
    odds = balance / ((1 - balance) * jnp.maximum(classes - 1, 1))
    flat = 2 * 0.5**power - 1
    positive, negative = scale * (flat - margin), scale * (flat + margin)
    root = jnp.sqrt(jnp.square(1 - odds) + 4 * odds * jnp.exp(positive - negative))
    many = jnp.log(2 * odds) - negative - jnp.log(1 - jnp.minimum(odds, 1) + root)
    few = jnp.log((jnp.maximum(odds, 1) - 1 + root) / 2) - positive
    return jnp.where(odds > 1, few, many)
