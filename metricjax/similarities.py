"""Similarities between all pairs of rows: `f(x, y) -> [n, m]`, where larger is closer."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.ground.numerics import inverse_length, normalize
from metricjax.ground.pairwise import pairwise

__all__ = ["cosine", "dot"]


def __dir__() -> list[str]:
    return __all__


@pairwise(kind="similarity")
def dot(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Inner product, x·y.

    >>> import jax.numpy as jnp
    >>> dot(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [[11.0, 2.0]]
    """
    return jnp.matmul(x, y.T)


@jax.custom_vjp
def _cosines(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Cosines of rows of length 1 or 0, and rows of any length.

    Dividing columns of the product, where a pass is being made anyway, is faster than dividing the rows `y` before it.
    """
    return (x @ y.T) * inverse_length(y)[None]


def _cosines_forward(x, y):
    inverse = inverse_length(y)
    return (x @ y.T) * inverse[None], (x, y, inverse)


def _cosines_backward(kept, cotangent):
    x, y, inverse = kept
    to_products = cotangent * inverse[None]
    along = (x.T @ to_products).T
    unit = y * inverse[:, None]
    return to_products @ y, along - jnp.sum(along * unit, axis=-1, keepdims=True) * unit


_cosines.defvjp(_cosines_forward, _cosines_backward)


@pairwise(embed=normalize, kind="similarity", scaled=_cosines)
def cosine(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Cosine of the angle, x·y / (‖x‖‖y‖); 0 where either is the zero vector. Rounding may exceed ±1 by 1e-6.

    >>> import jax.numpy as jnp
    >>> cosine(jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 0.0]]
    """
    return jnp.matmul(x, y.T)
