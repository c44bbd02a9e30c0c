"""Face verification: are two embeddings of the same person? Scores are similarities; a pair is accepted if s ≥ t."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from metricjax.ground.one_line import one_line

__all__ = [
    "PairScores",
    "Roc",
    "check_far",
    "checked_pairs",
    "equal_error_rate",
    "k_fold_accuracy",
    "k_fold_tar",
    "real_scores",
    "roc",
    "roc_auc",
    "tar_at_far",
]


class Roc(NamedTuple):
    """How many pairs are accepted as the threshold falls, at every threshold where the curve bends.

    The curve starts at (0, 0) with the threshold ∞; pairs of equal score are accepted together.
    """

    thresholds: np.ndarray
    false_accepts: np.ndarray
    true_accepts: np.ndarray

    def __repr__(self) -> str:
        return one_line(self, lambda: f"<ROC of {_pairs(self)}, {len(self.thresholds):,} points>")

    @property
    def impostors(self) -> int:
        """Number of pairs of different people."""
        return int(self.false_accepts[-1])

    @property
    def genuine(self) -> int:
        """Number of pairs of the same person."""
        return int(self.true_accepts[-1])

    @property
    def far(self) -> np.ndarray:
        """False accept rate: share of impostor pairs that are accepted."""
        return self.false_accepts / self.impostors

    @property
    def tar(self) -> np.ndarray:
        """True accept rate: share of genuine pairs that are accepted."""
        return self.true_accepts / self.genuine

    @property
    def frr(self) -> np.ndarray:
        """False reject rate (FNMR), 1 − TAR: share of genuine pairs that are rejected. With `far`, the DET curve."""
        return (self.genuine - self.true_accepts) / self.genuine

    def auc(self) -> float:
        """Area under the curve: the chance that a genuine pair scores above an impostor pair, ties counted half."""
        return float(np.trapezoid(self.tar, self.far))

    def equal_error_rate(self) -> float:
        """The rate at which false accepts and false rejects are equal, interpolated along the curve."""
        gap = self.far - (1 - self.tar)
        after = int(np.argmax(gap >= 0))
        before = after - 1
        part = gap[before] / (gap[before] - gap[after])
        return float(self.far[before] + part * (self.far[after] - self.far[before]))

    def threshold_at_eer(self) -> float:
        """The threshold of the curve at which false accept and false reject rates differ least, the highest such."""
        return float(self.thresholds[np.argmin(np.abs(self.far - self.frr))])

    def tar_at_far(self, far: float) -> float:
        """The largest true accept rate among thresholds whose false accept rate is at most `far`."""
        return float(self.tar[self._last(far)])

    def threshold_at_far(self, far: float) -> float:
        """The lowest threshold of the curve whose false accept rate is at most `far`: that of `tar_at_far`.

        It is ∞ where impostors share the highest score, more of them than `far` allows.
        """
        return float(self.thresholds[self._last(far)])

    def fnmr_at_fmr(self, fmr: float) -> float:
        """False non-match rate at a false match rate, 1 − `tar_at_far`: the same under the names of ISO/IEC 19795."""
        return float(self.frr[self._last(fmr)])

    def _last(self, far: float) -> int:
        """Index of the lowest threshold whose false accept rate is at most `far`."""
        check_far(far, self.impostors)
        return int(np.searchsorted(self.far, far, side="right")) - 1


def check_far(far: float, impostors: int) -> None:
    """`far` is a rate that this many impostor pairs can tell from 0."""
    if not 1 / impostors <= far <= 1:
        raise ValueError(f"far is {far}; wanted {1 / impostors:.3g} to 1, with {impostors} impostor pairs")


class PairScores(NamedTuple):
    """What the scores of all pairs of a set look like: their ROC, and histograms of the two kinds of pairs.

    edges: [b + 1], rising. Scores that lie outside are counted in the first and the last bin.
    genuine, impostors: [b], how many pairs of the same person and of different people are in each bin.
    """

    roc: Roc
    edges: np.ndarray
    genuine: np.ndarray
    impostors: np.ndarray

    def __repr__(self) -> str:
        return one_line(self, lambda: f"<scores of {_pairs(self.roc)}, {len(self.genuine):,} bins>")


def _pairs(curve: Roc) -> str:
    return f"{curve.genuine:,} genuine and {curve.impostors:,} impostor pairs"


def roc(scores: ArrayLike, same: ArrayLike) -> Roc:
    """The ROC of [n] scores of pairs and [n] booleans, whether the two are the same person.

    It has a point for each score that occurs, and none in between. ValueError unless there are pairs of both kinds and
    all scores are finite; whole numbers will do.

    >>> curve = roc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    >>> curve.thresholds.tolist(), curve.far.tolist(), curve.tar.tolist()
    ([inf, 0.9, 0.5, 0.1], [0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    scores, same = checked_pairs(scores, same)
    thresholds, index = np.unique(-scores, return_inverse=True)
    accepted = lambda kind: np.concatenate([[0], np.cumsum(np.bincount(index[kind], minlength=len(thresholds)))])
    return Roc(np.concatenate([[np.inf], -thresholds]), accepted(~same), accepted(same))


def roc_auc(scores: ArrayLike, same: ArrayLike) -> float:
    """Area under the ROC: P(s_genuine > s_impostor) + ½ P(equal).

    >>> roc_auc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    0.875
    """
    return roc(scores, same).auc()


def equal_error_rate(scores: ArrayLike, same: ArrayLike) -> float:
    """Rate at which false accepts and false rejects are equal, interpolated linearly between ROC points.

    >>> equal_error_rate([0.9, 0.3, 0.5, 0.1], [True, True, False, False])
    0.5
    """
    return roc(scores, same).equal_error_rate()


def tar_at_far(scores: ArrayLike, same: ArrayLike, far: float) -> float:
    """Largest true accept rate whose false accept rate does not exceed `far`, which must be at least 1 / impostors.

    >>> tar_at_far([0.9, 0.3, 0.5, 0.1], [True, True, False, False], far=0.5)
    1.0
    """
    return roc(scores, same).tar_at_far(far)


def k_fold_accuracy(scores: ArrayLike, same: ArrayLike, folds: int | ArrayLike = 10) -> tuple[float, float]:
    """Mean and standard deviation over folds of the verification accuracy, as papers on faces report it.

    Each fold is judged at the threshold that is most accurate on all other folds: the highest such, half-way down to
    the next score. LFW's own protocol reports the standard error of the mean: the deviation divided by √folds.

    Args:
      scores: [n] similarities of pairs.
      same: [n] booleans.
      folds: how many consecutive folds, of equal size or, where their number does not divide n, with one pair more in
        the first few; or [n] integers, the fold of each pair.

    ValueError where fewer than 2 folds hold pairs, or all pairs outside a fold are of one kind.

    Huang et al. 2007, "Labeled Faces in the Wild". The deviation is that of a sample (divided by folds − 1).

    >>> k_fold_accuracy([0.9, 0.1, 0.8, 0.2], [True, False, True, False], folds=2)
    (1.0, 0.0)
    """
    scores, same = checked_pairs(scores, same)
    accuracies = []
    for held in _folds(scores, folds):
        if len(np.unique(same[~held])) < 2:
            raise ValueError("same has one value in all folds but one; wanted pairs of both kinds outside each fold")
        threshold = _most_accurate(scores[~held], same[~held])
        accuracies.append(np.mean((scores[held] >= threshold) == same[held]))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))


def k_fold_tar(
    scores: ArrayLike, same: ArrayLike, far: float, folds: int | ArrayLike = 10
) -> tuple[float, float, float]:
    """VAL@FAR: mean and standard deviation over folds of the true accept rate, and the mean false accept rate.

    Each fold is judged at the lowest threshold whose false accept rate on all other folds is at most `far`
    (`Roc.threshold_at_far`). On the fold itself the rate may be higher: this is what the third number says.

    Args:
      scores: [n] similarities of pairs.
      same: [n] booleans; every fold needs pairs of both kinds.
      far: at least 1 / number of impostor pairs in the other folds.
      folds: those of `k_fold_accuracy`.

    VAL and FAR of Schroff et al. 2015, "FaceNet", arXiv:1503.03832, by LFW's folds. The deviation is that of a sample
    (divided by folds − 1). Implementations of FaceNet, and InsightFace after them, interpolate the threshold between
    the steps of a grid so that the rate of the other folds is `far`, which it may exceed, accept nobody where the rate
    cannot be reached, and divide the variance by the number of folds.

    >>> k_fold_tar([0.9, 0.1, 0.3, 0.4, 0.8, 0.2, 0.5, 0.6], [True, False] * 4, far=0.5, folds=2)
    (0.75, 0.3535533905932738, 0.25)
    """
    scores, same = checked_pairs(scores, same)
    rates = []
    for held in _folds(scores, folds):
        if len(np.unique(same[held])) < 2 or len(np.unique(same[~held])) < 2:
            raise ValueError("same has one value in a whole fold, or in all others; wanted pairs of both kinds in each")
        accepted = scores[held] >= roc(scores[~held], same[~held]).threshold_at_far(far)
        rates.append((np.mean(accepted[same[held]]), np.mean(accepted[~same[held]])))
    tars, fars = np.transpose(rates)
    return float(np.mean(tars)), float(np.std(tars, ddof=1)), float(np.mean(fars))


def _folds(scores: np.ndarray, folds: int | ArrayLike) -> Iterator[np.ndarray]:
    """Of each fold, which pairs are in it."""
    if np.ndim(folds) == 0:
        count = int(np.asarray(folds))
        if not 2 <= count <= len(scores):
            raise ValueError(f"folds is {folds!r}; wanted 2 at least, and at most one for each of {len(scores)} pairs")
        size, larger = divmod(len(scores), count)
        folds = np.repeat(np.arange(count), size + (np.arange(count) < larger))
    folds = np.asarray(folds)
    if folds.shape != scores.shape or len(np.unique(folds)) < 2:
        raise ValueError(f"folds has shape {folds.shape}; wanted the fold of each of {len(scores)} pairs, 2 at least")
    for fold in np.unique(folds):
        yield folds == fold


def _most_accurate(scores: np.ndarray, same: np.ndarray) -> float:
    curve = roc(scores, same)
    best = int(np.argmax(curve.true_accepts - curve.false_accepts))
    if best in (0, len(curve.thresholds) - 1):
        return float(curve.thresholds[best])
    return float(curve.thresholds[best] + curve.thresholds[best + 1]) / 2


def checked_pairs(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The arguments as arrays, once they are finite scores of pairs of both kinds."""
    scores, same = real_scores(scores), np.asarray(same)
    if scores.ndim != 1 or same.shape != scores.shape:
        raise ValueError(f"scores has shape {scores.shape}, same {same.shape}; wanted [n] and [n]")
    if same.dtype != np.bool_:
        raise TypeError(f"same has dtype {same.dtype}; wanted booleans")
    if same.all() or not same.any():
        got = "empty" if not len(same) else "all True" if same.all() else "never True"
        raise ValueError(f"same is {got}; wanted pairs of both kinds")
    return scores, same


def real_scores(scores: ArrayLike) -> np.ndarray:
    """Finite scores in a dtype of NumPy's floats; others in float64, as unsigned integers cannot be negative."""
    scores = np.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating) and scores.dtype.kind not in "biu":
        raise TypeError(f"scores has dtype {scores.dtype}; wanted real numbers")
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if not np.all(np.isfinite(scores)):
        raise ValueError("scores holds NaN or infinity; wanted finite numbers")
    return scores
