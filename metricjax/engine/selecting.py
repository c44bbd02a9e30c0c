"""Selecting and counting in rows of scores, in the forms that processors do fastest."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from metricjax.engine import sizes
from metricjax.engine.devices import varying

__all__ = [
    "as_floats",
    "comes_before",
    "counted_before",
    "counted_by_comparing",
    "counted_by_sorting",
    "first_greater",
    "first_largest",
    "first_largest_down",
    "next_marked",
    "ordered_integers",
]


def first_largest(x: Float[Array, "n m"]) -> Int[Array, " n"]:
    """Index of the first largest entry of each row, none of which is NaN.

    One pass finds the largest of each group, and only one group is searched: on a CPU, argmax takes many times longer.
    """
    (n, m), size = x.shape, sizes.SEARCHED_GROUP
    groups = jnp.pad(x, [(0, 0), (0, -m % size)], constant_values=-jnp.inf).reshape(n, -1, size)
    tops = jnp.max(groups, axis=-1)
    group = jnp.argmax(tops, axis=-1).astype(jnp.int32)
    inside = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    return group * size + jnp.argmax(inside, axis=-1).astype(jnp.int32)


def first_largest_down(x: Float[Array, "m n"]) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Index of the first largest entry of each column, none of which is NaN, and that entry.

    Two reductions that a CPU does for several columns at once: next to a product, this costs little.
    """
    top, index = jnp.max(x, axis=0), jnp.arange(len(x), dtype=jnp.int32)[:, None]
    return jnp.min(jnp.where(x == top[None], index, len(x)), axis=0), top


def next_marked(mask: Bool[Array, "n m"], last: Int[Array, "n 1"]) -> Int[Array, "n 1"]:
    """The first column after `last` that each row marks, m where there is none."""
    column = jnp.arange(mask.shape[1], dtype=jnp.int32)[None]
    return jnp.min(jnp.where(mask & (column > last), column, column.size), axis=1, keepdims=True, initial=column.size)


def ordered_integers(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Integers in the same order as the floats, which are not NaN: a CPU sorts them several times faster."""
    kind = {32: jnp.int32, 64: jnp.int64}[jnp.finfo(x.dtype).bits]
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0, x), kind)  # −0 becomes 0; XLA leaves out an x + 0
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)


def as_floats(keys: Int[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """The floats that `ordered_integers` made these from."""
    return lax.bitcast_convert_type(jnp.where(keys < 0, keys ^ jnp.iinfo(keys.dtype).max, keys), dtype)


def first_greater(ordered: Shaped[Array, "n k"], values: Shaped[Array, "n m"]) -> Int[Array, "n m"]:
    """The place of the first entry greater than each value, in rows that are ordered."""
    return jax.vmap(lambda row, value: jnp.searchsorted(row, value, side="right"))(ordered, values)


# Several limits are counted in one sum: numbers of a few bits each, as float32 holds whole numbers of 24.
_CHUNK, _BITS, _TOGETHER = sizes.COUNTED_LIMITS, 6, sizes.COUNTED_DISTANCES
_LIMITS_AT_ONCE = 4 * _CHUNK  # counted in one step of a loop


def counted_by_comparing(limits, d):
    """How many distances are nearer than each limit [r, p], and how many limits each distance stays under [r, m]."""
    p, m = limits.shape[1], d.shape[1]
    d = jnp.pad(d, [(0, 0), (0, -m % _TOGETHER)], constant_values=jnp.inf)
    limits = jnp.pad(limits, [(0, 0), (0, -p % _CHUNK)], constant_values=-jnp.inf)

    def add(i, carry):
        nearer, reached = carry
        some = lax.dynamic_slice_in_dim(limits, i * _CHUNK, _CHUNK, axis=1)
        hits = [(d < some[:, k, None]).astype(jnp.int32) for k in range(_CHUNK)]
        packed = sum(hit << _BITS * k for k, hit in enumerate(hits)).astype(d.dtype)
        packed = jnp.sum(packed.reshape(len(d), -1, _TOGETHER), axis=-1).astype(jnp.int32)
        counts = jnp.stack([jnp.sum(packed >> _BITS * k & 2**_BITS - 1, axis=-1) for k in range(_CHUNK)], axis=1)
        nearer = lax.dynamic_update_slice_in_dim(nearer, counts.astype(d.dtype), i * _CHUNK, axis=1)
        return nearer, reached + sum(hits).astype(d.dtype)

    number = jnp.arange(1, limits.shape[1] + 1, dtype=jnp.int32)[None]
    used = jnp.max(jnp.where(limits > -jnp.inf, number, 0), initial=0)
    start = varying((jnp.zeros_like(limits), jnp.zeros_like(d)), d)
    nearer, reached = lax.fori_loop(0, -(-used // _CHUNK), add, start)
    return nearer[:, :p], reached[:, :m]


def counted_by_sorting(limits, d):
    """The same for many limits: ranks by bisection in each row's sorted distances and its sorted limits."""

    def row(arguments):
        limit, key = map(ordered_integers, arguments)
        nearer = jnp.searchsorted(jnp.sort(key), limit)
        reached = limit.size - jnp.searchsorted(jnp.sort(limit), key, side="right")
        return nearer.astype(d.dtype), reached.astype(d.dtype)

    return lax.map(row, (limits, d), batch_size=sizes.rows_sorted_at_once())


def comes_before(value, index, other, other_index):
    """Whether an entry comes before another by falling value, and by index where these are equal."""
    return (value > other) | ((value == other) & (index < other_index))


def counted_before(x: Shaped[Array, "r m"], columns: Int[Array, "r p"], used: Int[Array, ""]) -> Int[Array, "r p"]:
    """How many entries of a row come before those at its first `used` columns.

    Entries come in the order of `comes_before`; NaN comes before nothing. One comparison tells of an entry in a group
    of columns all before, or all after, the one asked for: with its value, or with the next number above. Its own
    group is looked at twice.
    """
    length = min(_LIMITS_AT_ONCE, -(-columns.shape[1] // _CHUNK) * _CHUNK)
    padded = jnp.pad(columns, [(0, 0), (0, -columns.shape[1] % length)])

    def add(i, before):
        for start in range(0, length, _CHUNK):
            column = lax.dynamic_slice_in_dim(padded, i * length + start, _CHUNK, axis=1)
            before = lax.dynamic_update_slice_in_dim(before, _some_before(x, column), i * length + start, axis=1)
        return before

    start = varying(jnp.zeros(padded.shape, jnp.int32), x)
    return lax.fori_loop(0, -(-used // length), add, start)[:, : columns.shape[1]]


def _some_before(x, columns):
    (r, m), width = x.shape, sizes.RANKED_TOGETHER * _TOGETHER
    whole, column = m // width, columns[:, :, None]
    value, group = jnp.take_along_axis(x, columns, axis=1)[:, :, None], column // width
    numbers = lambda start, stop: jnp.arange(start, stop, dtype=jnp.int32)[None, None]
    rest = x[:, None, whole * width :]
    before = jnp.sum(comes_before(rest, numbers(whole * width, m), value, column), axis=2, dtype=jnp.int32)
    if whole:
        groups = x[:, : whole * width].reshape(r, whole, width)
        # The barrier: limits are computed once, not for each comparison.
        limits = lax.optimization_barrier(jnp.where(numbers(0, whole) < group, value, _next_above(value)))
        before += _counted_in_groups(groups.reshape(r, whole, _TOGETHER, -1), limits)
        own = jnp.take_along_axis(groups, group, axis=1)
        equal = (own == value) & (numbers(0, width) < column % width) & (group < whole)
        before += jnp.sum(equal, axis=2, dtype=jnp.int32)
    return before


def _counted_in_groups(groups: Shaped[Array, "r g t l"], limits: Shaped[Array, "r k g"]) -> Int[Array, "r k"]:
    """How many entries of each row reach the limits of their groups, all counted in one sum."""
    ones = [(groups >= limits[:, k, :, None, None]).astype(jnp.int32) << _BITS * k for k in range(_CHUNK)]
    packed = lax.reduce(sum(ones), jnp.int32(0), lax.add, (2,))
    return jnp.stack([jnp.sum(packed >> _BITS * k & 2**_BITS - 1, axis=(1, 2)) for k in range(_CHUNK)], axis=1)


def _next_above(x):
    """The next number, NaN above ∞: nothing reaches it. Devices take the one just above 0, not a normal one, for 0."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x + 1
    normal = jnp.where(x == 0, jnp.finfo(x.dtype).tiny, jnp.nextafter(x, jnp.inf))
    return jnp.where(x == jnp.inf, jnp.nan, normal)
