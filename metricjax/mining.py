"""Miners that select triplets: `f(distances, positives, negatives) -> Triplets`.

They get the distances of n anchors to m columns and two masks, look at one row at a time, and return indices of
static shape with a mask that says which of them count. Ties go to the first index. They are meant to run without a
gradient: the losses gather what they chose and differentiate only that.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.numerics import first_largest


class Triplets(NamedTuple):
    """Rows (`anchor`) and columns (`positive`, `negative`) of each triplet; what is not `valid` means nothing."""

    anchor: Int[Array, "n ..."]
    positive: Int[Array, "n ..."]
    negative: Int[Array, "n ..."]
    valid: Bool[Array, "n ..."]


def _farthest(distances: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Int[Array, " n"]:
    return first_largest(jnp.where(where, distances, -jnp.inf))


def _closest(distances: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Int[Array, " n"]:
    return _farthest(-distances, where)


def _marked(where: Bool[Array, "n m"], index: Int[Array, " n"]) -> Bool[Array, " n"]:
    return jnp.take_along_axis(where, index[:, None], axis=1)[:, 0]


def _one_each(positive: Int[Array, " n"], negative: Int[Array, " n"], positives, negatives) -> Triplets:
    valid = _marked(positives, positive) & _marked(negatives, negative)
    return Triplets(jnp.arange(positive.size, dtype=jnp.int32), positive, negative, valid)


def batch_hard(
    distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Triplets:
    """For each anchor its farthest positive and its closest negative: n triplets (Hermans et al. 2017, 1703.07737).

    >>> import jax.numpy as jnp
    >>> t = batch_hard(jnp.array([[0.0, 1.0, 2.0, 3.0]]), jnp.array([[0, 1, 1, 0]]) > 0, jnp.array([[0, 0, 0, 1]]) > 0)
    >>> int(t.positive[0]), int(t.negative[0]), bool(t.valid[0])
    (2, 3, True)
    """
    return _one_each(_farthest(distances, positives), _closest(distances, negatives), positives, negatives)


def easy_positive_hard_negative(
    distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Triplets:
    """For each anchor its closest positive and its closest negative: n triplets (Xuan et al. 2020, 1904.04370)."""
    return _one_each(_closest(distances, positives), _closest(distances, negatives), positives, negatives)


def semi_hard(distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]) -> Triplets:
    """For each anchor and positive the closest negative that is farther than the positive, else the farthest negative.

    n × m triplets, one for each positive (Schroff et al. 2015, FaceNet, arXiv:1503.03832; the fall-back is that of
    FaceNet's well-known reimplementations).
    """
    n, m = distances.shape
    index = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32), (n, m))
    keys = jnp.where(negatives, distances, jnp.inf)
    ordered, order = jax.lax.sort((keys, index), dimension=1, num_keys=1, is_stable=True)
    after = jax.vmap(lambda row, values: jnp.searchsorted(row, values, side="right"))(ordered, distances)
    farther = after < jnp.sum(negatives, axis=-1, keepdims=True, dtype=after.dtype)
    closest = jnp.take_along_axis(order, jnp.minimum(after, m - 1), axis=1)
    negative = jnp.where(farther, closest, _farthest(distances, negatives)[:, None])
    anchor = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32)[:, None], (n, m))
    return Triplets(anchor, index, negative, positives & jnp.any(negatives, axis=-1, keepdims=True))


def semi_hard_negative(
    limit: Float[Array, "n 1"], distances: Float[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Int[Array, " n"]:
    """The negative that `semi_hard` selects for one positive of each anchor, `limit` away."""
    farther = negatives & (distances > limit)
    closest = _closest(distances, farther)
    some = _marked(farther, closest)
    fall_back = lambda: jnp.where(some, closest, _farthest(distances, negatives))
    return jax.lax.cond(jnp.all(some), lambda: closest, fall_back)


def all_triplets(
    distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Triplets:
    """Every anchor with every positive and every negative: n × m × m triplets.

    `losses.triplet(triplets=all_triplets)` recognises this function and sums the same triplets without listing them.
    """
    n, m = distances.shape
    anchor, positive, negative = jnp.meshgrid(*(jnp.arange(size, dtype=jnp.int32) for size in (n, m, m)), indexing="ij")
    return Triplets(anchor, positive, negative, positives[:, :, None] & negatives[:, None, :])
