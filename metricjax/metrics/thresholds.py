"""Thresholds that are chosen on some pairs and used on others: what they cost, and how well they serve each group."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metricjax.ground.one_line import one_line
from metricjax.metrics.verification import checked_pairs, roc

__all__ = [
    "ErrorRates",
    "ErrorVersusReject",
    "as_threshold",
    "decidability",
    "error_rates",
    "error_versus_reject",
    "group_error_rates",
    "hter",
]


class ErrorRates(NamedTuple):
    """False accept and false reject rate at one threshold, and the numbers of pairs; a rate without pairs is NaN."""

    far: float
    frr: float
    impostors: int
    genuine: int


class ErrorVersusReject(NamedTuple):
    """False non-match rate of the pairs that are left as those of low quality are rejected, quality by quality."""

    rejected: np.ndarray
    fnmr: np.ndarray
    threshold: float

    def __repr__(self) -> str:
        return one_line(self)


def error_rates(scores: ArrayLike, same: ArrayLike, threshold: float) -> ErrorRates:
    """Share of impostor pairs with s ≥ t, and of genuine pairs with s < t.

    >>> error_rates([0.9, 0.3, 0.5, 0.1], [True, True, False, False], threshold=0.5)
    ErrorRates(far=0.5, frr=0.5, impostors=2, genuine=2)
    """
    scores, same = checked_pairs(scores, same)
    return _rates(scores >= as_threshold(threshold), same)


def hter(dev_scores: ArrayLike, dev_same: ArrayLike, test_scores: ArrayLike, test_same: ArrayLike) -> float:
    """Half total error rate, (FAR + FRR) / 2 of test pairs at the threshold of the development pairs' equal error rate.

    That threshold is the development score at which the two rates differ least (`Roc.threshold_at_eer`). Bengio,
    Mariéthoz 2004, "The expected performance curve".

    >>> hter([0.9, 0.6, 0.5, 0.1], [True, True, False, False], [0.9, 0.4, 0.7, 0.1], [True, True, False, False])
    0.5
    """
    found = error_rates(test_scores, test_same, roc(dev_scores, dev_same).threshold_at_eer())
    return (found.far + found.frr) / 2


def decidability(scores: ArrayLike, same: ArrayLike) -> float:
    """d′ = |μ₁ − μ₂| / √((σ₁² + σ₂²) / 2) of genuine and impostor scores.

    Without any spread it is ∞, or 0 where the two are equal. Daugman 2000, "Biometric decision landscapes"; variances
    are divided by the number of scores.

    >>> decidability([3.0, 5.0, -1.0, 1.0], [True, True, False, False])
    4.0
    """
    scores, same = checked_pairs(scores, same)
    genuine, impostors = scores[same].astype(np.float64), scores[~same].astype(np.float64)
    if np.ptp(genuine) == 0 and np.ptp(impostors) == 0:
        return 0.0 if genuine[0] == impostors[0] else np.inf
    return float(np.abs(np.mean(genuine) - np.mean(impostors)) / np.sqrt((np.var(genuine) + np.var(impostors)) / 2))


def error_versus_reject(scores: ArrayLike, same: ArrayLike, quality: ArrayLike, far: float) -> ErrorVersusReject:
    """FNMR at a fixed threshold as the genuine pairs of lowest quality are rejected: it falls where quality tells.

    The threshold is that of `far` among all pairs. Pairs of equal quality are rejected together: the curve has a point
    for each quality of a genuine pair, from 0 rejected to those of the highest quality left. Grother, Tabassi 2007,
    "Performance of biometric quality measures".

    Args:
      scores: [n] similarities of pairs.
      same: [n] booleans.
      quality: [n], of the pair: usually the lower of its two images'. Higher is better.

    >>> error_versus_reject([0.9, 0.0, 0.5, 0.1], [True, True, False, False], [2.0, 1.0, 1.0, 1.0], far=0.5).fnmr
    array([0.5, 0. ])
    """
    scores, same = checked_pairs(scores, same)
    quality = _per_pair("quality", quality, scores)
    if not np.all(np.isfinite(quality)):
        raise ValueError("quality holds NaN or infinity; wanted finite numbers")
    threshold = roc(scores, same).threshold_at_far(far)
    levels, index = np.unique(quality[same], return_inverse=True)
    at_least = lambda weights: np.cumsum(np.bincount(index, weights, minlength=len(levels))[::-1])[::-1]
    kept = at_least(np.ones(len(index)))
    return ErrorVersusReject((len(index) - kept) / len(index), at_least(scores[same] < threshold) / kept, threshold)


def group_error_rates(
    scores: ArrayLike, same: ArrayLike, groups: ArrayLike, threshold: float
) -> dict[int | str, ErrorRates]:
    """The error rates of each group of pairs at one threshold for all: whom it lets in, whom it keeps out.

    Args:
      scores: [n] similarities of pairs.
      same: [n] booleans.
      groups: [n] integers or strings, the group of each pair. A group without pairs of a kind has NaN for its rate.

    >>> group_error_rates([0.9, 0.3, 0.5, 0.1], [True, True, False, False], ["a", "b", "a", "b"], threshold=0.4)["a"]
    ErrorRates(far=1.0, frr=0.0, impostors=1, genuine=1)
    """
    scores, same = checked_pairs(scores, same)
    groups = _per_pair("groups", groups, scores)
    accepted, each = scores >= as_threshold(threshold), np.unique(groups).tolist()
    return {group: _rates(accepted[groups == group], same[groups == group]) for group in each}


def _rates(accepted: np.ndarray, same: np.ndarray) -> ErrorRates:
    share = lambda a: float(np.mean(a)) if len(a) else float("nan")
    return ErrorRates(share(accepted[~same]), share(~accepted[same]), int(np.sum(~same)), int(np.sum(same)))


def as_threshold(threshold: float) -> float:
    """One number that is not NaN, as a Python float, which is compared in the dtype of the scores."""
    number = np.asarray(threshold)
    if number.ndim or number.dtype.kind not in "biuf" or np.isnan(number):
        raise ValueError(f"threshold is {threshold!r}; wanted a number")
    return float(number)


def _per_pair(name: str, a: ArrayLike, scores: np.ndarray) -> np.ndarray:
    a = np.asarray(a)
    if a.shape != scores.shape:
        raise ValueError(f"{name} has shape {a.shape}; wanted one value for each of {len(scores)} pairs")
    return a
