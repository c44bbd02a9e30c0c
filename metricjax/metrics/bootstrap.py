"""How sure thresholds and curves are: bootstraps over people, as pairs that share people are not independent."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.engine import sizes
from metricjax.ground.one_line import one_line
from metricjax.ground.precision import exact_product
from metricjax.metrics.pairs import AllPairs, scores_at_levels
from metricjax.metrics.verification import Roc, check_far, real_scores, roc

__all__ = ["Bands", "Calibration", "calibrated_pair_threshold", "calibrated_threshold", "roc_bands"]

_POINTS = 128  # thresholds at which the curves of resamples are known


class Calibration(NamedTuple):
    """A threshold for a false accept rate, the rate it has, and where both may lie for other such people."""

    threshold: float
    far: float
    threshold_interval: tuple[float, float]
    far_interval: tuple[float, float]


class Bands(NamedTuple):
    """The true accept rates between which a curve may lie for other such people, at each false accept rate."""

    fars: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def __repr__(self) -> str:
        return one_line(self)


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
      people: [n, 2] integers, who the two are. All pairs of a set need no list: `calibrated_pair_threshold`.
      far: at least 1 / number of impostor pairs. Intervals are too short where far · impostors is below 5 or so.

    Snijders, Borgatti 1999, "Non-parametric standard errors and tests for network statistics"; for error rates of
    matching see Fogliato et al. 2023, arXiv:2306.01198.

    >>> calibrated_threshold([0.9, 0.1, 0.4], [[0, 0], [0, 1], [2, 1]], far=0.5).threshold
    0.4
    """
    scores, people = real_scores(scores), np.asarray(people)
    if people.shape != (*scores.shape, 2) or not np.issubdtype(people.dtype, np.integer):
        raise ValueError(f"people is {people.dtype}{list(people.shape)}; wanted two integers for each score")
    _check(confidence, resamples)
    same = people[:, 0] == people[:, 1]
    curve = roc(scores, same)
    check_far(far, curve.impostors)
    names, index = np.unique(people, return_inverse=True)
    first, second = index.reshape(people.shape)[~same].T
    place = np.searchsorted(-curve.thresholds, -scores[~same])
    drawn = _drawn(len(names), resamples, seed)
    weights = ((w[first] * w[second], None) for w in drawn)
    return _calibration(curve.thresholds, place, curve.impostors, weights, far, confidence)[0]


def calibrated_pair_threshold(
    embeddings: ArrayLike,
    labels: ArrayLike,
    far: float,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    similarity: Callable = similarities.cosine,
) -> Calibration:
    """`calibrated_threshold` of all pairs of a set of embeddings, with the same result as of a list of them.

    It holds the genuine scores and the highest impostor scores, four times as many as `far` of them all, or more if a
    resample needs more: ten thousand embeddings and a rate of 0.001 are 200,000 of 50 million. Time is that of one pass
    over all pairs and of `resamples` over those that are held.

    >>> import numpy as np
    >>> z = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> print(f"{calibrated_pair_threshold(z, np.array([0, 0, 1]), far=0.5).threshold:.1f}")  # of 0 and 0.6
    0.6
    """
    _check(confidence, resamples)
    pairs = AllPairs(embeddings, labels, similarity)
    people, photographs = _people(pairs)
    weighted = lambda w: int((w @ photographs) ** 2 - (w * w) @ photographs**2) // 2
    impostors = weighted(np.ones_like(photographs))
    genuine = np.concatenate([np.zeros(0, pairs.dtype), *(tile.genuine() for tile in pairs.tiles(near=True))])
    if not impostors or not len(genuine):
        raise ValueError("labels has pairs of one kind only; wanted two rows of the same person, and two people")
    check_far(far, impostors)
    held = int(4 * far * impostors)
    while True:
        held = sizes.impostors_held(held, impostors)
        scores, rows, columns = _highest(pairs, held)
        first, second = people[rows], people[columns]
        thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([scores, genuine]))[::-1]])
        thresholds = thresholds if len(scores) == impostors else thresholds[thresholds >= scores.min()]
        drawn = _drawn(len(photographs), resamples, seed)
        weights = ((w[first] * w[second], weighted(w)) for w in drawn)
        place = np.searchsorted(-thresholds, -scores)
        found, enough = _calibration(thresholds, place, impostors, weights, far, confidence)
        if enough or len(scores) == impostors:
            return found
        held *= 4


def roc_bands(
    embeddings: ArrayLike,
    labels: ArrayLike,
    fars: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
    similarity: Callable = similarities.cosine,
) -> Bands:
    """Percentiles of the true accept rate at each of `fars` for all pairs of a set, by a bootstrap over people.

    Each resample draws as many people as there are, with replacement. An impostor pair of a and b counts as often as a
    times b was drawn, a genuine pair of a as often as a was; someone who is drawn twice is not an impostor of herself.
    Resamples without pairs of one kind are left out. A resample's curve is known at up to 128 thresholds of the set's
    own curve, evenly spaced in the logarithm of the false accept rate (at all of them if there are fewer), and straight
    in between; at each FAR it gives a TAR, and the bounds are percentiles of these. Bands are too narrow where
    far · impostors is below 5 or so, and for few people.

    Time is that of resamples · 128 products of a 0/1 matrix [n, n] with a vector, on the device; memory is that of
    a tile of it and the genuine scores. For FRR (a DET curve), the bounds are 1 − upper and 1 − lower.

    Args:
      fars: [k] false accept rates, each at least 1 / number of impostor pairs.
      similarity: symmetric, larger is closer.

    Fogliato, Patil, Perona 2023, arXiv:2306.01198 (the vertex bootstrap of Snijders, Borgatti 1999, without the pairs
    that these make up for someone who is drawn twice).

    >>> import numpy as np
    >>> z = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0], [-1.0, 0.1]])
    >>> roc_bands(z, np.array([0, 0, 1, 1, 2, 2]), [0.1, 1.0]).lower  # everybody is told from everybody
    array([1., 1.])
    """
    _check(confidence, resamples)
    rates = np.asarray(fars, np.float64)
    if rates.ndim != 1 or not len(rates):
        raise ValueError(f"fars has shape {rates.shape}; wanted at least one rate, [k]")
    pairs = AllPairs(embeddings, labels, similarity)
    curve = scores_at_levels(pairs).roc
    for far in rates:
        check_far(far, curve.impostors)
    people, photographs = _people(pairs)
    thresholds = _spread(curve, rates)
    drawn = np.stack(list(_drawn(len(photographs), resamples, seed)))
    genuine = drawn @ _accepted_genuine(pairs, people, len(photographs), thresholds)
    impostors = _accepted_impostors(pairs, people, drawn, thresholds)
    every = ((drawn @ photographs) ** 2 - (drawn * drawn) @ photographs**2) // 2
    usable = (genuine[:, -1] > 0) & (every > 0)
    if not usable.any():
        raise ValueError(f"none of {resamples} resamples has pairs of both kinds; wanted more of them or more people")
    tars = [
        np.interp(rates, np.concatenate([[0], i, [n]]) / n, np.concatenate([[0], g]) / g[-1])
        for i, g, n in zip(impostors[usable], genuine[usable], every[usable], strict=True)
    ]
    return Bands(rates, *_percentiles(tars, confidence))


def _check(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; wanted a share between 0 and 1")
    if not isinstance(resamples, int | np.integer) or resamples < 1:
        raise ValueError(f"resamples is {resamples}; wanted a positive int")


def _people(pairs: AllPairs) -> tuple[np.ndarray, np.ndarray]:
    """Of each row its person, numbered from 0, and how many rows each has."""
    _, people, photographs = np.unique(pairs.rows.labels, return_inverse=True, return_counts=True)
    return people.astype(np.int32), photographs


def _drawn(people: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each resample draws each of the people."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(people, size=people), minlength=people)


def _percentiles(found, confidence: float) -> np.ndarray:
    # No interpolation: thresholds may be infinite.
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    return np.quantile(np.asarray(found), tails, axis=0, method="inverted_cdf")


def _calibration(
    thresholds: np.ndarray, place: np.ndarray, impostors: int, weights, far: float, confidence: float
) -> tuple[Calibration, bool]:
    """The calibration by impostor pairs at these places of falling thresholds; and whether these thresholds suffice.

    They do not where a resample may want a lower one than the last. `weights` gives for each resample the weight of
    each of these pairs, and that of all pairs if these are not all.
    """
    rates = lambda weights, whole: np.cumsum(np.bincount(place, weights, minlength=len(thresholds))) / whole
    last = lambda rates: int(np.searchsorted(rates, far, side="right")) - 1
    observed = rates(np.ones(len(place)), impostors)
    used = last(observed)
    found = []
    for weight, whole in weights:
        whole = np.sum(weight) if whole is None else whole
        if whole:
            resampled = rates(weight, whole)
            found.append((last(resampled), resampled[used]))
    if not found:
        raise ValueError("no resample has impostor pairs; wanted more resamples or more people")
    places, fars = np.transpose(found)
    values = np.stack([thresholds[places.astype(int)], fars], axis=1)
    low, high = _percentiles(values, confidence)
    interval = lambda i: (float(low[i]), float(high[i]))
    found_here = Calibration(float(thresholds[used]), float(observed[used]), interval(0), interval(1))
    return found_here, bool(np.max(places) < len(thresholds) - 1)


def _highest(pairs: AllPairs, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The highest impostor scores, with all that are equal to the last of them, and the two rows of each."""
    held, waiting, floor = np.zeros((3, 0)), [], -np.inf

    def trimmed(held: np.ndarray) -> np.ndarray:
        return held if held.shape[1] <= count else held[:, held[0] >= np.partition(held[0], -count)[-count]]

    for tile in pairs.tiles():
        mask = (tile.scores >= floor) & tile.impostor_mask()
        row, column = np.nonzero(mask)
        waiting.append(np.stack([tile.scores[mask], tile.row + row, tile.column + column]))
        if sum(part.shape[1] for part in waiting) > count:
            held, waiting = trimmed(np.concatenate([held, *waiting], axis=1)), []
            floor = np.min(held[0])
    scores, rows, columns = trimmed(np.concatenate([held, *waiting], axis=1))
    return scores, rows.astype(int), columns.astype(int)


def _spread(curve: Roc, fars: np.ndarray) -> np.ndarray:
    """Falling thresholds of the curve, finite ones, around the rates wanted."""
    index: np.ndarray = np.arange(1, len(curve.thresholds) - 1)
    if len(index) > _POINTS:
        low, high = max(1, fars.min() * curve.impostors / 16), min(1, 16 * fars.max()) * curve.impostors
        wanted = np.concatenate([[0], np.geomspace(low, high, _POINTS - 1)])
        index = np.unique(np.searchsorted(curve.false_accepts, wanted, side="right") - 1)
    return curve.thresholds[index[np.isfinite(curve.thresholds[index])]]


def _accepted_genuine(pairs: AllPairs, people: np.ndarray, number: int, thresholds: np.ndarray) -> np.ndarray:
    """[people, thresholds + 1]: how many genuine pairs of each person are accepted, last without a threshold."""
    counts = np.zeros((number, len(thresholds) + 1), np.int64)
    for tile in pairs.tiles(near=True):
        row, column = tile.genuine_pairs()
        place = np.searchsorted(-thresholds, -tile.scores[row, column])
        np.add.at(counts, (people[tile.row + row], place), 1)
    return np.cumsum(counts, axis=1)


def _accepted_impostors(pairs: AllPairs, people: np.ndarray, drawn: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[resamples, thresholds]: the weight of the impostor pairs that are accepted."""
    side, blocks = pairs.rows.side, len(pairs.rows.blocks)
    rows = np.pad(people, (0, side * blocks - len(people)), constant_values=-1).reshape(blocks, side)
    weights = [jnp.asarray(np.where(row < 0, 0, drawn[:, row]).T, jnp.float32) for row in rows]
    total = np.zeros((len(thresholds), len(drawn)), np.int64)
    levels = jnp.asarray(thresholds, pairs.dtype)
    for i, j, scores in pairs.scores():
        total += np.asarray(_weight_above(scores, rows[i], rows[j], i == j, weights[i], weights[j], levels))
    return total.T


@jax.jit
def _weight_above(scores, people, others, diagonal, weights, other_weights, levels):
    index = jnp.arange(scores.shape[0])
    counts = (people[:, None] != others[None]) & (~diagonal | (index[:, None] < index[None]))
    scores = jnp.where(counts, scores, -jnp.inf)

    def above(level):
        # Small whole numbers: exact in float32 along a row, and in int32 over the tile.
        rows = exact_product((scores >= level).astype(jnp.float32), other_weights)
        return jnp.sum(rows.astype(jnp.int32) * weights.astype(jnp.int32), axis=0, dtype=jnp.int32)

    return lax.map(above, levels)
