"""What is known of rows and columns besides their embeddings: labels, which exist, which is which, and, from the order
of the columns by class, lists of each row's positives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from metricjax.engine.selecting import next_marked

LIST = 64  # positives of an anchor that are looked at one by one; with more, all columns are


class Side(NamedTuple):
    """What is known of each row (or column) besides its embedding. Columns with a row's id are the row itself.

    span: of rows, where their positives stand among the columns in order of class: first, end, and the row's own place.
    order: of columns, those in order of class. Without the two, positives are known by their mask only.
    slots: of columns, 0, 1, …, of which there are as many as a list of positives is long, where lists are made.
    """

    labels: Shaped[Array, "n ..."]
    where: Bool[Array, " n"]
    ids: Int[Array, " n"]
    span: Int[Array, "n 3"] | None = None
    order: Int[Array, " n"] | None = None
    slots: Int[Array, " p"] | None = None


def in_order_of_class(row: Side, column: Side) -> tuple[Side, Side]:
    """Both sides with what lists of positives need."""
    if row.labels.ndim > 1:
        return row, column
    common = jnp.promote_types(row.labels.dtype, column.labels.dtype)
    common = jnp.dtype(jnp.int32) if jnp.issubdtype(common, jnp.bool_) else common
    labels = jnp.where(column.where, column.labels.astype(common), jnp.iinfo(common).max)
    order = jnp.argsort(labels).astype(jnp.int32)
    ends = [jnp.searchsorted(labels[order], row.labels.astype(common), side=side) for side in ("left", "right")]
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    own = jnp.where(column.ids[row.ids] == row.ids, place[row.ids], len(order))
    return row._replace(span=jnp.stack([*ends, own], axis=-1)), column._replace(order=order)


def listed_positives(row: Side, column: Side, which: Int[Array, " p"]) -> tuple[Int[Array, "r p"], Bool[Array, "r p"]]:
    """The columns [r, p] of the first, second, … positive of each row (those of `which`), and whether there is one."""
    assert row.span is not None and column.order is not None
    first, end, own = (row.span[:, i, None] for i in range(3))
    at = first + which[None]
    at = jnp.where(at >= own, at + 1, at)
    index = column.order[jnp.minimum(at, len(column.order) - 1)]
    return index, (at < end) & row.where[:, None] & column.where[index]


def with_lists_if_short(
    f: Callable[[Side, Side], Any], row: Side, column: Side, lengths: tuple[int, ...] = (LIST,)
) -> Any:
    """`f(row, column)`, with lists of positives of the least of the rising lengths that is enough for each row."""
    if row.span is None:
        return f(row, column)
    if not lengths:
        return f(row._replace(span=None), column._replace(order=None))
    sizes = row.span[:, 1] - row.span[:, 0]
    short = jnp.max(jnp.where(row.where, sizes, 0), initial=0) <= lengths[0]
    listed = lambda row, column: f(row, column._replace(slots=jnp.arange(lengths[0], dtype=jnp.int32)))
    otherwise = lambda row, column: with_lists_if_short(f, row, column, lengths[1:])
    return lax.cond(short, listed, otherwise, row, column)


def one_by_one(
    positives: Bool[Array, "r m"], row: Side, column: Side
) -> tuple[Int[Array, ""], Callable[[Array, Array], Array]]:
    """The greatest number of positives, and a function that gives the p-th positive [r, 1] from p and the last one.

    It goes on to columns that are no positives where there are fewer.
    """
    if row.span is not None:
        first, end, own = row.span.T
        sizes = jnp.where(row.where, end - first - (own < end).astype(jnp.int32), 0)
        return jnp.max(sizes), lambda p, last: listed_positives(row, column, p[None])[0]
    after = lambda p, last: jnp.minimum(next_marked(positives, last), positives.shape[1] - 1)
    return jnp.max(jnp.sum(positives, axis=1, dtype=jnp.int32)), after


def summed_over_positives(f: Callable[..., Any], positives: Bool[Array, "r p"], *values: Shaped[Array, "r p"]) -> Any:
    """Σ_p f(there [r], *value [r]) over the positives of each row, of which row i has one where `there[i]`.

    `f` returns one array [r] or several. It is run for all slots of a list together; for whole rows, for one positive
    of each after the other, and again for the gradient: memory is then that of one.
    """
    every = positives, *values
    if positives.shape[1] <= LIST:
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), jax.vmap(f, 1)(*every))
    order = jnp.argsort(~positives, axis=1)

    @jax.checkpoint
    def step(sums, column):
        add = lambda: jax.tree.map(jnp.add, sums, f(*column))
        return lax.cond(jnp.any(column[0]), add, lambda: sums), None

    columns = tuple(jnp.take_along_axis(a, order, axis=1).T for a in every)
    like = jax.eval_shape(f, *(a[0] for a in columns))
    zero = jnp.where(jnp.any(positives), 0, 0)  # varies over the same mesh axes
    zeros = jax.tree.map(lambda a: jnp.full(a.shape, zero, a.dtype), like)
    return lax.scan(step, zeros, columns)[0]
