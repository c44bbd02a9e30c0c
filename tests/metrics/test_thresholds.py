import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.metrics import sets
from tests.helpers.refusals import refuses
from tests.helpers.scores import KINDS, rates, scores_and_same


def rates_at(threshold, scores, same):
    accepted = [s >= threshold for s in scores]
    impostors = [a for a, g in zip(accepted, same, strict=True) if not g]
    genuine = [a for a, g in zip(accepted, same, strict=True) if g]
    return sum(impostors) / len(impostors), 1 - sum(genuine) / len(genuine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("far", [0.02, 0.1, 0.5, 1.0])
def test_the_threshold_at_a_far_has_the_rates_at_that_far(kind, far, rng):
    scores, same = scores_and_same(kind, rng)
    curve = mj.metrics.roc(scores, same)
    expected = min(t for t in [np.inf, *scores] if rates_at(t, scores, same)[0] <= far)
    assert curve.threshold_at_far(far) == expected
    frr = rates_at(expected, scores, same)[1]
    np.testing.assert_allclose(curve.fnmr_at_fmr(far), frr, atol=1e-12)
    np.testing.assert_allclose(1 - curve.tar_at_far(far), frr, atol=1e-12)
    np.testing.assert_allclose(curve.frr, [1 - t for _, t in rates(scores, same)], atol=1e-12)


@pytest.mark.parametrize("similarity", [mj.similarities.cosine, mj.similarities.dot])
def test_thresholds_of_streamed_pairs_hold_what_they_say(similarity, rng):
    z, y = jnp.asarray(rng.standard_normal((40, 3)), jnp.float32), rng.integers(0, 6, 40)
    first, second = np.triu_indices(40, 1)
    _, scores = next(sets.panels(z, similarity))
    scores, same = np.asarray(scores)[first, second], y[first] == y[second]
    curve = mj.metrics.pair_scores(z, y, similarity).roc
    for far in (0.01, 0.1, 0.5):
        got = rates_at(curve.threshold_at_far(far), scores, same)
        assert got[0] <= far
        np.testing.assert_allclose(got[1], curve.fnmr_at_fmr(far), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_hter_takes_its_threshold_from_the_development_pairs(kind, rng):
    dev, test = scores_and_same(kind, rng), scores_and_same(kind, rng)
    gaps = lambda t: abs(np.subtract(*rates_at(t, *dev)))
    threshold = min(sorted([np.inf, *dev[0]], reverse=True), key=lambda t: round(gaps(t), 12))
    np.testing.assert_allclose(mj.metrics.hter(*dev, *test), sum(rates_at(threshold, *test)) / 2, rtol=1e-12)


def test_decidability(rng):
    scores, same = scores_and_same("plain", rng)
    moments = lambda x: (sum(x) / len(x), sum((v - sum(x) / len(x)) ** 2 for v in x) / len(x))
    (m1, v1), (m2, v2) = moments(scores[same]), moments(scores[~same])
    expected = abs(m1 - m2) / ((v1 + v2) / 2) ** 0.5
    np.testing.assert_allclose(mj.metrics.decidability(scores, same), expected, rtol=1e-12)
    np.testing.assert_allclose(mj.metrics.decidability(2 - 3 * scores, same), expected, rtol=1e-12)
    thirds = np.full(7, 0.1)
    assert mj.metrics.decidability(thirds, np.arange(7) < 3) == 0
    assert mj.metrics.decidability(thirds + (np.arange(7) < 3), np.arange(7) < 3) == np.inf


def pairs_of_people(rng, people=12, each=3):
    """Scores of all pairs of images; some people score high with everybody."""
    labels = np.repeat(np.arange(people) * 7, each)
    first, second = np.triu_indices(len(labels), 1)
    bias = np.repeat(rng.standard_normal(people), each)
    who = np.stack([labels[first], labels[second]], axis=1)
    scores = rng.standard_normal(len(who)) + 2 * (who[:, 0] == who[:, 1]) + bias[first] + bias[second]
    return scores, who


def resampled(scores, who, far, resamples, seed, used):
    """(threshold for far, FAR of the threshold used) of each resample, its pairs repeated one by one."""
    rng = np.random.default_rng(seed)
    names = sorted(set(who.ravel()))
    found = []
    for _ in range(resamples):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        impostors = [
            s for s, (a, b) in zip(scores, who, strict=True) if a != b for x in drawn for y in drawn if (x, y) == (a, b)
        ]
        share = lambda t, impostors=impostors: sum(s >= t for s in impostors) / len(impostors)
        found.append((min(t for t in [np.inf, *scores] if share(t) <= far), share(used)))
    return np.array(found)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("far", [0.05, 0.3])
def test_calibration_resamples_people(ties, far, rng):
    scores, who = pairs_of_people(rng, people=6, each=2)
    scores = np.round(scores) if ties else scores
    got = mj.metrics.calibrated_threshold(scores, who, far, confidence=0.8, resamples=40, seed=3)
    same = who[:, 0] == who[:, 1]
    assert got.threshold == mj.metrics.roc(scores, same).threshold_at_far(far)
    np.testing.assert_allclose(got.far, rates_at(got.threshold, scores, same)[0], rtol=1e-12)
    found = np.sort(resampled(scores, who, far, 40, 3, got.threshold), axis=0)
    # The smallest value that a tenth, or nine tenths, of the 40 do not exceed.
    assert got.threshold_interval == (found[3, 0], found[35, 0])
    np.testing.assert_allclose(got.far_interval, (found[3, 1], found[35, 1]), rtol=1e-12)


def test_people_who_score_high_with_everybody_widen_the_interval(rng):
    scores, who = pairs_of_people(rng, people=30)
    whole = mj.metrics.calibrated_threshold(scores, who, 0.1, resamples=200)
    low, high = whole.threshold_interval
    assert low <= whole.threshold <= high
    assert whole.far_interval[0] <= whole.far <= whole.far_interval[1]
    width = lambda c: c.threshold_interval[1] - c.threshold_interval[0]
    alike = rng.permutation(scores[who[:, 0] != who[:, 1]])  # the same scores, whoever it is
    shuffled = scores.copy()
    shuffled[who[:, 0] != who[:, 1]] = alike
    assert width(whole) > 2 * width(mj.metrics.calibrated_threshold(shuffled, who, 0.1, resamples=200))
    assert width(whole) > width(mj.metrics.calibrated_threshold(scores, who, 0.1, resamples=200, confidence=0.5))
    assert mj.metrics.calibrated_threshold(scores, who, 0.1, resamples=200) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_error_versus_reject_equals_loops(kind, rng):
    scores, same = scores_and_same(kind, rng)
    quality = np.round(3 * rng.random(len(scores)) + scores / 2, 1)
    got = mj.metrics.error_versus_reject(scores, same, quality, 0.1)
    assert got.threshold == mj.metrics.roc(scores, same).threshold_at_far(0.1)
    genuine = list(zip(scores[same], quality[same], strict=True))
    for i, level in enumerate(sorted({q for _, q in genuine})):
        kept = [s for s, q in genuine if q >= level]
        np.testing.assert_allclose(got.rejected[i], 1 - len(kept) / len(genuine), atol=1e-12)
        np.testing.assert_allclose(got.fnmr[i], sum(s < got.threshold for s in kept) / len(kept), atol=1e-12)
    assert len(got.rejected) == len(got.fnmr) == i + 1
    assert got.rejected[0] == 0


def test_groups_have_the_rates_of_their_own_pairs(rng):
    scores, same = scores_and_same("plain", rng)
    groups = rng.integers(0, 3, len(scores))
    groups[~same & (groups == 2)] = 1
    found = mj.metrics.group_error_rates(scores, same, groups, 0.7)
    assert list(found) == [0, 1, 2]
    for group in (0, 1):
        of = groups == group
        np.testing.assert_allclose(found[group][:2], rates_at(0.7, scores[of], same[of]), atol=1e-12)
        assert found[group][2:] == (np.sum(~same[of]), np.sum(same[of]))
    assert np.isnan(found[2].far)
    assert found[2].impostors == 0
    whole = mj.metrics.error_rates(scores, same, 0.7)
    np.testing.assert_allclose(sum(f.frr * f.genuine for f in found.values()), whole.frr * whole.genuine)
    for names in (groups.astype(str), groups.astype(str).astype(object)):  # the second is what a table holds
        assert mj.metrics.group_error_rates(scores, same, names, 0.7)["0"] == found[0]


def test_det_curves(rng):
    scores, same = scores_and_same("plain", rng)
    curves = {"scores": mj.metrics.roc(scores, same), "perfect": mj.metrics.roc([1.0, 0.0], [True, False])}
    figure = mj.plots.det_curves(curves)
    line, empty = figure.axes[0].lines
    curve = curves["scores"]
    inside = (curve.far > 0) & (curve.far < 1) & (curve.frr > 0) & (curve.frr < 1)
    assert len(line.get_xdata()) == inside.sum() > 20
    assert len(empty.get_xdata()) == 0
    figure.canvas.draw()


S, SAME, WHO = np.array([0.9, 0.1, 0.4]), np.array([True, False, False]), np.array([[0, 0], [0, 1], [2, 1]])
M = mj.metrics
WRONG = {
    "far": (lambda: M.roc(S, SAME).threshold_at_far(0.1), ValueError, "far is 0.1; 2 impostor pairs"),
    "fmr": (lambda: M.roc(S, SAME).fnmr_at_fmr(2.0), ValueError, "far is 2.0; 2 impostor pairs"),
    "one kind": (lambda: M.decidability(S, SAME | True), ValueError, "same is all True"),
    "test pairs": (lambda: M.hter(S, SAME, S[:2], SAME), ValueError, r"scores has shape \(2,\), same \(3,\)"),
    "threshold": (lambda: M.error_rates(S, SAME, np.nan), ValueError, "threshold is nan; wanted a number"),
    "thresholds": (lambda: M.error_rates(S, SAME, S), ValueError, r"threshold is array\(.*wanted a number"),
    "no threshold": (lambda: M.error_rates(S, SAME, None), ValueError, "threshold is None; wanted a number"),
    "people": (lambda: M.calibrated_threshold(S, WHO[:2], 0.5), ValueError, r"people is int64\[2, 2\]"),
    "float people": (lambda: M.calibrated_threshold(S, WHO / 1, 0.5), ValueError, r"people is float64\[3, 2\]"),
    "no impostors": (lambda: M.calibrated_threshold(S, WHO * 0, 0.5), ValueError, "same is all True"),
    "calibrated far": (lambda: M.calibrated_threshold(S, WHO, 0.1), ValueError, "far is 0.1; 2 impostor pairs"),
    "confidence": (lambda: M.calibrated_threshold(S, WHO, 0.5, confidence=95), ValueError, "confidence is 95"),
    "half a resample": (lambda: M.calibrated_threshold(S, WHO, 0.5, resamples=2.5), ValueError, "resamples 2.5"),
    "resamples": (lambda: M.calibrated_threshold(S, WHO, 0.5, resamples=0), ValueError, "resamples 0"),
    "quality": (lambda: M.error_versus_reject(S, SAME, S[:2], 0.5), ValueError, r"quality has shape \(2,\)"),
    "quality nan": (lambda: M.error_versus_reject(S, SAME, S * np.nan, 0.5), ValueError, "quality holds NaN"),
    "groups": (lambda: M.group_error_rates(S, SAME, ["a"], 0.5), ValueError, r"groups has shape \(1,\)"),
}


test_wrong_arguments = refuses(WRONG)
