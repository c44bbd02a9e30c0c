import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests import oracle

SELECTORS = ("batch_hard", "easy_positive_hard_negative", "semi_hard", "all_triplets")


def chosen(triplets):
    """Valid triplets as a set."""
    valid = np.asarray(triplets.valid).ravel()
    columns = [np.asarray(a).ravel()[valid].tolist() for a in triplets[:3]]
    return set(zip(*columns, strict=True))


def masks(labels):
    positives, negatives = oracle.neighbours(labels)
    dense = lambda lists: jnp.asarray([[j in row for j in range(len(labels))] for row in lists])
    return positives, negatives, dense(positives), dense(negatives)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("ties", [False, True])
def test_selects_what_the_oracle_selects(name, ties, rng):
    labels = np.array([0, 0, 1, 1, 1, 2, 3, 0, 3, 3])
    d = rng.integers(0, 4, (10, 10)).astype(np.float32) if ties else rng.random((10, 10)).astype(np.float32)
    positives, negatives, p, n = masks(labels)
    expected = set()
    for i in range(10):
        if positives[i] and negatives[i]:
            expected |= {(i, *pair) for pair in getattr(oracle, name)(d[i], positives[i], negatives[i])}
    select = getattr(mj.mining, name)
    assert chosen(select(jnp.asarray(d), p, n)) == expected
    assert chosen(jax.jit(select)(jnp.asarray(d), p, n)) == expected


@pytest.mark.parametrize("name", SELECTORS)
def test_indices_stay_in_range_when_nothing_is_there(name):
    empty = jnp.zeros((3, 4), bool)
    triplets = getattr(mj.mining, name)(jnp.ones((3, 4)), empty, empty)
    assert not np.any(triplets.valid)
    for index, size in zip(triplets[:3], (3, 4, 4), strict=True):
        assert np.all((np.asarray(index) >= 0) & (np.asarray(index) < size))


def test_batch_hard_makes_no_matrix_product_in_the_backward_pass():
    """Beyond the one that mines, only gathers: the dot products of the chosen pairs are linear in n."""
    n, d = 256, 32
    z, y = jnp.ones((n, d)), jnp.arange(n) // 4
    text = jax.jit(jax.grad(lambda z: mj.losses.triplet(z, y))).lower(z).as_text()
    square = [line for line in text.splitlines() if "dot_general" in line and f"-> tensor<{n}x{n}xf32>" in line]
    wide = [line for line in text.splitlines() if "dot_general" in line and f"tensor<{n}x{n}xf32>, tensor" in line]
    assert len(square) == 1
    assert not wide
