"""Retrieval: for each query, are its nearest neighbours of its own class?"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.metrics.panels import check_set, panels


def retrieval(
    embeddings: ArrayLike, labels: ArrayLike, *, ks: Sequence[int] = (1, 5), similarity: Callable = similarities.cosine
) -> dict[str, float]:
    """Leave-one-out retrieval: every row is a query against all other rows.

    - `recall@k`: share of queries with one of their class among the k nearest (the metric-learning meaning; CMC@k);
    - `r_precision`: share of the query's class among the R nearest, R being how many there are besides the query;
    - `map@r`: (1/R) Σ_{i≤R} precision@i · [i-th is of the class] (Musgrave et al. 2020, arXiv:2003.08505).

    All are means over queries with R ≥ 1; `queries` counts those and `lone` the others. Ties go to the lower index.

    >>> import numpy as np
    >>> retrieval(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]), np.array([0, 0, 1, 1]), ks=(1,))
    {'recall@1': 1.0, 'r_precision': 1.0, 'map@r': 1.0, 'queries': 4, 'lone': 0}
    """
    embeddings, labels = check_set(embeddings, labels)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks is {ks!r}; wanted positive numbers")
    _, inverse, count = np.unique(labels, return_inverse=True, return_counts=True)
    relevant = count[inverse] - 1
    if not np.any(relevant):
        raise ValueError(f"labels has no two rows of the same class among {len(labels)}; there is nothing to find")
    depth = min(max(*ks, int(relevant.max())), len(labels) - 1)
    sums = np.zeros(len(ks) + 2)
    for start, scores in panels(embeddings, similarity):
        rows = slice(start, start + len(scores))
        arrays = (scores, jnp.asarray(inverse[rows]), jnp.asarray(inverse), jnp.asarray(relevant[rows]))
        sums += np.asarray(_sums(depth, tuple(ks), start, *arrays), np.float64)
    queries = int(np.sum(relevant > 0))
    names = [*(f"recall@{k}" for k in ks), "r_precision", "map@r"]
    means = {name: float(total / queries) for name, total in zip(names, sums, strict=True)}
    return {**means, "queries": queries, "lone": len(labels) - queries}


@jax.jit(static_argnums=(0, 1))
def _sums(depth, ks, start, scores, row_labels, labels, relevant):
    """Sums over a panel's queries of each measure; a query without relevant rows adds 0."""
    n = len(labels)
    scores = jnp.where(jnp.arange(n)[None] == start + jnp.arange(len(scores))[:, None], -jnp.inf, scores)
    _, nearest = lax.top_k(scores, depth)
    hit = (labels[nearest] == row_labels[:, None]).astype(jnp.float32)
    rank = jnp.arange(1, depth + 1, dtype=jnp.float32)[None]
    relevant = relevant.astype(jnp.float32)
    within = jnp.where(rank <= relevant[:, None], hit, 0)
    scale = jnp.where(relevant > 0, 1 / jnp.maximum(relevant, 1), 0)
    found = [jnp.sum(jnp.max(hit[:, :k], axis=1)) for k in ks]
    precision = jnp.cumsum(hit, axis=1) / rank
    return [*found, jnp.sum(jnp.sum(within, axis=1) * scale), jnp.sum(jnp.sum(precision * within, axis=1) * scale)]
