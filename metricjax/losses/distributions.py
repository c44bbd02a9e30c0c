"""Losses that measure each pair or triplet against the distribution of all in the batch."""

from collections.abc import Callable
from typing import Any, Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from metricjax import distances, mining, similarities
from metricjax.anchors import AnchorOptions, Mean, over_pairs, over_triplets
from metricjax.engine.reductions import Loss, of_sums
from metricjax.ground.checks import check_positive, check_rows

__all__ = ["dynamic_soft_margin", "histogram", "intra_pair_variance"]


@of_sums
def _means(mean: Mean) -> Float[Array, "..."]:
    """Σ total / Σ count, entry by entry."""
    return mean.total / jnp.where(mean.count > 0, mean.count, 1)


def _mean_score_rows(pairs):
    positive_scores, positives, negative_scores, negatives = pairs.apart
    sides = (positive_scores, positives), (negative_scores, negatives)
    totals = [jnp.sum(jnp.where(mask, scores, 0), axis=-1) for scores, mask in sides]
    return Mean(jnp.stack(totals, axis=-1), jnp.stack([jnp.sum(mask, axis=-1) for _, mask in sides], axis=-1))


def _variance_rows(pairs, limits):
    positive_scores, positives, negative_scores, negatives = pairs.apart
    pull = jnp.square(jnp.maximum(limits[0] - positive_scores, 0))
    push = jnp.square(jnp.maximum(negative_scores - limits[1], 0))
    one = lambda terms, where: Mean(jnp.sum(jnp.where(where, terms, 0), axis=-1), jnp.sum(where, axis=-1))
    return one(pull, positives), one(push, negatives)


def intra_pair_variance(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    positive_epsilon: ArrayLike = 0.01,
    negative_epsilon: ArrayLike = 0.01,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Intra-pair variance loss: mean over positives of [(1 − ε₊) μ₊ − s]₊², plus over negatives of [s − (1 + ε₋) μ₋]₊².

    μ₊ and μ₋ are the batch's mean similarities of positive and of negative pairs, through which the gradient passes. A
    regulariser to add to `tuplet_margin` or another loss. Options: `AnchorOptions`.

    Yu & Tao 2019, "Deep metric learning with tuplet margin loss" (ε = 0.01).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # similarities of positives 1, 0, 0: their mean is 1/3
    >>> float(intra_pair_variance(z, jnp.array([0, 0, 0]), positive_epsilon=0.0))  # 2/3 · (1/3)²
    0.0741
    """
    how: dict[str, Any] = {"similarity": similarity}
    limits = over_pairs(_mean_score_rows, embeddings, labels, **{**how, **options, "reduction": _means})
    limits *= jnp.stack([1 - jnp.asarray(positive_epsilon), 1 + jnp.asarray(negative_epsilon)]).astype(limits.dtype)
    return over_pairs(_variance_rows, embeddings, labels, limits, **how, by_pair=True, **options)


def _places(values: Float[Array, "..."], nodes: int, limit) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """The node at or below each value among `nodes` from −limit to limit, and how far the value is towards the next."""
    place = (jnp.clip(values, -limit, limit) + limit) * ((nodes - 1) / (2 * limit))
    low = jnp.clip(jnp.floor(lax.stop_gradient(place)), 0, nodes - 2)
    return low.astype(jnp.int32), place - low


def _shares(values: Float[Array, "r p"], where: Array, nodes: int, limit) -> Mean:
    """Each row's histogram: a value gives its weight to the two nodes beside it, linearly."""
    low, part = _places(values, nodes, limit)
    rows = jnp.arange(len(values), dtype=jnp.int32)[:, None]
    nothing = 0 * values[:, :1] * jnp.zeros((1, nodes), values.dtype)
    total = nothing.at[rows, low].add(jnp.where(where, 1 - part, 0)).at[rows, low + 1].add(jnp.where(where, part, 0))
    return Mean(total, jnp.sum(where, axis=-1, keepdims=True))


def _histogram_rows(pairs, nodes):
    positive_scores, positives, _, _ = pairs.apart
    return _shares(positive_scores, positives, len(nodes), 1.0)


def _below_rows(pairs, cumulated):
    _, _, negative_scores, negatives = pairs.apart
    low, part = _places(negative_scores, len(cumulated), 1.0)
    below = (1 - part) * cumulated[low] + part * cumulated[low + 1]
    return Mean(jnp.sum(jnp.where(negatives, below, 0), axis=-1), jnp.sum(negatives, axis=-1))


def histogram(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    bins: int = 100,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Histogram loss: Σ_r h⁻_r Σ_{q≤r} h⁺_q: the chance that a negative pair is at least as similar as a positive.

    h⁺ and h⁻ are the histograms of all positive and of all negative pairs over bins + 1 nodes from −1 to 1: a
    similarity gives its weight linearly to the two nearest. `reduction` reduces over negatives. Options:
    `AnchorOptions`.

    Ustinova & Lempitsky 2016, arXiv:1611.00822.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # the positive pair at 0, negative pairs at 1 and 0
    >>> float(histogram(z, jnp.array([0, 0, 1])))
    1.0
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; wanted at least 1")
    how: dict[str, Any] = {"similarity": similarity}
    nodes = jnp.zeros(bins + 1)
    own = over_pairs(_histogram_rows, embeddings, labels, nodes, heavy=True, **{**how, **options, "reduction": _means})
    return over_pairs(_below_rows, embeddings, labels, jnp.cumsum(own), heavy=True, **how, **options)


def _gap_terms(chosen, nodes, limit) -> Mean:
    return _shares(chosen.d_ap - chosen.d_an, chosen.valid, len(nodes), limit)


def _softly_weighted_terms(chosen, cumulated, limit) -> Mean:
    gaps, valid = chosen.d_ap - chosen.d_an, chosen.valid
    low, part = _places(gaps, len(cumulated), limit)
    weights = lax.stop_gradient(cumulated[low + (part >= 1).astype(low.dtype)])  # the last node at the limit and beyond
    return Mean(jnp.sum(jnp.where(valid, weights * gaps, 0), axis=-1), jnp.sum(valid, axis=-1))


def dynamic_soft_margin(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    state: Float[Array, " nodes"],
    *,
    momentum: ArrayLike = 0.01,
    limit: ArrayLike = 2.0,
    distance: Callable[[Array, Array], Array] = distances.chord,
    triplets: Callable[[Array, Array, Array], mining.Triplets] = mining.batch_hard,
    **options: Unpack[AnchorOptions],
) -> tuple[Loss, Float[Array, " nodes"]]:
    """Triplets with a dynamic soft margin: mean of F(x) x over x = d_ap − d_an, and the new state.

    F is the distribution function of x as seen so far, without a gradient. The state is a histogram over equally spaced
    nodes from −`limit` to `limit`, all zeros at first (512 nodes in the paper's code): the batch's histogram h moves it
    to (1 − momentum) state + momentum h, the first one replaces it, and then F is read at the node below x. The mean is
    over all triplets that `triplets` selects. Begin with `dynamic_soft_margin(z, y, jnp.zeros(512))`. Options:
    `AnchorOptions`.

    Zhang & Rusinkiewicz 2019, "Learning local descriptors with a CDF-based dynamic soft margin" (momentum 0.01).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> loss, state = dynamic_soft_margin(z, jnp.array([0, 0, 1]), jnp.zeros(5))  # x = −√2, so F = 0.41 at −2
    >>> [round(float(h), 4) for h in state]
    [0.4142, 0.5858, 0.0, 0.0, 0.0]
    >>> float(loss)  # 0.4142 · −√2
    -0.5858
    """
    check_positive(limit=limit)
    if state.ndim != 1 or len(state) < 2:
        raise ValueError(f"state has shape {state.shape}; wanted one number for each of at least 2 nodes")
    how: dict[str, Any] = {"distance": distance, **options}
    check_rows("embeddings", embeddings)
    held = lax.stop_gradient(embeddings)
    seen = over_triplets(_gap_terms, triplets, held, labels, state, limit, **{**how, "reduction": _means})
    begun, some = jnp.any(state > 0), jnp.any(seen > 0)
    kept, before = jnp.where(begun, 1 - jnp.asarray(momentum, seen.dtype), 0), state.astype(seen.dtype)
    now = jnp.where(some, kept * before + (1 - kept) * seen, before)
    cumulated = jnp.cumsum(now) / jnp.where(some | begun, jnp.sum(now), 1)
    loss = over_triplets(_softly_weighted_terms, triplets, embeddings, labels, cumulated, limit, **how)
    return loss, now.astype(state.dtype)
