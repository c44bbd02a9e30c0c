import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests.helpers.cases import PAIRS


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("block_size", [None, 32])
def test_all_triplets_with_many_positives(classes, block_size):
    """More positives in a row than are compared in turn: ranks come from sorting, and equal those of brute force."""
    rng = np.random.default_rng(classes)
    z = jnp.asarray(rng.standard_normal((160, 5)), jnp.float32)
    y = jnp.arange(160) % classes
    case = PAIRS["triplet-all"]

    def every_triplet(z):
        d = mj.distances.squared_chord(z, z)
        same = y[:, None] == y[None]
        valid = (same & ~np.eye(160, dtype=bool))[:, :, None] & ~same[:, None, :]
        terms = jnp.where(valid, jnp.maximum(d[:, :, None] - d[:, None, :] + 0.2, 0), 0)
        return jnp.sum(terms) / jnp.maximum(jnp.sum(terms > 0, dtype=jnp.float32), 1)

    value, gradient = jax.jit(jax.value_and_grad(lambda z: case(z, y, block_size=block_size)))(z)
    np.testing.assert_allclose(value, case.expected(z, y), rtol=1e-5)
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(every_triplet))(z), rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_a_selection_of_ones_own():
    """Any function that selects works, with few triplets for an anchor or with many."""
    z = jnp.asarray(np.random.default_rng(0).standard_normal((12, 4)), jnp.float32)
    y = jnp.arange(12) // 3

    def nearest(distances, positives, negatives):
        return mj.mining.easy_positive_hard_negative(distances, positives, negatives)

    def many(distances, positives, negatives):
        return mj.mining.semi_hard(distances, positives, negatives)

    for own, known in ((nearest, mj.mining.easy_positive_hard_negative), (many, mj.mining.semi_hard)):
        for size in (None, 5):
            f = lambda z, select, size=size: mj.losses.triplet(z, y, triplets=select, margin=0.9, block_size=size)
            for got, wanted in zip(*(jax.value_and_grad(f)(z, s) for s in (own, known)), strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
