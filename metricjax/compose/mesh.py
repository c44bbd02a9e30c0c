"""Losses of batches, and of class prototypes, that lie split over the devices of a mesh."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from metricjax.losses.catalogue import ARGUMENTS

__all__ = ["over_mesh"]


def over_mesh(
    loss: Callable[..., Any], axis_name: str | tuple[str, ...], mesh: Mesh | None = None
) -> Callable[..., Any]:
    """The `loss`, for arrays whose rows are split over the mesh axis (or axes) `axis_name`.

    It takes what `loss` takes, whole arrays, and its value and gradient are those of one device. Of a pair-based loss
    each device holds the scores of its own rows, against the embeddings of all; of a class-based one those of all rows,
    against its own prototypes, which are split by class and never leave it, nor does their gradient. The numbers of
    rows, references and classes must be multiples of the number of devices: pad them, and mark what exists
    with `where` and `num_classes`. `mesh` defaults to that of `jax.set_mesh`. Use it inside `jax.jit`.

    >>> import jax, jax.numpy as jnp, metricjax as mj
    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
    >>> supcon = mj.over_mesh(mj.losses.supcon, "data", mesh)
    >>> z, y = jnp.eye(8), jnp.arange(8) // 2
    >>> bool(jnp.isclose(jax.jit(supcon)(z, y), mj.losses.supcon(z, y)))
    True
    """

    @functools.wraps(loss)
    def wrapped(*arguments, **options):
        if "axis_name" in options:
            raise TypeError("axis_name is given to over_mesh already; leave it out of the loss's options")
        named = dict(zip(_names_of_arguments(loss, len(arguments)), arguments, strict=True))
        every = {**named, **options}
        rows = {name: value for name, value in every.items() if value is not None and _is_split(name, value)}
        rest = {name: value for name, value in every.items() if name not in rows}
        traced = {name: value for name, value in rest.items() if _has_arrays(value)}
        on = jax.sharding.get_abstract_mesh() if mesh is None else mesh
        _check(rows, on, axis_name)
        specs = PartitionSpec(axis_name), PartitionSpec()
        if _is_explicit(on, axis_name):
            rows, traced = jax.sharding.reshard((rows, traced), tuple(NamedSharding(on, spec) for spec in specs))

        def local(rows, traced):
            given = {**rest, **rows, **traced}
            positional = [given.pop(name) for name in named]
            return loss(*positional, **given, axis_name=axis_name)

        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(rows, traced)

    return wrapped


def _has_arrays(value: Any) -> bool:
    """Whether it is an array, or a miner or another function to which arrays are bound."""
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))


def _names_of_arguments(loss: Callable[..., Any], count: int) -> list[str]:
    """Names of the positional arguments of a loss, as far as it has any; numbers for what is in `*args`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p.name for p in inspect.signature(loss).parameters.values() if p.kind in kinds]
    first = ["embeddings", "labels", *named[2:]][:count]
    return first + [str(i) for i in range(count - len(first))]


def _is_split(name: str, value: Any) -> bool:
    return name in ARGUMENTS and jnp.ndim(value) > 0


def _names(axis_name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def _is_explicit(mesh: Mesh | AbstractMesh, axis_name: str | tuple[str, ...]) -> bool:
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return all(types[name] == AxisType.Explicit for name in _names(axis_name))


def _check(rows: dict[str, Any], mesh: Mesh | AbstractMesh, axis_name: str | tuple[str, ...]) -> None:
    for name in _names(axis_name):
        if name not in mesh.shape:
            raise ValueError(f"axis_name is {name!r}; wanted one of the mesh's axes, {list(mesh.shape)}")
    devices = math.prod(mesh.shape[name] for name in _names(axis_name))
    for name, array in rows.items():
        if len(array) % devices:
            hint = "`num_classes`" if ARGUMENTS[name].each == "class" else "`where`"
            raise ValueError(f"{name} has {len(array)} rows; wanted a multiple of the {devices} devices (see {hint})")
