"""Geometry of the unit hypersphere, for rows on the last axis."""

from jaxtyping import Array, Float

from metricjax.numerics import normalize, widen


def project(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """The nearest point on the sphere, x / ‖x‖, in the dtype of `x`; a zero row stays zero, with gradient 0.

    >>> import jax.numpy as jnp
    >>> project(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    return normalize(widen(x)).astype(x.dtype)
