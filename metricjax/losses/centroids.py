"""A triplet loss whose positive and negatives are the centroids of classes."""

from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from metricjax import distances
from metricjax.anchors import AnchorOptions, over_pairs
from metricjax.engine import devices
from metricjax.engine.devices import of_all, summed
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_labels, check_rows, refuse_options
from metricjax.ground.numerics import existing, softplus, widen
from metricjax.losses.pairs import check_average, hinge_mean

__all__ = ["centroid_triplet"]


def _rows(pairs, margin, hardest, average):
    """Each row has one positive at most."""
    scores, positives, negatives = pairs.scores, pairs.positives, pairs.negatives
    own = jnp.sum(jnp.where(positives, scores, 0), axis=-1, keepdims=True)
    where = negatives & jnp.any(positives, axis=-1, keepdims=True)
    if hardest:
        closest = jnp.min(jnp.where(where, scores, jnp.inf), axis=-1, keepdims=True)
        where = jnp.any(where, axis=-1, keepdims=True)
        scores = jnp.where(where, closest, 0)
    if margin is None:
        return hinge_mean(softplus(own - scores), where, "valid")
    return hinge_mean(jnp.maximum(own - scores + margin, 0), where, average)


def _own_or_another(anchor: Int[Array, " 2"], column: Int[Array, " 3"]) -> tuple[Array, Array]:
    """An anchor [id, class] and a column [id of its only anchor or −1, is it a class's centroid, class]."""
    return anchor[0] == column[0], (column[1] == 1) & (anchor[1] != column[2])


def centroid_triplet(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    margin: ArrayLike | None = 0.5,
    hardest: bool = False,
    distance: Callable[[Array, Array], Array] = distances.squared_euclidean,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Centroid triplet loss: mean over anchors and other classes c of [d(a, c₊) − d(a, c) + m]₊.

    c₊ is the centroid of the anchor's class without the anchor, so that an anchor alone in its class has no terms; the
    other centroids are those of all their rows in the batch. With `hardest` only the closest other centroid counts.
    `margin=None` is the soft margin. The mean is over non-zero terms, or over all with `average="valid"`. Rows that
    `where` leaves out are in no centroid. Options: `AnchorOptions` but `references` and `same`.

    Wieczorek, Rychalska, Dąbrowski 2021, arXiv:2104.13643 (margin 0.5 in the authors' code, whose distance is not
    squared).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[0.0], [1.0], [2.0]])  # for the first two anchors 1 − 4 + 4 and 1 − 1 + 4
    >>> float(centroid_triplet(z, jnp.array([0, 0, 1]), margin=4.0))
    2.5
    """
    check_average(average)
    made = ("references", "reference_labels", "reference_where", "reference_ids", "same")
    refuse_options("centroid_triplet makes its references out of the batch's classes", options, *made)
    check_rows("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    if labels.ndim != 1:
        raise ValueError(f"labels has shape {labels.shape}; wanted one integer for each row")
    anchors, references = _with_centroids(options.get("axis_name"), embeddings, labels, options.get("where"))
    how: dict[str, Any] = {**options, **references, "same": _own_or_another, "distance": distance}
    return over_pairs(_rows, embeddings, anchors, margin, hardest, average, **how)


@jax.jit(static_argnums=0, inline=True)
def _with_centroids(axis_name, embeddings, labels, where):
    """The labels of anchors, and as references each anchor's class without it, then each class at its first row."""
    x = existing(widen(embeddings), where)
    there = jnp.ones(len(x), bool) if where is None else where
    own = lambda a: devices.mine(a, len(x), axis_name)
    first = _first_of_class(*of_all((labels, there), axis_name))
    size, slot, ids = len(first), own(first), own(jnp.arange(len(first), dtype=jnp.int32))
    sums = summed(jnp.zeros((size, x.shape[1]), x.dtype).at[slot].add(x), axis_name)
    counts = summed(jnp.zeros(size, x.dtype).at[slot].add(there.astype(x.dtype)), axis_name)
    mates = counts[slot] - there.astype(x.dtype)
    without = (sums[slot] - x) / jnp.maximum(mates, 1)[:, None]
    centroid = own(sums) / jnp.maximum(own(counts), 1)[:, None]
    nobody, no, yes = (jnp.full_like(ids, value) for value in (-1, 0, 1))
    columns = jnp.stack([ids, no, slot], axis=-1), jnp.stack([nobody, yes, ids], axis=-1)
    return jnp.stack([ids, slot], axis=-1), {
        "references": jnp.concatenate([without, centroid]),
        "reference_labels": jnp.concatenate(columns),
        "reference_where": jnp.concatenate([there & (mates > 0), own(counts) > 0]),
    }


def _first_of_class(labels: Integer[Array, " n"], where: Bool[Array, " n"]) -> Int[Array, " n"]:
    """The first row of each row's class; rows that do not exist have classes of their own."""
    order = jnp.lexsort((labels, ~where)).astype(jnp.int32)
    ordered, there = labels[order], where[order]
    begins = jnp.concatenate([jnp.ones(1, bool), (ordered[1:] != ordered[:-1]) | ~there[1:]])
    first = lax.cummax(jnp.where(begins, jnp.arange(len(labels), dtype=jnp.int32), 0))
    return jnp.zeros_like(order).at[order].set(order[first])
