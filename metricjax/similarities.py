"""Similarities between all pairs of rows: `f(x, y) -> [n, m]`, where larger is closer."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.ground.functions import offer
from metricjax.ground.numerics import normalize
from metricjax.ground.pairwise import pairwise


@pairwise(kind="similarity")
def dot(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Inner product, x·y.

    >>> import jax.numpy as jnp
    >>> dot(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
    [[11.0, 2.0]]
    """
    return jnp.matmul(x, y.T)


@pairwise(embed=normalize, kind="similarity")
def cosine(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Cosine of the angle, x·y / (‖x‖‖y‖); 0 where either is the zero vector. Rounding may exceed ±1 by 1e-6.

    >>> import jax.numpy as jnp
    >>> cosine(jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 0.0]]
    """
    return jnp.matmul(x, y.T)


for _one in (cosine, dot):
    offer("similarity", _one)
