"""Miners that select triplets: `f(distances, positives, negatives) -> Triplets`.

They get the distances of n anchors to m columns and two masks, look at one row at a time, and return indices of
static shape with a mask that says which of them count. Ties go to the first index. They are meant to run without a
gradient: the losses gather what they chose and differentiate only that.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from metricjax.engine.miners import Selection, Triplets, selection
from metricjax.engine.selecting import first_greater, first_largest, ordered_integers
from metricjax.ground.functions import offered

__all__ = [
    "all_triplets",
    "batch_hard",
    "distance_weighted",
    "easy_positive_hard_negative",
    "row_keys",
    "semi_hard",
    "semi_hard_of_hardest",
    "semi_hard_within",
]


def _farthest(distances: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Int[Array, " n"]:
    return first_largest(jnp.where(where, distances, -jnp.inf))


def _closest(distances: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Int[Array, " n"]:
    return _farthest(-distances, where)


def _marked(where: Bool[Array, "n m"], index: Int[Array, " n"]) -> Bool[Array, " n"]:
    return jnp.take_along_axis(where, index[:, None], axis=1)[:, 0]


def _one_each(positive: Int[Array, " n"], negative: Int[Array, " n"], positives, negatives) -> Triplets:
    valid = _marked(positives, positive) & _marked(negatives, negative)
    return Triplets(jnp.arange(positive.size, dtype=jnp.int32), positive, negative, valid)


@selection(extremes=("farthest", "closest"))
def batch_hard(
    distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Triplets:
    """For each anchor its farthest positive and its closest negative (Hermans et al. 2017, arXiv:1703.07737).

    >>> import jax.numpy as jnp
    >>> t = batch_hard(jnp.array([[0.0, 1.0, 2.0, 3.0]]), jnp.array([[0, 1, 1, 0]]) > 0, jnp.array([[0, 0, 0, 1]]) > 0)
    >>> int(t.positive[0]), int(t.negative[0]), bool(t.valid[0])
    (2, 3, True)
    """
    return _one_each(_farthest(distances, positives), _closest(distances, negatives), positives, negatives)


@selection(extremes=("closest", "closest"))
def easy_positive_hard_negative(
    distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Triplets:
    """For each anchor its closest positive and its closest negative (Xuan et al. 2020, arXiv:1904.04370)."""
    return _one_each(_closest(distances, positives), _closest(distances, negatives), positives, negatives)


def _next_farther(
    distances: Float[Array, "n m"], where: Bool[Array, "n m"]
) -> tuple[Int[Array, "n m"], Bool[Array, "n m"]]:
    """For each column the closest marked one of its row that is strictly farther, and whether there is one."""
    n, m = distances.shape
    index = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32), (n, m))
    keys = ordered_integers(jnp.where(where, distances, jnp.inf))
    ordered, order = lax.sort((keys, index), dimension=1, num_keys=1, is_stable=True)
    after = first_greater(ordered, ordered_integers(distances))
    farther = after < jnp.sum(where, axis=-1, keepdims=True, dtype=after.dtype)
    return jnp.take_along_axis(order, jnp.minimum(after, m - 1), axis=1), farther


def _one_for_each_positive(negative: Int[Array, "n m"], valid: Bool[Array, "n m"]) -> Triplets:
    anchor, positive = (lax.broadcasted_iota(jnp.int32, negative.shape, axis) for axis in (0, 1))
    return Triplets(anchor, positive, negative, valid)


def _semi_hard_negative(
    limit: Float[Array, "n 1"], distances: Float[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Int[Array, " n"]:
    """The negative that `semi_hard` selects for one positive of each anchor, `limit` away."""
    farther = negatives & (distances > limit)
    closest = _closest(distances, farther)
    some = _marked(farther, closest)
    fall_back = lambda: jnp.where(some, closest, _farthest(distances, negatives))
    return lax.cond(jnp.all(some), lambda: closest, fall_back)


@selection(one=_semi_hard_negative)
def semi_hard(distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]) -> Triplets:
    """For each anchor and positive the closest negative that is farther than the positive, else the farthest negative.

    n × m triplets, one for each positive (Schroff et al. 2015, FaceNet, arXiv:1503.03832; the fall-back is that of
    FaceNet's well-known reimplementations). "Semi-hard" is used with three meanings:

    | | one triplet for each | a negative is semi-hard if | where there is none |
    |---|---|---|---|
    | `semi_hard` | anchor and positive | d_ap < d_an | the farthest negative |
    | `semi_hard_of_hardest` | anchor, with its farthest positive | d_ap < d_an | no triplet |
    | `semi_hard_within(margin)` | anchor and positive | d_ap < d_an < d_ap + margin | no triplet |

    All three take the closest of the semi-hard negatives. They differ where the classes overlap, and where they are
    well apart: there the first two go on selecting triplets whose loss is zero, and the third selects nothing.
    """
    closest, farther = _next_farther(distances, negatives)
    negative = jnp.where(farther, closest, _farthest(distances, negatives)[:, None])
    return _one_for_each_positive(negative, positives & jnp.any(negatives, axis=-1, keepdims=True))


@selection()
def semi_hard_of_hardest(
    distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Triplets:
    """For each anchor its farthest positive and the closest negative farther than that: n triplets at most.

    The semi-hard rule of TensorFlow Similarity, which falls back on the farthest negative where there is none; here
    that anchor has no triplet. `semi_hard` compares the three meanings.

    >>> import jax.numpy as jnp
    >>> p, n = jnp.array([[1, 1, 0, 0, 0]]) > 0, jnp.array([[0, 0, 1, 1, 1]]) > 0
    >>> t = semi_hard_of_hardest(jnp.array([[1.0, 2.0, 1.5, 2.5, 3.0]]), p, n)
    >>> int(t.positive[0]), int(t.negative[0])
    (1, 3)
    """
    positive = _farthest(distances, positives)
    farther = negatives & (distances > jnp.take_along_axis(distances, positive[:, None], axis=1))
    return _one_each(positive, _closest(distances, farther), positives, farther)


@offered("triplets", made=True)
def semi_hard_within(margin: ArrayLike = 0.2) -> Selection:
    """For each anchor and positive the closest negative with d_ap < d_an < d_ap + margin, where there is one.

    n × m triplets, one for each positive: the words of Schroff et al. 2015 (arXiv:1503.03832, margin 0.2), for whom
    semi-hard negatives "lie inside the margin", without a fall-back. `semi_hard` compares the three meanings.

    >>> import jax.numpy as jnp
    >>> p, n = jnp.array([[1, 1, 0, 0, 0]]) > 0, jnp.array([[0, 0, 1, 1, 1]]) > 0
    >>> t = semi_hard_within(0.5)(jnp.array([[1.0, 2.0, 1.25, 2.5, 3.0]]), p, n)  # 2.5 is not nearer than 2 + 0.5
    >>> t.valid[0].tolist(), int(t.negative[0, 0])
    ([True, False, False, False, False], 2)
    """
    return Selection(Partial(_semi_hard_within, margin), one=Partial(_semi_hard_within_negative, margin))


def _semi_hard_within_negative(margin, limit, distances, negatives) -> Int[Array, " n"]:
    """That for one positive of each anchor, `limit` away; a column that is no negative where there is none."""
    near = negatives & (distances > limit) & (distances < limit + jnp.asarray(margin, distances.dtype))
    closest = _closest(distances, near)
    return jnp.where(_marked(near, closest), closest, jnp.argmin(negatives, axis=1).astype(jnp.int32))


def _semi_hard_within(margin, distances, positives, negatives) -> Triplets:
    closest, farther = _next_farther(distances, negatives)
    limit = distances + jnp.asarray(margin, distances.dtype)
    near = jnp.take_along_axis(distances, closest, axis=1) < limit
    return _one_for_each_positive(closest, positives & farther & near)


@offered("triplets", made=True)
def distance_weighted(
    key: Key[Array, "..."], dimension: ArrayLike, *, cutoff: ArrayLike = 0.5, upper: ArrayLike = 1.4
) -> Selection:
    """For each anchor and positive one negative, drawn with probability ∝ 1 / q(max(d, cutoff)) among those d < upper.

    q(d) = d^(D − 2) (1 − d²/4)^((D − 3)/2) is the density of distances between uniformly spread points of the unit
    sphere in `dimension` D, so that negatives of all distances come equally often. The distances have to be those on
    the sphere: `distances.chord`. n × m triplets, one for each positive; an anchor without negatives nearer than
    `upper` has none. A draw depends on the key, the row, the positive's column and the row's distances, and not on
    later columns that are not negatives. All is computed in logarithms, relative to the row's largest weight.

    Wu, Manmatha, Smola, Krähenbühl 2017, arXiv:1706.07567; cutoff and upper limit are those of the authors' code, where
    beyond 1.4 = β + α the margin loss is 0. (Where no negative is below the limit, it draws any.)

    >>> import jax, jax.numpy as jnp
    >>> p, n = jnp.array([[1, 0, 0, 0]]) > 0, jnp.array([[0, 1, 1, 1]]) > 0
    >>> t = distance_weighted(jax.random.key(0), 128)(jnp.array([[0.3, 1.3, 0.6, 1.5]]), p, n)
    >>> int(t.negative[0, 0])  # at 1.3, some 10³⁰ times less likely
    2
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"key is an array of {key.dtype}; wanted one made by jax.random.key")
    return Selection(Partial(_distance_weighted, key, dimension, cutoff, upper))


def _distance_weighted(key, dimension, cutoff, upper, distances, positives, negatives) -> Triplets:
    n, m = distances.shape
    dimension, cutoff, upper = (jnp.asarray(a, distances.dtype) for a in (dimension, cutoff, upper))
    near = negatives & (distances < upper)
    tiny = jnp.finfo(distances.dtype).eps  # keeps both logarithms finite
    d = jnp.clip(distances, jnp.maximum(cutoff, tiny), 2 - 2 * tiny)
    log_weight = (2 - dimension) * jnp.log(d) + (3 - dimension) / 2 * jnp.log1p(-jnp.square(d / 2))
    top = jnp.max(log_weight, axis=1, keepdims=True, where=near, initial=-jnp.inf)
    weight = jnp.exp(jnp.where(near, log_weight - jnp.where(jnp.isfinite(top), top, 0), -jnp.inf))
    reached = _cumulative(weight)
    # The first numbers of a threefry stream do not depend on how many are asked for.
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (m,), distances.dtype))(row_keys(key, n))
    negative = jnp.minimum(first_greater(reached, uniform * reached[:, -1:]), m - 1)
    return _one_for_each_positive(negative, positives & jnp.any(near, axis=1, keepdims=True))


def _cumulative(weight: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """Running sums that rise only where there is a weight, so that no other column can be drawn.

    A parallel scan adds in an order that differs from column to column, and by rounding its sums may rise or fall.
    """
    return lax.cummax(jnp.where(weight > 0, jnp.cumsum(weight, axis=1), 0), axis=1)


def row_keys(key: Key[Array, "..."], n: int) -> Key[Array, " n"]:
    """One key for each of n rows: derived from one key, or as they came."""
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))


@selection(every=True)
def all_triplets(
    distances: Float[Array, "n m"], positives: Bool[Array, "n m"], negatives: Bool[Array, "n m"]
) -> Triplets:
    """Every anchor with every positive and every negative: n × m × m triplets.

    It declares that it selects every triplet, so that `losses.triplet` sums them without listing them.
    """
    n, m = distances.shape
    anchor, positive, negative = jnp.meshgrid(*(jnp.arange(size, dtype=jnp.int32) for size in (n, m, m)), indexing="ij")
    return Triplets(anchor, positive, negative, positives[:, :, None] & negatives[:, None, :])
