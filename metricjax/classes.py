"""Sets of classes: a sample of them for one step, prototypes for those that come later, room in what was trained."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from metricjax.anchors import existing
from metricjax.checks import check_class_labels, check_per_row, check_rows
from metricjax.numerics import normalize, widen
from metricjax.reductions import of_all


def sample(
    key: Key[Array, ""],
    labels: Integer[Array, " n"],
    num_classes: int,
    count: int,
    *,
    where: Bool[Array, " n"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Int[Array, " count"]:
    """Partial FC: ids of `count` of the classes, those of the batch and random others, each once and ascending.

    A class-based loss then takes `prototypes[classes]` and `classes=classes`, and `transforms.on_rows` updates no other
    rows. With `axis_name`, inside `jax.shard_map` and for prototypes split by class over devices (see
    `PrototypeOptions`), each device samples `count` of its own classes for the labels of all devices: there the rows
    are `prototypes[classes % len(prototypes)]`, and padding is sampled last; give the loss `num_classes` too, and fill
    prototypes up to the next multiple of the number of devices, no further.

    ValueError unless `count` has room for a class of each row.

    An et al. 2020, arXiv:2010.05222, and 2022, arXiv:2203.15565 (a tenth to a third of all classes).

    >>> import jax, jax.numpy as jnp
    >>> classes = sample(jax.random.key(0), jnp.array([7, 3, 7]), num_classes=1000, count=5)
    >>> len(set(classes.tolist())), {3, 7} <= set(classes.tolist())
    (5, True)
    """
    check_class_labels(labels, len(labels))
    check_per_row("where", where, len(labels))
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    here = math.ceil(num_classes / devices)
    least = min(len(labels) * devices, here)
    if not least <= count <= here:
        raise ValueError(f"count is {count}; wanted from {least} (a class for each row) to {here} (all classes here)")
    return _sample(key, labels, where, num_classes, here, count, axis_name)


@jax.jit(static_argnums=(3, 4, 5, 6), inline=True)
def _sample(key, labels, where, num_classes, here, count, axis_name):
    labels, first = of_all(none_unknown(labels, where, num_classes), axis_name), 0
    if axis_name is not None:
        device = lax.axis_index(axis_name)
        key, first = jax.random.fold_in(key, device), device * here
    own = jnp.where((labels >= first) & (labels < first + here), labels - first, here)
    ids = jnp.arange(here, dtype=jnp.int32)
    # Classes in order of a random number, those of the batch before and padding after all others.
    order = (jax.random.bits(key, (here,), jnp.uint32) >> 2).astype(jnp.int32) + 1
    order = jnp.where(ids + first < num_classes, order, jnp.iinfo(jnp.int32).max)
    order = order.at[own].set(0, mode="drop")
    last = jnp.sort(order)[count - 1]
    ties = jnp.cumsum(order == last, dtype=jnp.int32) <= count - jnp.sum(order < last)
    chosen = (order < last) | ((order == last) & ties)
    return jnp.nonzero(chosen, size=count)[0].astype(jnp.int32) + first


def none_unknown(labels, where=None, num_classes: int | None = None) -> Int[Array, " n"]:
    """Labels in 32 bits, −1 where there is none or it is no class; any is one without `num_classes`."""
    num_classes = jnp.iinfo(jnp.int32).max if num_classes is None else num_classes
    if jnp.iinfo(labels.dtype).max < num_classes:  # which could not be compared in their dtype
        labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < num_classes)
    return jnp.where(known if where is None else known & where, labels, -1).astype(jnp.int32)


def class_means(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    num_classes: int,
    *,
    where: Bool[Array, " n"] | None = None,
    normalize: bool = True,
) -> Float[Array, "c d"]:
    """Prototypes from embeddings: of each class the mean of x / ‖x‖, divided by its own length.

    With `normalize=False` it is the plain mean of x. Rows left out: those that `where` marks as not existing, and those
    whose label is no class (−1, say). A class without rows, or whose rows cancel, has the prototype 0. Sums are taken
    in float32; the dtype is that of the embeddings.

    Qi et al. 2018, arXiv:1712.07136 (imprinted weights); without normalising, Snell et al. 2017, arXiv:1703.05175.

    >>> import jax.numpy as jnp
    >>> class_means(jnp.array([[5.0, 0.0], [0.0, 2.0], [3.0, 4.0]]), jnp.array([0, 0, 2]), 3).tolist()
    [[0.7071, 0.7071], [0.0, 0.0], [0.6, 0.8]]
    """
    check_rows("embeddings", embeddings)
    check_class_labels(labels, len(embeddings))
    check_per_row("where", where, len(embeddings))
    return _class_means(embeddings, labels, where, num_classes, normalize)


@jax.jit(static_argnums=(3, 4), inline=True)
def _class_means(embeddings, labels, where, num_classes, on_sphere):
    x = existing(widen(embeddings), where)
    labels = none_unknown(labels, where, num_classes)
    index = jnp.where(labels < 0, num_classes, labels)
    total = lambda a: jnp.zeros((num_classes, *a.shape[1:]), x.dtype).at[index].add(a, mode="drop")
    count = jnp.maximum(total(jnp.ones(len(x), x.dtype)), 1)
    means = normalize(total(normalize(x))) if on_sphere else total(x) / count[:, None]
    return means.astype(embeddings.dtype)


def add_classes(old: Any, new: Any) -> Any:
    """`new` with the rows that `old` has: parameters or an optimiser's state, for more classes than before.

    `old` and `new` are pytrees of the same structure. Where a leaf of `new` has more rows (leading axis) than that of
    `old`, the rows of `old` come first and the further ones are those of `new`; a leaf of the same shape (a count,
    another layer) is that of `old`. Its dtype is kept. In an Optax state the moments of known classes thus go on, and
    those of new classes begin as `init` sets them:

        prototypes = jnp.concatenate([prototypes, class_means(embeddings, labels, k)])
        state = add_classes(state, optimizer.init(prototypes))

    ValueError if structures differ, or a leaf of `new` has fewer rows or other trailing axes.

    >>> import jax.numpy as jnp
    >>> old = {"count": jnp.array(7), "moments": jnp.ones((2, 1))}
    >>> new = {"count": jnp.array(0), "moments": jnp.zeros((3, 1))}
    >>> grown = add_classes(old, new)
    >>> int(grown["count"]), grown["moments"].tolist()
    (7, [[1.0], [1.0], [0.0]])
    """
    had: Any = jax.tree.structure(old)
    has: Any = jax.tree.structure(new)
    if had != has:
        raise ValueError(f"new has the structure {has}, old {had}; they must agree")
    return jax.tree_util.tree_map_with_path(_with_further_rows, old, new)


def _with_further_rows(path, old, new):
    before, after = jnp.shape(old), jnp.shape(new)
    if before == after:
        return old
    if len(before) != len(after) or before[1:] != after[1:] or after[0] < before[0]:
        name = "new" + jax.tree_util.keystr(path)
        raise ValueError(f"{name} has shape {after}; wanted that of old, {before}, or more rows (leading axis)")
    return jnp.concatenate([jnp.asarray(old), jnp.asarray(new)[before[0] :].astype(old.dtype)])
