"""Retrieval between two towers: images by text and text by images, or any two kinds of input."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.metrics.ranks import ranks_of_matches
from metricjax.metrics.sets import check_set, positive_ints

__all__ = ["both_ways"]


def both_ways(
    x: ArrayLike,
    y: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
    ks: Sequence[int] = (1, 5, 10),
    similarity: Callable = similarities.cosine,
) -> dict[str, dict[str, Any]]:
    """Every row of x looks for its matches among all rows of y, in order of their score, and every row of y among x.

    Of either way, with the rank of a query's first match from 1, ties to the lower index:

    - `recall@k`: the share of queries whose first match is among the k nearest;
    - `median_rank`: the median of the ranks of the first match;
    - `queries`, `lone`: how many have a match, which the measures are of, and how many have none.

    Exact, in panels, as `retrieval` is, which has more measures of one way.

    Args:
      x, y: [n, d] and [m, d]. Row i of y is the match of row i of x, unless there are labels.
      labels, reference_labels: [n] and [m], of x and of y: all rows with equal labels match, as five captions of one
        picture do. Give both or neither.

    >>> import numpy as np
    >>> found = both_ways(np.eye(3), np.array([[1.0, 0, 0], [0, 0, 1], [0, 0.6, 0.8]]), ks=(1, 2))
    >>> found["x to y"]["recall@1"], found["x to y"]["median_rank"]  # row 0 finds its own; ranks 1, 2 and 2
    (0.333, 2.0)
    """
    ks = positive_ints("ks", ks)
    if (labels is None) != (reference_labels is None):
        raise ValueError("labels and reference_labels: one is given; wanted both or neither")
    if labels is None:
        if np.shape(x) != np.shape(y):
            raise ValueError(f"x has shape {np.shape(x)}, y has shape {np.shape(y)}; wanted one, or labels of both")
        labels = reference_labels = np.arange(len(np.asarray(x)))
    views = [check_set(x, labels, "x"), check_set(y, reference_labels, "y", "reference_labels")]
    if views[0][0].shape[1] != views[1][0].shape[1]:
        raise ValueError(f"x has {views[0][0].shape[1]} features, y has {views[1][0].shape[1]}; wanted as many")
    return {
        name: _one_way(*views[query], views[1 - query], ks, similarity)
        for query, name in enumerate(("x to y", "y to x"))
    }


def _one_way(queries, labels, references, ks: Sequence[int], similarity: Callable) -> dict[str, Any]:
    parts = list(ranks_of_matches(queries, labels, references, similarity, None))
    if not parts:
        raise ValueError(f"none of the {len(labels)} queries has a match among the {len(references[1])} references")
    first = np.concatenate([part.rank[np.cumsum(part.relevant) - part.relevant] for part in parts])
    recalls = {f"recall@{k}": float(np.mean(first <= k)) for k in ks}
    return {**recalls, "median_rank": float(np.median(first)), "queries": len(first), "lone": len(labels) - len(first)}
