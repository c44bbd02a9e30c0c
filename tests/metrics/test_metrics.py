import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.metrics import pairs, sets
from tests.helpers.refusals import refuses
from tests.helpers.scores import KINDS, rates, scores_and_same


@pytest.mark.parametrize("kind", KINDS)
def test_roc_auc_counts_pairs(kind, rng):
    scores, same = scores_and_same(kind, rng)
    won = [float(g > i) + 0.5 * float(g == i) for g in scores[same] for i in scores[~same]]
    np.testing.assert_allclose(mj.metrics.roc_auc(scores, same), np.mean(won), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_error_rate_is_where_the_curve_crosses(kind, rng):
    scores, same = scores_and_same(kind, rng)
    points = rates(scores, same)
    for (f0, t0), (f1, t1) in itertools.pairwise(points):
        if f1 >= 1 - t1:
            part = (1 - t0 - f0) / ((f1 - f0) + (t1 - t0))
            expected = f0 + part * (f1 - f0)
            break
    np.testing.assert_allclose(mj.metrics.equal_error_rate(scores, same), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("far", [0.02, 0.1, 0.5, 1.0])
def test_tar_at_far_never_exceeds_the_far(kind, far, rng):
    scores, same = scores_and_same(kind, rng)
    expected = max(t for f, t in rates(scores, same) if f <= far)
    np.testing.assert_allclose(mj.metrics.tar_at_far(scores, same, far), expected)


def test_a_far_that_cannot_be_measured_is_refused(rng):
    with pytest.raises(ValueError, match=r"far is 0.001; 3 impostor pairs can tell rates from 0.333"):
        mj.metrics.tar_at_far([0.1, 0.2, 0.3, 0.9], [False, False, False, True], 0.001)


@pytest.mark.parametrize(
    ("similarity", "ties"),
    # Inner products of halves are exact; a cosine rounds ties apart, differently in other shapes.
    [(mj.similarities.cosine, False), (mj.similarities.dot, False), (mj.similarities.dot, True)],
)
def test_streamed_pairs_give_the_curve_of_all_pairs(similarity, ties, rng, monkeypatch):
    z = rng.standard_normal((57, 3)).astype(np.float32)
    z = np.round(z) + 0.5 if ties else z
    y = rng.integers(0, 9, 57)
    panels = sets.panels
    monkeypatch.setattr(pairs, "_SIDE", 16)
    streamed = mj.metrics.pair_scores(jnp.asarray(z), y, similarity)
    first, second = np.triu_indices(57, 1)
    scores = np.concatenate([np.asarray(s) for _, s in panels(jnp.asarray(z), similarity, 10)])[first, second]
    whole = mj.metrics.roc(scores, y[first] == y[second])
    assert (streamed.roc.genuine, streamed.roc.impostors) == (whole.genuine, whole.impostors)
    np.testing.assert_allclose(streamed.roc.auc(), whole.auc(), rtol=1e-12)
    np.testing.assert_allclose(streamed.roc.equal_error_rate(), whole.equal_error_rate(), rtol=1e-9)
    for far in (0.001, 0.01, 0.1, 0.5, 1.0):
        np.testing.assert_allclose(streamed.roc.tar_at_far(far), whole.tar_at_far(far), rtol=1e-12)
    assert streamed.genuine.sum() == whole.genuine
    assert streamed.impostors.sum() == whole.impostors


@pytest.mark.parametrize("by_size", [True, False])
def test_k_fold_accuracy_takes_each_threshold_from_the_other_folds(by_size, rng):
    scores, same = scores_and_same("plain", rng)
    fold = np.repeat(np.arange(4), 30)
    accuracies = []
    for k in range(4):
        rest = fold != k
        candidates = sorted(set(scores[rest]))
        edges = [np.inf, *((a + b) / 2 for a, b in itertools.pairwise(candidates)), candidates[0]]
        best = max(sorted(edges, reverse=True), key=lambda t: np.sum((scores[rest] >= t) == same[rest]))
        accuracies.append(np.mean((scores[~rest] >= best) == same[~rest]))
    mean, deviation = mj.metrics.k_fold_accuracy(scores, same, 4 if by_size else fold)
    np.testing.assert_allclose(mean, np.mean(accuracies))
    np.testing.assert_allclose(deviation, np.std(accuracies, ddof=1))


def retrieval_by_loops(z, y, ks):
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    s = (unit @ unit.T).astype(np.float32)
    found = {f"recall@{k}": [] for k in ks} | {"r_precision": [], "map@r": []}
    lone = 0
    for i in range(len(z)):
        others = sorted((j for j in range(len(z)) if j != i), key=lambda j: (-s[i, j], j))
        hits = [y[j] == y[i] for j in others]
        r = sum(hits)
        if not r:
            lone += 1
            continue
        for k in ks:
            found[f"recall@{k}"].append(float(any(hits[:k])))
        found["r_precision"].append(sum(hits[:r]) / r)
        found["map@r"].append(sum(sum(hits[: j + 1]) / (j + 1) for j in range(r) if hits[j]) / r)
    return {name: np.mean(values) for name, values in found.items()}, lone


@pytest.mark.parametrize("labels", ["several", "one class", "lone ones"])
def test_retrieval_equals_loops(labels, rng):
    z = rng.standard_normal((41, 4))
    y = {"several": rng.integers(0, 6, 41), "one class": np.zeros(41, int), "lone ones": np.arange(41) // 2}[labels]
    got = mj.metrics.retrieval(jnp.asarray(z, jnp.float32), y, ks=(1, 3, 100))
    expected, lone = retrieval_by_loops(z, y, (1, 3, 100))
    assert got["lone"] == lone
    assert got["queries"] == 41 - lone
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5)


def test_equal_neighbours_come_in_the_order_of_their_index():
    z = jnp.ones((4, 2))
    assert (
        mj.metrics.retrieval(z, np.array([0, 1, 1, 0]), ks=(1,))["recall@1"] == 0.25
    )  # only 0's neighbour 1 … is 3's 0


def test_labels_are_not_cast_to_float():
    y = np.array([2**24, 2**24 + 1, 2**24, 2**24 + 1])
    z = jnp.array([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]])
    assert mj.metrics.retrieval(z, y)["recall@1"] == 1


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_scores_may_be_integers_without_a_negative(dtype, rng):
    """−s wraps around: 0 is its own negative as an unsigned integer, and −128 as a signed one."""
    same = rng.random(60) < 0.5
    scores = rng.integers(0, 4, 60) + same
    narrow = (64 * (scores - 2)).clip(-128, 127).astype(dtype) if dtype == "int8" else scores.astype(dtype)
    wide = narrow.astype(float)
    assert mj.metrics.roc_auc(narrow, same) == mj.metrics.roc_auc(wide, same) > 0.5
    people = np.stack([np.arange(60), np.arange(60) + ~same], axis=1)
    found = [mj.metrics.calibrated_threshold(s, people, 0.3, resamples=5) for s in (narrow, wide)]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_scikit_learn(kind, rng):
    """Of a ranking by distinct scores; where they are equal, scikit-learn averages and these go by index."""
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, same = scores_and_same(kind, rng)
    far, tar, thresholds = sklearn.roc_curve(same, scores, drop_intermediate=False)
    curve = mj.metrics.roc(scores, same)
    np.testing.assert_allclose([curve.far, curve.tar, curve.thresholds], [far, tar, thresholds], rtol=1e-12)
    np.testing.assert_allclose(mj.metrics.roc_auc(scores, same), sklearn.roc_auc_score(same, scores), rtol=1e-12)
    distinct = rng.permutation(len(same)).astype(np.float32) + 1
    found = mj.metrics.retrieval(
        np.ones((1, 1), np.float32), np.ones(1, int), ks=(5, 200), similarity=mj.similarities.dot,
        references=distinct[:, None], reference_labels=same.astype(int),
    )  # fmt: skip
    np.testing.assert_allclose(found["map"], sklearn.average_precision_score(same, distinct), rtol=1e-12)
    for k in (5, 200):
        np.testing.assert_allclose(found[f"ndcg@{k}"], sklearn.ndcg_score(same[None], distinct[None], k=k), rtol=1e-12)


Z = np.eye(3, dtype=np.float32)
WRONG = {
    "nan embeddings": (lambda: mj.metrics.retrieval(Z * np.nan, np.arange(3)), ValueError, "embeddings holds NaN"),
    "nothing to find": (lambda: mj.metrics.retrieval(Z, np.arange(3)), ValueError, "no two rows of the same class"),
    "k": (lambda: mj.metrics.retrieval(Z, np.zeros(3, int), ks=(0,)), ValueError, r"ks is \(0,\)"),
    "no genuine": (lambda: mj.metrics.pair_scores(Z, np.arange(3)), ValueError, "no two rows of the same person"),
    "no impostors": (lambda: mj.metrics.pair_scores(Z, np.zeros(3, int)), ValueError, "one person only"),
    "nan pairs": (lambda: mj.metrics.pair_scores(Z * np.nan, np.zeros(3, int)), ValueError, "embeddings holds NaN"),
    "float labels": (lambda: mj.metrics.retrieval(Z, np.zeros(3)), TypeError, "labels has dtype float64"),
    "text": (lambda: mj.metrics.roc_auc(["1", "2"], [True, False]), TypeError, "scores has dtype <U1; wanted real"),
    "complex": (lambda: mj.metrics.roc_auc([1j, 2j], [True, False]), TypeError, "scores has dtype complex128"),
    "no pairs": (lambda: mj.metrics.roc_auc([], np.zeros(0, bool)), ValueError, "same is empty; wanted pairs of both"),
    "lengths": (lambda: mj.metrics.roc_auc([1.0], [True, False]), ValueError, r"scores has shape \(1,\)"),
    "same": (lambda: mj.metrics.roc_auc([1.0, 2.0], [1, 0]), TypeError, "same has dtype int64; wanted booleans"),
    "infinite": (lambda: mj.metrics.roc_auc([np.inf, 2.0], [True, False]), ValueError, "scores holds NaN or infinity"),
    "one kind": (lambda: mj.metrics.roc_auc([1.0, 2.0], [True, True]), ValueError, "same is all True"),
    "folds": (lambda: mj.metrics.k_fold_accuracy([1.0, 2.0], [True, False], 3), ValueError, "folds is 3"),
    "one fold": (lambda: mj.metrics.k_fold_accuracy([1.0, 2.0], [True, False], [1, 1]), ValueError, "folds has shape"),
}


test_wrong_arguments = refuses(WRONG)
