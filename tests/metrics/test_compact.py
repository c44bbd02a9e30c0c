"""`metrics.compact_retrieval` against loops over ranked rows."""

import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.metrics import compact_retrieval

pytestmark = pytest.mark.slow
K, MULTIPLIER = 2, 3


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def of_ranking(order, labels, label, relevant):
    """Recall@K, R-precision and MAP@R of one query."""
    hits = [labels[j] == label for j in order]
    precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(relevant) if hits[i]]
    return float(any(hits[:K])), sum(hits[:relevant]) / relevant, sum(precisions) / relevant


def by_loop(x, labels, y, y_labels, alone, features, precision):
    """The row of the table, from decoded rows in float64."""
    rows = y[:, :features]
    stored = (
        rows
        if precision == "float32"
        else np.asarray(mj.search.compact(jnp.asarray(rows), "int8" if precision == "int8" else "binary").decoded)
    )
    queries = np.where(x[:, :features] > 0, 1, -1) if precision == "hamming" else x[:, :features]
    scores = unit(queries.astype(np.float64)) @ unit(stored.astype(np.float64)).T
    signs = -np.sum((x[:, None, :features] > 0) != (rows[None] > 0), axis=2)
    whole = unit(x.astype(np.float64)) @ unit(y.astype(np.float64)).T
    each, rescored = [], []
    for i, label in enumerate(labels):
        others = [j for j in range(len(y)) if not (alone and i == j)]
        relevant = sum(y_labels[j] == label for j in others)
        if not relevant:
            continue
        order = sorted(others, key=lambda j: (-round(scores[i, j], 6), j))
        each.append(of_ranking(order, y_labels, label, relevant))
        coarse = (
            sorted(range(len(y)), key=lambda j: (-signs[i, j], j))
            if precision in ("binary", "hamming")
            else sorted(range(len(y)), key=lambda j: (-round(scores[i, j], 6), j))
        )
        candidates = [j for j in coarse[: (K + alone) * MULTIPLIER] if j in others]
        best = sorted(candidates, key=lambda j: -whole[i, j])[:K]
        rescored.append(float(any(y_labels[j] == label for j in best)))
    return (*np.mean(each, axis=0), np.mean(rescored))


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "references"])
def test_equals_a_loop(alone, rng):
    labels, y_labels = np.arange(26) // 5, rng.integers(0, 7, 31)
    centers = rng.standard_normal((7, 10))
    x, y = (np.asarray(centers[of] + rng.standard_normal((len(of), 10)), np.float32) for of in (labels, y_labels))
    given = {} if alone else {"references": y, "reference_labels": y_labels}
    y, y_labels = (x, labels) if alone else (y, y_labels)
    precisions = ("float32", "int8", "binary", "hamming")
    table = compact_retrieval(
        x, labels, prefixes=(4, 10), precisions=precisions, ks=(K,), rescore_multiplier=MULTIPLIER, **given
    )
    assert [(row["features"], row["precision"]) for row in table] == [(p, name) for p in (4, 10) for name in precisions]
    assert [row["bytes"] for row in table] == [16, 4, 1, 1, 40, 10, 2, 2]
    names = (f"recall@{K}", "r_precision", "map@r", f"rescored recall@{K}")
    for row in table:
        wanted = by_loop(x, labels, y, y_labels, alone, row["features"], row["precision"])
        np.testing.assert_allclose([row[name] for name in names], wanted, rtol=1e-6, err_msg=str(row))
    exact = mj.metrics.retrieval(x, labels, ks=(K,), **given)
    assert all(table[4][name] == exact[name] for name in names[:3]) and table[4][names[3]] == exact[names[0]]


def test_labels_of_any_kind_and_the_table(rng):
    x, names = rng.standard_normal((8, 4)), np.array(["a", "b"] * 4)
    table = compact_retrieval(x, names, ranges=mj.search.ranges(jnp.asarray(x, jnp.float32)), ks=(1, 20))
    lines = str(table).splitlines()
    assert lines[0].split()[:4] == ["features", "precision", "bytes", "recall@1"] and len(lines) == 4
    assert len({len(line) for line in lines}) == 1 and table[0]["rescored recall@20"] == 1


def test_errors(rng, unchecked):
    x, labels = rng.standard_normal((8, 4)), np.arange(8) // 2
    with pytest.raises(ValueError, match=r"prefixes are \(5,\); wanted numbers from 1 to the 4 features"):
        compact_retrieval(x, labels, prefixes=(5,))
    with pytest.raises(ValueError, match=r"precisions are \('int4',\); wanted some of float32, int8, binary, hamming"):
        compact_retrieval(x, labels, precisions=("int4",))
    with pytest.raises(TypeError, match="references and reference_labels; wanted both or neither"):
        compact_retrieval(x, labels, references=x)
