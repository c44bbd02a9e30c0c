"""Whole sets of embeddings: streamed counts against lists of all pairs, and bootstraps against repeated pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import sizes
from metricjax.metrics import bootstrap, pairs
from tests.helpers.refusals import refuses
from tests.helpers.scores import scores_and_same

M = mj.metrics
dot = mj.similarities.dot


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Sixteen rows each, so that sets of fifty have several."""
    monkeypatch.setattr(sizes, "rows_in_sorted_tile", lambda n: 16)


def a_set(rng, n, people, ties=False):
    """Rows whose inner products are exact in float32, and labels that float32 cannot tell apart."""
    person = rng.integers(0, people, n)
    around = rng.standard_normal((people, 4))[person]
    z = np.round((around + rng.standard_normal((n, 4))) * (1 if ties else 64)) / (1 if ties else 64)
    return z.astype(np.float32), 2**53 + person


def listed(z, y, other=None, other_labels=None):
    """(scores, who the two are) of all pairs, one by one."""
    found = [
        (float(np.dot(a.astype(float), b.astype(float))), (y[i], w))
        for i, a in enumerate(z)
        for j, (b, w) in enumerate(
            zip(z if other is None else other, y if other is None else other_labels, strict=True)
        )
        if other is not None or i < j
    ]
    scores, who = zip(*found, strict=True)
    return np.array(scores), np.array(who)


def rates_at(threshold, scores, same):
    return sum(scores[~same] >= threshold) / sum(~same), sum(scores[same] >= threshold) / sum(same)


def assert_same_curve(got, scores, same):
    assert (got.genuine, got.impostors) == (same.sum(), (~same).sum())
    assert (got.thresholds[0], got.thresholds[-1]) == (np.inf, -np.inf)
    for t, far, tar in zip(got.thresholds[1:-1], got.far[1:-1], got.tar[1:-1], strict=True):
        assert (far, tar) == rates_at(t, scores, same)


@pytest.mark.parametrize("ties", [False, True])
def test_every_point_of_the_streamed_curve_counts_all_pairs(ties, rng):
    z, y = a_set(rng, 53, 8, ties)
    scores, who = listed(z, y)
    same = who[:, 0] == who[:, 1]
    got = M.pair_scores(z, y, dot)
    assert_same_curve(got.roc, scores, same)
    whole = M.roc(scores, same)
    np.testing.assert_allclose(got.roc.auc(), whole.auc(), rtol=1e-12)
    for far in (1 / whole.impostors, 0.003, 0.05, 1.0):
        assert got.roc.tar_at_far(far) == whole.tar_at_far(far)
    inside = np.clip(scores, -1, 1)
    for kind, counts in ((same, got.genuine), (~same, got.impostors)):
        np.testing.assert_array_equal(counts, np.histogram(inside[kind], got.edges.astype(np.float32))[0])


def test_more_genuine_scores_than_a_tile_holds(rng):
    z, y = a_set(rng, 45, 2)
    scores, who = listed(z, y)
    got = M.pair_scores(z, y, dot).roc
    assert len(got.thresholds) > 2 * 16 * 16
    assert_same_curve(got, scores, who[:, 0] == who[:, 1])


def test_labels_that_floats_cannot_tell_apart():
    y = 2**53 + np.array([0, 1, 0, 1])
    z = np.array([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]])
    assert M.pair_scores(z, y).roc.auc() == 1
    assert M.pair_scores(z[:2], y[:2], references=z[2:], reference_labels=y[2:]).roc.auc() == 1
    assert M.roc_bands(z, y, [1.0]).lower == 1
    assert M.calibrated_pair_threshold(z, y, 0.25).far <= 0.25


@pytest.mark.parametrize("bins", [8, np.array([-1.0, 0.25, 0.5, 30.0])])
def test_bins_are_exact_at_their_edges(bins, rng):
    z, y = a_set(rng, 40, 6, ties=True)
    z = z / (16 if np.ndim(bins) == 0 else 2)
    scores, who = listed(z, y)
    same = who[:, 0] == who[:, 1]
    got = M.pair_scores(z, y, dot, bins=bins).roc
    edges = np.arange(-4, 5) / 4 if np.ndim(bins) == 0 else bins
    assert set(edges) < set(got.thresholds)
    assert any(s in edges for s in scores)
    assert len(got.thresholds) == 2 * len(edges) + 2
    assert_same_curve(got, scores, same)


def test_fine_bins_agree_with_the_exact_curve(rng):
    z, y = a_set(rng, 40, 6)
    exact, fine = (M.pair_scores(z, y, bins=bins).roc for bins in (None, 2**16))
    np.testing.assert_allclose(fine.auc(), exact.auc(), atol=1e-4)
    for far in (0.01, 0.1, 0.5):
        assert fine.far[np.flatnonzero(fine.thresholds == fine.threshold_at_far(far))[0]] <= far
        assert fine.tar_at_far(far) == pytest.approx(exact.tar_at_far(far), abs=0.02)


def test_references_and_rows_that_do_not_exist(rng):
    z, y = a_set(rng, 60, 7)
    where, reference_where = rng.random(37) < 0.8, rng.random(23) < 0.8
    scores, who = listed(z[:37][where], y[:37][where], z[37:][reference_where], y[37:][reference_where])
    options = {"references": z[37:], "reference_labels": y[37:], "reference_where": reference_where}
    got = M.pair_scores(jnp.asarray(z[:37]), y[:37], dot, where=where, **options).roc
    assert_same_curve(got, scores, who[:, 0] == who[:, 1])
    scores, who = listed(z[:37][where], y[:37][where])
    assert_same_curve(M.pair_scores(z[:37], y[:37], dot, where=where).roc, scores, who[:, 0] == who[:, 1])


def test_tiles_below_the_diagonal_are_not_computed(rng, monkeypatch):
    z, _ = a_set(rng, 64, 10)
    seen = []
    original = pairs._ahead
    monkeypatch.setattr(pairs, "_ahead", lambda tiles: original(seen.append(1) or tile for tile in tiles))
    M.pair_scores(z, np.arange(64) // 4, dot)
    assert len(seen) == 4 + 10  # once where people meet themselves, once for all


def test_embeddings_in_bfloat16_are_compared_in_float32(rng):
    z, y = a_set(rng, 30, 5, ties=True)
    assert M.pair_scores(jnp.asarray(z, jnp.bfloat16), y).roc.auc() == M.pair_scores(z, y).roc.auc()


def test_groups_have_the_rates_of_pairs_within_them(rng):
    z, y = a_set(rng, 50, 9)
    groups = np.where(np.arange(50) < 48, rng.integers(0, 3, 50), 3)
    y[48:] = 2**53 + np.array([20, 21])
    found = M.group_pair_rates(z, y, groups, 1.5, similarity=dot)
    assert list(found) == [0, 1, 2, 3]
    for group in range(3):
        scores, who = listed(z[groups == group], y[groups == group])
        same = who[:, 0] == who[:, 1]
        assert found[group] == M.error_rates(scores, same, 1.5)
    assert np.isnan(found[3].frr)
    assert (found[3].impostors, found[3].genuine) == (1, 0)
    assert M.group_pair_rates(z, y, groups.astype(str), 1.5, similarity=dot)["1"] == found[1]


@pytest.mark.parametrize(("ties", "far"), [(False, 0.02), (True, 0.1), (False, 1.0)])
def test_calibration_of_a_set_is_that_of_its_list_of_pairs(ties, far, rng, monkeypatch):
    z, y = a_set(rng, 50, 12, ties)
    scores, who = listed(z, y)
    tall = []
    original = bootstrap._highest
    monkeypatch.setattr(bootstrap, "_highest", lambda pairs, count: tall.append(count) or original(pairs, count))
    monkeypatch.setattr(sizes, "impostors_held", min)
    options = {"confidence": 0.8, "resamples": 60, "seed": 5}
    expected = M.calibrated_threshold(scores, who, far, **options)
    assert M.calibrated_pair_threshold(z, y, far, similarity=dot, **options) == expected
    assert tall[0] <= 4 * far * len(scores)


def test_a_calibration_holds_more_pairs_if_a_resample_needs_them(rng, monkeypatch):
    # Two look alike in all photographs; a resample without either has its highest scores elsewhere.
    y = np.repeat(np.arange(10), 4)
    z = (rng.standard_normal((40, 3)) / 8 + 4 * np.eye(3)[rng.integers(0, 3, 10)][y]).astype(np.float32)
    z[y < 2] = np.round(z[y < 2] + 50)
    calls = []
    original = bootstrap._highest
    monkeypatch.setattr(bootstrap, "_highest", lambda pairs, count: calls.append(count) or original(pairs, count))
    monkeypatch.setattr(sizes, "impostors_held", min)
    z = np.round(z * 32) / 32
    scores, who = listed(z, y)
    expected = M.calibrated_threshold(scores, who, 0.004, resamples=40)
    assert M.calibrated_pair_threshold(z, y, 0.004, resamples=40, similarity=dot) == expected
    assert len(calls) > 1


def bands_by_repetition(scores, who, fars, confidence, resamples, seed):
    """Each resample's pairs repeated one by one, its ROC joined by straight lines."""
    rng = np.random.default_rng(seed)
    names = sorted({a for pair in who.tolist() for a in pair})
    tars = []
    for _ in range(resamples):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        times = [drawn.count(a) * (drawn.count(b) if a != b else 1) for a, b in who.tolist()]
        repeated, same = np.repeat(scores, times), np.repeat(who[:, 0] == who[:, 1], times)
        levels = sorted(set(scores), reverse=True)
        points = [(0.0, 0.0)] + [rates_at(t, repeated, same) for t in levels]
        tars.append([np.interp(f, *zip(*points, strict=True)) for f in fars])
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2]) * resamples
    return [np.sort(tars, axis=0)[round(np.ceil(t - 1e-9)) - 1] for t in tails]


@pytest.mark.parametrize("ties", [False, True])
def test_bands_resample_people(ties, rng, monkeypatch):
    monkeypatch.setattr(bootstrap, "_POINTS", 10**6)
    z, y = a_set(rng, 28, 8, ties)
    scores, who = listed(z, y)
    assert not ties or any(scores == 0)
    fars = [0.01, 0.05, 0.3, 1.0]
    got = M.roc_bands(z, y, fars, confidence=0.8, resamples=20, seed=2, similarity=dot)
    lower, upper = bands_by_repetition(scores, who, fars, 0.8, 20, 2)
    np.testing.assert_allclose(got.lower, lower, atol=1e-6)
    np.testing.assert_allclose(got.upper, upper, atol=1e-6)
    np.testing.assert_array_equal(got.fars, fars)


def test_bands_by_few_thresholds_are_close(rng, monkeypatch):
    z, y = a_set(rng, 120, 20)
    fars = [0.01, 0.05, 0.3, 1.0]
    thin = M.roc_bands(z, y, fars, resamples=30, similarity=dot)
    monkeypatch.setattr(bootstrap, "_POINTS", 10**6)
    exact = M.roc_bands(z, y, fars, resamples=30, similarity=dot)
    np.testing.assert_allclose(thin.lower, exact.lower, atol=0.01)
    np.testing.assert_allclose(thin.upper, exact.upper, atol=0.01)
    assert np.any(thin.lower != exact.lower)


def test_bands_hold_the_curve_and_narrow_with_people(rng):
    fars, widths = [0.02, 0.2], []
    for people in (10, 40):
        z, y = a_set(rng, 4 * people, people)
        y = np.arange(4 * people) // 4
        centres = rng.standard_normal((people, 4))[y]
        z = (centres + 0.6 * rng.standard_normal(centres.shape)).astype(np.float32)
        bands = M.roc_bands(z, y, fars, resamples=60)
        tars = [M.pair_scores(z, y).roc.tar_at_far(far) for far in fars]
        assert np.all((bands.lower <= tars) & (tars <= bands.upper))
        widths.append(bands.upper - bands.lower)
    assert np.all(widths[1] < widths[0])


@pytest.mark.parametrize("by_size", [True, False])
def test_k_fold_tar_takes_each_threshold_from_the_other_folds(by_size, rng):
    scores, same = scores_and_same("plain", rng)
    fold = np.repeat(np.arange(4), 30)
    found = []
    for k in range(4):
        held = fold == k
        allowed = [t for t in [np.inf, *scores[~held]] if np.mean(scores[~held & ~same] >= t) <= 0.05]
        found.append([np.mean(scores[held & kind] >= min(allowed)) for kind in (same, ~same)])
    tars, fars = zip(*found, strict=True)
    got = M.k_fold_tar(scores, same, 0.05, 4 if by_size else fold)
    np.testing.assert_allclose(got, [np.mean(tars), np.std(tars, ddof=1), np.mean(fars)])
    assert min(fars) < 0.05 < max(fars)  # what is chosen elsewhere is not what holds here


def test_the_threshold_of_a_fold_never_has_a_higher_rate_elsewhere():
    """Interpolating to a FAR between two steps accepts an impostor too many."""
    scores = np.array([0.9, 0.5, 0.6, 0.1] * 2 + [0.9, 0.5, 0.55, 0.1] * 2)
    same = np.array([True, True, False, False] * 4)
    # In each half two of four impostors score above the lower genuine pairs: at FAR 0.4 these stay out.
    assert M.k_fold_tar(scores, same, 0.4, folds=2)[0] == 0.5
    assert M.k_fold_tar(scores, same, 0.5, folds=2)[0] == 1.0


Z, Y = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
WRONG = {
    "bins": (lambda: M.pair_scores(Z, Y, bins=0), ValueError, "bins is 0; wanted None"),
    "edges": (lambda: M.pair_scores(Z, Y, bins=[0.5, 0.1]), ValueError, "rising edges"),
    "no labels": (lambda: M.pair_scores(Z, Y, references=Z), TypeError, "references came without reference_labels"),
    "nobody": (
        lambda: M.pair_scores(Z, Y, references=Z, reference_labels=Y + 2),
        ValueError,
        "nobody of the 4 references; there is nothing to verify",
    ),
    "none left": (lambda: M.pair_scores(Z, Y, where=Y > 5), ValueError, "no two rows of the same person among 0"),
    "where": (lambda: M.pair_scores(Z, Y, where=Y), TypeError, "where has dtype int64; wanted booleans"),
    "float labels": (lambda: M.pair_scores(Z, Y / 1), TypeError, "labels has dtype float64; wanted integers"),
    "two labels": (lambda: M.pair_scores(Z, np.stack([Y, Y], 1)), ValueError, r"labels has shape \(4, 2\)"),
    "infinite": (lambda: M.pair_scores(np.full((4, 2), np.inf), Y), ValueError, "embeddings holds NaN or infinity"),
    "overflow": (lambda: M.pair_scores(Z * 1e30, Y, dot), ValueError, "similarity gives NaN or infinity"),
    "groups": (lambda: M.group_pair_rates(Z, Y, Y[:2], 0.5), ValueError, r"groups has shape \(2,\)"),
    "threshold": (lambda: M.group_pair_rates(Z, Y, Y, np.nan), ValueError, "threshold is nan; wanted a number"),
    "set far": (lambda: M.calibrated_pair_threshold(Z, Y, 0.1), ValueError, "far is 0.1; wanted .* 4 impostor"),
    "one kind": (lambda: M.calibrated_pair_threshold(Z, Y * 0, 0.5), ValueError, "labels has pairs of one kind only"),
    "confidence": (lambda: M.calibrated_pair_threshold(Z, Y, 0.5, confidence=2.0), ValueError, "confidence is 2.0"),
    "fars": (lambda: M.roc_bands(Z, Y, 0.5), ValueError, r"fars has shape \(\)"),
    "low far": (lambda: M.roc_bands(Z, Y, [0.5, 0.1]), ValueError, "far is 0.1; wanted .* 4 impostor"),
    "resamples": (lambda: M.roc_bands(Z, Y, [0.5], resamples=0), ValueError, "resamples is 0"),
    "fold of one kind": (
        lambda: M.k_fold_tar([1.0, 2.0, 3.0, 4.0], [True, True, False, False], 0.5, 2),
        ValueError,
        "pairs of both kinds in each",
    ),
    "fold far": (
        lambda: M.k_fold_tar([1.0, 2.0, 3.0, 4.0], [True, False] * 2, 0.5, 2),
        ValueError,
        "far is 0.5; wanted 1 to 1, with 1 impostor",
    ),
}


test_wrong_arguments = refuses(WRONG)
