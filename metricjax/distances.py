"""Distances between all pairs of rows: `f(x, y) -> [n, m]`, where smaller is closer.

All but `lp` come from one matrix product, so a float32 square distance is exact to about 1e-7 of the largest squared
length (after centring, where the distance allows it): a distance near 0 is resolved to about 3e-4 of that length.
Use float64 where that matters. Gradients are 0, never NaN, between equal points. That holds on every platform: products
are exact to float32, in losses too, unless another `precision` is asked for, here or there; then it may be much worse.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from metricjax.ground.functions import offered
from metricjax.ground.numerics import lifted, normalize, ratio, safe_sqrt
from metricjax.ground.pairwise import Pairwise, pairwise

__all__ = [
    "chord",
    "cosine",
    "euclidean",
    "geodesic",
    "lp",
    "poincare",
    "snr",
    "squared_chord",
    "squared_euclidean",
]


def __dir__() -> list[str]:
    return __all__


_distance = functools.partial(pairwise, kind="distance", exact=True)  # differences of shorter products are noise
_KEPT = 256  # distances made by one function


def _squares(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """‖x − y‖²."""
    center = lax.stop_gradient(jnp.mean(y, axis=0, keepdims=True))
    x, y = x - center, y - center
    squares = jnp.sum(jnp.square(x), axis=-1)[:, None] + jnp.sum(jnp.square(y), axis=-1)[None]
    return jnp.maximum(squares - 2 * jnp.matmul(x, y.T), 0)


@_distance()
def squared_euclidean(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """‖x − y‖², from one matrix product of rows centred on the mean of `y` (the uncentred form cancels)."""
    return _squares(x, y)


@_distance()
def euclidean(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """‖x − y‖.

    >>> import jax.numpy as jnp
    >>> euclidean(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [[5.0]]
    """
    return safe_sqrt(_squares(x, y))


def _far(cosine: Float[Array, "n m"]) -> Float[Array, "n m"]:
    return jnp.maximum(1 - cosine, 0)


def _squared_chord(cosine: Float[Array, "n m"]) -> Float[Array, "n m"]:
    return 2 * _far(cosine)


def _chord(cosine: Float[Array, "n m"]) -> Float[Array, "n m"]:
    return safe_sqrt(_squared_chord(cosine))


def _angle(cosine: Float[Array, "n m"]) -> Float[Array, "n m"]:
    return 2 * jnp.arctan2(safe_sqrt(1 - cosine), safe_sqrt(1 + cosine))


@_distance(embed=normalize, of_product=_far)
def cosine(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """1 − cos θ, from 0 (same direction) to 2; 1 where either is the zero vector."""
    return _far(jnp.matmul(x, y.T))


@_distance(embed=normalize, of_product=_squared_chord)
def squared_chord(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """‖x/‖x‖ − y/‖y‖‖² = 2 − 2 cos θ: what FaceNet measures (Schroff et al. 2015, arXiv:1503.03832)."""
    return _squared_chord(jnp.matmul(x, y.T))


@_distance(embed=normalize, of_product=_chord)
def chord(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """‖x/‖x‖ − y/‖y‖‖ = 2 sin(θ/2): the Euclidean distance after normalising."""
    return _chord(jnp.matmul(x, y.T))


@_distance(embed=normalize, of_product=_angle)
def geodesic(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """The angle θ in radians, 0 to π, as 2 atan2(√(1 − cos θ), √(1 + cos θ)); π/2 where either is the zero vector.

    The form has no infinite slope inside (0, π), unlike arccos after rounding, and slope 0 at 0 and at π.
    """
    return _angle(jnp.matmul(x, y.T))


@offered("distance", made=True)
def lp(p: ArrayLike) -> Pairwise:
    """‖x − y‖_p for a fixed p ≥ 1. It costs n·m·d powers instead of a matrix product.

    The same p gives the same function, so that nothing is compiled anew. p is static, as a distance is: a traced one is
    refused.

    >>> import jax.numpy as jnp
    >>> lp(1)(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, -4.0]])).tolist()
    [[7.0]]
    """
    return _lp(_number("lp: p", p))


@functools.lru_cache(maxsize=_KEPT)
def _lp(p: float) -> Pairwise:
    if not p >= 1:
        raise ValueError(f"lp: p is {p}; wanted at least 1")

    @_distance()
    def lp_distance(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """‖x − y‖_p."""
        difference = jnp.abs(x[:, None] - y[None])
        if p == 1:
            return jnp.sum(difference, axis=-1)
        largest = lax.stop_gradient(jnp.max(difference, axis=-1, initial=0))
        scale = jnp.where(largest > 0, largest, 1)
        total = jnp.sum((difference / scale[..., None]) ** p, axis=-1)
        return scale * jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / p), 0)

    return lp_distance


def _decentre(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return x - jnp.mean(x, axis=-1, keepdims=True)


@_distance(embed=_decentre, symmetric=False)
def snr(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Signal-to-noise ratio distance var(x − y) / var(x), variances over the features; 0 where var(x) = 0.

    Not symmetric: `x` holds the anchors (Yuan et al. 2019, arXiv:1904.02616).
    """
    most = lambda a: jnp.max(jnp.abs(a), initial=0)
    _, power = lifted(jnp.stack([most(x), most(y)])[None])  # the same for all, so that squares are in range
    x, y = x * power, y * power
    variance = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = ~(variance <= 0)
    return jnp.where(some, ratio(_squares(x, y), jnp.where(some, variance, 1)), 0)


@offered("distance", made=True)
def poincare(c: ArrayLike = 1.0) -> Pairwise:
    """Geodesic distance in the Poincaré ball of curvature −c (Nickel & Kiela 2017, arXiv:1705.08039).

    d = arcosh(1 + 2c‖x − y‖² / ((1 − c‖x‖²)(1 − c‖y‖²))) / √c. Points on or outside the ball of radius 1/√c count as
    lying just inside it. As for `lp`, c is static, and the same c gives the same function.

    >>> import jax.numpy as jnp
    >>> poincare(1.0)(jnp.array([[0.0, 0.0]]), jnp.array([[0.5, 0.0]])).tolist()  # 2 artanh(1/2)
    [[1.0986]]
    """
    return _poincare(_number("poincare: c", c))


@functools.lru_cache(maxsize=_KEPT)
def _poincare(c: float) -> Pairwise:
    if not c > 0:
        raise ValueError(f"poincare: c is {c}; wanted c > 0, for a ball of curvature -c")

    @_distance()
    def poincare_distance(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Geodesic distance in the Poincaré ball."""
        x_gap, y_gap = (jnp.maximum(1 - c * jnp.sum(jnp.square(a), axis=-1), 1e-5) for a in (x, y))
        z = 2 * c * _squares(x, y) / (x_gap[:, None] * y_gap[None])
        return jnp.log1p(z + safe_sqrt(z * (z + 2))) / c**0.5

    return poincare_distance


def _number(name: str, value: Any) -> float:
    """A number that is known while tracing: of 1 and 1.0 the same, an int, whose powers are products."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} is traced; wanted a number, as a distance is static")
    number = np.asarray(value).item()
    return int(number) if number == number // 1 else number
