"""`search.top_k` against a stable sort of all scores, most of them small integers, so that ties are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import metricjax as mj
from metricjax.engine import sizes
from metricjax.ground.functions import jitted
from metricjax.search import neighbours, panels, top_k
from tests.helpers.batches import slow_unless
from tests.helpers.meshes import mesh_of, put

DOT = mj.similarities.dot


@pytest.fixture(params=["cpu", "accelerator"], autouse=True)
def form(request, monkeypatch):
    """What runs on a CPU, and what runs on GPUs and TPUs: there with groups and candidates for small sets too."""
    if request.param == "accelerator":
        monkeypatch.setattr(panels, "by_platform", lambda f: f(False))
        monkeypatch.setattr(sizes, "SORTED_ROW", 16)
        monkeypatch.setattr(sizes, "CANDIDATES_FROM", 8)
        monkeypatch.setattr(neighbours, "_top_k", jitted(neighbours._top_k.__wrapped__))
    return request.param


def integers(rng, n, d=4):
    return jnp.asarray(rng.integers(-3, 4, (n, d)), jnp.float32)


def sorted_whole(scores, k, where=None, exclude_self=False):
    """The k first of a stable sort of −scores, NaN and −∞ as what does not exist."""
    scores = np.array(scores)
    scores[np.isnan(scores)] = -np.inf
    if where is not None:
        scores[:, ~np.asarray(where)] = -np.inf
    if exclude_self:
        np.fill_diagonal(scores, -np.inf)
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, indices, axis=1)
    return scores, np.where(scores == -np.inf, -1, indices)


def assert_equal(found, wanted):
    np.testing.assert_array_equal(found.indices, wanted[1])
    np.testing.assert_array_equal(found.scores, wanted[0])
    assert found.indices.dtype == jnp.int32


@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
@pytest.mark.parametrize(
    "n, m, k, size",
    [
        (1, 1, 1, "auto"),
        (7, 1000, 5, "auto"),
        (7, 1000, 5, 300),
        (40, 5000, 2, 999),
        (3, 9001, 1, "auto"),  # a block and a part of one
        (5, 300, 300, 128),
        (5, 300, 300, "auto"),
        (11, 301, 7, 1),
        (0, 20, 3, "auto"),
    ],
)
def test_equals_a_stable_sort(n, m, k, size, masked, rng):
    x, y = integers(rng, n), integers(rng, m)
    where = jnp.asarray(rng.random(m) < 0.5) if masked else None
    found = top_k(x, y, k, similarity=DOT, where=where, block_size=size)
    assert_equal(found, sorted_whole(DOT(x, y), k, where))


def test_panels_of_queries(rng, monkeypatch):
    monkeypatch.setattr(sizes, "queries_in_panel", lambda *_: sizes.ByPlatform(10, 10))
    x, y = integers(rng, 37), integers(rng, 200)
    assert_equal(top_k(x, y, 4, similarity=DOT, block_size=64), sorted_whole(DOT(x, y), 4))


@pytest.mark.parametrize("n, k, size", [(33, 3, 7), (33, 32, "auto"), (1100, 2, "auto"), (1100, 2, 7), (1100, 2, 512)])
def test_leaves_the_query_out(n, k, size, rng):
    x = integers(rng, n)
    where = jnp.asarray(rng.random(n) < 0.9)
    found = top_k(x, x, k, similarity=DOT, exclude_self=True, block_size=size)
    assert_equal(found, sorted_whole(DOT(x, x), k, exclude_self=True))
    found = top_k(x, x, k, similarity=DOT, exclude_self=True, where=where, block_size=size)
    assert_equal(found, sorted_whole(DOT(x, x), k, where, exclude_self=True))


def test_duplicates_zeros_of_both_signs_and_too_few(rng):
    x = jnp.array([[1.0], [-1.0]])
    y = jnp.tile(jnp.array([[-0.0], [0.0], [2.0], [0.0], [-0.0]]), (400, 1))
    product = lambda x, y: x * y.T
    for k, size in ((410, "auto"), (410, 333), (3, "auto"), (3, 64)):
        assert_equal(top_k(x, y, k, similarity=product, block_size=size), sorted_whole(x * y.T, k))
    none = top_k(x, y, 3, where=jnp.zeros(len(y), bool))
    assert np.all(none.indices == -1) and np.all(none.scores == -np.inf)
    none = top_k(x, y, 3, where=jnp.zeros(len(y), bool), distance=mj.distances.euclidean)
    assert np.all(none.indices == -1) and np.all(none.scores == np.inf)


@pytest.mark.parametrize("size", ["auto", 100, 2])
def test_nan_is_no_neighbour_and_what_does_not_exist_may_be_anything(size, rng):
    x, y = integers(rng, 6), integers(rng, 1000)
    broken = y.at[::30].set(jnp.nan).at[1::50].set(-jnp.inf)
    scores = np.array(DOT(x, broken))
    scores[scores == np.inf] = np.nan
    score = lambda x, y: jnp.where(DOT(x, y) == jnp.inf, jnp.nan, DOT(x, y))
    assert_equal(top_k(x, broken, 40, similarity=score, block_size=size), sorted_whole(scores, 40))
    none = top_k(x.at[4].set(jnp.nan), y, 3, similarity=DOT, block_size=size)
    assert_equal(none, sorted_whole(DOT(x.at[4].set(jnp.nan), y), 3))
    assert np.all(none.indices[4] == -1)
    where = jnp.arange(1000) % 30 > 0
    wanted = sorted_whole(-mj.distances.squared_euclidean(x, y), 40, where)
    for mask in (where, None):
        how = {"distance": mj.distances.squared_euclidean, "where": mask, "block_size": size}
        found = top_k(x, y.at[::30].set(jnp.nan), 40, **how)
        np.testing.assert_allclose(found.scores, -wanted[0], atol=1e-5)
        assert not np.any(np.isin(found.indices, np.arange(0, 1000, 30)))


def _blind(x, y):
    """A distance of one's own, which takes NaN for 0."""
    return jnp.nan_to_num(mj.distances.squared_chord(x, y))


EVERY_DISTANCE = {
    **{name: getattr(mj.distances, name) for name in ("euclidean", "squared_euclidean", "cosine", "chord", "geodesic")},
    **{"squared_chord": mj.distances.squared_chord, "snr": mj.distances.snr, "own": _blind},
    **{"lp": mj.distances.lp(3.0), "poincare": mj.distances.poincare(1.0)},
}


@pytest.mark.parametrize("name", slow_unless(("euclidean", "cosine", "own"), EVERY_DISTANCE))
def test_a_row_with_nan_or_infinity_is_nobodys_neighbour_for_any_distance(name):
    distance, rows = EVERY_DISTANCE[name], 0.3 * jnp.eye(6, 4) + 0.05 * jnp.arange(24.0).reshape(6, 4) % 0.3
    queries = rows[:4] + 0.01
    for broken in (jnp.nan, jnp.inf, -jnp.inf):
        for holes in (rows.at[5].set(broken).at[0, 2].set(broken), rows.at[0].set(broken).at[5, 0].set(broken)):
            found = top_k(queries, holes, 6, distance=distance)
            there = jnp.array([False, True, True, True, True, False])
            expected = top_k(queries, rows, 6, distance=distance, where=there)
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
            assert np.isin(found.indices[:, :4], [1, 2, 3, 4]).all() and np.all(found.indices[:, 4:] == -1)
        lost = top_k(queries.at[1, 3].set(broken), rows, 2, distance=distance)
        assert np.all(lost.indices[1] == -1) and np.all(lost.scores[1] == np.inf)
        np.testing.assert_array_equal(lost.indices[::2], top_k(queries, rows, 2, distance=distance).indices[::2])


@pytest.mark.parametrize("name, size", [("euclidean", "auto"), ("geodesic", 90), ("snr", 90), ("lp", 90)])
def test_distances(name, size, rng):
    x, y = (jnp.asarray(rng.standard_normal((n, 5)), jnp.float32) for n in (9, 700))
    distance = mj.distances.lp(1) if name == "lp" else getattr(mj.distances, name)
    wanted = sorted_whole(-distance(x, y), 6)
    found = top_k(x, y, 6, distance=distance, block_size=size)
    np.testing.assert_array_equal(found.indices, wanted[1])
    np.testing.assert_allclose(found.scores, -wanted[0], rtol=1e-4)


def test_a_distance_of_zero_is_not_minus_zero():
    x = jnp.eye(3)
    assert not np.any(np.signbit(top_k(x, x, 1, distance=mj.distances.squared_euclidean).scores))


def test_cosine_by_default_in_at_least_float32(rng):
    x, y = (jnp.asarray(rng.standard_normal((n, 8)), jnp.float32) for n in (20, 600))
    for dtype in (jnp.float32, jnp.bfloat16):
        queries, references = x.astype(dtype), y.astype(dtype)
        found, wanted = top_k(queries, references, 5), sorted_whole(mj.similarities.cosine(queries, references), 5)
        np.testing.assert_array_equal(found.indices, wanted[1])
        np.testing.assert_allclose(found.scores, wanted[0], rtol=1e-6)  # candidates are summed in another order
        assert found.scores.dtype == jnp.float32


def test_float64_stays(x64, rng):
    x, y = (jnp.asarray(rng.standard_normal((n, 8))) for n in (5, 600))
    y = y.at[1::2].set(y[::2] * (1 + 1e-12))  # which float32 could not tell
    found = top_k(x, y, 10, similarity=DOT)
    assert found.scores.dtype == jnp.float64
    np.testing.assert_array_equal(found.indices, sorted_whole(np.asarray(x) @ np.asarray(y).T, 10)[1])


def test_vmap_over_queries_and_over_both(rng):
    x, y = integers(rng, 3 * 5).reshape(3, 5, 4), integers(rng, 3 * 700).reshape(3, 700, 4)
    search = lambda x, y: top_k(x, y, 4, similarity=DOT, block_size=256)
    over = jax.jit(jax.vmap(search, (0, None)))(x, y[0])
    both = jax.vmap(search)(x, y)
    for i in range(3):
        assert_equal(jax.tree.map(lambda a, i=i: a[i], over), sorted_whole(DOT(x[i], y[0]), 4))
        assert_equal(jax.tree.map(lambda a, i=i: a[i], both), sorted_whole(DOT(x[i], y[i]), 4))


def test_compiles_once_and_has_no_gradient(rng):
    x, y = integers(rng, 5), integers(rng, 30)
    assert top_k(x, y, 2)._fields == ("scores", "indices")
    gradient = jax.grad(lambda x, y: jnp.sum(top_k(x, y, 2, block_size=7).scores), (0, 1))(x, y)
    assert not any(np.any(g) for g in gradient)


@pytest.mark.parametrize(
    "m, k, size, axis",
    [
        (800, 5, "auto", AxisType.Auto),
        (800, 5, 33, AxisType.Explicit),
        (24, 24, "auto", AxisType.Explicit),
        (24, 4, 2, AxisType.Auto),
    ],
)
def test_eight_devices_equal_one(m, k, size, axis, rng):
    x, y = integers(rng, 16), integers(rng, m)
    where = jnp.arange(m) < 7 * m // 10  # some devices hold nothing that exists
    split = PartitionSpec("data")
    mesh = mesh_of(axis)
    local = lambda x, y, where: top_k(x, y, k, similarity=DOT, where=where, block_size=size, axis_name="data")
    over = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(split,) * 3, out_specs=split))
    assert_equal(over(*put(mesh, x, y, where)), sorted_whole(DOT(x, y), k, where))


@pytest.mark.parametrize("k", [1, 3, 39])
def test_leaves_the_query_out_over_two_axes(k, rng):
    mesh = mesh_of(AxisType.Auto, (4, 2), ("data", "model"))
    x, split = integers(rng, 40), PartitionSpec(("data", "model"))
    local = lambda x: top_k(x, x, k, similarity=DOT, exclude_self=True, axis_name=("data", "model"))
    over = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=split))
    assert_equal(over(x), sorted_whole(DOT(x, x), k, exclude_self=True))


def test_references_stay_on_their_device():
    mesh, split = mesh_of(AxisType.Auto), PartitionSpec("data")
    local = lambda x, y: top_k(x, y, 3, axis_name="data")
    over = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=split))
    text = over.lower(jnp.ones((16, 4)), jnp.ones((800, 4))).compile().as_text()
    gathers = [line for line in text.splitlines() if " all-gather(" in line]
    assert len(gathers) == 1 and "f32[16,4]" in gathers[0]


@pytest.mark.parametrize(
    "score, masked",
    [({"similarity": DOT}, False), ({}, False), ({}, True), ({"distance": mj.distances.euclidean}, True)],
    ids=str,
)
def test_memory_is_that_of_panels(score, masked, form):
    """4096 queries among a million references: scores of all would be 15 GiB, the references are 488 MiB."""
    if form != "cpu":
        pytest.skip("what XLA fuses on a GPU, it does not fuse on a CPU")
    n, m, d, k = 4096, 1_000_000, 128, 10
    shape = jax.ShapeDtypeStruct
    arrays = shape((n, d), jnp.float32), shape((m, d), jnp.float32), shape((m,), jnp.bool_)
    search = lambda x, y, where: top_k(x, y, k, where=where if masked else None, **score)
    used = jax.jit(search).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
    assert used <= 48 * 2**20


@pytest.mark.parametrize("measure", ["inner product", "squared distance"])
def test_equals_faiss(measure, rng):
    faiss = pytest.importorskip("faiss")
    x, y = integers(rng, 20), integers(rng, 500)
    if measure == "inner product":
        index, found = faiss.IndexFlatIP(4), top_k(x, y, 9, similarity=DOT)
    else:
        index, found = faiss.IndexFlatL2(4), top_k(x, y, 9, distance=mj.distances.squared_euclidean)
    index.add(np.asarray(y))
    scores, indices = index.search(np.asarray(x), 9)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-5)
    # Of those that score like the last, faiss takes any: only the others have to be the same ones.
    for ours, theirs, row in zip(np.asarray(found.indices), indices, scores, strict=True):
        sure = row != row[-1]
        assert set(ours[sure]) == set(theirs[sure])


def test_errors(unchecked):
    x, y = jnp.ones((3, 2)), jnp.ones((5, 2))
    with pytest.raises(ValueError, match="k is 0; wanted 1 to 5, the number of references"):
        top_k(x, y, 0)
    with pytest.raises(ValueError, match="k is 6; wanted 1 to 5"):
        top_k(x, y, 6)
    with pytest.raises(ValueError, match="k is 5; wanted 1 to 4"):
        top_k(y, y, 5, exclude_self=True)
    with pytest.raises(TypeError, match="wanted an int, which is static"):
        jax.jit(lambda k: top_k(x, y, k))(2)
    with pytest.raises(TypeError, match=r"k is 2\.0; wanted an int"):
        top_k(x, y, 2.0)
    with pytest.raises(ValueError, match="queries has 2 features, references 3; they must agree"):
        top_k(x, jnp.ones((5, 3)), 1)
    with pytest.raises(ValueError, match=r"queries has shape \(2,\); wanted \[rows, features\]"):
        top_k(x[0], y, 1)
    with pytest.raises(TypeError, match="references has dtype int32; wanted a floating-point dtype"):
        top_k(x, y.astype(int), 1)
    with pytest.raises(ValueError, match=r"where has shape \(3,\); wanted \(5,\)"):
        top_k(x, y, 1, where=jnp.ones(3, bool))
    with pytest.raises(TypeError, match="similarity and distance came both"):
        top_k(x, y, 1, similarity=DOT, distance=mj.distances.chord)
    with pytest.raises(TypeError, match="similarity is 'cosine'; wanted a function"):
        top_k(x, y, 1, similarity="cosine")
    with pytest.raises(ValueError, match="block_size is 0; wanted 'auto' or a positive int"):
        top_k(x, y, 1, block_size=0)
    with pytest.raises(ValueError, match="exclude_self is True for 3 queries and 5 references"):
        top_k(x, y, 1, exclude_self=True)
