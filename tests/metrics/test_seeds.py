"""Statistics of seeds are SciPy's where SciPy has them, and Holm's as his paper says it."""

import numpy as np
import pytest
from scipy import stats

from metricjax import variants


def test_intervals_are_those_of_scipy(rng):
    for n in (2, 5, 30):
        values = rng.normal(size=n)
        mean, half = variants.mean_and_half_width(values)
        low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
        assert (mean - half, mean + half) == pytest.approx((low, high))
    for few in ([], [0.5]):
        assert np.isnan(variants.mean_and_half_width(few)[1])
    assert variants.mean_and_half_width([0.1] * 3) == pytest.approx((0.1, 0))


@pytest.mark.parametrize("hits, count", [(0, 1), (0, 7), (3, 7), (7, 7), (250, 1000)])
def test_shares_have_the_interval_of_wilson(hits, count):
    interval = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert variants.wilson(hits, count) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize("hits, count", [(-1, 3), (4, 3), (0, 0)])
def test_no_share_is_refused(hits, count):
    with pytest.raises(ValueError, match=f"hits is {hits} and count {count}; wanted 0 ≤ hits ≤ count"):
        variants.wilson(hits, count)


def test_paired_tests_are_those_of_scipy(rng):
    for n in (2, 5, 12):
        a, b = rng.normal(size=(2, n))
        assert variants.paired_t(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
        assert variants.wilcoxon(a - b) == pytest.approx(stats.wilcoxon(a, b).pvalue)
    for test in (variants.paired_t, variants.wilcoxon):
        assert test([0.0, 0.0, 0.0]) == 1
        assert np.isnan(test([0.3]))
    assert variants.paired_t([0.25] * 4) == 0  # no seed says otherwise
    assert variants.wilcoxon([0.25] * 4) == 2**-3
    with pytest.raises(ValueError, match=r"differences has shape \(1, 2\); wanted \[n\]"):
        variants.paired_t([[1.0, 2.0]])


def holm_as_written(p, level):
    """Holm 1979: from the smallest on, reject while p ≤ level / (number not yet rejected)."""
    rejected = set()
    for k, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > level / (len(p) - k):
            break
        rejected.add(i)
    return rejected


def test_adjusted_p_reject_what_the_procedure_of_holm_rejects(rng):
    for n in (1, 2, 6):
        p = rng.uniform(size=n) ** 3
        adjusted = variants.holm(p)
        for level in rng.uniform(size=40):
            assert {i for i in range(n) if adjusted[i] <= level} == holm_as_written(p, level)
    assert variants.holm([]) == []
    np.testing.assert_allclose(variants.holm([0.02, np.nan, 0.01]), [0.02, np.nan, 0.02])
