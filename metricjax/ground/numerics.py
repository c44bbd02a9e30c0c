"""The few functions whose slope is infinite or undefined somewhere, each with a stated value and gradient there.

Everything computes in at least float32: bfloat16 and float16 are widened, float64 stays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

__all__ = [
    "a_row_for_none",
    "computing_dtype",
    "existing",
    "finite_rows",
    "gradients_of_product",
    "inverse_length",
    "lifted",
    "logsumexp",
    "norm",
    "normalize",
    "ratio",
    "safe_sqrt",
    "softplus",
    "spoiling",
    "spoilt",
    "widen",
]


def computing_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """float32, or float64 for float64."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` in float32, or in float64 if it comes in float64."""
    return x.astype(computing_dtype(x.dtype))


def existing(x: Float[Array, "n ..."], where: Bool[Array, " n"] | None) -> Float[Array, "n ..."]:
    """Rows that do not exist become 0: whatever stood there, NaN included, reaches neither value nor gradient."""
    return x if where is None else jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def a_row_for_none(a: Any) -> Any:
    """The array, or one row of zeros where it has none."""
    return a if a is None or len(a) else jnp.zeros((1, *a.shape[1:]), a.dtype)


def finite_rows(x: Float[Array, "... d"]) -> Bool[Array, "..."]:
    """Which rows hold neither NaN nor infinity."""
    zeros = jnp.zeros((x.shape[-1], 1), x.dtype)  # times these, NaN and infinity are NaN
    return jnp.matmul(x, zeros, precision=lax.Precision.HIGHEST)[..., 0] == 0  # several times faster than `isfinite`


def gradients_of_product(product: Callable[[Array, Array], Array], change: Float[Array, "n m"], x, y):
    """Those of x and y in `product(x, y.T)`, from its own.

    A CPU takes a product of what is transposed in memory; one that transposes takes it twice as long there.
    """
    in_memory = lambda a: lax.optimization_barrier(a.T)
    turned = lax.platform_dependent(change, cpu=in_memory, default=jnp.transpose)
    return product(change, y), product(turned, x)


@jax.custom_jvp
def spoilt(x: Float[Array, "..."]) -> Float[Array, ""]:
    """0 with gradient 0; if `x` holds NaN or infinity, NaN, and so is all of its gradient.

    Added to a loss, it shows what comparisons and selections hide: those with NaN are False.
    """
    return jnp.where(jnp.all(jnp.isfinite(x)), 0, jnp.nan).astype(x.dtype)  # a sum of x · 0 takes the memory of x


@spoilt.defjvp
def _spoilt_jvp(primals, tangents):
    value = spoilt(*primals)
    return value, value * jnp.sum(tangents[0])


@jax.custom_jvp
def spoiling(x: Float[Array, "..."], spoil: Float[Array, ""]) -> Float[Array, "..."]:
    """`x`, whose gradient is NaN throughout if `spoil` is NaN, and as it is if 0. Unlike a sum, it takes no memory."""
    return x


@spoiling.defjvp
def _spoiling_jvp(primals, tangents):
    x, spoil = primals
    return x, tangents[0] * (1 + spoil)


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """√max(x, 0), with gradient 0 where x ≤ 0 (the slope of √ is infinite at 0); NaN stays NaN."""
    some = ~(x <= 0)
    return jnp.where(some, jnp.sqrt(jnp.where(some, x, 1)), 0)


@jax.custom_jvp
@jax.jit(inline=True)
def lifted(x: Float[Array, "... d"]) -> tuple[Float[Array, "... d"], Float[Array, "... 1"]]:
    """x · 2ᵏ and 2ᵏ, which brings each row's largest magnitude near 1 and so its squares into range.

    2ᵏ counts as constant. Subnormal numbers, which processors take for 0, are read from their bits; a row of nothing
    else has gradient 0.
    """
    info = jnp.finfo(x.dtype)
    kind = {16: jnp.int16, 32: jnp.int32, 64: jnp.int64}[info.bits]
    as_bits = lambda a: lax.bitcast_convert_type(a, kind)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0)
    exponent = as_bits(largest) >> info.nmant
    most = 2**info.nexp - 2
    power = lax.bitcast_convert_type(jnp.clip(most - exponent, 1, most) << info.nmant, x.dtype)
    bits = as_bits(x)
    size = bits & jnp.iinfo(kind).max
    one_and = (size & (2**info.nmant - 1)) | as_bits(jnp.ones((), x.dtype))
    fraction = lax.bitcast_convert_type(one_and, x.dtype) - 1  # of `tiny`
    subnormal = jnp.where(bits < 0, -fraction, fraction) * (power * info.tiny)
    return jnp.where((size > 0) & (size >> info.nmant == 0), subnormal, x * _normal(power)), power


def _normal(power):
    """The power of two of a row, 0 where the row has no normal number."""
    return jnp.where(power < 2.0 ** (jnp.finfo(power.dtype).maxexp - 1), power, 0)


@lifted.defjvp
def _lifted_jvp(primals, tangents):
    near_one, power = lifted(*primals)
    return (near_one, power), (tangents[0] * _normal(power), jnp.zeros_like(power))


def norm(x: Float[Array, "... d"]) -> Float[Array, "... 1"]:
    """Euclidean length of each row, kept as an axis of size 1; gradient 0 at a zero row."""
    near_one, power = lifted(x)
    return safe_sqrt(jnp.sum(jnp.square(near_one), axis=-1, keepdims=True)) / 2 * (2 / power)


@jax.custom_jvp
def ratio(a: Float[Array, "*#n"], b: Float[Array, "*#n"]) -> Float[Array, "*#n"]:
    """a / b, with a gradient that squares neither: it is in range wherever the value is."""
    return a / b


@ratio.defjvp
def _ratio_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    value = ratio(a, b)
    return value, (da - value * db) / b


def inverse_length(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """1 / ‖x‖ of each row, 0 for a zero row; not differentiable."""
    ones = jnp.ones((x.shape[1], 1), x.dtype)
    square = jnp.matmul(jnp.square(x), ones, precision=lax.Precision.HIGHEST)[:, 0]  # faster than a sum
    info = jnp.finfo(x.dtype)
    in_range = jnp.all((square > info.tiny) & (square < info.max))
    some = lambda length: jnp.where(length == 0, 0, 1 / jnp.where(length == 0, 1, length))
    return lax.cond(in_range, lambda: lax.rsqrt(square), lambda: some(norm(x)[:, 0]))


def normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Each row divided by its Euclidean length, whatever that is; a zero row stays zero, with gradient 0.

    Subnormal numbers count in the value and have gradient 0.
    """
    near_one, _ = lifted(x)
    square = jnp.sum(jnp.square(near_one), axis=-1, keepdims=True)
    some = square != 0
    return near_one * jnp.where(some, lax.rsqrt(jnp.where(some, square, 1)), 0)


@jax.custom_jvp
def softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + exp(x)), with finite value and gradient for any finite x and −∞; half the cost of JAX's."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda tangent, value, x: tangent * jax.nn.sigmoid(x))


def logsumexp(x: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Float[Array, " n"]:
    """log Σ exp(x) over the entries of each row that `where` marks; −∞ with gradient 0 for a row without any.

    NaN among the marked stays NaN.
    """
    top = lax.stop_gradient(jnp.max(x, axis=-1, where=where, initial=-jnp.inf))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.sum(jnp.exp(jnp.where(where, x - top[:, None], -jnp.inf)), axis=-1)
    some = total != 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, -jnp.inf)
