"""Intervals, and p-values corrected for their number."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean_and_half_width(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean, and half its 95 % confidence interval by Student's t; NaN of fewer than two values."""
    few = len(values) < 2
    return float(np.mean(values)), np.nan if few else float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share."""
    interval = stats.binomtest(int(hits), int(count)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def wilcoxon(differences: np.ndarray) -> float:
    """p of the signed-rank test that paired differences have no direction."""
    return float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def paired_t(differences: np.ndarray) -> float:
    """p of Student's test that paired differences have mean 0."""
    return float(stats.ttest_1samp(differences, 0).pvalue) if np.ptp(differences) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979)."""
    values = np.asarray(p)
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return np.minimum(adjusted[np.argsort(order)], 1).tolist()
