"""Rows in order of class, in whole tiles: positives then lie in few tiles, and all others hold negatives only."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.engine.positives import Side

__all__ = ["Ordered", "in_order", "towers_in_order"]


class Ordered(NamedTuple):
    """Rows in order of class, those that do not exist last, filled up to whole tiles; or both towers, each filled up.

    place: where each of the rows that came stands. number: of its class. exists: which do.
    positives, negatives: how many each row has.
    """

    x: Float[Array, "n d"]
    place: Int[Array, " r"]
    number: Int[Array, " n"]
    exists: Bool[Array, " n"]
    positives: Float[Array, " n"]
    negatives: Float[Array, " n"]


def in_order(height: int, columns: Float[Array, "r d"], column: Side) -> Ordered:
    """Rows of one set, in tiles of `height`."""
    n, count = len(columns), -(-len(columns) // height)
    order = jnp.lexsort((column.labels, ~column.where))
    place = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))
    labels, where = column.labels[order], column.where[order]
    first = jnp.concatenate([jnp.zeros(1, bool), (labels[1:] != labels[:-1]) | (where[1:] != where[:-1])])
    filled = lambda a: jnp.pad(a, [(0, count * height - n)] + [(0, 0)] * (a.ndim - 1), mode="edge")
    number = filled(jnp.cumsum(first, dtype=jnp.int32))
    there = jnp.sum(where, dtype=jnp.int32)
    exists = jnp.arange(len(number), dtype=jnp.int32) < there
    ends = [jnp.searchsorted(number[:n], number, side=side) for side in ("left", "right")]
    positives = jnp.where(exists, ends[1] - ends[0] - 1, 0).astype(columns.dtype)
    negatives = jnp.where(exists, there - 1, 0).astype(columns.dtype) - positives
    x = jnp.pad(columns[order], [(0, len(number) - n), (0, 0)])
    return Ordered(x, place, number, exists, positives, negatives)


def towers_in_order(height: int, columns: Float[Array, "r d"], column: Side) -> Ordered:
    """Two towers, one after the other: row i of either is of class i."""
    n, d = len(columns) // 2, columns.shape[1]
    filled = lambda a: jnp.pad(a.reshape(2, n, -1), [(0, 0), (0, -n % height), (0, 0)])
    x, exists = filled(columns), filled(column.where)[..., 0]
    number = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), exists.shape)
    place = jnp.concatenate([first + jnp.arange(n, dtype=jnp.int32) for first in (0, x.shape[1])])
    others = jnp.sum(exists, axis=1, keepdims=True, dtype=jnp.int32) - 1
    positives, negatives = exists, jnp.where(exists, others, 0)
    counts = (a.reshape(-1).astype(columns.dtype) for a in (positives, negatives))
    return Ordered(x.reshape(-1, d), place, number.reshape(-1), exists.reshape(-1), *counts)
