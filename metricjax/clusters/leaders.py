"""As many clusters as rows start that are not similar enough to those before them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from metricjax.clusters.inputs import check_input, check_threshold, real_rows
from metricjax.engine import sizes
from metricjax.engine.selecting import first_largest_down
from metricjax.engine.sweeps import sweep
from metricjax.ground.numerics import normalize
from metricjax.ground.one_line import one_line
from metricjax.ground.precision import exact_product

__all__ = ["LeaderClusters", "threshold_clusters"]


class LeaderClusters(NamedTuple):
    """Clusters in the order of their first rows.

    labels: the cluster of each row; −1 for a row that does not exist, and for one that found no place.
    centers: of each cluster Σ x / ‖x‖ over its rows, normalised; 0 in places that are free.
    sizes: rows of each cluster, 0 in places that are free.
    overflow: how many rows found no place.
    """

    labels: Int[Array, " n"]
    centers: Float[Array, "c d"]
    sizes: Int[Array, " c"]
    overflow: Int[Array, ""]

    def __repr__(self) -> str:
        return one_line(self)


def threshold_clusters(
    embeddings: Float[Array, "n d"],
    threshold: ArrayLike,
    *,
    capacity: int | None = None,
    where: Bool[Array, " n"] | None = None,
) -> LeaderClusters:
    """Leader clustering, as a face album does it: rows in their order, each joins the closest cluster or starts one.

    A row joins the cluster whose centre (the normalised mean of x / ‖x‖ over the rows so far) has the largest cosine
    with it, ties to the older one, if that is at least `threshold`. Nobody is moved later: the clusters depend on the
    order of the rows (put the good images first), and two that grow towards each other stay two. They hardly chain, as
    a row must resemble the mean of a cluster and not just one of its rows; `connected_components` chains, and does not
    depend on the order.

    A zero row has cosine 0 with all others, and with a threshold above 0 is a cluster of its own. Rows that hold NaN or
    infinity do not exist. Time is that of the products of the rows with the centres there are when they come, and of n
    short steps. ValueError if a row found no place; under `jit`, where that cannot be raised, its label is −1 and it is
    counted in `overflow`.

    Args:
      capacity: the most clusters there may be, static; default n. A smaller one saves memory, not time.

    Hartigan 1975, "Clustering Algorithms", chapter 3 (there the first row of a cluster stands for it, not the mean).

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # cosines along the way: 0.6, then 0.8
    >>> threshold_clusters(x, 0.5).labels.tolist()  # the third has cosine √0.2 with the mean of the others
    [0, 0, 1]
    >>> threshold_clusters(x[::-1], 0.5).labels.tolist()  # and here √0.1
    [0, 0, 1]
    """
    capacity = max(1, len(embeddings)) if capacity is None else capacity
    check_input(embeddings, where, capacity=capacity)
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; wanted at least 1")
    check_threshold(threshold)
    found = _leaders(capacity, embeddings, threshold, where)
    if not isinstance(found.overflow, jax.core.Tracer) and found.overflow > 0:
        left = int(found.overflow)
        raise ValueError(f"capacity is {capacity}; wanted more: {left} rows are not similar to any of these clusters")
    return found


@jax.jit(static_argnums=0, inline=True)
def _leaders(capacity, embeddings, threshold, where) -> LeaderClusters:
    rows, real = real_rows(embeddings, where)
    threshold = jnp.asarray(threshold, rows.dtype)
    nothing = jnp.zeros((capacity + -capacity % sizes.leaders_at_once(capacity), rows.shape[1]), rows.dtype)
    start = nothing, nothing, jnp.int32(0)
    height = sizes.rows_led_at_once(len(rows))
    (_, centers, _), places = sweep(partial(_led, capacity, threshold), start, height, (normalize(rows), real))
    placed = places < capacity
    numbers = jnp.zeros(capacity, jnp.int32).at[places].add(1, mode="drop")
    left = jnp.sum(real & ~placed, dtype=jnp.int32)
    return LeaderClusters(jnp.where(placed, places, -1), centers[:capacity], numbers, left)


class _Joined(NamedTuple):
    """The clusters that rows of a block have joined, each in the slot of the first such row.

    products: of the sum of its rows with each row of the block.
    squares: of the length of that sum.
    places: which cluster it is; where the slot is free, a number behind all of them.
    """

    products: Float[Array, "b b"]
    squares: Float[Array, " b"]
    places: Int[Array, " b"]

    def closest(self, i, nobody):
        """The largest cosine with row i, and the cluster, of equal ones the oldest."""
        some = self.squares > 0
        cosines = jnp.where(some, self.products[:, i] * lax.rsqrt(jnp.where(some, self.squares, 1)), 0)
        cosines = jnp.where(self.places < nobody, cosines, -jnp.inf)
        near = jnp.max(cosines)
        return near, jnp.min(jnp.where(cosines == near, self.places, nobody))


def _led(capacity, threshold, state, block):
    """Gives each row of a block its place, one after the other.

    Centres that no row of the block has joined are as they were before it, and one product finds the closest of them.
    The others move with each row x that joins: the products of their sum with all rows of the block then grow by those
    of x, and the square of its length by 2 x · sum + x · x. So that is all that a step has to look at.
    """
    sums, centers, number = state
    x, real = block
    size, nobody = len(x), len(sums)
    order = jnp.arange(size, dtype=jnp.int32)
    best = _two_best(centers, number, x, order[:0])

    def among_others(i, places):
        """The cosine of row i with the closest centre without a slot, its place, and what its slot would hold."""
        first, place, _ = (a[0] for a in _two_best(centers, number, x[i][None], places))
        return first, place, exact_product(x, sums[place]), jnp.sum(jnp.square(sums[place]))

    def step(state, row):
        """Row i joins the closest centre, or starts a cluster."""
        slots, now = state
        i, real, dots, first, place, second = row
        near, at = slots.closest(i, nobody)
        gone = jnp.any(slots.places == place)  # what was closest has a slot by now
        unsure = gone & (near <= second) & (second >= threshold)
        known = lambda: (jnp.where(gone, -jnp.inf, first), place, slots.products[i], slots.squares[i])
        first, place, *held = lax.cond(unsure, lambda: among_others(i, slots.places), known)
        starts = ~(jnp.maximum(near, first) >= threshold)
        place = jnp.where((near > first) | ((near == first) & (at < place)), at, place)
        place = jnp.where(starts, jnp.where(now < capacity, now, nobody), place)
        place = jnp.where(real, place, nobody)
        is_placed = place < nobody
        slot = jnp.min(jnp.where((slots.places == place) & is_placed, order, i))
        before = lambda a, new: jnp.where(slot < i, a[slot], jnp.where(starts, 0, new))
        total, square = map(before, slots[:2], held)
        slot = jnp.where(is_placed, slot, size)
        joined = total + dots, square + 2 * total[i] + dots[i], place
        slots = _Joined(*(a.at[slot].set(value, mode="drop") for a, value in zip(slots, joined, strict=True)))
        return (slots, jnp.maximum(now, jnp.where(is_placed, place + 1, 0))), (place, slot)

    before = sums[best[1]]
    free = jnp.full(size, nobody, jnp.int32)
    closest = exact_product(before, x.T), jnp.sum(jnp.square(before), axis=1)
    slots = _Joined(*closest, free)  # of what is closest to each row
    (slots, now), (places, own) = lax.scan(step, (slots, number), (order, real, exact_product(x, x.T), *best))
    members = (order[:, None] == own[None]).astype(x.dtype)
    totals = sums[jnp.minimum(slots.places, nobody - 1)] + exact_product(members, x)
    put = lambda a, rows: a.at[slots.places].set(rows, mode="drop")
    return (put(sums, totals), put(centers, normalize(totals)), now), places


def _two_best(centers, number, x, left_out):
    """Of each row the largest cosine with the first `number` centres, where it is, and the second largest."""
    width = sizes.leaders_at_once(len(centers))

    def block(i, best):
        first, index, second = best
        place = i * width + jnp.arange(width, dtype=jnp.int32)
        counts = (place < number) & ~jnp.any(place[:, None] == left_out[None], axis=1)
        cosines = exact_product(lax.dynamic_slice_in_dim(centers, i * width, width), x.T)
        cosines = jnp.where(counts[:, None], cosines, -jnp.inf)
        at, top = first_largest_down(cosines)
        at = i * width + at
        runner_up = jnp.max(jnp.where(place[:, None] == at[None], -jnp.inf, cosines), axis=0)
        second = jnp.maximum(jnp.maximum(second, runner_up), jnp.minimum(first, top))
        return jnp.maximum(first, top), jnp.where(top > first, at, index), second

    low = jnp.full(len(x), -jnp.inf, x.dtype)
    return lax.fori_loop(0, -(-number // width), block, (low, jnp.zeros(len(x), jnp.int32), low))
