"""The prototype driver: runs a loss over class prototypes, of which only each row's own (its target) is special.

A class-based loss is written as two elementwise functions of scores, similarities of embeddings and prototypes,

    target(own [n], *rows [n], *hyper) -> [n]                          the logit of each row's own class
    others(scores [n, c], own [n, 1], *rows [n, 1], *hyper) -> [n, c]  logits of some classes, as if none were own

where `own` is each row's score against its own class. The driver joins both into one loss for each row, and everything
else is here: labels to targets, padding, blocks of classes, classes split over devices or sampled, reduction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from metricjax.anchors import Mean, a_row_for_none, existing, static_or_traced
from metricjax.checks import check_array, check_class_batch
from metricjax.class_blocks import Scores, Sweep, dense, how_many, in_blocks, take, take_and_pass
from metricjax.classes import add_classes as add_classes
from metricjax.classes import class_means as class_means
from metricjax.classes import none_unknown
from metricjax.classes import sample as sample
from metricjax.functions import by_content, check_closed, check_function, jitted, own_functions
from metricjax.numerics import logsumexp, norm, softplus, spoilt, widen
from metricjax.pairwise import Pairwise, as_pairwise
from metricjax.panels import varying
from metricjax.problems import shown, unwrapped
from metricjax.reductions import Loss, as_mean, check_reduction, of_all, quotient, reduced

_DENSE = 2**22  # scores up to which "auto" stays dense, which is faster
_BLOCK = 2**21  # scores in one block above that


class PrototypeOptions(TypedDict, total=False):
    """Options of every class-based loss.

    where: [n] bool, rows that exist; a padded batch gives exactly the value and gradient of the unpadded one. A row
        whose label is no class (−1, say) counts as not existing; its numbers must be finite, as NaN or infinity makes
        the loss and its gradient NaN.
    weights: [n], multiplies each row's total and count.
    reduction: function of the `Mean` of [n] totals and counts; default Σ total / Σ count.
    block_size: classes at a time, of which no more scores are held; "auto" (default: dense up to 4 million scores,
        blocks above), an int, or None (always dense: also forward mode and second derivatives).
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
    axis_name: str | tuple[str, ...] | None
    num_classes: int | None
    classes: Int[Array, " c"] | None
    ignore_above: ArrayLike | None


class SoftmaxOptions(PrototypeOptions, total=False):
    """Options of class-based losses that are a softmax cross-entropy: `PrototypeOptions`, and

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
) -> Loss:
    """The loss of `target` and `others` over all prototypes, or what else `reduction` makes of its Mean.

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
    known = SoftmaxOptions.__annotations__ | PrototypeOptions.__annotations__
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"unknown options {unknown}; besides its own, a class-based loss takes {sorted(known)}")
    given = dict[str, Any](options)
    where, weights, classes = (given.pop(name, None) for name in ("where", "weights", "classes"))
    ignore_above, smoothing = (given.pop(name, None) for name in ("ignore_above", "label_smoothing"))
    if (reduction := given.get("reduction", quotient)) is not quotient:
        given["reduction"] = check_reduction(reduction)
    for name, f in (("target", target), ("others", others), ("pool", pool)):
        if f is not None or name == "target":
            check_function(name, f)
    functions = by_content(target), by_content(others), as_pairwise(similarity, "similarity"), by_content(pool)
    how = Settings(*functions, join, **given)
    check_class_batch(embeddings, labels, jax.tree.leaves(prototypes)[0], where, weights, classes, pool is not None)
    how.check(how_many(prototypes), classes is not None, smoothing is not None)
    arrays = (embeddings, labels, prototypes, where, weights, classes, tuple(jnp.asarray(a) for a in rows))
    return _over_prototypes(how, arrays, static_or_traced((ignore_above, smoothing, *hyper), embeddings))


@dataclass(frozen=True)
class Settings:
    """What is static of one call."""

    target: Callable[..., Array]
    others: Callable[..., Array] | None
    similarity: Pairwise
    pool: Callable[..., Array] | None
    join: str
    reduction: Callable[[Mean], Any] = quotient
    block_size: int | str | None = "auto"
    axis_name: str | tuple[str, ...] | None = None
    num_classes: int | None = None

    def check(self, given: int, sampled: bool, smooth: bool) -> None:
        """Options fit together, and the number of prototypes."""
        number, most = self.num_classes, given * (1 if self.axis_name is None else lax.axis_size(self.axis_name))
        if number is not None and not (number >= 1 and (sampled or number <= most)):
            raise ValueError(f"num_classes is {number}; wanted 1 to {most}, the number of prototypes")
        if not (self.block_size in (None, "auto") or (isinstance(self.block_size, int) and self.block_size > 0)):
            raise ValueError(f"block_size is {self.block_size!r}; wanted 'auto', None or a positive int")
        if smooth and (self.join != "softmax" or self.others is None):
            raise TypeError("label_smoothing is for losses that are a softmax cross-entropy, which this one is not")


class Targets(NamedTuple):
    """Which classes the prototypes here are, and where each row finds its own.

    own: position of the row's class among the prototypes here, −1 if it is not here.
    known: whether any device has it.
    real: which prototypes here are classes, None if all are.
    """

    own: Int[Array, " n"]
    known: Bool[Array, " n"]
    real: Bool[Array, " c"] | None


@jitted
def _over_prototypes(how: Settings, arrays, hyper):
    embeddings, labels, prototypes, where, weights, classes, rows = arrays
    came = len(embeddings)
    if not came:  # a row that does not exist: no arithmetic has to know of none
        embeddings, labels, *rows = map(a_row_for_none, (embeddings, labels, *rows))
        where, weights = jnp.zeros(1, bool), a_row_for_none(weights)
    axis, n = how.axis_name, len(embeddings)
    x = how.similarity.embed(existing(widen(embeddings), where))
    rows = tuple(existing(a.astype(x.dtype), where) for a in rows)
    x, rows, hyper = varying(((x, rows, hyper), jax.tree.leaves(prototypes)[0][:1]))[0]
    all_x, all_labels, all_rows = of_all((x, labels, rows), axis)
    to = targets(all_labels, how_many(prototypes), classes, how.num_classes, axis)
    _, smoothing, *own_hyper = unwrapped(hyper)
    size = _block_size(how, len(all_x), x.shape[1], how_many(prototypes))
    own_rows, prototypes = (take if size is None else take_and_pass)(prototypes, jnp.maximum(to.own, 0))
    scores = Scores(how.similarity, how.pool, fast_cosines=size is not None)
    _check_own_functions(how, scores, all_x, prototypes, rows, own_hyper)
    alone = lambda tree: jax.tree.map(lambda a: a[None], tree)
    here = jax.vmap(lambda x, w: scores(alone(x), alone(w), own_hyper)[0, 0])(all_x, own_rows)
    own = varying((_joined(jnp.where(to.own >= 0, here, 0), axis), x))[0]
    mine = partial(_mine, n=n, axis=axis)
    logit = how.target(mine(own), *rows, *own_hyper)
    total = logit
    if how.others is not None:
        sweep = Sweep(scores, how.others, size, how.join != "sum", how.join == "sum" or smoothing is not None)
        arguments = (all_x, prototypes, to.own, to.real, (own, *all_rows), hyper)
        log_sum, plain = (dense if size is None else in_blocks)(sweep, *arguments)
        log_sum = _log_joined(log_sum, n, axis) if sweep.exponential else None
        plain = mine(_joined(plain, axis))
        total = _total(how.join, logit, log_sum, plain, smoothing)
    exists = mine(to.known) if where is None else where & mine(to.known)
    mean = Mean(jnp.where(exists, total, 0) + spoilt(all_x), exists.astype(x.dtype))
    mean, weights = jax.tree.map(lambda a: a[:came], (mean, None if weights is None else weights.astype(x.dtype)))
    return reduced((mean,), weights, how.reduction, axis)


def _check_own_functions(how: Settings, scores: Scores, x, prototypes, rows, hyper) -> None:
    """Users' functions use no traced value but their arguments, and return what they should: in both forms, alike."""
    own = {"target": how.target, "others": how.others, "similarity": how.similarity.compare, "pool": how.pool}
    if not own_functions(tuple(own.values())):
        return
    r, c = how_many(prototypes) + 1, how_many(prototypes)

    def of_some(x, prototypes, rows, hyper):
        x, *rows = (jnp.broadcast_to(a[:1], (r, *a.shape[1:])) for a in (x, *rows))
        z = scores(x, prototypes, hyper)
        numbers = z[:, 0], *rows
        target = how.target(*numbers, *hyper)
        return target, None if how.others is None else how.others(z, *(a[:, None] for a in numbers), *hyper)

    found = check_closed(own, of_some, x, prototypes, rows, hyper)
    for name, value, shape in zip(("target", "others"), found, ((r,), (r, c)), strict=True):
        if value is not None and getattr(value, "shape", None) != shape:
            wanted = f"a logit for each, {list(shape)}"
            raise ValueError(f"{name} returned {shown(value)} for scores {list(shape)}; wanted {wanted}")


def _total(join: str, logit, log_sum, plain, smoothing):
    """Each row's total: of its target's logit, and log Σ exp, Σ and number of the logits of other classes."""
    plain_sum, number = plain
    if join == "sum":
        return logit + plain_sum
    if join == "log_odds":
        some = jnp.isfinite(log_sum)
        return jnp.where(some, jnp.where(some, log_sum, 0) - logit, 0)
    cross_entropy = softplus(log_sum - logit)
    if smoothing is None:
        return cross_entropy
    return cross_entropy + smoothing * (logit - (plain_sum + logit) / (number + 1))


def targets(labels, here: int, classes=None, num_classes: int | None = None, axis=None) -> Targets:
    """Where each label finds its class among `here` prototypes."""
    if classes is None:
        devices, index = (1, 0) if axis is None else (lax.axis_size(axis), lax.axis_index(axis))
        first, limit = index * here, here * devices if num_classes is None else num_classes
        position = none_unknown(labels, num_classes=limit) - first
        own = jnp.where((position >= 0) & (position < here), position, -1)
        real = None if num_classes is None else jnp.arange(here, dtype=jnp.int32) + first < limit
    else:
        classes, labels = (none_unknown(a, num_classes=num_classes) for a in (classes, labels))
        order = jnp.argsort(classes).astype(jnp.int32)
        nearest = order[jnp.minimum(jnp.searchsorted(classes[order], labels), here - 1)]
        own = jnp.where((labels >= 0) & (classes[nearest] == labels), nearest, -1)
        real = classes >= 0
    return Targets(own, _joined((own >= 0).astype(jnp.int32), axis) > 0, real)


def _block_size(how: Settings, n: int, d: int, c: int) -> int | None:
    """Classes in a block, None for the dense form."""
    if isinstance(how.block_size, int):
        return min(how.block_size, c)
    if how.block_size is None or max(n, d) * c <= _DENSE:  # the dense form holds a copy of the prototypes too
        return None
    return min(c, max(64, _BLOCK // n // 64 * 64))


# --- over devices ---------------------------------------------------------------------------------------------------


def _joined(a, axis):
    """Summed over devices."""
    return a if axis is None else lax.psum(a, axis)


def _mine(tree, n: int, axis):
    """This device's rows, of numbers of all."""
    mine = lambda a: lax.dynamic_slice_in_dim(a, lax.axis_index(axis) * n, n)
    return tree if axis is None else jax.tree.map(mine, tree)


def _log_joined(a: Float[Array, " all"], n: int, axis) -> Float[Array, " n"]:
    """log Σ exp over devices, for this device's rows."""
    if axis is None:
        return a
    each = lax.all_to_all(a.reshape(-1, n), axis, 0, 0, tiled=True)
    return logsumexp(each.T, jnp.isfinite(each.T))


# --- numbers of each row --------------------------------------------------------------------------------------------


def gathered(
    values: Callable[..., Array],
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c *k d"],
    options: Any,
    *rows: Float[Array, " n"],
    similarity: Pairwise,
) -> Mean:
    """`values(own, *rows)` of the rows of all devices, and which of them count, whatever their weights."""
    scope = {name: options[name] for name in ("where", "axis_name", "num_classes", "classes") if name in options}
    arrays = (embeddings, labels, prototypes)
    return over_prototypes(values, None, *arrays, rows=rows, similarity=similarity, reduction=as_mean, **scope)


def the_own(own: Float[Array, " n"], *rows: Array) -> Float[Array, " n"]:
    """A target that is the score itself."""
    return own


def row_lengths(embeddings: Float[Array, "n d"], options: Any) -> Float[Array, " n"]:
    check_array("embeddings", embeddings, "an array [rows, features]")
    return norm(existing(widen(embeddings), options.get("where")))[:, 0]


def row_ids(embeddings: Float[Array, "n d"], options: Any) -> Int[Array, " n"]:
    """Where this device's rows stand among those of all."""
    n, axis = len(embeddings), options.get("axis_name")
    return jnp.arange(n, dtype=jnp.int32) + (0 if axis is None else lax.axis_index(axis) * n)


def class_count(prototypes: Float[Array, "c *k d"], options: Any) -> ArrayLike:
    """How many classes take part."""
    check_array("prototypes", prototypes, "an array [classes, features]")
    axis, number, classes = (options.get(name) for name in ("axis_name", "num_classes", "classes"))
    if classes is not None:
        return _joined(jnp.sum(none_unknown(classes, num_classes=number) >= 0), axis)
    given = len(prototypes) * (1 if axis is None else lax.axis_size(axis))
    return given if number is None else number
