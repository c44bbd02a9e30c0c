"""Margin softmax losses whose margin or scale follows the training: by difficulty, by norm, by chance. Radians.

Those with a state return (loss, state): keep the state, a small array, and hand it to the next call.
"""

import math
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Key

from metricjax.anchors import Mean
from metricjax.engine.devices import row_ids
from metricjax.engine.reductions import Loss, as_mean, quotient
from metricjax.ground.checks import check_array, check_positive
from metricjax.ground.numerics import a_row_for_none, computing_dtype, safe_sqrt
from metricjax.losses.margin_softmax import angle, others_scaled, scaled, turned, with_margin
from metricjax.losses.row_values import class_count, own_score, row_lengths, values_of_all
from metricjax.prototypes import SoftmaxOptions, over_prototypes
from metricjax.similarities import cosine

__all__ = ["State", "adacos", "adacos_scale", "adaface", "curricularface", "elasticface", "magface"]

State = Float[Array, "..."]


def _kept(state: State | None, embeddings: Array, initial: Any) -> tuple[State, jnp.dtype]:
    """The state in the dtype that losses are computed in, and the dtype it came in."""
    check_array("embeddings", embeddings, "an array [rows, features]")
    dtype = computing_dtype(embeddings.dtype)
    first = jnp.asarray(initial, dtype)
    if state is None:
        return first, dtype
    if jnp.shape(state) != first.shape:
        raise ValueError(f"state has shape {jnp.shape(state)}; wanted {first.shape}")
    return jnp.asarray(state, dtype), jnp.result_type(state)


def _of_row(own, value):
    return value


def _target_cosines(embeddings, labels, prototypes, options):
    """Those of all rows on all devices, and which rows exist, without a gradient."""
    fixed = lax.stop_gradient((embeddings, prototypes))
    own, exists = values_of_all(own_score, fixed[0], labels, fixed[1], options, similarity=cosine)
    return own, exists > 0


def _values(a, embeddings, labels, prototypes, options):
    """A number of each row, of all rows on all devices, and which rows exist."""
    values, exists = values_of_all(_of_row, embeddings, labels, prototypes, options, a, similarity=cosine)
    return values, exists > 0


def _mean(values, exists):
    return jnp.sum(jnp.where(exists, values, 0)) / _at_least_one(jnp.sum(exists), values)


def _at_least_one(count, values):
    return jnp.maximum(count, 1).astype(values.dtype)


def _followed(old, new, momentum, known):
    """The running average, where there is anything new."""
    return jnp.where(known, old + jnp.asarray(momentum, old.dtype) * (new.astype(old.dtype) - old), old)


# --- by difficulty --------------------------------------------------------------------------------------------------


def _curricular_target(own, scale, margin, progress):
    return scale * with_margin(own, margin, False)


def _curricular_others(scores, own, scale, margin, progress):
    return scale * jnp.where(scores > turned(own, margin), scores * (progress + scores), scores)


def curricularface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    state: Float[Array, ""] | None = None,
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.5,
    momentum: ArrayLike = 0.01,
    **options: Unpack[SoftmaxOptions],
) -> tuple[Loss, Float[Array, ""]]:
    """CurricularFace: ArcFace in which others with cos θ_j > cos(θ_y + m) become cos θ_j (t + cos θ_j), and the new t.

    The state t begins at 0 (None) and follows the mean target cosine, t ← (1 − α) t + α mean cos θ_y with α the
    `momentum`: hard classes count for little at first and more and more later. The new t is used at once, without a
    gradient. Mean over rows. Options: `SoftmaxOptions`.

    Huang et al. 2020, arXiv:2004.00288 (s = 64, m = 0.5; α = 0.01 as in their code).

    >>> import jax.numpy as jnp
    >>> loss, t = curricularface(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), jnp.array(0.5), scale=1.0)
    >>> float(loss), float(t)  # no hard class: log(1 + e^-cos 0.5); 0.99 · 0.5 + 0.01
    (0.3477, 0.505)
    """
    check_positive(scale=scale)
    t, dtype = _kept(state, embeddings, 0.0)
    own, exists = _target_cosines(embeddings, labels, prototypes, options)
    t = _followed(t, _mean(own, exists), momentum, jnp.any(exists))
    batch, hyper = (embeddings, labels, prototypes), (scale, margin, t)
    loss = over_prototypes(_curricular_target, _curricular_others, *batch, *hyper, similarity=cosine, **options)
    return loss, t.astype(dtype)


# --- by norm --------------------------------------------------------------------------------------------------------


def _adaface_target(own, quality, scale, margin, epsilon):
    added = -margin * quality
    theta = angle(own) + added
    low, high = theta < epsilon, theta > jnp.pi - epsilon
    changed = jnp.where(low, jnp.cos(epsilon), jnp.where(high, -jnp.cos(epsilon), turned(own, added)))
    return scale * (changed - margin - margin * quality)


def _others_at_scale(scores, own, row, scale, *hyper):
    return scale * scores


def adaface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    state: Float[Array, "2"] | None = None,
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.4,
    concentration: ArrayLike = 0.333,
    momentum: ArrayLike = 0.01,
    epsilon: ArrayLike = 1e-3,
    **options: Unpack[SoftmaxOptions],
) -> tuple[Loss, Float[Array, "2"]]:
    """AdaFace: the margin follows the quality of the image, read from the embedding's norm; and the new state.

    The target is s·(cos(θ_y − m q) − m q − m), q = clip(h (‖x‖ − μ) / (σ + ε), ±1) without a gradient, h the
    `concentration` and ‖x‖ kept between 0.001 and 100; θ_y − m q is kept ε away from 0 and π. The state (μ, σ), (20,
    100) at first (None), takes in the batch's mean and standard deviation of norms with the `momentum` before they are
    used; a row alone changes only μ. Mean over rows. Embeddings must come unnormalised. Options: `SoftmaxOptions`.

    Kim et al. 2022, arXiv:2204.00964 (s = 64, m = 0.4, h = 0.333).

    >>> import jax.numpy as jnp
    >>> z, state = 20 * jnp.eye(2), jnp.array([20.0, 100.0])  # norms of the mean: q = 0, as in CosFace
    >>> loss, state = adaface(z, jnp.array([0, 1]), jnp.eye(2), state, scale=1.0)
    >>> float(loss), state.tolist()  # log(1 + e^-(cos 0.001 - 0.4))
    (0.4375, [20.0, 99.0])
    """
    check_positive(scale=scale)
    (mean, deviation), dtype = _kept(state, embeddings, (20.0, 100.0))
    length = jnp.clip(lax.stop_gradient(row_lengths(embeddings, options)), 0.001, 100)
    lengths, exists = _values(length, embeddings, labels, prototypes, options)
    average, count = _mean(lengths, exists), jnp.sum(exists)
    spread = safe_sqrt(jnp.sum(jnp.where(exists, jnp.square(lengths - average), 0)) / _at_least_one(count - 1, lengths))
    mean = _followed(mean, average, momentum, count > 0)
    deviation = _followed(deviation, spread, momentum, count > 1)
    distance = (length.astype(mean.dtype) - mean) / (deviation + jnp.asarray(epsilon, mean.dtype))
    quality = jnp.clip(jnp.asarray(concentration, mean.dtype) * distance, -1, 1)
    batch, hyper = (embeddings, labels, prototypes), (scale, margin, epsilon)
    loss = over_prototypes(
        _adaface_target, _others_at_scale, *batch, *hyper, similarity=cosine, rows=(quality,), **options
    )
    return loss, jnp.stack([mean, deviation]).astype(dtype)


def _row_margin_target(own, margin, scale, easy_margin):
    return scale * with_margin(own, margin, easy_margin)


def magface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    norms: tuple[ArrayLike, ArrayLike] = (10.0, 110.0),
    margins: tuple[ArrayLike, ArrayLike] = (0.45, 0.8),
    regularizer: ArrayLike = 35.0,
    easy_margin: bool = True,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """MagFace: ArcFace with a margin m(a) that rises with the embedding's norm a, plus λ (1/a + a/u²), mean over rows.

    a is ‖x‖ kept inside `norms` = (l, u), between which m(a) goes linearly from the first of `margins` to the second; λ
    is the `regularizer`. The norm comes to tell the quality of an image. Embeddings must come unnormalised, and their
    norms gain no gradient outside (l, u). Options: `SoftmaxOptions`.

    Meng et al. 2021, arXiv:2103.06627 (s = 64, norms 10 to 110, margins 0.45 to 0.8, λ = 35, easy margin).

    >>> import jax.numpy as jnp
    >>> loss = magface(10 * jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), scale=1.0)  # m = 0.45
    >>> float(loss)  # log(1 + e^-cos 0.45) + 35 (1/10 + 10/110²)
    3.8699
    """
    check_positive(scale=scale, **{f"norms[{i}]": length for i, length in enumerate(norms)})
    length = row_lengths(embeddings, options)
    low, high, least, most, weight = (jnp.asarray(a, length.dtype) for a in (*norms, *margins, regularizer))
    length = jnp.clip(length, low, high)
    margin = least + (most - least) / (high - low) * (length - low)
    extra = weight * (1 / length + length / jnp.square(high))
    batch, hyper = (embeddings, labels, prototypes), (scale, easy_margin)
    each: SoftmaxOptions = {**options, "reduction": as_mean}
    mean = over_prototypes(
        _row_margin_target, _others_at_scale, *batch, *hyper, similarity=cosine, rows=(margin,), **each
    )
    extras, _ = _values(extra, embeddings, labels, prototypes, options)
    return options.get("reduction", quotient)(Mean(mean.total + mean.count * extras, mean.count))


# --- by chance ------------------------------------------------------------------------------------------------------


@jax.jit(static_argnums=2, inline=True)
def _draws(key, ids, dtype):
    """A normal number for each row, which depends on the key and the row's id alone."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (), dtype))(ids)


def _row_offset_target(own, margin, scale, easy_margin):
    return scale * (own - margin)


def elasticface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    key: Key[Array, ""],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike | None = None,
    deviation: ArrayLike = 0.05,
    variant: Literal["arc", "cos"] = "arc",
    plus: bool = False,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """ElasticFace: ArcFace or CosFace, mean over rows, each with a margin drawn from N(`margin`, `deviation`²).

    With `plus` the margins of a batch are handed out by difficulty: the row that is farthest from its prototype gets
    the largest. A row's draw depends on the key and on its place in the batch, not on devices or padding. `margin` is
    0.5 for "arc" and 0.35 for "cos". Options: `SoftmaxOptions`.

    Boutros et al. 2022, arXiv:2109.09416 (s = 64, σ = 0.05; plus: 0.0175 for arc, 0.02 for cos; their code's "plus"
    sorts by a permutation where its inverse is meant).

    >>> import jax, jax.numpy as jnp
    >>> arrays = jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), jax.random.key(0)
    >>> float(elasticface(*arrays, scale=1.0, deviation=0.0))  # log(1 + e^-cos 0.5)
    0.3477
    """
    check_positive(scale=scale)
    if variant not in ("arc", "cos"):
        raise ValueError(f"variant is {variant!r}; wanted 'arc' or 'cos'")
    target = _row_margin_target if variant == "arc" else _row_offset_target
    check_array("embeddings", embeddings, "an array [rows, features]")
    ids, dtype = row_ids(len(embeddings), options.get("axis_name")), computing_dtype(embeddings.dtype)
    center = jnp.asarray({"arc": 0.5, "cos": 0.35}[variant] if margin is None else margin, dtype)
    drawn = center + jnp.asarray(deviation, dtype) * _draws(key, ids, dtype)
    if plus:
        own, exists = _target_cosines(embeddings, labels, prototypes, options)
        everyone = _values(drawn, embeddings, labels, prototypes, options)[0]
        order = jnp.argsort(jnp.where(exists, own, jnp.inf))  # the farthest first
        largest_first = jnp.flip(jnp.sort(jnp.where(exists, everyone, -jnp.inf)))
        handed_out = jnp.zeros_like(largest_first).at[order].set(largest_first)
        drawn = jnp.where(exists, handed_out, 0)[ids]
    batch, hyper = (embeddings, labels, prototypes), (scale, False)
    return over_prototypes(target, _others_at_scale, *batch, *hyper, similarity=cosine, rows=(drawn,), **options)


# --- by the cosines so far ------------------------------------------------------------------------------------------


def adacos_scale(classes: ArrayLike) -> Float[Array, ""]:
    """The fixed scale of AdaCos, √2 log(c − 1) for c classes: `normalized_softmax(temperature=1 / adacos_scale(c))`.

    Zhang et al. 2019, arXiv:1905.00292.

    >>> float(adacos_scale(10_000))
    13.0252
    """
    return math.sqrt(2) * jnp.log(jnp.maximum(jnp.asarray(classes, float) - 1, 1))


def _nothing(own, *hyper):
    return jnp.zeros_like(own)


def adacos(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    state: Float[Array, ""] | None = None,
    **options: Unpack[SoftmaxOptions],
) -> tuple[Loss, Float[Array, ""]]:
    """AdaCos: softmax over s·cos θ_j, mean over rows, with a scale that follows the cosines; and the new scale.

    s ← log B / cos(min(π/4, median θ_y)), B = mean over rows of Σ_{j≠y} exp(s cos θ_j). The state s begins at the
    fixed scale (None), `adacos_scale` of the number of classes; the new one is used at once, without a gradient. Where
    log B ≤ 0, which takes few classes, it stays as it is. Options: `SoftmaxOptions`.

    Zhang et al. 2019, arXiv:1905.00292.

    >>> import jax.numpy as jnp
    >>> z = jnp.eye(4)[:2]
    >>> loss, s = adacos(z, jnp.array([0, 1]), jnp.eye(4))  # B = 3 and θ = 0
    >>> float(loss), float(s)  # log(1 + 3 e^-s) with s = log 3
    (0.6931, 1.0986)
    """
    s, dtype = _kept(state, embeddings, adacos_scale(class_count(prototypes, options)))
    own, exists = _target_cosines(embeddings, labels, prototypes, options)
    count, fixed = jnp.sum(exists), lax.stop_gradient((embeddings, labels, prototypes))
    each: SoftmaxOptions = {**options, "weights": None, "reduction": as_mean, "label_smoothing": None}
    log_sums, _ = over_prototypes(_nothing, others_scaled, *fixed, s, similarity=cosine, join="log_odds", **each)
    log_b = jax.nn.logsumexp(log_sums, where=exists) - jnp.log(_at_least_one(count, own))
    angles = a_row_for_none(jnp.sort(jnp.where(exists, jnp.arccos(jnp.clip(own, -1, 1)), jnp.inf)))
    middle = jnp.array([(count - 1) // 2, count // 2]).astype(jnp.int32)
    median = jnp.mean(angles[jnp.maximum(middle, 0)])
    new = (log_b / jnp.cos(jnp.minimum(jnp.pi / 4, median))).astype(s.dtype)
    s = jnp.where((count > 0) & (log_b > 0), new, s)
    loss = over_prototypes(scaled, others_scaled, embeddings, labels, prototypes, s, similarity=cosine, **options)
    return loss, s.astype(dtype)
