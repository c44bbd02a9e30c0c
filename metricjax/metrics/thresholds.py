"""Thresholds that are chosen on some pairs and used on others: how sure they are, and whom they serve how well."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metricjax.metrics.verification import checked_pairs, roc


class ErrorRates(NamedTuple):
    """False accept and false reject rate at one threshold, and of how many pairs; NaN where there are none."""

    far: float
    frr: float
    impostors: int
    genuine: int


class Calibration(NamedTuple):
    """A threshold for a false accept rate, the rate it has, and where both may lie for other such people."""

    threshold: float
    far: float
    threshold_interval: tuple[float, float]
    far_interval: tuple[float, float]


class ErrorVersusReject(NamedTuple):
    """False non-match rate of the pairs that are left as those of low quality are rejected, quality by quality."""

    rejected: np.ndarray
    fnmr: np.ndarray
    threshold: float


def error_rates(scores: ArrayLike, same: ArrayLike, threshold: float) -> ErrorRates:
    """Share of impostor pairs with s ≥ t, and of genuine pairs with s < t.

    >>> error_rates([0.9, 0.3, 0.5, 0.1], [True, True, False, False], threshold=0.5)
    ErrorRates(far=0.5, frr=0.5, impostors=2, genuine=2)
    """
    scores, same = checked_pairs(scores, same)
    return _rates(scores >= _number(threshold), same)


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


def calibrated_threshold(
    scores: ArrayLike, people: ArrayLike, far: float, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Calibration:
    """The threshold for a false accept rate (`Roc.threshold_at_far`), with intervals by a bootstrap over people.

    Pairs that share a person are not independent, so that a bootstrap over pairs promises too much. Each resample draws
    as many people as there are, with replacement; the pair of a and b counts as often as a times b was drawn. A
    resample without impostor pairs is left out. Intervals lie between the percentiles of the thresholds for `far`, and
    of the rates of the threshold returned. Time is that of `resamples` passes over the impostor pairs.

    Args:
      scores: [n] similarities of pairs.
      people: [n, 2] integers, who the two are. For all pairs of a set, `labels[np.stack(np.triu_indices(n, 1), 1)]`.
      far: at least 1 / number of impostor pairs. Intervals are too short where far · impostors is below 5 or so.

    Snijders, Borgatti 1999, "Non-parametric standard errors and tests for network statistics"; for error rates of
    matching see Fogliato et al. 2023, arXiv:2306.01198.

    >>> calibrated_threshold([0.9, 0.1, 0.4], [[0, 0], [0, 1], [2, 1]], far=0.5).threshold
    0.4
    """
    scores, people = np.asarray(scores), np.asarray(people)
    if people.shape != (*scores.shape, 2) or not np.issubdtype(people.dtype, np.integer):
        raise ValueError(f"people is {people.dtype}{list(people.shape)}; wanted two integers for each score")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence is {confidence}, resamples {resamples}; wanted a share below 1, and at least 1")
    same = people[:, 0] == people[:, 1]
    curve = roc(scores, same)
    threshold = curve.threshold_at_far(far)
    names, index = np.unique(people, return_inverse=True)
    first, second = index.reshape(people.shape)[~same].T
    place = np.searchsorted(-curve.thresholds, -scores[~same])
    used = int(np.searchsorted(-curve.thresholds, -threshold))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weights = drawn[first] * drawn[second]
        if weights.any():
            rates = np.cumsum(np.bincount(place, weights, minlength=len(curve.thresholds))) / np.sum(weights)
            found.append((curve.thresholds[np.searchsorted(rates, far, side="right") - 1], rates[used]))
    if not found:
        raise ValueError(f"none of {resamples} resamples has impostor pairs; wanted more resamples or more people")
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    # No interpolation: thresholds may be infinite.
    low, high = np.quantile(np.asarray(found), tails, axis=0, method="inverted_cdf")
    interval = lambda i: (float(low[i]), float(high[i]))
    return Calibration(threshold, float(curve.far[used]), interval(0), interval(1))


def error_versus_reject(scores: ArrayLike, same: ArrayLike, quality: ArrayLike, far: float) -> ErrorVersusReject:
    """FNMR at a fixed threshold as the genuine pairs of lowest quality are rejected: it falls if quality tells.

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
        raise ValueError("quality holds NaN or infinity")
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
    accepted = scores >= _number(threshold)
    return {group.item(): _rates(accepted[groups == group], same[groups == group]) for group in np.unique(groups)}


def _rates(accepted: np.ndarray, same: np.ndarray) -> ErrorRates:
    share = lambda a: float(np.mean(a)) if len(a) else float("nan")
    return ErrorRates(share(accepted[~same]), share(~accepted[same]), int(np.sum(~same)), int(np.sum(same)))


def _number(threshold: float) -> float:
    if np.isnan(threshold):
        raise ValueError("threshold is NaN; wanted a number")
    return threshold


def _per_pair(name: str, a: ArrayLike, scores: np.ndarray) -> np.ndarray:
    a = np.asarray(a)
    if a.shape != scores.shape:
        raise ValueError(f"{name} has shape {a.shape}; wanted one value for each of {len(scores)} pairs")
    return a
