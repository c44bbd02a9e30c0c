"""`retrieval_means` against `retrieval`, which ranks everything: over batches, devices, masks and ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import metricjax as mj
from metricjax.metrics import retrieval, retrieval_means
from tests.helpers.meshes import mesh_of, put
from tests.helpers.refusals import refuses

DOT, SPLIT, KS = mj.similarities.dot, PartitionSpec("data"), (1, 3, 100)


def rows(rng, n):
    """Of few values, so that many scores are equal, and exactly."""
    return jnp.asarray(rng.integers(-2, 3, (n, 3)), jnp.float32)


def labels(rng, n):
    """The first query and a few others are lone; the classes are of different sizes."""
    return jnp.asarray(np.where(np.arange(n) % 8 == 0, 1000 + np.arange(n), rng.integers(0, 4, n) ** 2), jnp.int32)


def agree(means, whole):
    assert set(means) == set(whole) - {"map", "mrr", "queries", "lone"}
    for name, mean in means.items():
        assert mean.count == whole["queries"] and mean.total.dtype == jnp.float32
        np.testing.assert_allclose(mean.total / mean.count, whole[name], rtol=1e-6, err_msg=name)


def measured(*args, **options):
    return retrieval_means(*args, **{"ks": KS, "largest_class": 20, "similarity": DOT, **options})


def ranked(*args, **options):
    return retrieval(*args, ks=KS, similarity=DOT, **options)


@pytest.mark.parametrize("references", [False, True], ids=["leave one out", "references"])
def test_equals_the_whole_ranking(references, rng):
    x, y, z, v = rows(rng, 40), labels(rng, 40), rows(rng, 32), labels(rng, 32)
    for share in (1, 0.7):
        where, there = jnp.asarray(rng.random(40) < share), jnp.asarray(rng.random(32) < share)
        options = {"where": where}
        if references:
            z = jnp.where(there[:, None], z, jnp.inf)
            options |= {"references": z, "reference_labels": v, "reference_where": there}
        x = jnp.where(where[:, None], x, jnp.nan)
        agree(measured(x, y, **options), ranked(x, y, **options))


def test_cosines_of_real_numbers(rng):
    x, y = jnp.asarray(rng.standard_normal((60, 5)), jnp.float32), labels(rng, 60)
    agree(retrieval_means(x, y, largest_class=30), retrieval(x, y))


def test_batches_add_up_to_leaving_each_query_out_of_all(rng):
    x, y = rows(rng, 40), labels(rng, 40)
    where = jnp.arange(40) < 34  # the last batch is filled up
    batch = jax.jit(lambda x, y, where, own, z, v, there: measured(
        x, y, where=where, own=own, references=z, reference_labels=v, reference_where=there
    ))  # fmt: skip
    parts = [[a[i : i + 8] for a in (x, y, where, jnp.arange(40))] for i in range(0, 40, 8)]
    each = [batch(*part, x, y, where) for part in parts]
    assert batch._cache_size() == 1
    agree(jax.tree.map(lambda *a: sum(a), *each), ranked(x, y, where=where))


@pytest.mark.slow
@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_eight_devices_equal_one(axis, rng):
    """Leaving each query out on one kind of mesh, with references on the other."""
    x, y, where, z, v = rows(rng, 24), labels(rng, 24), jnp.arange(24) % 5 > 0, rows(rng, 32), labels(rng, 32)
    options = {"where": where} if axis == AxisType.Auto else {"references": z, "reference_labels": v}
    mesh = mesh_of(axis)
    over = jax.jit(mj.over_mesh(measured, "data", mesh))
    given = dict(zip(options, put(mesh, *options.values()), strict=True))
    agree(over(*put(mesh, x, y), **given), ranked(x, y, **options))


@pytest.mark.slow
def test_batches_over_devices(rng):
    x, y = rows(rng, 32), labels(rng, 32)
    mesh = mesh_of(AxisType.Auto)
    local = lambda x, y, own, z, v: measured(x, y, own=own, references=z, reference_labels=v, axis_name="data")
    over = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(SPLIT,) * 5, out_specs=PartitionSpec()))
    parts = [over(x[i : i + 16], y[i : i + 16], jnp.arange(i, i + 16), x, y) for i in (0, 16)]
    agree(jax.tree.map(jnp.add, *parts), ranked(x, y))


def test_more_matches_than_the_largest_class_are_not_passed_over():
    x, y = jnp.asarray(np.random.default_rng(0).standard_normal((9, 3)), jnp.float32), jnp.array([0] * 5 + [1] * 4)
    enough, too_few = (retrieval_means(x, y, ks=(1, 5), largest_class=k) for k in (4, 3))
    agree(enough, retrieval(x, y))
    for name in enough:
        assert np.isnan(too_few[name].total) == (name in ("r_precision", "map@r"))
    assert set(jax.eval_shape(retrieval_means, x, y)) == set(enough) - {"r_precision", "map@r"}


def test_the_query_is_left_out_by_its_number_and_not_by_its_value():
    """Rows 0 and 1 are the same, and so each other's nearest neighbours."""
    x, y = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([4, 4, 5])
    found = lambda own: retrieval_means(x, y, ks=(1,), references=x, reference_labels=y, own=jnp.array(own))["recall@1"]
    assert found([0, 1, 2]) == (2, 2)
    assert found([0, 1, -1]) == found([1, 0, -1]) == (3, 3)
    assert found([-1, -1, 2]) == (2, 2)


def test_divides_by_all_matches_and_not_by_those_found():
    """Of two matches the first is found within R = 2: MAP@R is (1/1) / 2, and recall of 1 is 1 / 2."""
    x, y = jnp.array([[3.0, 0.0]]), jnp.array([1])
    z, v = jnp.array([[3.0], [2.0], [1.0]]) * jnp.array([[1.0, 0.0]]), jnp.array([1, 2, 1])
    got = retrieval_means(x, y, ks=(1,), largest_class=2, similarity=DOT, references=z, reference_labels=v)
    assert (got["map@r"].total, got["r_precision"].total, got["recall_ir@1"].total) == (0.5, 0.5, 0.5)


def few(x, y, where):
    means = retrieval_means(jnp.array(x), y, ks=(1,), largest_class=2, where=where)
    return {name: float(mean.total) for name, mean in means.items()}


def test_labels_that_are_equal_as_floats_are_not():
    y = 2**24 + jnp.array([0, 1, 1, 0])
    assert few([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]], y, jnp.ones(4, bool))["recall@1"] == 0


def test_broken_rows_show():
    x, y = [[1.0, 0.0], [jnp.nan, 0.0], [0.0, 1.0], [1.0, 1.0]], jnp.array([0, 0, 1, 1])
    assert np.all(np.isnan(list(few(x, y, jnp.ones(4, bool)).values())))
    assert np.all(np.isfinite(list(few(x, y, jnp.array([True, False, True, True])).values())))


X, Y = jnp.eye(3), jnp.array([0, 0, 1])
WRONG = {
    "ks": (lambda: retrieval_means(X, Y, ks=(0,)), ValueError, r"ks is \(0,\); wanted positive ints"),
    "half a k": (lambda: retrieval_means(X, Y, ks=(1.5,)), ValueError, r"ks is \(1.5,\)"),
    "large labels": (
        lambda: retrieval_means(X, np.array([0, 2**32, 1])), ValueError, "labels does not fit into int32; wanted",
    ),
    "large reference labels": (
        lambda: retrieval_means(X, Y, references=X, reference_labels=np.array([0, 2**32, 1])), ValueError,
        "reference_labels does not fit into int32",
    ),
    "text": (lambda: retrieval_means(X, np.array(["a", "a", "b"])), TypeError, "labels has dtype <U1; wanted numbers"),
    "no rows": (lambda: retrieval_means(X[:0], Y[:0]), ValueError, "embeddings, without them. has no rows"),
    "largest class": (lambda: retrieval_means(X, Y, largest_class=0), ValueError, "largest_class is 0"),
    "traced": (lambda: jax.jit(lambda k: retrieval_means(X, Y, largest_class=k))(2), ValueError, "which is static"),
    "labels": (lambda: retrieval_means(X, Y[:, None]), ValueError, r"labels has shape \(3, 1\); wanted one label"),
    "own": (lambda: retrieval_means(X, Y, own=Y), TypeError, "own says which references the queries are"),
    "own's shape": (
        lambda: retrieval_means(X, Y, references=X, reference_labels=Y, own=Y[:2]), ValueError,
        r"own is int32\[2\]; wanted an integer for each of 3 queries",
    ),
    "reference labels": (lambda: retrieval_means(X, Y, references=X), TypeError, "without reference_labels"),
}  # fmt: skip


test_wrong_arguments = refuses(WRONG)
