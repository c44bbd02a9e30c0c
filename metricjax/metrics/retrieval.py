"""Retrieval: for each query, where are the rows that match it, among all others in order of their score?"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.ground.checks import check_batch
from metricjax.metrics.ranks import Ranks, ranks_of_matches
from metricjax.metrics.sets import check_finite, positive_ints

__all__ = ["retrieval"]


def retrieval(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    ks: Sequence[int] = (1, 5),
    similarity: Callable = similarities.cosine,
    references: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reference_where: ArrayLike | None = None,
    same: Callable | None = None,
    average: Literal["micro", "macro"] = "micro",
    per_class: bool = False,
) -> dict[str, Any]:
    """Every row is a query: of all other rows, or of `references` where these are given, in order of their score.

    Of a query with R matches, with hits(k) of them among the k nearest, and precision@i = hits(i) / i:

    - `recall@k`: 1 if hits(k) > 0 (the metric-learning meaning; CMC@k);
    - `recall_ir@k`: hits(k) / R (what recall means in information retrieval);
    - `precision@k`: hits(k) / k, also where there are fewer than k matches or references;
    - `ndcg@k`: Σ_{i≤k} [i-th matches] / log₂(i + 1), over its largest value, Σ_{i≤min(k, R)} 1 / log₂(i + 1)
      (Järvelin, Kekäläinen 2002, with gains of 0 and 1);
    - `r_precision`: hits(R) / R;
    - `map@r`: (1/R) Σ_{i≤R} precision@i · [i-th matches] (Musgrave et al. 2020, arXiv:2003.08505);
    - `map`: (1/R) Σ_i precision@i · [i-th matches], the average precision of the whole ranking;
    - `mrr`: 1 / rank of the first match.

    All are means over queries with R ≥ 1; `queries` counts those and `lone` the others. Ties go to the lower index.
    All measures are exact, however large R and k are: they follow from the ranks of the matches, which are counted in
    panels of queries on the device. Memory is linear in queries, references and matches. With a few matches for each
    query, time is about one and a half times that of the product of queries and references, and it grows with the
    matches; past a few dozen of them whole rows are sorted on the host instead. Queries without a match cost nothing.

    This is the form for the end of a training, and for each epoch where one product of the whole set is affordable.
    Inside `jit` and over devices, `retrieval_means` has sums of the measures that need the nearest neighbours only.
    Here batches of queries add up too: a measure times `queries` is a sum over queries.

    Args:
      ks: the k of each measure @k.
      similarity: all-pairs function, larger is closer.
      references, reference_labels: what is searched, if not the other rows. A query is then not excluded from it.
      where, reference_where: booleans, which rows exist. The others are neither queries nor references.
      same: `same(a, b)` says whether two labels match, as `mj.relations` does; default equality. If it returns two
        booleans, references for which both are False are left out of that query's ranking.
      average: "micro", the mean over queries, or "macro", the mean over classes of the mean over their queries. Classes
        without a query that has a match are left out.
      per_class: add `per_class`, for each label of a query the measures of its queries, `queries` and `lone`. The
        measures of a class with lone queries only are NaN.

    >>> import numpy as np
    >>> z = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> found = retrieval(z, np.array([0, 0, 1, 1]), ks=(1,))
    >>> found["recall@1"], found["r_precision"], found["map@r"], found["queries"], found["lone"]
    (1.0, 1.0, 1.0, 4, 0)
    >>> found = retrieval(z[:1], np.array([0]), ks=(2,), references=z[1:], reference_labels=np.array([1, 0, 0]))
    >>> found["recall_ir@2"], found["precision@2"], found["mrr"]  # its matches have ranks 2 and 3
    (0.5, 0.5, 0.5)
    >>> print(f"{found['map']:.4f}")  # (1/2 + 2/3) / 2
    0.5833
    """
    ks = positive_ints("ks", ks)
    if average not in ("micro", "macro"):
        raise ValueError(f"average is {average!r}; wanted 'micro' or 'macro'")
    sets = (embeddings, labels, where, references, reference_labels, reference_where)
    x, query_labels, y = _checked(*sets, same, by_class=average == "macro" or per_class)
    parts = list(ranks_of_matches(x, query_labels, y, similarity, same))
    if not parts:
        raise ValueError(f"{_without_matches(len(query_labels), y)}; there is nothing to find")
    each = _each(ks, parts, len(query_labels))
    result: dict[str, Any] = _means(each)
    if average == "macro" or per_class:
        of_class = _by_class(each, query_labels)
        if average == "macro":
            result |= {name: float(np.nanmean([means[name] for means in of_class.values()])) for name in each}
        if per_class:
            result["per_class"] = of_class
    return result


def _without_matches(queries: int, references: tuple | None) -> str:
    if references is None:
        return f"labels has no two rows of the same class among {queries}"
    return f"none of the {queries} queries has a match among the {len(references[1])} references"


def _means(each: dict[str, np.ndarray]) -> dict[str, float | int]:
    """Means over the queries with a match, NaN if there are none; how many these are, and how many the others."""
    found = ~np.isnan(each["mrr"])
    means = {name: float(np.mean(values[found])) if np.any(found) else np.nan for name, values in each.items()}
    return {**means, "queries": int(np.sum(found)), "lone": int(np.sum(~found))}


def _by_class(each: dict[str, np.ndarray], labels: np.ndarray) -> dict[Any, dict[str, float | int]]:
    """`_means` of the queries of each class, by its label."""
    classes, inverse = np.unique(labels, return_inverse=True)
    queries = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    of = lambda own: _means({name: values[own] for name, values in each.items()})
    return {label: of(own) for label, own in zip(classes.tolist(), queries, strict=True)}


def _checked(embeddings, labels, where, references, reference_labels, reference_where, same, by_class: bool):
    """The rows that exist: embeddings and labels of the queries, and both of the references or None."""
    array = lambda a: None if a is None else np.asarray(a)
    embeddings, references = (None if a is None else jnp.asarray(a) for a in (embeddings, references))
    labels, where, reference_labels, reference_where = map(array, (labels, where, reference_labels, reference_where))
    check_batch(embeddings, labels, where, None, references, reference_labels, reference_where, same, None)
    if labels.ndim != 1 and (same is None or by_class):
        raise ValueError(f"labels has shape {labels.shape}; wanted one label per row" + " for classes" * by_class)

    def existing(name, rows, labels, where):
        if where is not None:
            rows, labels = rows[np.flatnonzero(where)], labels[where]
        check_finite(name, rows)
        return rows, labels

    queries = existing("embeddings", embeddings, labels, where)
    if references is None:
        return *queries, None
    return *queries, existing("references", references, reference_labels, reference_where)


def _each(ks: Sequence[int], parts: Sequence[Ranks], queries: int) -> dict[str, np.ndarray]:
    """Each measure of each query, NaN for one without matches."""
    each: dict[str, np.ndarray] = {}
    for part in parts:
        for name, values in _measures(ks, part).items():
            each.setdefault(name, np.full(queries, np.nan))[part.queries] = values
    return each


def _measures(ks: Sequence[int], found: Ranks) -> dict[str, np.ndarray]:
    rank, relevant = found.rank, found.relevant
    first = np.cumsum(relevant) - relevant
    summed = lambda values: np.add.reduceat(values, first)  # over the matches of each query
    row = np.repeat(np.arange(len(relevant)), relevant)
    precision = (np.arange(len(row)) - first[row] + 1) / rank
    within = rank <= relevant[row]
    near = np.flatnonzero(rank <= max(ks))
    row, gain = row[near], 1 / np.log2(rank[near] + 1.0)
    up_to = lambda k, values: np.bincount(row, np.where(rank[near] <= k, values, 0), minlength=len(relevant))
    hits_at = {k: up_to(k, 1) for k in ks}
    ideal = np.cumsum(1 / np.log2(np.arange(2.0, np.max(relevant) + 2)))
    return {
        **{f"recall@{k}": (hits_at[k] > 0).astype(float) for k in ks},
        "r_precision": summed(within.astype(float)) / relevant,
        "map@r": summed(np.where(within, precision, 0)) / relevant,
        **{f"recall_ir@{k}": hits_at[k] / relevant for k in ks},
        **{f"precision@{k}": hits_at[k] / k for k in ks},
        **{f"ndcg@{k}": up_to(k, gain) / ideal[np.minimum(k, relevant) - 1] for k in ks},
        "map": summed(precision) / relevant,
        "mrr": 1 / rank[first],
    }
