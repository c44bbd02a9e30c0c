"""`mj.clusters.threshold_clusters` against a float64 loop, in blocks of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.clusters import connected_components, leaders, threshold_clusters
from metricjax.engine import sizes
from tests.clusters.sets import rows, unit


def leader_loop(x, threshold, exists, capacity=10**9):
    x, sums, labels = unit(x), [], []
    for i in range(len(x)):
        if not exists[i]:
            labels.append(-1)
            continue
        cosines = [round(float(x[i] @ unit(total)), 6) for total in sums]
        best = int(np.argmax(cosines)) if cosines else 0
        if not cosines or cosines[best] < threshold:
            best = len(sums)
            if best == capacity:
                labels.append(-1)
                continue
            sums.append(np.zeros(x.shape[1]))
        sums[best] = sums[best] + x[i]
        labels.append(best)
    return np.array(labels), [unit(total) for total in sums]


def led(height, width, monkeypatch):
    """`_leaders` with blocks of these sizes: a function of its own, as JAX keeps what it traced of another."""
    monkeypatch.setattr(sizes, "rows_led_at_once", lambda n: height)
    monkeypatch.setattr(sizes, "leaders_at_once", lambda capacity: width)
    return jax.jit(lambda *arguments: leaders._leaders.__wrapped__(*arguments), static_argnums=0)


def assert_led(found, wanted):
    labels, centers = wanted
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.centers[: len(centers)], centers, atol=1e-5)
    assert not np.any(found.centers[len(centers) :])
    np.testing.assert_array_equal(found.sizes, np.bincount(labels[labels >= 0], minlength=len(found.sizes)))


def test_leaders_equal_a_loop(rng):
    x = rows(rng, 150, groups=12, noise=0.2).at[40].set(0)
    where = jnp.asarray(rng.random(150) < 0.8).at[40].set(True)
    x = jnp.where(where[:, None], x, jnp.nan)
    run = jax.jit(lambda x, threshold, where: threshold_clusters(x, threshold, where=where))
    for threshold in (-1.0, 0.5, 0.8, 0.95):
        for mask in (where, None):
            found = run(x, threshold, mask)
            assert_led(found, leader_loop(np.where(where[:, None], x, 0), threshold, np.asarray(where)))
            assert int(found.overflow) == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (64, 3), (200, 150)])
def test_leaders_do_not_depend_on_how_many_are_looked_at_at_once(height, width, rng, monkeypatch):
    run = led(height, width, monkeypatch)
    here = np.ones(150, bool)
    counts = set()
    for noise, capacity in ((0.05, 150), (0.5, 150), (0.5, 11), (2.0, 31)):
        x = rows(rng, 150, d=3, groups=20, noise=noise)
        x = x.at[50:55].set(x[3]).at[90].set(0)
        for threshold in (-1.0, 0.3, 0.8, 0.9, 0.99):
            found = run(capacity, x, threshold, None)
            wanted = leader_loop(x, threshold, here, capacity)
            assert_led(found, wanted)
            assert int(found.overflow) == np.sum(wanted[0] < 0)
            counts.add(int(found.labels.max()) + 1)
    assert min(counts) == 1 and {11, 31} < counts and max(counts) > 50


@pytest.mark.parametrize("height", [1, 3, 6])
@pytest.mark.parametrize("width", [1, 2, 6])
def test_leaders_that_moved_away_leave_a_row_to_another(height, width, monkeypatch):
    run = led(height, width, monkeypatch)
    # The fourth row pulls the first centre from 0 to −0.3, and so the fifth goes to the second, which goes to 0.725.
    angles = np.array([0.0, 1.0, 3.0, -0.6, 0.45, 1.35])
    x = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)
    found = run(6, x, np.cos(0.7), None)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 1]
    for moved in (0, 1):  # of two that are equally close, the older one, whichever a row of the block has joined
        x = jnp.asarray([[1, 0], [0, 1], [-1, 0], np.eye(2)[moved], [1, 1], [-1, 0]], jnp.float32)
        assert run(6, x, 0.5, None).labels.tolist() == [0, 1, 2, moved, 0, 2]


def test_leaders_in_float64_and_side_by_side(rng, x64):
    x = rows(rng, 90, groups=12, noise=0.2, dtype=jnp.float64)
    thresholds = jnp.array([0.5, 0.9])
    found = jax.jit(jax.vmap(lambda threshold: threshold_clusters(x, threshold)))(thresholds)
    assert found.centers.dtype == jnp.float64
    for i, threshold in enumerate(thresholds):
        labels, centers = leader_loop(x, threshold, np.ones(90, bool))
        np.testing.assert_array_equal(found.labels[i], labels)
        np.testing.assert_allclose(found.centers[i, : len(centers)], centers, atol=1e-14)


def test_leaders_of_what_cancels(debug_nans):
    """A cluster whose rows sum to 0 has cosine 0 with all others, in one block and in the next."""
    x = jnp.tile(jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), (30, 1))
    found = threshold_clusters(x, -1.0)
    assert not np.any(found.labels) and found.sizes[0] == 90 and not np.any(found.centers)
    found = threshold_clusters(x, 0.5)
    assert found.sizes.tolist()[:2] == [30, 30] and found.labels.max() == 31  # each zero row for itself


def test_leaders_without_room():
    x = jnp.asarray(np.repeat(np.eye(4), 2, axis=0), jnp.float32)
    with pytest.raises(ValueError, match="capacity is 2; wanted more: 4 rows"):
        threshold_clusters(x, 0.5, capacity=2)
    found = jax.jit(lambda x: threshold_clusters(x, 0.5, capacity=2))(x)
    assert found.labels.tolist() == [0, 0, 1, 1, -1, -1, -1, -1] and int(found.overflow) == 4
    assert found.centers.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]] and found.sizes.tolist() == [2, 2]
    assert threshold_clusters(x, 0.5, capacity=4).labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert threshold_clusters(x[:0], 0.5).labels.shape == (0,)


def test_leaders_depend_on_the_order_and_components_chain():
    angles = np.array([0.0, 0.5, 1.0, 1.5])
    x = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)
    threshold = np.cos(0.6)
    assert not np.any(connected_components(x, threshold))
    assert threshold_clusters(x, threshold).labels.tolist() == [0, 0, 1, 1]
    assert threshold_clusters(x[jnp.array([1, 0, 2, 3])], threshold).labels.tolist() == [0, 0, 1, 1]
    assert threshold_clusters(x[jnp.array([1, 2, 0, 3])], threshold).labels.tolist() == [0, 0, 1, 2]
