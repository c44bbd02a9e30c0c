"""`mj.clusters.k_means` against float64 loops, on degenerate input too, and against scikit-learn where installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.clusters import k_means, means
from metricjax.engine import sizes
from tests.clusters.sets import rows, unit

KEY = jax.random.key(0)


def lloyd(x, centers, steps, exists=None):
    """Spherical k-means from these centres, row by row: labels, centres, mean cosine of each step."""
    x, centers = unit(x), np.array(centers, np.float64)
    real = [i for i in range(len(x)) if exists is None or exists[i]]
    some = [i for i in real if np.any(x[i] != 0)]

    def assign():
        return {i: max(range(len(centers)), key=lambda c: (round(float(x[i] @ centers[c]), 6), -c)) for i in real}

    labels, history = assign(), []
    mean = lambda: np.mean([x[i] @ centers[labels[i]] for i in real])
    history.append(mean())
    for _ in range(steps):
        cosine = {i: x[i] @ centers[labels[i]] for i in some}
        farthest = sorted(some, key=lambda i: (cosine[i], i))
        for c in range(len(centers)):
            own = [i for i in some if labels[i] == c]
            if own:
                centers[c] = unit(sum(x[i] for i in own))
            elif farthest and cosine[farthest[0]] < 1 - 1e-6:
                centers[c] = x[farthest.pop(0)]
        before, labels = labels, assign()
        history.append(mean())
        if labels == before:
            break
    return np.array([labels.get(i, -1) for i in range(len(x))]), centers, history


def assert_like(found, wanted, atol=1e-5):
    labels, centers, history = wanted
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.centers, centers, atol=atol)
    np.testing.assert_allclose(found.similarity, history[-1], atol=atol)
    assert int(found.steps) == len(history) - 1
    assert found.labels.dtype == jnp.int32


def test_k_means_equals_lloyd_from_the_same_seeds(rng, monkeypatch):
    monkeypatch.setattr(sizes, "rows_in_panel", lambda n, centers: 17)
    x = rows(rng, 83, noise=0.6)
    x = x.at[7].set(0).at[20:24].set(x[3])
    where = jnp.asarray(rng.random(83) < 0.8).at[7].set(True)
    x = jnp.where(where[:, None], x, jnp.nan)
    keys = jax.random.split(KEY, 8)
    run = jax.jit(jax.vmap(lambda key, steps: k_means(key, x, 5, where=where, steps=steps), (0, None)))
    exists, seeds = np.asarray(where), run(keys, 0)
    assert np.all(seeds.steps == 0)
    for number in (100, 2):
        found = run(keys, number)
        for i in range(len(keys)):
            one = jax.tree.map(lambda a, i=i: a[i], found)
            assert_like(one, lloyd(np.where(exists[:, None], x, 0), seeds.centers[i], number, exists))
    assert len(set(map(int, run(keys, 100).steps))) > 1  # so that keys did stop at different times
    assert jnp.all(seeds.labels[:, 7] == 0)


def test_k_means_never_gets_worse_and_fills_empty_clusters(rng, monkeypatch):
    x = rows(rng, 90, d=3, groups=9, noise=0.2)
    start = mj.sphere.project(jnp.concatenate([x[:3], x[:3], -x[:1], x[:1]]))  # four that nobody is closest to
    monkeypatch.setattr(means, "_seeds", lambda *_: start)
    assert len(np.unique(k_means(KEY, x, 8, steps=0).labels)) < 5
    history = lloyd(x, start, 100)[2]
    found = [k_means(KEY, x, 8, steps=steps) for steps in range(len(history) + 1)]
    np.testing.assert_allclose([each.similarity for each in found[:-1]], history, atol=1e-5)
    assert np.all(np.diff([float(each.similarity) for each in found]) > -1e-6)
    assert_like(found[-1], lloyd(x, start, 100))
    assert len(np.unique(found[-1].labels)) == 8


def test_k_means_does_not_leave_a_centre_to_zero_rows(monkeypatch):
    x = jnp.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.1], [0.1, 1.0]])
    monkeypatch.setattr(means, "_seeds", lambda *_: jnp.array([[-1.0, 0.0], [1.0, 0.0]]))
    assert k_means(KEY, x, 2, steps=0).labels.tolist() == [0, 1, 1, 1]
    assert k_means(KEY, x, 2).labels.tolist() == [0, 1, 1, 0]


def test_k_means_seeds_are_drawn_by_squared_chords():
    angles = np.array([0.0, 0.3, 1.5, 3.0])
    x = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)
    x = jnp.concatenate([x, jnp.zeros((1, 2)), jnp.full((1, 2), jnp.nan)])  # which are never drawn
    draws = 4000
    seeds = jax.vmap(lambda key: k_means(key, x, 2, steps=0).centers)(jax.random.split(KEY, draws))
    drawn = np.argmax(np.einsum("sck,nk->scn", seeds, x[:4]), axis=2)
    squares = 2 - 2 * np.cos(angles[:, None] - angles[None])
    wanted = squares / squares.sum(axis=1, keepdims=True) / 4
    share = np.zeros((4, 4))
    np.add.at(share, (drawn[:, 0], drawn[:, 1]), 1 / draws)
    assert np.all(np.abs(share - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / draws))


@pytest.mark.parametrize("batch", [1, 2, 128])
def test_seeds_of_a_batch_are_as_if_drawn_one_after_the_other(batch, monkeypatch):
    monkeypatch.setattr(sizes, "seeds_at_once", lambda: batch)
    angles = np.array([0.0, 0.0, 0.4, 1.5, 3.0])  # the first comes twice
    x = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)
    draws, some = 20_000, jnp.ones(5, bool)
    seeds = jax.jit(jax.vmap(lambda key: means._seeds(key, x, some, 3)))(jax.random.split(KEY, draws))
    drawn = np.argmax(np.einsum("sck,nk->scn", seeds, x[1:]), axis=2)
    squares = 2 - 2 * np.cos(angles[1:, None] - angles[None])  # of each different row to all
    wanted = np.zeros((4, 4, 4))
    for a, first in enumerate((2 / 5, 1 / 5, 1 / 5, 1 / 5)):
        for b in range(4):
            second = squares[a] / squares[a].sum()
            left = np.minimum(squares[a], squares[b])
            for c in range(4):
                copies = [1 + (row == 0) for row in (b, c)]
                wanted[a, b, c] = first * copies[0] * second[b + 1] * copies[1] * left[c + 1] / left.sum()
    share = np.zeros((4, 4, 4))
    np.add.at(share, tuple(drawn.T), 1 / draws)
    assert np.sum(wanted) == pytest.approx(1) and np.sum(wanted > 0) == 24
    assert np.all(np.abs(share - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / draws))


def test_candidates_are_kept_one_after_the_other(rng):
    squares = rng.random((40, 40)).astype(np.float32)
    squares += squares.T
    before, possible = jnp.asarray(2 * rng.random(40), jnp.float32), jnp.asarray(rng.random(40) < 0.9)
    limits = (1 - np.asarray(jax.random.uniform(KEY, (40,)))) * np.asarray(before)
    kept = []
    for j in range(40):
        if possible[j] and all(squares[i, j] >= limits[j] for i in kept):
            kept.append(j)
    found = means._kept(KEY, jnp.asarray(squares), before, possible)
    assert np.flatnonzero(found).tolist() == kept and 2 < len(kept) < 30


def test_k_means_is_as_good_as_from_seeds_drawn_one_by_one(rng, monkeypatch):
    x, keys = rows(rng, 1500, d=16, groups=60, noise=0.2), jax.random.split(KEY, 6)
    run = lambda: float(jnp.mean(jax.vmap(lambda key: k_means(key, x, 60).similarity)(keys)))
    found = run()

    def one_by_one(key, x, some, count):
        def draw(i, state):
            seeds, squares = state
            row = x[jax.random.categorical(jax.random.fold_in(key, i), jnp.log(squares))]
            return seeds.at[i].set(row), jnp.minimum(squares, jnp.sum(jnp.square(x - row[None]), axis=1))

        return jax.lax.fori_loop(0, count, draw, (jnp.zeros((count, x.shape[1])), some.astype(x.dtype)))[0]

    monkeypatch.setattr(means, "_seeds", one_by_one)
    monkeypatch.setattr(means, "_k_means", means._k_means.__wrapped__)
    assert found > 0.99 * run() > 0.5


def test_k_means_side_by_side_equals_one_after_the_other(rng):
    x, keys = rows(rng, 120, groups=20, noise=0.4), jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: k_means(key, x, 20))(keys)
    for i, key in enumerate(keys):
        one = k_means(key, x, 20)
        np.testing.assert_array_equal(together.labels[i], one.labels)
        np.testing.assert_allclose(together.centers[i], one.centers, atol=1e-6)
    assert np.any(together.labels[0] != together.labels[1])


@pytest.mark.parametrize("height", [1, 17, 64, 500])
def test_k_means_does_not_depend_on_how_many_rows_are_in_a_panel(height, rng, monkeypatch):
    x = rows(rng, 230, groups=9, noise=0.5)
    wanted = k_means(KEY, x, 9)
    monkeypatch.setattr(sizes, "rows_in_panel", lambda n, centers: height)
    monkeypatch.setattr(means, "_k_means", means._k_means.__wrapped__)
    found = k_means(KEY, x, 9)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_allclose(found.centers, wanted.centers, atol=1e-6)


def test_sums_without_scatter_are_the_same(rng, monkeypatch):
    """Those of accelerators; a cluster without rows has 0, and the label behind all of them counts nowhere."""
    monkeypatch.setattr(sizes, "rows_in_panel", lambda n, centers: 7)
    x, labels = rows(rng, 30), rng.integers(0, 6, 30)
    labels[labels == 2] = 5
    wanted = [np.sum(np.asarray(x, np.float64)[labels == c], axis=0) for c in range(5)]
    np.testing.assert_allclose(means._sums_by_product(5, x, jnp.asarray(labels)), wanted, rtol=1e-5, atol=1e-5)


def test_no_sums_of_rows_are_scattered_on_accelerators():
    x = jax.ShapeDtypeStruct((500, 16), jnp.float32)
    traced = jax.jit(lambda x: k_means(KEY, x, 8)).trace(x)
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        combined = [part.split("stablehlo.return")[0] for part in text.split('"stablehlo.scatter"(')[1:]]
        sums = ["stablehlo.add" in part and "tensor<f32>" in part for part in combined]
        assert len(sums) > 2 and any(sums) == (platform == "cpu")


def test_k_means_keeps_the_best_of_its_restarts(monkeypatch):
    def run(key, x, real, steps, count):
        score = jax.random.uniform(key)
        return means.Clusters(jnp.full(3, 1e6 * score).astype(jnp.int32), score[None, None], score, jnp.int32(steps))

    monkeypatch.setattr(means, "_run", run)
    scores = jax.vmap(jax.random.uniform)(jax.random.split(KEY, 9))
    best = k_means(KEY, jnp.ones((3, 1)), 1, restarts=9)
    assert best.similarity == best.centers[0, 0] == scores.max() > scores[0] and len(set(scores.tolist())) == 9
    np.testing.assert_array_equal(best.labels, int(1e6 * scores.max()))


def test_k_means_of_what_is_degenerate(rng, debug_nans):
    run = jax.jit(lambda x, where: k_means(KEY, x, 4, where=where))
    two = jnp.asarray(np.tile([[3.0, 4.0], [-1.0, 0.0]], (4, 1)), jnp.float32)
    here = jnp.ones(8, bool)
    found = run(two, here)  # fewer different rows than clusters
    assert len(np.unique(found.labels)) == 2 and float(found.similarity) == pytest.approx(1)
    np.testing.assert_allclose(np.linalg.norm(found.centers, axis=1), 1, atol=1e-6)
    zeros = run(jnp.zeros((8, 2)), here)
    assert not np.any(zeros.labels) and not np.any(zeros.centers) and float(zeros.similarity) == 0
    gone = run(two, ~here)
    assert np.all(gone.labels == -1) and not np.any(gone.centers) and float(gone.similarity) == 0
    opposite = run(two.at[:].set(jnp.array([1.0, 0.0])).at[::2].set(jnp.array([-1.0, 0.0])), here)
    assert np.all(np.isfinite(opposite.centers)) and float(opposite.similarity) == pytest.approx(1)
    broken = [[np.inf, 0], [1e-30, 0], [1e30, 0], [np.nan, 1], [0, 1e-37], [0, 1], [-1e5, 0], [0, -1]]
    found = run(jnp.asarray(broken, jnp.float32), here)
    assert found.labels[0] == found.labels[3] == -1 and float(found.similarity) == pytest.approx(1)
    assert found.labels[1] == found.labels[2] != found.labels[4] == found.labels[5]
    cancels = k_means(KEY, jnp.array([[1.0, 0.0], [-1.0, 0.0]]), 1)
    assert np.linalg.norm(cancels.centers) == 1 and float(cancels.similarity) == 0


def test_k_means_in_other_dtypes(rng, x64):
    x = rows(rng, 40, groups=4, noise=0.1, dtype=jnp.float64)
    found = k_means(KEY, x, 4)
    assert found.centers.dtype == found.similarity.dtype == jnp.float64
    assert_like(found, lloyd(x, k_means(KEY, x, 4, steps=0).centers, 100), atol=1e-12)
    low = jax.eval_shape(lambda x: k_means(KEY, x, 4), x.astype(jnp.bfloat16))
    assert low.centers.dtype == low.similarity.dtype == jnp.float32


def test_k_means_is_as_good_as_that_of_scikit_learn(rng):
    cluster = pytest.importorskip("sklearn.cluster")
    x = rows(rng, 400, d=8, groups=10, noise=0.4)
    theirs = cluster.KMeans(10, n_init=5, random_state=0).fit(unit(x)).labels_
    means = unit(np.stack([unit(x)[theirs == c].sum(axis=0) for c in range(10)]))
    assert k_means(KEY, x, 10, restarts=5).similarity > np.mean(np.sum(unit(x) * means[theirs], axis=1)) - 0.003
