"""Rows to be put into clusters, and their directions in float64."""

import jax.numpy as jnp
import numpy as np


def unit(x):
    x = np.asarray(x, np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def rows(rng, n, d=4, groups=6, noise=0.3, dtype=jnp.float32):
    """Around some directions, of any length."""
    means = unit(rng.standard_normal((groups, d)))
    x = means[rng.integers(0, groups, n)] + noise * rng.standard_normal((n, d))
    return jnp.asarray(x * rng.uniform(0.1, 10, (n, 1)), dtype)
