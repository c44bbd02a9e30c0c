"""`metrics.embedding_health` against float64 loops over pairs, on sets that are healthy, collapsed and degenerate."""

import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.engine import sizes
from metricjax.metrics import embedding_health

health = sys.modules["metricjax.metrics.health"]  # the attribute of that name is the function


def by_loops(x, labels, k, digits=6):
    x = np.asarray(x, np.float64)
    n, d = x.shape
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(length > 0, length, 1)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    square = lambda i, j: float(np.sum((x[i] - x[j]) ** 2))
    alike = [square(i, j) for i, j in pairs if labels[i] == labels[j]]
    deviations = [math.sqrt(sum((x[:, f] - sum(x[:, f]) / n) ** 2) / n) for f in range(d)]
    singular = np.linalg.svd(x, compute_uv=False)
    shares = [s / sum(singular) for s in singular if s > 1e-9]
    times = [0] * n
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: (-round(float(x[i] @ x[j]), digits), j))
        for j in others[:k]:
            times[j] += 1
    mean = sum(times) / n
    second, third = (sum((t - mean) ** p for t in times) / n for p in (2, 3))
    return {
        "uniformity": math.log(sum(math.exp(-2 * square(i, j)) for i, j in pairs) / len(pairs)),
        "mean_cosine": sum(float(x[i] @ x[j]) for i, j in pairs) / len(pairs),
        "spread": math.sqrt(sum(s**2 for s in deviations)),
        "std": sum(deviations) / d / (1 / math.sqrt(d)),
        "effective_rank": math.exp(-sum(p * math.log(p) for p in shares)),
        "effective_rank_share": math.exp(-sum(p * math.log(p) for p in shares)) / d,
        "hubness": third / second**1.5 if second else 0.0,
        "largest_hub": max(times) / n,
        "anti_hubs": times.count(0) / n,
        "alignment": sum(alike) / len(alike) if alike else math.nan,
    }


def assert_like(found, wanted, rtol=2e-5, atol=2e-6):
    assert set(found) == set(wanted) and all(type(value) is float for value in found.values())
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, atol=atol, err_msg=name)


def sets(kind, rng, n=48, d=6):
    x = rng.standard_normal((n, d)) * rng.uniform(0.1, 20, (n, 1))
    common = rng.standard_normal((1, d))
    return {
        "round": lambda: x,
        "one direction": lambda: common + 1e-3 * rng.standard_normal((n, d)),
        "a plane": lambda: x[:, :2] @ x[:2],
        "zeros and duplicates": lambda: np.where(np.arange(n)[:, None] % 5 < 2, np.arange(n)[:, None] % 5 * common, x),
    }[kind]()


@pytest.fixture(autouse=True)
def tiles_of_ten_rows(monkeypatch):
    monkeypatch.setattr(sizes, "rows_in_summed_tile", lambda n: 10)


@pytest.mark.parametrize("kind", ["round", "one direction", "a plane", "zeros and duplicates"])
def test_equals_loops(kind, rng):
    x, labels = sets(kind, rng).astype(np.float32), rng.integers(-3, 12, 48)
    hubs = ("hubness", "largest_hub", "anti_hubs") if kind == "one direction" else ()  # float32 cannot tell neighbours
    found, wanted = embedding_health(x, labels, k=4), by_loops(x, labels, 4)
    assert_like({**found, **{name: wanted[name] for name in hubs}}, wanted, rtol=2e-3 if hubs else 2e-5)
    without = embedding_health(x, k=4)
    assert without == {name: value for name, value in found.items() if name != "alignment"}


def test_bfloat16_and_all_others_as_neighbours(rng):
    x, labels = jnp.asarray(sets("round", rng, n=11), jnp.bfloat16), rng.integers(0, 3, 11)
    found = embedding_health(x, labels, k=10)
    assert_like(found, by_loops(x, labels, 10))
    assert (found["hubness"], found["anti_hubs"], found["largest_hub"]) == (0, 0, 10 / 11)  # all have all others


def test_float64_stays(x64, rng):
    x, labels = sets("one direction", rng, n=20), rng.integers(0, 3, 20)
    assert_like(embedding_health(x, labels, k=3), by_loops(x, labels, 3, digits=14), rtol=1e-9, atol=1e-12)


def test_one_point_and_nothing_but_zeros():
    labels = np.arange(48) % 3
    found = embedding_health(np.full((48, 6), 0.3, np.float32), labels, k=4)
    point = dict.fromkeys(("uniformity", "spread", "std", "alignment"), 0.0) | {"mean_cosine": 1.0}
    point |= {"effective_rank": 1.0, "effective_rank_share": 1 / 6, "largest_hub": 47 / 48, "anti_hubs": 43 / 48}
    assert_like({name: found[name] for name in point}, point)
    assert found["effective_rank"] == 1
    assert found["hubness"] > 1  # ties go to the first rows
    found = embedding_health(np.zeros((48, 6), np.float32), labels, k=4)
    zeros = point | dict.fromkeys(("mean_cosine", "effective_rank", "effective_rank_share"), 0.0)
    assert_like({name: found[name] for name in zeros}, zeros)


def test_even_embeddings():
    x = np.tile(np.concatenate([np.eye(6), -np.eye(6)]), (4, 1)).astype(np.float32)
    found = embedding_health(x, np.arange(48), k=4)
    even = {"spread": 1.0, "std": 1.0, "effective_rank": 6.0, "effective_rank_share": 1.0, "mean_cosine": -1 / 47}
    assert_like({name: found[name] for name in even}, even)
    assert math.isnan(found["alignment"])  # no class has a pair


def test_errors(unchecked):
    x = np.ones((4, 2), np.float32)
    for arguments, error, message in (
        (((x,), {}), ValueError, "k is 10 and embeddings has 4 rows"),
        (((x,), {"k": 0}), ValueError, "k is 0"),
        (((x,), {"k": 1.0}), TypeError, "k is 1.0"),
        (((x[:1],), {"k": 1}), ValueError, "embeddings has 1 rows"),
        (((x[:, :0],), {"k": 1}), ValueError, r"embeddings has shape \(4, 0\); wanted at least one feature"),
        (((x[0],), {}), ValueError, r"embeddings has shape \(2,\)"),
        (((x * np.nan,), {"k": 1}), ValueError, "embeddings holds NaN"),
        (((x, np.ones(3, int)), {"k": 1}), ValueError, r"labels has shape \(3,\)"),
        (((x, np.ones(4)), {"k": 1}), TypeError, "labels has dtype float64"),
    ):
        with pytest.raises(error, match=message):
            embedding_health(*arguments[0], **arguments[1])
    labels = np.array([0, 0, 2**32, 2**32])
    assert embedding_health(x, labels, k=1)["alignment"] == 0  # classes are numbered
    for embeddings, wrong, error, message in (
        (x, labels, ValueError, "labels does not fit into int32; wanted labels that are numbered from 0"),
        (x, np.array(["a"] * 4), TypeError, "labels has dtype <U1; wanted numbers"),
        (x, np.ones((4, 2), int), ValueError, r"labels has shape \(4, 2\)"),
        (x.astype(int), np.ones(4, int), TypeError, "embeddings has dtype int64"),
        (x[:0], np.ones(0, int), ValueError, r"embeddings has shape \(0, 2\); wanted at least one row"),
    ):
        with pytest.raises(error, match=message):
            health.health(embeddings, wrong)
