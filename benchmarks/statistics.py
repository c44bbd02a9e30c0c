"""Intervals, and p-values corrected for their number."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from metricjax.training.many_trainings import mean_and_half_width as mean_and_half_width


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share."""
    interval = stats.binomtest(int(hits), int(count)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def wilcoxon(differences: np.ndarray) -> float:
    """p of the signed-rank test that the median of paired differences is 0."""
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
