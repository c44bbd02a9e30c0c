"""The positives of each row: short lists of them, from the order of the columns by class, and a loop over them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from metricjax.engine.devices import varying
from metricjax.engine.selecting import next_marked
from metricjax.engine.sizes import LIST

__all__ = [
    "Side",
    "each_positive",
    "in_order_of_class",
    "listed_positives",
    "summed_over_positives",
    "with_short_lists",
]


class Side(NamedTuple):
    """What is known of each row (or column) besides its embedding. Columns with a row's id are the row itself.

    span: of rows, where their positives stand among the columns in order of class: first, end, and the row's own place.
    order: of columns, those in order of class. Without the two, positives are known by their mask only.
    slots: of columns, where lists are made: 0 to p − 1, for lists of p positives.
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
    # Where a row stands at its own number it is skipped; elsewhere among references, lists leave it out by its id.
    own = jnp.where(column.ids[row.ids] == row.ids, place[row.ids], len(order))
    return row._replace(span=jnp.stack([*ends, own], axis=-1)), column._replace(order=order)


def listed_positives(row: Side, column: Side, which: Int[Array, " p"]) -> tuple[Int[Array, "r p"], Bool[Array, "r p"]]:
    """The columns [r, p] of the first, second, … positive of each row (those of `which`), and whether there is one."""
    assert row.span is not None and column.order is not None
    first, end, own = (row.span[:, i, None] for i in range(3))
    at = first + which[None]
    at = jnp.where(at >= own, at + 1, at)
    index = column.order[jnp.minimum(at, len(column.order) - 1)]
    another = column.where[index] & (column.ids[index] != row.ids[:, None])
    return index, (at < end) & row.where[:, None] & another


def with_short_lists(f: Callable[[Side, Side], Any], row: Side, column: Side, lengths: tuple[int, ...]) -> Any:
    """`f(row, column)`, with lists of positives of the first of the rising lengths that is enough for every row."""
    if row.span is None:
        return f(row, column)
    if not lengths:
        return f(row._replace(span=None), column._replace(order=None))
    sizes = row.span[:, 1] - row.span[:, 0]
    short = jnp.max(jnp.where(row.where, sizes, 0), initial=0) <= lengths[0]
    listed = lambda row, column: f(row, column._replace(slots=jnp.arange(lengths[0], dtype=jnp.int32)))
    otherwise = lambda row, column: with_short_lists(f, row, column, lengths[1:])
    return lax.cond(short, listed, otherwise, row, column)


def each_positive(
    step: Callable[[Any, Array, Array], Any],
    carry: Any,
    positives: Bool[Array, "r m"],
    sides: tuple[Side, Side] | None = None,
) -> Any:
    """`step(carry, column [r, 1], there [r, 1])` for the first positive of each row, then for the second, and so on.

    Rows that have no more of them get any column, which is not `there`. What `step` returns varies over the mesh axes
    that `carry` varies over.

    The loop has both modes of differentiation, in which each step is computed again: it has a step for each
    column, and does nothing in those that no row has a positive for. With `sides`, row and column, it ends
    with the last positive, and looks positives up where the columns are in order of class; it has no reverse mode.
    """
    m = positives.shape[1]
    before = varying(jnp.full((len(positives), 1), -1, jnp.int32), (positives, carry))

    def visit(state):
        last, carry = state
        column = next_marked(positives, last)
        return column, step(carry, jnp.minimum(column, m - 1), column < m)

    if sides is None:

        @partial(jax.checkpoint, prevent_cse=False)
        def visit_if_any(state, _):
            return lax.cond(jnp.any(state[0] < m), visit, lambda state: state, state), None

        return lax.scan(visit_if_any, (before, carry), length=m)[0][1]
    row, columns = sides
    if row.span is None:
        count = jnp.max(jnp.sum(positives, axis=1, dtype=jnp.int32))
        return lax.fori_loop(0, count, lambda _, state: visit(state), (before, carry))[1]

    def look_up(p, carry):
        column, listed = listed_positives(row, columns, p[None])
        return step(carry, column, listed & jnp.take_along_axis(positives, column, axis=1))

    return lax.fori_loop(0, jnp.max(_class_sizes(row)), look_up, carry)


def _class_sizes(row: Side) -> Int[Array, " r"]:
    """How many columns of each row's class there are besides its own."""
    first, end, own = row.span.T  # type: ignore[union-attr]
    return jnp.where(row.where, end - first - (own < end).astype(jnp.int32), 0)


def summed_over_positives(f: Callable[..., Any], listed: Bool[Array, "r p"], columns: Int[Array, "#r p"]) -> Any:
    """Σ_p f(there [r], column [r]) over the listed positives of each row, of which row i has one where `there[i]`.

    `f` returns one array [r] or several. It is run for all slots of a list together; for whole rows, whose `columns`
    [1, m] are all, for one positive of each after the other, and again for the gradient: memory is then that of one.
    """
    if listed.shape[1] <= LIST:
        every = jax.vmap(f, 1)(listed, jnp.broadcast_to(columns, listed.shape))
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), every)

    def add(sums, column, there):
        return jax.tree.map(jnp.add, sums, f(there[:, 0], column[:, 0]))

    like = jax.eval_shape(f, listed[:, 0], jnp.zeros(len(listed), jnp.int32))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    return each_positive(add, varying(zeros, listed), listed)
