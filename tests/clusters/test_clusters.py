"""What all ways to make clusters have in common: memory, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.clusters import connected_components, k_means, threshold_clusters

KEY = jax.random.key(0)


def test_memory_is_linear():
    n = 30_000
    x = jax.ShapeDtypeStruct((n, 16), jnp.float32)
    runs = (
        lambda x: connected_components(x, 0.5),
        lambda x: k_means(KEY, x, 2000),
        lambda x: threshold_clusters(x, 0.5),
    )
    for run in runs:
        used = jax.jit(run).lower(x).compile().memory_analysis()
        assert used.temp_size_in_bytes < n * 2000  # a quarter of rows × clusters


def test_errors(unchecked):
    x = jnp.ones((3, 2))
    for wrong, error, message in (
        (lambda: k_means(KEY, x, 4), ValueError, "count is 4; wanted 1 to 3"),
        (lambda: k_means(KEY, x, 0), ValueError, "count is 0"),
        (lambda: k_means(KEY, x, 2.0), TypeError, "count is 2.0"),
        (lambda: k_means(KEY, x, 2, restarts=0), ValueError, "restarts is 0"),
        (lambda: k_means(KEY, x[0], 2), ValueError, r"embeddings has shape \(2,\)"),
        (lambda: k_means(KEY, x, 2, where=jnp.ones(4, bool)), ValueError, r"where has shape \(4,\)"),
        (lambda: connected_components(x, jnp.ones(3)), ValueError, r"threshold has shape \(3,\)"),
        (lambda: connected_components(x, 0.5, similarity="cosine"), TypeError, "similarity is 'cosine'"),
        (lambda: connected_components(x.astype(jnp.int32), 0.5), TypeError, "embeddings has dtype int32"),
        (lambda: threshold_clusters(x, 0.5, capacity=0), ValueError, "capacity is 0"),
        (lambda: threshold_clusters(x, jnp.ones(3)), ValueError, r"threshold has shape \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            wrong()


def test_arrays_of_numpy_in_float64(unchecked):
    """JAX warns of every float64 that it cannot keep, and warnings are errors here."""
    x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert connected_components(x, 0.5).tolist() == threshold_clusters(x, 0.5).labels.tolist() == [0, 0, 1]
