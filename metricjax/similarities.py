"""Similarities between all pairs of rows: `f(x, y) -> [n, m]`, where larger is closer.

Called directly, and in everything that evaluates or searches, they are exact to float32 on every platform. Losses take
JAX's default, which on GPUs and TPUs is faster and less exact. `precision` asks for another, here or there.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.ground.numerics import gradients_of_product, inverse_length, normalize
from metricjax.ground.pairwise import pairwise
from metricjax.ground.precision import in_force

__all__ = ["cosine", "dot"]


def __dir__() -> list[str]:
    return __all__


@pairwise(kind="similarity", product=True)
def dot(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Inner product, x·y.

    >>> import jax.numpy as jnp
    >>> dot(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [[11.0, 2.0]]
    """
    return jnp.matmul(x, y.T)


def _cosines(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Cosines of rows of length 1 or 0, and rows of any length.

    Dividing columns of the product, where a pass is being made anyway, is faster than dividing the rows `y` before it.
    """
    return _cosines_at(in_force(), x, y)  # which the backward pass would not see


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cosines_at(precision: str | None, x, y):
    return jnp.matmul(x, y.T, precision=precision) * inverse_length(y)[None]


def _cosines_forward(precision, x, y):
    inverse = inverse_length(y)
    return jnp.matmul(x, y.T, precision=precision) * inverse[None], (x, y, inverse)


def _cosines_backward(precision, kept, cotangent):
    x, y, inverse = kept
    unit = y * inverse[:, None]
    of_x, of_unit = gradients_of_product(partial(jnp.matmul, precision=precision), cotangent, x, unit)
    along = of_unit * inverse[:, None]
    return of_x, along - jnp.sum(along * unit, axis=-1, keepdims=True) * unit


_cosines_at.defvjp(_cosines_forward, _cosines_backward)


@pairwise(embed=normalize, kind="similarity", scaled=_cosines, product=True)
def cosine(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Cosine of the angle, x·y / (‖x‖‖y‖); 0 where either is the zero vector. Rounding may exceed ±1 by 1e-6.

    >>> import jax.numpy as jnp
    >>> cosine(jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 0.0]]
    """
    return jnp.matmul(x, y.T)
