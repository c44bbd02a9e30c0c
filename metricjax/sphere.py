"""Geometry of the unit hypersphere, for rows on the last axis; leading axes broadcast.

Points are unit vectors up to rounding: their directions count. Tangent vectors at x are perpendicular to x, and as long
as the way along the sphere. Angles keep their relative precision near 0, as do the gaps of angles near π.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Key

from metricjax.ground.numerics import computing_dtype, norm, normalize, widen
from metricjax.ground.precision import exact_product

__all__ = [
    "distance",
    "exp",
    "frechet_mean",
    "interpolate",
    "log",
    "project",
    "random_uniform",
    "to_tangent",
    "transport",
]


def __dir__() -> list[str]:
    return __all__


def project(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """The nearest point on the sphere, x / ‖x‖, in the dtype of `x`; a zero row stays zero, with gradient 0.

    >>> import jax.numpy as jnp
    >>> project(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    return normalize(widen(x)).astype(x.dtype)


def _dot(x, y):
    return jnp.sum(x * y, axis=-1, keepdims=True)


def to_tangent(x: Float[Array, "*#n d"], v: Float[Array, "*#n d"]) -> Float[Array, "*#n d"]:
    """The part of `v` that is tangent at `x`, v − (x·v) x, in the dtype of `v`; all of it where x is zero.

    >>> import jax.numpy as jnp
    >>> to_tangent(jnp.array([0.6, 0.8]), jnp.array([1.0, 0.0])).tolist()
    [0.64, -0.48]
    """
    unit, wide = normalize(widen(x)), widen(v)
    return (wide - _dot(unit, wide) * unit).astype(v.dtype)


def exp(x: Float[Array, "*#n d"], v: Float[Array, "*#n d"]) -> Float[Array, "*#n d"]:
    """The point that the geodesic from `x` along the tangent `v` reaches after ‖v‖: cos ‖v‖ x + sin ‖v‖ v / ‖v‖.

    It is normalised, so that rows stay on the sphere however many steps follow each other; for v = 0 it is `x` itself.

    >>> import jax.numpy as jnp
    >>> exp(jnp.array([1.0, 0.0]), jnp.array([0.0, jnp.pi / 6])).tolist()
    [0.8660, 0.5]
    """
    start, way = widen(x), widen(v)
    square = _dot(way, way)
    short = square < 1e-5  # there the series are exact, and have derivatives of any order
    length = jnp.sqrt(jnp.where(short, 1, square))
    cosine = jnp.where(short, 1 - square / 2 + jnp.square(square) / 24, jnp.cos(length))
    sinc = jnp.where(short, 1 - square / 6 + jnp.square(square) / 120, jnp.sin(length) / length)
    end = normalize(cosine * normalize(start) + sinc * way)
    still = lax.stop_gradient(jnp.where(square > 0, 0, start - end))
    return (end + still).astype(x.dtype)


def _sine_and_angle(x, y):
    """The part of y that is tangent at x, of length ‖y‖ sin θ; that length; and the angle θ, all of them precise."""
    cosine = _dot(normalize(x), y)
    sine = to_tangent(x, y - jnp.sign(cosine) * x)  # to the nearer of x and −x the difference is exact
    length = norm(sine)
    zero = (length == 0) & (cosine == 0)
    angle = jnp.where(zero, jnp.pi / 2, jnp.arctan2(length, jnp.where(zero, 1, cosine)))
    return sine, length, angle


def distance(x: Float[Array, "*#n d"], y: Float[Array, "*#n d"]) -> Float[Array, "*#n"]:
    """The angle θ between rows in radians, 0 to π, as atan2(sin θ, cos θ); π/2 where either is the zero vector.

    The gradient is 0 at θ = 0 and at θ = π. `metricjax.distances.geodesic` has all pairs of rows, less precisely.

    >>> import jax.numpy as jnp
    >>> distance(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[0.0, 1.0], [-1.0, 0.0]])).tolist()
    [1.5708, 3.1416]
    """
    return _sine_and_angle(widen(x), widen(y))[2][..., 0].astype(x.dtype)


def log(x: Float[Array, "*#n d"], y: Float[Array, "*#n d"]) -> Float[Array, "*#n d"]:
    """The tangent at `x` that leads to `y`, θ n with n = (y − cos θ x) / sin θ: `exp(x, log(x, y))` is y.

    All directions lead to y = −x; taken is that of the axis on which |x| is smallest, with gradient 0.

    >>> import jax.numpy as jnp
    >>> log(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[0.0, 1.0], [-1.0, 0.0]])).tolist()
    [[0.0, 1.5708], [0.0, 3.1416]]
    """
    start = widen(x)
    sine, length, angle = _sine_and_angle(start, widen(y))
    apart = length > jnp.finfo(start.dtype).eps ** 2  # else the slope of θ / sin θ may not be a finite number
    ratio = jnp.where(apart, angle / jnp.where(apart, length, 1), 1)
    axis = jax.nn.one_hot(jnp.argmin(jnp.abs(start), axis=-1), start.shape[-1], dtype=start.dtype)
    any_way = lax.stop_gradient(jnp.pi * normalize(to_tangent(start, axis)))
    return jnp.where(apart | (angle < 2), ratio * sine, any_way).astype(x.dtype)


def interpolate(x: Float[Array, "*#n d"], y: Float[Array, "*#n d"], t: ArrayLike) -> Float[Array, "*#n d"]:
    """The point at the fraction `t` of the geodesic from `x` to `y`, (sin((1 − t)θ) x + sin(tθ) y) / sin θ.

    `t` is a number, or has the leading axes. It may lie outside [0, 1]. From x to −x it takes the way of `log`.

    >>> import jax.numpy as jnp
    >>> interpolate(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), 1 / 3).tolist()
    [0.8660, 0.5]
    """
    start, way = widen(x), log(widen(x), widen(y))
    t = jnp.asarray(t, way.dtype)
    return exp(start, (t if t.ndim == 0 else t[..., None]) * way).astype(x.dtype)


def transport(x: Float[Array, "*#n d"], y: Float[Array, "*#n d"], v: Float[Array, "*#n d"]) -> Float[Array, "*#n d"]:
    """The tangent `v` at `x` moved in parallel along the geodesic to `y`, in the dtype of `v`: v − 2 (m·v) m.

    That is its reflection along m, the point half way; m·v = y·v / ‖x + y‖. From x to −x it takes the way of `log`.

    >>> import jax.numpy as jnp
    >>> transport(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0])).tolist()
    [-2.0, 0.0]
    """
    middle, wide = interpolate(widen(x), widen(y), 0.5), widen(v)
    return (wide - 2 * _dot(middle, wide) * middle).astype(v.dtype)


def random_uniform(key: Key[Array, ""], shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Float[Array, "... d"]:
    """Points that are uniform on the sphere, an array of shape (..., d).

    >>> import jax
    >>> random_uniform(jax.random.key(0), (5, 3)).shape
    (5, 3)
    """
    return normalize(jax.random.normal(key, shape, computing_dtype(jnp.dtype(dtype)))).astype(dtype)


# --- the mean -------------------------------------------------------------------------------------------------------


def frechet_mean(
    points: Float[Array, "*#b n d"], weights: Float[Array, "*#b n"] | None = None
) -> Float[Array, "*#b d"]:
    """The point m that minimises Σ w_i θ(m, x_i)², the Fréchet or Karcher mean; weights are ≥ 0, default 1.

    It is unique if all points lie within less than π/2 of some point (an open half-sphere); elsewhere what comes out
    may be a local minimum. Newton's method from the normalised Σ w x, to the precision of the dtype; where its step
    does not halve the gradient, the step is m ← exp(m, Σ w log(m, x) / Σ w). Derivatives, in either mode and of higher
    order, are those of the minimum (implicit function theorem).

    Zero rows count for nothing. Where Σ w x vanishes (no weights, or two opposite points) it is 0, with gradient 0.
    ValueError unless there is a weight for each point.

    Buss, Fillmore 2001, "Spherical averages and applications to spherical splines and interpolation" (both steps);
    Afsari 2011, "Riemannian L^p center of mass: existence, uniqueness, and convexity".

    >>> import jax.numpy as jnp
    >>> frechet_mean(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 1.0])).tolist()  # a third of the way
    [0.8660, 0.5]
    """
    weights = jnp.ones(points.shape[:-1], points.dtype) if weights is None else weights
    if weights.shape[-1:] != points.shape[-2:-1]:
        raise ValueError(f"weights has shape {weights.shape}; wanted [..., n] for points of shape {points.shape}")
    x = widen(points)
    return _frechet_means(x, weights.astype(x.dtype)).astype(points.dtype)


@jax.jit(inline=True)
def _frechet_means(points, weights):
    weights = jnp.where(jnp.any(points != 0, axis=-1), weights, 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1)
    some = norm(jnp.sum(weights[..., None] * points, axis=-2)) > 8 * jnp.finfo(points.dtype).eps
    points = jnp.where(some[..., None], points, 1)  # where there is no mean, that of equal points
    mean = jnp.vectorize(_mean, signature="(n,d),(n)->(d)")(points, weights)
    return jnp.where(some, mean, 0)


@jax.custom_jvp
def _mean(points, weights):
    """Newton's method for points [n, d] and weights [n] that add up to 1."""
    precision = 8 * jnp.finfo(points.dtype).eps

    def step(state):
        mean, _, count = state
        pull = _pull(mean, points, weights)
        newton = exp(mean, _solve(mean, points, weights, pull))
        halved = 2 * norm(_pull(newton, points, weights)) <= norm(pull)
        return jnp.where(halved, newton, exp(mean, pull)), norm(pull)[0], count + 1

    unfinished = lambda state: (state[1] > precision) & (state[2] < 100)
    start = normalize(exact_product(weights, points))
    return lax.while_loop(unfinished, step, (start, jnp.full((), jnp.inf, start.dtype), 0))[0]


@_mean.defjvp
def _mean_jvp(primals, tangents):
    mean = _mean(*primals)
    change = jax.jvp(lambda points, weights: _pull(mean, points, weights), primals, tangents)[1]
    return mean, _solve(mean, *primals, change)


def _pull(mean, points, weights):
    """Σ w log(m, x): minus the gradient of Σ w θ² / 2, 0 at its minimum."""
    return jnp.sum(weights[:, None] * log(mean[None], points), axis=0)


def _solve(mean, points, weights, pull):
    """H⁻¹ of a tangent at m, with the Hessian H = Σ w (n nᵀ + θ cot θ (I − m mᵀ − n nᵀ)), n the directions of x."""
    ways = log(mean[None], points)
    angle = norm(ways)
    apart = angle > jnp.finfo(angle.dtype).eps
    bend = jnp.where(apart, angle / jnp.tan(jnp.where(apart, angle, 1)), 1)[:, 0]
    common = jnp.sum(weights * bend)
    least = jnp.finfo(angle.dtype).eps ** 0.5  # 0 where x are π/2 from m: across the directions of x, H is singular
    common = jnp.where(jnp.abs(common) > least, common, least)
    ways = normalize(ways)
    along = exact_product(ways.T * (weights * (1 - bend))[None], ways)
    hessian = common * jnp.eye(len(mean), dtype=mean.dtype) + along + (1 - common) * mean[:, None] * mean[None]
    return jnp.linalg.solve(hessian, pull)
