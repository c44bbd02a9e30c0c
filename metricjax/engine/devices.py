"""Devices of a mesh, inside `jax.shard_map`: the one file that knows collectives.

`axis` is the name of a mesh axis, a tuple of names, or None for a device by itself. Rows are split over it in order.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from metricjax.ground.numerics import logsumexp

__all__ = [
    "Axis",
    "count",
    "for_mine",
    "index",
    "log_summed",
    "mine",
    "of_all",
    "placed",
    "result",
    "row_ids",
    "summed",
    "varying",
]

Axis: TypeAlias = str | tuple[str, ...] | None


def count(axis: Axis) -> int:
    """How many devices there are."""
    return 1 if axis is None else lax.axis_size(axis)


def index(axis: Axis) -> ArrayLike:
    """Which of them this one is, from 0."""
    return 0 if axis is None else lax.axis_index(axis)


def row_ids(n: int, axis: Axis) -> Int[Array, " n"]:
    """Where this device's n rows stand among those of all."""
    own = jnp.arange(n, dtype=jnp.int32)
    return own if axis is None else own + n * lax.axis_index(axis)


def of_all(tree: Any, axis: Axis) -> Any:
    """The rows of all devices, in order."""
    return tree if axis is None else lax.all_gather(tree, axis, tiled=True)


def mine(tree: Any, n: int, axis: Axis) -> Any:
    """This device's n rows, of the rows of all."""
    own = lambda a: lax.dynamic_slice_in_dim(a, lax.axis_index(axis) * n, n)
    return tree if axis is None else jax.tree.map(own, tree)


def summed(tree: Any, axis: Axis) -> Any:
    """Sums over devices, the same everywhere."""
    return tree if axis is None else lax.psum(tree, axis)


def result(shape: tuple[int, ...], dtype: Any, like: Array) -> jax.ShapeDtypeStruct:
    """What a kernel returns: an array of this shape, that varies over devices as another does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).mat)


def placed(a: Float[Array, "n ..."], axis: Axis) -> Float[Array, "all ..."]:
    """This device's part of a long array of zeros: the sum over devices is the whole array, the same everywhere."""
    if axis is None:
        return a
    own = lax.axis_index(axis) == jnp.arange(lax.axis_size(axis))
    whole = jnp.where(own.reshape(-1, *[1] * a.ndim), a[None], 0)
    return whole.reshape(-1, *a.shape[1:])


def for_mine(a: Shaped[Array, "all ..."], axis: Axis) -> Shaped[Array, "devices n ..."]:
    """Each device has numbers for the rows of all: those that every device has for the rows of this one."""
    split = a.reshape(count(axis), -1, *a.shape[1:])
    return split if axis is None else lax.all_to_all(split, axis, 0, 0)


def log_summed(a: Float[Array, " all"], axis: Axis) -> Float[Array, " n"]:
    """log Σ exp over devices, for this device's rows."""
    if axis is None:
        return a
    each = for_mine(a, axis).T
    return logsumexp(each, jnp.isfinite(each))


def varying(tree: Any, like: Any = ()) -> Any:
    """Every array of `tree` varies over each mesh axis that any of them, or of `like`, varies over.

    The carry of a loop has to vary as what is added to it does. A custom derivative rule cannot sum a gradient over
    devices for an argument that does not vary; with the cast made outside the rule, ordinary differentiation does.
    """
    over = lambda a: jax.typeof(a).mat.varying
    axes = frozenset[str]().union(*map(over, jax.tree.leaves((tree, like))))
    cast = lambda a: lax.pcast(a, tuple(axes - over(a)), to="varying") if axes - over(a) else a
    return jax.tree.map(cast, tree)
