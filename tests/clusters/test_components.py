"""`mj.clusters.connected_components` against a walk, and against scikit-learn and SciPy where installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.clusters import components as components_of
from metricjax.clusters import connected_components
from metricjax.engine import sizes
from tests.clusters.sets import rows, unit

DOT = mj.similarities.dot


def components(joined, exists):
    """Labels by walking from each row to all that it is joined to, in either direction."""
    n = len(joined)
    labels, count = [-1] * n, 0
    for first in range(n):
        if exists[first] and labels[first] < 0:
            labels[first], waiting = count, [first]
            while waiting:
                i = waiting.pop()
                for j in range(n):
                    if exists[j] and labels[j] < 0 and (joined[i][j] or joined[j][i]):
                        labels[j] = count
                        waiting.append(j)
            count += 1
    return labels


@pytest.mark.parametrize("n", [0, 1, 53])
def test_components_equal_a_walk(n, rng, monkeypatch):
    monkeypatch.setattr(sizes, "rows_in_joined_tile", lambda n: 14)
    whole = components_of._components.__wrapped__  # the tile is not in the cache's key
    monkeypatch.setattr(components_of, "_components", whole)
    x = jnp.asarray(rng.integers(-3, 4, (n, 3)), jnp.float32)
    where = jnp.asarray(rng.random(n) < 0.8)
    broken = jnp.where(where[:, None], x, jnp.nan)
    scores = np.asarray(x) @ np.asarray(x).T
    run = jax.jit(lambda x, threshold, where: connected_components(x, threshold, similarity=DOT, where=where))
    counts = set()
    for threshold in (-30, 8, 11, 14, 28):
        for mask, given in ((where, broken), (None, broken), (where, x)):
            found = run(given, threshold, mask)
            np.testing.assert_array_equal(found, components(scores >= threshold, np.asarray(where)))
            counts.add(len(np.unique(found)))
    assert n < 2 or len(counts) > 3
    assert found.dtype == jnp.int32


def test_components_follow_long_chains_and_scores_of_one_direction(rng, monkeypatch):
    monkeypatch.setattr(sizes, "rows_in_joined_tile", lambda n: 8)
    order = rng.permutation(61)
    chain = jnp.asarray(order, jnp.float32)[:, None]
    near = lambda x, y: -jnp.abs(x - y.T)
    assert not np.any(connected_components(chain, -1, similarity=near))
    after = lambda x, y: jnp.where(y.T - x == 1, 1.0, 0.0)  # only from each to the next one
    assert not np.any(connected_components(chain, 0.5, similarity=after))
    gap = chain + jnp.where(chain > 30, 0.5, 0)
    np.testing.assert_array_equal(connected_components(gap, -1, similarity=near), (order > 30) ^ (order[0] > 30))


def test_components_equal_those_of_scipy_and_scikit_learn(rng):
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    cluster = pytest.importorskip("sklearn.cluster")
    x = rows(rng, 120, groups=15, noise=0.1)
    for threshold in (0.9, 0.98, 0.995):
        found = np.asarray(connected_components(x, threshold))
        cosine_gap = np.maximum(1 - unit(x) @ unit(x).T, 0)
        np.fill_diagonal(cosine_gap, 0)
        tree = hierarchy.single(cosine_gap[np.triu_indices(len(x), 1)])
        cut = hierarchy.fcluster(tree, 1 - threshold, "distance")
        assert mj.metrics.ari(cut, found) == 1 and 1 < found.max() < 119
        dbscan = cluster.DBSCAN(eps=1 - threshold, min_samples=1, metric="precomputed").fit(cosine_gap)
        np.testing.assert_array_equal(found, dbscan.labels_)


def test_components_of_cosines(rng):
    x = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [5.0, 0.1]])
    assert connected_components(x, 0.9).tolist() == [0, 1, 2, 1]
    assert connected_components(x.astype(jnp.bfloat16), 0.0).tolist() == [0, 0, 0, 0]
    several = jax.vmap(lambda threshold: connected_components(x, threshold))(jnp.array([0.9, 0.0]))
    assert several.tolist() == [[0, 1, 2, 1], [0, 0, 0, 0]]
