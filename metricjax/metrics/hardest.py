"""The pairs that a set of embeddings gets most wrong: look at these first, for errors of labels among others."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.ground.one_line import one_line
from metricjax.metrics.sets import check_set, panels

__all__ = ["HardestPairs", "hardest_pairs"]


class HardestPairs(NamedTuple):
    """Pairs of rows [p, 2], the lower index first, and their scores [p], the hardest first.

    strangers: pairs of different people, from the most similar down.
    mates: pairs of one person, from the least similar up.
    """

    strangers: np.ndarray
    stranger_scores: np.ndarray
    mates: np.ndarray
    mate_scores: np.ndarray

    def __repr__(self) -> str:
        return one_line(self)


def hardest_pairs(
    embeddings: ArrayLike,
    labels: ArrayLike,
    count: int = 8,
    *,
    distinct: bool = False,
    similarity: Callable = similarities.cosine,
) -> HardestPairs:
    """The `count` most similar pairs of different people, and the `count` least similar pairs of one person.

    Exact, over all n(n − 1)/2 pairs i < j, each once, in panels of rows: memory is linear in n. Equal scores come in
    the order of (i, j). Where there are fewer pairs of a kind, all of them are returned, none as [0, 2].

    Args:
      embeddings: [n, d], finite.
      labels: [n], the person in each row.
      distinct: whether to keep only the hardest pair of any two people, and of each person. Otherwise one odd
        photograph may well be in all of them.
      similarity: all-pairs function, larger is closer.

    >>> import numpy as np
    >>> z = np.array([[1.0, 0.0], [0.6, 0.8], [0.28, 0.96], [0.0, 1.0]])
    >>> found = hardest_pairs(z, np.array([0, 0, 1, 1]), count=1)
    >>> found.strangers.tolist(), found.stranger_scores.round(2).tolist()  # 0.6 · 0.28 + 0.8 · 0.96
    ([[1, 2]], [0.94])
    >>> found.mates.tolist(), found.mate_scores.round(2).tolist()
    ([[0, 1]], [0.6])
    """
    embeddings, labels = check_set(embeddings, labels)
    if not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"count is {count!r}; wanted a positive number of pairs")
    n = len(labels)
    person = np.unique(labels, return_inverse=True)[1] if distinct else None
    strangers = mates = (np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
    for start, scores in panels(embeddings, similarity):
        table = np.asarray(scores)
        row = start + np.arange(len(table))[:, None]
        same, later = labels[row] == labels[None], row < np.arange(n)[None]
        strangers = _hardest(count, person, strangers, start, table, later & ~same, 1)
        mates = _hardest(count, person, mates, start, table, later & same, -1)
    return HardestPairs(*strangers, *mates)


def _hardest(count: int, person, best, start: int, scores, where, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """The hardest of the `best` so far, which come first among equals, and of a panel; `sign` −1 for the smallest."""
    pairs, values = best
    if len(values) == count:
        where = where & (sign * scores > sign * values[-1])
    place = np.flatnonzero(where)
    hardness = sign * scores.ravel()[place]
    if person is None and len(place) > count:
        least = np.partition(hardness, -count)[-count]
        place, hardness = place[hardness >= least], hardness[hardness >= least]
    new = np.stack(np.unravel_index(place, scores.shape), axis=1) + np.array([[start, 0]])
    pairs, values = np.concatenate([pairs, new]), np.concatenate([values, sign * hardness])
    order = np.argsort(-sign * values, kind="stable")
    if person is not None:
        low, high = np.sort(person[pairs[order]], axis=1).T
        order = order[np.sort(np.unique(low * (person.max() + 1) + high, return_index=True)[1])]
    return pairs[order[:count]], values[order[:count]]
