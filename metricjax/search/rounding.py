"""Rows in bfloat16, and how far their products can be from those of the rows themselves."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metricjax.ground.numerics import existing

__all__ = ["Rounded", "error_of", "rounded"]


class Rounded(NamedTuple):
    """Rows in bfloat16, the lengths of the rows as they were, and how far off they are; none is less than it is."""

    rows: Float[Array, "n d"]
    length: Float[Array, " n"]
    off: Float[Array, " n"]


def rounded(x: Float[Array, "n d"], real: Bool[Array, " n"] | None = None) -> Rounded:
    x = existing(x, real)
    low = x.astype(jnp.bfloat16)
    return Rounded(low, _at_most(x), _at_most(x - low.astype(x.dtype)))


def _at_most(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """The length of each row, or a little more: no square that is lost in underflow is missing."""
    d, info = x.shape[1], jnp.finfo(x.dtype)
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=1) + d * info.tiny) * (1 + d * info.eps)


def error_of(x: Rounded, y: Rounded) -> Float[Array, " n"]:
    """How far the float32 product of any rounded row of `y` with each of `x` can be from any float32 sum of x·y.

    It is ‖x − x̂‖‖y‖ + ‖x̂‖‖y − ŷ‖ for the operands and, as γ‖x‖‖y‖, for sums in any order, of either product, by
    processors that cut digits off instead of rounding them.
    """
    d, eps = x.rows.shape[1], jnp.finfo(x.length.dtype).eps
    length, off = (jnp.max(a, initial=0) for a in (y.length, y.off))
    summing = 2 * (d + 8) * eps
    return x.off * length + (x.length + x.off) * (off + summing * (length + off))
