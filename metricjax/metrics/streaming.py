"""Retrieval measures as sums, inside `jit` and `shard_map`: they add up over batches of queries and over devices."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from metricjax import similarities
from metricjax.engine import devices
from metricjax.engine.devices import of_all, row_ids, summed
from metricjax.engine.reductions import Mean
from metricjax.ground.checks import check_batch
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import existing
from metricjax.ground.pairwise import exactly
from metricjax.metrics.sets import on_device, positive_ints
from metricjax.search.neighbours import top_k

__all__ = ["retrieval_means"]


def retrieval_means(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    ks: Sequence[int] = (1, 5),
    largest_class: int | None = None,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    references: Float[Array, "m d"] | None = None,
    reference_labels: Integer[Array, " m"] | None = None,
    where: Bool[Array, " n"] | None = None,
    reference_where: Bool[Array, " m"] | None = None,
    own: Integer[Array, " n"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> dict[str, Mean]:
    """Measures of `retrieval`, as Mean(sum over queries with a match, number of those), from the nearest neighbours.

    They are `recall@k`, `recall_ir@k`, `precision@k` and `ndcg@k`, and with `largest_class` also `r_precision` and
    `map@r`, as defined in `retrieval`. Add the Means of batches of queries by `jax.tree.map(jnp.add, a, b)` and divide
    at the end. Every row is a query, and is searched for among all other rows, or among `references`. Memory is linear
    in queries and references; nothing is sorted but the neighbours (see `search.top_k`) and the labels of references.
    Time is that of the search, about one product of queries and references: the form for every few steps of a training,
    on a part of the validation set or on all of it over devices. `retrieval` takes all ranks into account, on one.

    Args:
      ks: the k of each measure @k; static.
      largest_class: the most matches that a query may have, static, such as the number of rows of the largest class in
        the references. `r_precision` and `map@r` are NaN if a query has more.
      similarity: all-pairs function, larger is closer, not NaN for finite rows. A reference that scores −∞ is never
        found.
      references, reference_labels: what is searched, if not the other rows.
      where, reference_where: which rows exist.
      own: the number of the row of `references` that is this query, and is not searched; −1 for none. So batches of
        queries may be taken out of their references, one after the other. Rows are numbered over all devices.
      axis_name: mesh axis (or axes) inside `jax.shard_map`, over which all arrays are split by rows. Every device gets
        the sums over all. `mj.over_mesh` writes the `shard_map`.

    If a row that exists holds NaN or infinity, all measures are NaN.

    >>> import jax.numpy as jnp
    >>> z, y = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.2]]), jnp.array([0, 0, 1, 1])
    >>> means = retrieval_means(z, y, ks=(1,), largest_class=2)
    >>> means["recall@1"].total.item(), means["recall@1"].count.item()
    (3.0, 4.0)
    """
    check_batch(embeddings, labels, where, None, references, reference_labels, reference_where, None, None)
    if labels.ndim != 1:
        raise ValueError(f"labels has shape {labels.shape}; wanted one label per row")
    ks, labels = positive_ints("ks", ks), on_device("labels", labels)
    if largest_class is not None and not (isinstance(largest_class, int) and largest_class > 0):
        raise ValueError(f"largest_class is {largest_class!r}; wanted None or a positive int, which is static")
    if own is not None and references is None:
        raise TypeError("own says which references the queries are; wanted references with it")
    if own is not None and (own.shape != labels.shape or not jnp.issubdtype(own.dtype, jnp.integer)):
        raise ValueError(f"own is {own.dtype}{list(own.shape)}; wanted an integer for each of {len(labels)} queries")
    if references is None:
        own = row_ids(len(labels), axis_name)
        references, reference_labels, reference_where = embeddings, labels, where
    if not len(references):
        raise ValueError("references (or embeddings, without them) has no rows; wanted at least one")
    reference_labels = on_device("reference_labels", reference_labels)
    queries, searched = (embeddings, labels, where, own), (references, reference_labels, reference_where)
    similarity = exactly(similarity, "similarity")
    return _means((ks, largest_class, similarity, axis_name), queries, searched)


@jitted
def _means(how, queries, searched) -> dict[str, Mean]:
    ks, largest_class, similarity, axis_name = how
    (x, labels, where, own), (y, reference_labels, reference_where) = queries, searched
    if own is None:
        own = jnp.full(len(x), -1, jnp.int32)
    where = jnp.ones(len(x), bool) if where is None else where
    there = jnp.ones(len(y), bool) if reference_where is None else reference_where
    # One more than is looked at: it may be the query itself.
    depth = min(max(*ks, largest_class or 1) + 1, devices.count(axis_name) * len(y))
    nearest = top_k(existing(x, where), y, depth, similarity=similarity, where=reference_where, axis_name=axis_name)
    found = nearest.indices

    sound = jnp.all(jnp.isfinite(existing(x, where))) & jnp.all(jnp.isfinite(existing(y, there)))
    reference_labels, there = of_all((reference_labels, there), axis_name)
    is_own = found == own[:, None]
    hits = (found >= 0) & ~is_own & (reference_labels[found] == labels[:, None])
    rank = jnp.cumsum(~is_own, axis=1, dtype=jnp.int32)
    itself = there[own] & (reference_labels[own] == labels) & (own >= 0)
    relevant = _matches(labels, reference_labels, there) - itself.astype(jnp.int32)
    counts = where & (relevant > 0)
    each = _measures(ks, largest_class, hits, rank, relevant)
    total = lambda values: jnp.sum(jnp.where(counts, values, 0)) + jnp.where(sound, 0, jnp.nan).astype(values.dtype)
    means = {name: Mean(total(values), jnp.sum(counts, dtype=jnp.float32)) for name, values in each.items()}
    return summed(means, axis_name)


def _matches(labels, reference_labels, there) -> Int[Array, " n"]:
    """How many of the references that are there have each query's label."""
    order = jnp.argsort(reference_labels)
    inclusive = jnp.cumsum(there[order], dtype=jnp.int32)
    upto = jnp.concatenate([jnp.zeros_like(inclusive[:1]), inclusive])
    ends = (jnp.searchsorted(reference_labels[order], labels, side=side) for side in ("left", "right"))
    first, last = (upto[end] for end in ends)
    return last - first


def _measures(ks, largest_class, hits, rank, relevant) -> dict[str, Float[Array, " n"]]:
    """Each measure of each query, from whether neighbours match and from their ranks, both [n, depth]."""
    position = rank.astype(jnp.float32)
    one = hits.astype(jnp.float32)
    precision, gain = jnp.cumsum(one, axis=1) / jnp.maximum(position, 1), one / jnp.log2(jnp.maximum(position, 1) + 1)
    within = lambda values, k: jnp.sum(jnp.where(rank <= k, values, 0), axis=1)
    possible = jnp.maximum(relevant, 1)
    matches = possible.astype(jnp.float32)
    ideal = jnp.cumsum(1 / jnp.log2(jnp.arange(2, hits.shape[1] + 2, dtype=jnp.float32)))
    hits_at = {k: within(one, k) for k in ks}
    best = {k: ideal[jnp.minimum(min(k, hits.shape[1]), possible) - 1] for k in ks}
    measures = {
        **{f"recall@{k}": (hits_at[k] > 0).astype(jnp.float32) for k in ks},
        **{f"recall_ir@{k}": hits_at[k] / matches for k in ks},
        **{f"precision@{k}": hits_at[k] / k for k in ks},
        **{f"ndcg@{k}": within(gain, k) / best[k] for k in ks},
    }
    if largest_class is None:
        return measures
    share = jnp.where(relevant <= largest_class, 1 / matches, jnp.nan)
    r = possible[:, None]
    return {**measures, "r_precision": within(one, r) * share, "map@r": within(precision * one, r) * share}
