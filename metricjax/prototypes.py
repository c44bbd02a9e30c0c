"""The prototype driver: runs a loss over class prototypes, of which only each row's own (its target) is special.

A class-based loss is written as two elementwise functions of scores, similarities of embeddings and prototypes,

    target(own [n], *rows [n], *hyper) -> [n]                          the logit of each row's own class
    others(scores [n, c], own [n, 1], *rows [n, 1], *hyper) -> [n, c]  logits of some classes, as if none were own

where `own` is each row's score against its own class. The driver joins both into one loss for each row, and everything
else is here: labels to targets, padding, blocks of classes, classes split over devices or sampled, reduction.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from metricjax.engine import devices
from metricjax.engine.class_blocks import number_of_classes
from metricjax.engine.devices import of_all
from metricjax.engine.pairs import Mean, static_or_traced
from metricjax.engine.prototypes import ClassLoss, known_labels, over_all_prototypes
from metricjax.engine.reductions import as_reduction
from metricjax.ground.checks import check_class_batch, check_class_labels, check_options, check_per_row, check_rows
from metricjax.ground.functions import by_content, check_function
from metricjax.ground.numerics import existing, normalize, widen
from metricjax.ground.pairwise import Pairwise, as_pairwise
from metricjax.ground.precision import Precision

__all__ = ["PrototypeOptions", "SoftmaxOptions", "add_classes", "class_means", "over_prototypes", "sample"]


def __dir__() -> list[str]:
    return __all__


class PrototypeOptions(TypedDict, total=False):
    """Options of every class-based loss.

    where: [n] bool, rows that exist; a padded batch gives exactly the value and gradient of the unpadded one. A row
        whose label is not a class (−1, say) counts as not existing; its numbers must be finite, as NaN or infinity
        makes the loss and its gradient NaN.
    weights: [n], multiplies each row's total and count.
    reduction: function of the `Mean` of [n] totals and counts; default Σ total / Σ count.
    block_size: classes at a time, of which no more scores are held; "auto" (default: dense up to 4 million scores,
        blocks above), an int, or None (always dense: also forward mode and second derivatives).
    memory_budget: bytes that a block of "auto" may take on GPUs and TPUs, default 3 · 2³⁰; on CPUs it fits the cache.
    precision: of the products that scores are, and of those of their gradients, as in `AnchorOptions`. None is JAX's
        default, which is fast on GPUs and TPUs.
    axis_name: mesh axis (or axes) inside `jax.shard_map`, over which rows are split, and prototypes by class: device i
        holds classes i·c to (i + 1)·c − 1. Embeddings and labels are gathered, a few numbers a row are summed, and the
        gradient of prototypes stays on its device: value and gradient are those of one device.
    num_classes: how many classes there are; rows of prototypes from there on are padding. Default: all rows.
    classes: [c] int, ids of the prototypes given where they are a sample of all (see `sample`), each once.
    ignore_above: other classes that score above this are left out for the row: with noisy labels they are likely its
        true class.
    """

    where: Bool[Array, " n"] | None
    weights: Float[Array, " n"] | None
    reduction: Callable[[Mean], Any]
    block_size: int | Literal["auto"] | None
    memory_budget: int
    precision: Precision
    axis_name: str | tuple[str, ...] | None
    num_classes: int | None
    classes: Int[Array, " c"] | None
    ignore_above: ArrayLike | None


class SoftmaxOptions(PrototypeOptions, total=False):
    """Options of class-based losses that are a softmax cross-entropy: those of `PrototypeOptions`, and one more.

    label_smoothing: ε, for the target distribution (1 − ε) [j = y] + ε / c over the c classes that take part.
    """

    label_smoothing: ArrayLike | None


def over_prototypes(
    target: Callable[..., Array],
    others: Callable[..., Array] | None,
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c *k d"] | tuple[Float[Array, "c d"], Float[Array, " c"]],
    *hyper: Any,
    similarity: Pairwise,
    rows: tuple[Float[Array, " n"], ...] = (),
    pool: Callable[..., Array] | None = None,
    join: Literal["softmax", "log_odds", "sum"] = "softmax",
    **options: Unpack[SoftmaxOptions],
) -> Any:
    """The loss of `target` and `others` over all prototypes, or whatever `reduction` makes of its Mean.

    With t the target's logit and z_j those of the other classes, a row's total is, by `join`,

        softmax    log(e^t + Σ_j e^{z_j}) − t
        log_odds   log Σ_j e^{z_j} − t, and 0 without other classes
        sum        t + Σ_j z_j

    Without `others` it is t alone. `rows` are numbers of each row that both functions get before the hyper-parameters.
    Several prototypes of each class [c, k, d] have their scores pooled by `pool(scores [k, n, c], *hyper) -> [n, c]`.
    A pair (prototypes, biases [c]) goes to a similarity that knows what to do with it.

    >>> import jax.numpy as jnp, metricjax as mj
    >>> def scaled(scores, own, scale): return scale * scores
    >>> def squared(own, scale): return scale * own**2
    >>> z, y = jnp.array([[1.0, 1.0]]), jnp.array([0])
    >>> loss = over_prototypes(squared, scaled, z, y, jnp.eye(2), 1.0, similarity=mj.similarities.cosine)
    >>> float(loss)  # log(1 + e^{0.7071 - 0.5})
    0.8021
    """
    check_options("a class-based loss", options, PrototypeOptions, SoftmaxOptions)
    given = dict[str, Any](options)
    where, weights, classes = (given.pop(name, None) for name in ("where", "weights", "classes"))
    ignore_above, smoothing = (given.pop(name, None) for name in ("ignore_above", "label_smoothing"))
    if "reduction" in given:
        given["reduction"] = as_reduction(given["reduction"])
    for name, f in (("target", target), ("others", others), ("pool", pool)):
        if f is not None or name == "target":
            check_function(name, f)
    score = as_pairwise(similarity, "similarity").at(given.pop("precision", None))
    functions = by_content(target), by_content(others), score, by_content(pool)
    loss = ClassLoss(*functions, join, **given)
    check_class_batch(embeddings, labels, jax.tree.leaves(prototypes)[0], where, weights, classes, pool is not None)
    loss.check(number_of_classes(prototypes), classes is not None, smoothing is not None)
    arrays = (embeddings, labels, prototypes, where, weights, classes, tuple(jnp.asarray(a) for a in rows))
    return over_all_prototypes(loss, arrays, static_or_traced((ignore_above, smoothing, *hyper), embeddings))


# --- sets of classes --------------------------------------------------------------------------------------------------


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
    here = math.ceil(num_classes / devices.count(axis_name))
    least = min(len(labels) * devices.count(axis_name), here)
    if not least <= count <= here:
        raise ValueError(f"count is {count}; wanted from {least} (a class for each row) to {here} (all classes here)")
    return _sample(key, labels, where, num_classes, here, count, axis_name)


@jax.jit(static_argnums=(3, 4, 5, 6), inline=True)
def _sample(key, labels, where, num_classes, here, count, axis_name):
    labels, first = of_all(known_labels(labels, where, num_classes), axis_name), 0
    if axis_name is not None:
        device = devices.index(axis_name)
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


def class_means(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    num_classes: int,
    *,
    where: Bool[Array, " n"] | None = None,
    normalize: bool = True,
) -> Float[Array, "c d"]:
    """Prototypes from embeddings: of each class the mean of x / ‖x‖, divided by its own length.

    With `normalize=False` it is the plain mean of x. Rows that do not exist by `where`, or whose label is not a class
    (−1, say), are left out. A class without rows, or whose rows cancel, has the prototype 0. Sums are taken
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
    labels = known_labels(labels, where, num_classes)
    index = jnp.where(labels < 0, num_classes, labels)
    total = lambda a: jnp.zeros((num_classes, *a.shape[1:]), x.dtype).at[index].add(a, mode="drop")
    count = jnp.maximum(total(jnp.ones(len(x), x.dtype)), 1)
    means = normalize(total(normalize(x))) if on_sphere else total(x) / count[:, None]
    return means.astype(embeddings.dtype)


def add_classes(old: Any, new: Any) -> Any:
    """`new` with the rows that `old` has: parameters or an optimiser's state, for more classes than before.

    `old` and `new` are pytrees of the same structure. Where a leaf of `new` has more rows (leading axis) than that of
    `old`, the rows of `old` come first and the rest are those of `new`; a leaf of the same shape (a count,
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
        raise ValueError(f"new has the structure {has}; wanted that of old, {had}")
    return jax.tree_util.tree_map_with_path(_with_further_rows, old, new)


def _with_further_rows(path, old, new):
    before, after = jnp.shape(old), jnp.shape(new)
    if before == after:
        return old
    if len(before) != len(after) or before[1:] != after[1:] or after[0] < before[0]:
        name = "new" + jax.tree_util.keystr(path)
        raise ValueError(f"{name} has shape {after}; wanted that of old, {before}, or more rows (leading axis)")
    return jnp.concatenate([jnp.asarray(old), jnp.asarray(new)[before[0] :].astype(old.dtype)])
