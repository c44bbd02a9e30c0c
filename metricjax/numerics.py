"""The few functions whose slope is infinite or undefined somewhere, each with a stated value and gradient there.

Everything computes in at least float32: bfloat16 and float16 are widened, float64 stays.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def computing_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """float32, or float64 for float64."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def widen(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` in float32, or in float64 if it comes in float64."""
    return x.astype(computing_dtype(x.dtype))


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """√max(x, 0), with gradient 0 where x ≤ 0 (the slope of √ is infinite at 0)."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _largest(x: Float[Array, "... d"]) -> Float[Array, "... 1"]:
    """The largest magnitude of each row, or 1 for a zero row: dividing by it keeps squares in range."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0))
    return jnp.where(largest > jnp.finfo(x.dtype).tiny, largest, 1)


def norm(x: Float[Array, "... d"]) -> Float[Array, "... 1"]:
    """Euclidean length of each row, kept as an axis of size 1; gradient 0 at a zero row."""
    largest = _largest(x)
    return largest * safe_sqrt(jnp.sum(jnp.square(x / largest), axis=-1, keepdims=True))


def inverse_length(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """1 / ‖x‖ of each row, 0 for a zero row; not differentiable."""
    ones = jnp.ones((x.shape[1], 1), x.dtype)
    square = jnp.matmul(jnp.square(x), ones, precision=lax.Precision.HIGHEST)[:, 0]  # faster than a sum
    info = jnp.finfo(x.dtype)
    in_range = jnp.all((square > info.tiny) & (square < info.max))
    some = lambda length: jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    return lax.cond(in_range, lambda: lax.rsqrt(square), lambda: some(norm(x)[:, 0]))


def normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Each row divided by its Euclidean length; a zero row stays zero, with gradient 0."""
    scaled = x / _largest(x)
    square = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
    positive = square > 0
    return scaled * jnp.where(positive, lax.rsqrt(jnp.where(positive, square, 1)), 0)


@jax.custom_jvp
def softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + exp(x)), with finite value and gradient for any x but +∞; half the cost of JAX's, which handles NaN."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda tangent, value, x: tangent * jax.nn.sigmoid(x))


def logsumexp(x: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Float[Array, " n"]:
    """log Σ exp(x) over the entries of each row that `where` marks; −∞ with gradient 0 for a row without any."""
    top = lax.stop_gradient(jnp.max(x, axis=-1, where=where, initial=-jnp.inf))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.sum(jnp.exp(jnp.where(where, x - top[:, None], -jnp.inf)), axis=-1)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, -jnp.inf)


_GROUP = 64


def first_largest(x: Float[Array, "n m"]) -> Int[Array, " n"]:
    """Index of the first largest entry of each row, none of which is NaN.

    One pass finds the largest of each group, and only one group is searched: on a CPU, argmax takes many times longer.
    """
    n, m = x.shape
    groups = jnp.pad(x, [(0, 0), (0, -m % _GROUP)], constant_values=-jnp.inf).reshape(n, -1, _GROUP)
    tops = jnp.max(groups, axis=-1)
    group = jnp.argmax(tops, axis=-1).astype(jnp.int32)
    inside = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    return group * _GROUP + jnp.argmax(inside, axis=-1).astype(jnp.int32)


def next_marked(mask: Bool[Array, "n m"], last: Int[Array, "n 1"]) -> Int[Array, "n 1"]:
    """The first column after `last` that each row marks, m where there is none."""
    column = jnp.arange(mask.shape[1], dtype=jnp.int32)[None]
    return jnp.min(jnp.where(mask & (column > last), column, column.size), axis=1, keepdims=True, initial=column.size)


def ordered_integers(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Integers in the same order as the floats, which are not NaN: a CPU sorts them several times faster."""
    kind = {32: jnp.int32, 64: jnp.int64}[jnp.finfo(x.dtype).bits]
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0, x), kind)  # −0 becomes 0; XLA leaves out an x + 0
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)
