"""Softmax losses over class prototypes, with and without a margin on the target. Angles are in radians."""

import math
from typing import Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from metricjax import similarities
from metricjax.engine.prototypes import targets
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_array, check_class_batch, check_positive
from metricjax.ground.numerics import existing, normalize, safe_sqrt, widen
from metricjax.ground.one_line import one_line
from metricjax.ground.pairwise import pairwise
from metricjax.prototypes import SoftmaxOptions, over_prototypes
from metricjax.similarities import cosine

__all__ = [
    "Gradient",
    "SubCenters",
    "angle",
    "arcface",
    "circle_class",
    "combined_margin",
    "cosface",
    "less_margin",
    "normalized_softmax",
    "others_scaled",
    "scaled",
    "softmax",
    "sub_center_arcface",
    "sub_center_outliers",
    "turned",
    "with_gradient",
    "with_margin",
]

Gradient = Literal["exact", "straight_through"]


def scaled(own, scale, *hyper):
    """The target's cosine without a margin."""
    return scale * own


def others_scaled(scores, own, scale, *hyper):
    return scale * scores


def angle(cosine):
    """θ, with gradient 0 where the cosine is ±1."""
    return jnp.arctan2(safe_sqrt(1 - jnp.square(cosine)), cosine)


def turned(own, margin):
    """cos(θ + m), without an arccos."""
    return own * jnp.cos(margin) - safe_sqrt(1 - jnp.square(own)) * jnp.sin(margin)


def with_margin(own, margin, easy_margin):
    """cos(θ + m), and something that falls with θ past π − m; or with `easy_margin` only where cos θ > 0."""
    if easy_margin:
        return jnp.where(own > 0, turned(own, margin), own)
    turns = (own > -jnp.cos(margin)) | (margin < 0)  # θ ≤ π − m
    return jnp.where(turns, turned(own, margin), own - margin * jnp.sin(margin))


def with_gradient(own, changed, gradient: Gradient):
    """The changed cosine, with its own gradient or with that of the cosine it was made of."""
    if gradient not in ("exact", "straight_through"):
        raise ValueError(f"gradient is {gradient!r}; wanted 'exact' or 'straight_through'")
    return changed if gradient == "exact" else own + lax.stop_gradient(changed - own)


@pairwise(symmetric=False)
def _affine(x, weights_and_bias):
    weights, bias = weights_and_bias
    return similarities.dot.compare(x, weights) + bias[None]


def softmax(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
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
        check_array("prototypes", prototypes, "an array [classes, features]")
        if bias.shape != prototypes.shape[:1]:
            raise ValueError(f"bias has shape {bias.shape}; wanted one value for each of {len(prototypes)} prototypes")
        affine = (prototypes, bias)
        return over_prototypes(scaled, others_scaled, embeddings, labels, affine, 1.0, similarity=_affine, **options)
    similarity = similarities.dot
    return over_prototypes(scaled, others_scaled, embeddings, labels, prototypes, 1.0, similarity=similarity, **options)


def normalized_softmax(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    temperature: ArrayLike = 0.05,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """Softmax over cosines: mean over rows of −log softmax(cos θ_j / τ)_y. Options: `SoftmaxOptions`.

    Wang et al. 2017 (NormFace), arXiv:1704.06369; Zhai & Wu 2018, arXiv:1811.12649 (τ = 0.05).

    >>> import jax.numpy as jnp
    >>> float(normalized_softmax(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), temperature=1.0))  # log(1 + 1/e)
    0.3133
    """
    check_positive(temperature=temperature)
    scale = 1 / jnp.asarray(temperature)
    return over_prototypes(scaled, others_scaled, embeddings, labels, prototypes, scale, similarity=cosine, **options)


def less_margin(own, scale, *hyper):
    """s (cos θ − m) with m the last hyper-parameter."""
    return scale * (own - hyper[-1])


def cosface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.35,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """CosFace (AM-softmax): softmax over s·cos θ_j with the target s·(cos θ_y − m), mean over rows.

    Options: `SoftmaxOptions`.

    Wang et al. 2018, arXiv:1801.09414 (s = 64, m = 0.35); AM-softmax is that of Wang et al. 2018, arXiv:1801.05599.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 1.0]])  # as near to one class as to the other
    >>> float(cosface(z, jnp.array([0]), jnp.eye(2), scale=1.0))  # log(1 + e^0.35)
    0.8834
    """
    check_positive(scale=scale)
    batch, hyper = (embeddings, labels, prototypes), (scale, margin)
    return over_prototypes(less_margin, others_scaled, *batch, *hyper, similarity=cosine, **options)


def _arcface_target(own, scale, margin, easy_margin, gradient):
    return scale * with_gradient(own, with_margin(own, margin, easy_margin), gradient)


def arcface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.5,
    easy_margin: bool = False,
    gradient: Gradient = "exact",
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """ArcFace: softmax over s·cos θ_j with the target s·cos(θ_y + m), mean over rows; m in radians.

    cos(θ + m) is computed as cos θ cos m − sin θ sin m, without an arccos; where θ > π − m, cos θ − m sin m takes its
    place, which keeps the target falling with θ. With `easy_margin` the margin is applied only where cos θ > 0.
    `gradient="straight_through"` differentiates as if the target were s·cos θ_y, as the authors' PyTorch code does.
    Options: `SoftmaxOptions`.

    Deng et al. 2019, arXiv:1801.07698 (s = 64, m = 0.5).

    >>> import jax.numpy as jnp
    >>> float(arcface(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), scale=1.0))  # log(1 + e^-cos 0.5)
    0.3477
    """
    check_positive(scale=scale)
    batch, hyper = (embeddings, labels, prototypes), (scale, margin, easy_margin, gradient)
    return over_prototypes(_arcface_target, others_scaled, *batch, *hyper, similarity=cosine, **options)


def _combined_target(own, scale, times, added, offset):
    return scale * (jnp.cos(times * angle(own) + added) - offset)


def combined_margin(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    margins: tuple[ArrayLike, ArrayLike, ArrayLike] = (1.0, 0.3, 0.2),
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """The margins of SphereFace, ArcFace and CosFace together: the target is s·(cos(m₁ θ_y + m₂) − m₃), mean over rows.

    Nothing is changed where m₁ θ + m₂ > π, unlike in `arcface`. Options: `SoftmaxOptions`.

    Deng et al. 2019, arXiv:1801.07698 (their code's defaults are (1, 0.3, 0.2) and s = 64).

    >>> import jax.numpy as jnp
    >>> z, y, w = jnp.eye(2), jnp.array([0, 1]), jnp.eye(2)
    >>> float(combined_margin(z, y, w, scale=1.0, margins=(1, 0.5, 0.1)))  # log(1 + e^(0.1 - cos 0.5))
    0.3781
    """
    check_positive(scale=scale)
    if len(margins) != 3:
        raise ValueError(f"margins has {len(margins)} numbers; wanted three: factor, angle and offset")
    batch, hyper = (embeddings, labels, prototypes), (scale, *margins)
    return over_prototypes(_combined_target, others_scaled, *batch, *hyper, similarity=cosine, **options)


def _nearest(scores, *hyper):
    return jnp.max(scores, axis=0)


def sub_center_arcface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c k d"],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.5,
    easy_margin: bool = False,
    gradient: Gradient = "exact",
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """ArcFace with several prototypes [c, k, d] of each class, of which the nearest counts: cos θ_j = max_k cos θ_jk.

    Noisy photographs of a class gather around prototypes of their own, which `sub_center_outliers` finds.
    Other arguments and options as for `arcface`.

    Deng et al. 2020, "Sub-center ArcFace: boosting face recognition by large-scale noisy web faces" (k = 3).

    >>> import jax.numpy as jnp
    >>> prototypes = jnp.stack([jnp.eye(2), -jnp.eye(2)])  # two of each class
    >>> float(sub_center_arcface(jnp.eye(2), jnp.array([0, 0]), prototypes, scale=1.0))  # log(1 + e^-cos 0.5)
    0.3477
    """
    check_positive(scale=scale)
    batch, hyper = (embeddings, labels, prototypes), (scale, margin, easy_margin, gradient)
    return over_prototypes(_arcface_target, others_scaled, *batch, *hyper, similarity=cosine, pool=_nearest, **options)


class SubCenters(NamedTuple):
    """dominant: the prototype of each class that most of its rows are nearest to. outliers: rows far from it."""

    dominant: Int[Array, " c"]
    outliers: Bool[Array, " n"]

    def __repr__(self) -> str:
        return one_line(self)


def sub_center_outliers(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c k d"],
    *,
    angle: ArrayLike = 5 * math.pi / 12,
    where: Bool[Array, " n"] | None = None,
) -> SubCenters:
    """Clean up after `sub_center_arcface`: each class's dominant prototype, and rows farther from it than `angle`.

    The first wins among equals, and in a class without rows. Rows without a class are outliers. Training then goes on
    with `prototypes[jnp.arange(c), dominant]` and without the outliers.

    Deng et al. 2020, "Sub-center ArcFace: boosting face recognition by large-scale noisy web faces" (75 degrees).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> found = sub_center_outliers(z, jnp.array([0, 0, 0]), jnp.eye(2)[None])
    >>> found.dominant.tolist(), found.outliers.tolist()
    ([0], [False, False, True])
    """
    check_class_batch(embeddings, labels, prototypes, where, None, several=True)
    return _sub_center_outliers(embeddings, labels, prototypes, angle, where)


@jax.jit(inline=True)
def _sub_center_outliers(embeddings, labels, prototypes, angle, where):
    x = normalize(existing(widen(embeddings), where))
    w = normalize(prototypes.astype(x.dtype))
    own = targets(labels, len(w)).own
    counts = own >= 0 if where is None else (own >= 0) & where
    index = jnp.maximum(own, 0)
    cosines = jnp.sum(x[:, None] * w[index], axis=-1)
    votes = jnp.zeros(w.shape[:2], jnp.int32).at[index, jnp.argmax(cosines, axis=1)].add(counts.astype(jnp.int32))
    dominant = jnp.argmax(votes, axis=1).astype(jnp.int32)
    to_dominant = jnp.take_along_axis(cosines, dominant[index][:, None], axis=1)[:, 0]
    return SubCenters(dominant, ~counts | (to_dominant < jnp.cos(jnp.asarray(angle, x.dtype))))


def _circle_target(own, scale, margin):
    return scale * jnp.maximum(1 + margin - lax.stop_gradient(own), 0) * (own - (1 - margin))


def _circle_others(scores, own, scale, margin):
    return scale * jnp.maximum(lax.stop_gradient(scores) + margin, 0) * (scores - margin)


def circle_class(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
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
    check_positive(scale=scale)
    batch, hyper = (embeddings, labels, prototypes), (scale, margin)
    return over_prototypes(_circle_target, _circle_others, *batch, *hyper, similarity=cosine, **options)
