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


@pytest.mark.parametrize("ties", [False, True])
def test_semi_hard_negative_is_that_of_semi_hard(ties, rng):
    d = rng.integers(0, 4, (50, 9)) if ties else rng.random((50, 9))
    d = jnp.asarray(d, jnp.float32)
    positive = rng.integers(0, 4, 50)
    positives = jnp.asarray(np.arange(9) == positive[:, None])
    negatives = ~positives & jnp.asarray(rng.random((50, 9)) < 0.7) & (np.arange(50)[:, None] > 3)
    limit = jnp.take_along_axis(d, jnp.asarray(positive)[:, None], axis=1)
    negative = mj.mining.semi_hard_negative(limit, d, negatives)
    some = np.any(negatives, axis=1)
    together = {(i, int(positive[i]), int(negative[i])) for i in range(50) if some[i]}
    assert together == chosen(mj.mining.semi_hard(d, positives, negatives))


@pytest.mark.parametrize("name", SELECTORS)
def test_indices_stay_in_range_when_nothing_is_there(name):
    empty = jnp.zeros((3, 4), bool)
    triplets = getattr(mj.mining, name)(jnp.ones((3, 4)), empty, empty)
    assert not np.any(triplets.valid)
    for index, size in zip(triplets[:3], (3, 4, 4), strict=True):
        assert np.all((np.asarray(index) >= 0) & (np.asarray(index) < size))


def test_batch_hard_makes_no_matrix_product_in_the_backward_pass():
    """Beyond the one that mines, only gathers: the dot products of the chosen pairs are linear in n."""
    n, d, r = 256, 32, 64
    z, y = jnp.ones((n, d)), jnp.arange(n) // 4
    for triplets in (mj.mining.batch_hard, mj.mining.semi_hard, mj.mining.easy_positive_hard_negative):
        loss = lambda z, triplets=triplets: mj.losses.triplet(z, y, triplets=triplets, block_size=r)
        text = jax.jit(jax.grad(loss)).lower(z).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line and f"{r}x{n}xf32>" in line]
        assert len(products) == 1
        assert f"-> tensor<{r}x{n}xf32>" in products[0]
