"""The prototype driver: runs a loss over class prototypes, of which only each row's own (its target) is special.

A class-based loss is written as two elementwise functions of scores, similarities of embeddings and prototypes,

    target(own [n], *rows [n], *hyper) -> [n]                          the logit of each row's own class
    others(scores [n, c], own [n, 1], *rows [n, 1], *hyper) -> [n, c]  logits of some classes, as if none were own

where `own` is each row's score against its own class. The driver joins both into one loss for each row, and everything
else is here: labels to targets, padding, blocks of classes, classes split over devices or sampled, reduction. Blocks
keep nothing of size n·c: one pass sums over the other classes, the backward pass computes each block again and finishes
the gradient of its prototypes there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from metricjax.anchors import Mean, existing, static_or_traced
from metricjax.checks import check_class_batch
from metricjax.numerics import logsumexp, softplus, widen
from metricjax.pairwise import Pairwise
from metricjax.panels import varying
from metricjax.problems import unwrapped
from metricjax.reductions import Loss, quotient, reduced

_DENSE = 2**22  # scores up to which "auto" stays dense, which is faster
_BLOCK = 2**19  # scores in one block above that


class PrototypeOptions(TypedDict, total=False):
    """Options of every class-based loss.

    where: [n] bool, rows that exist; a padded batch gives exactly the value and gradient of the unpadded one. A row
        whose label is no class (−1, say) counts as not existing.
    weights: [n], multiplies each row's total and count.
    reduction: function of the `Mean` of [n] totals and counts; default Σ total / Σ count.
    block_size: classes at a time, of which no more scores are held; "auto" (default: dense up to 4 million scores,
        blocks above), an int, or None (always dense: also forward mode and second derivatives).
    axis_name: mesh axis (or axes) inside `jax.shard_map`, over which rows are split, and prototypes by class: device i
        holds classes i·c to (i + 1)·c − 1. Embeddings and labels are gathered, two numbers a row are exchanged, and the
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

    label_smoothing: ε, for the target distribution (1 − ε) [j = y] + ε / c over the c classes.
    """

    label_smoothing: ArrayLike | None


def over_prototypes(
    target: Callable[..., Array],
    others: Callable[..., Array] | None,
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c *k d"],
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
    limits = [given.pop(name, None) for name in ("ignore_above", "label_smoothing")]
    how = Settings(target, others, similarity, pool, join, **given)
    check_class_batch(embeddings, labels, prototypes, where, weights, classes, pool is not None)
    how.check(limits[1] is not None)
    arrays = (embeddings, labels, prototypes, where, weights, classes, tuple(jnp.asarray(a) for a in rows))
    return _over_prototypes(how, arrays, static_or_traced((*limits, *hyper), embeddings))


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

    def check(self, smooth: bool) -> None:
        if not (self.block_size in (None, "auto") or (isinstance(self.block_size, int) and self.block_size > 0)):
            raise ValueError(f"block_size is {self.block_size!r}; wanted 'auto', None or a positive int")
        if smooth and self.join != "softmax":
            raise TypeError("label_smoothing is for losses that are a softmax cross-entropy, which this one is not")

    def scores(self, x, w, hyper) -> Float[Array, "n c"]:
        """Scores of embedded rows against prototypes [c, d] or [c, k, d]."""
        one = lambda w: self.similarity.compare(x, self.similarity.embed(w.astype(x.dtype)))
        return one(w) if self.pool is None else self.pool(jax.vmap(one, 1)(w), *hyper)


class Targets(NamedTuple):
    """Which classes the prototypes here are, and where each row finds its own.

    own: position of the row's class among the prototypes here, −1 if it is not here.
    known: whether any device has it.
    real: which prototypes here are classes, None if all are.
    """

    own: Int[Array, " n"]
    known: Bool[Array, " n"]
    real: Bool[Array, " c"] | None


@jax.jit(static_argnums=0, inline=True)
def _over_prototypes(how: Settings, arrays, hyper):
    embeddings, labels, prototypes, where, weights, classes, rows = arrays
    axis, n = how.axis_name, len(embeddings)
    x = how.similarity.embed(existing(widen(embeddings), where))
    rows = tuple(existing(a.astype(x.dtype)[:, None], where)[:, 0] for a in rows)
    x, rows, hyper = varying(((x, rows, hyper), prototypes[:1]))[0]
    everyone = (x, labels, rows) if axis is None else lax.all_gather((x, labels, rows), axis, tiled=True)
    all_x, all_labels, all_rows = everyone
    to = targets(all_labels, len(prototypes), classes, how.num_classes, axis)
    _, smoothing, *own_hyper = unwrapped(hyper)
    size = _block_size(how, len(all_x), len(prototypes))
    own_rows, prototypes = (_take if size is None else _take_and_pass)(prototypes, jnp.maximum(to.own, 0))
    here = jax.vmap(lambda x, w: how.scores(x[None], w[None], own_hyper)[0, 0])(all_x, own_rows)
    own = _joined(jnp.where(to.own >= 0, here, 0), axis)
    mine = partial(_mine, n=n, axis=axis)
    logit = how.target(mine(own), *rows, *own_hyper)
    total = logit
    if how.others is not None:
        sweep = Sweep(how, size, how.join != "sum", how.join == "sum" or smoothing is not None)
        arguments = (all_x, prototypes, to.own, to.real, (own, *all_rows), hyper)
        log_total, plain_total = (_dense if size is None else _in_blocks)(sweep, *arguments)
        rest = _log_joined(log_total, n, axis) if sweep.exponential else mine(_joined(plain_total, axis))
        if how.join == "log_odds":
            some = jnp.isfinite(rest)
            total = jnp.where(some, jnp.where(some, rest, 0) - logit, 0)
        else:
            total = softplus(rest - logit) if how.join == "softmax" else logit + rest
        if smoothing is not None:
            count = len(prototypes) if to.real is None else jnp.sum(to.real)
            count = _joined(jnp.asarray(count, x.dtype), axis)
            total += smoothing * (logit - (mine(_joined(plain_total, axis)) + logit) / count)
    exists = mine(to.known) if where is None else where & mine(to.known)
    mean = Mean(jnp.where(exists, total, 0), exists.astype(x.dtype))
    return reduced((mean,), None if weights is None else weights.astype(x.dtype), how.reduction, axis)


def targets(labels, here: int, classes=None, num_classes: int | None = None, axis=None) -> Targets:
    """Where each label finds its class among `here` prototypes."""
    if classes is None:
        devices, index = (1, 0) if axis is None else (lax.axis_size(axis), lax.axis_index(axis))
        first, limit = index * here, here * devices if num_classes is None else num_classes
        in_range = (labels >= 0) & (labels < limit)
        position = jnp.where(in_range, labels, -1).astype(jnp.int32) - first
        own = jnp.where(in_range & (position >= 0) & (position < here), position, -1)
        real = None if num_classes is None else jnp.arange(here, dtype=jnp.int32) + first < limit
    else:
        column = jnp.arange(here, dtype=jnp.int32)[None]
        own = jnp.max(jnp.where(labels[:, None] == classes[None], column, -1), axis=1, initial=-1)
        real = None if num_classes is None else classes < num_classes
        own = own if num_classes is None else jnp.where(labels < num_classes, own, -1)
    return Targets(own, _joined((own >= 0).astype(jnp.int32), axis) > 0, real)


def _block_size(how: Settings, n: int, c: int) -> int | None:
    """Classes in a block, None for the dense form."""
    if isinstance(how.block_size, int):
        return min(how.block_size, c)
    if how.block_size is None or n * c <= _DENSE:
        return None
    return min(c, max(64, _BLOCK // n // 64 * 64))


# --- over devices ---------------------------------------------------------------------------------------------------


def _joined(a, axis):
    """Summed over devices."""
    return a if axis is None else lax.psum(a, axis)


def _mine(a, n: int, axis):
    """This device's rows, of numbers of all."""
    return a if axis is None else lax.dynamic_slice_in_dim(a, lax.axis_index(axis) * n, n)


def _log_joined(a: Float[Array, " all"], n: int, axis) -> Float[Array, " n"]:
    """log Σ exp over devices, for this device's rows."""
    if axis is None:
        return a
    each = lax.all_to_all(a.reshape(-1, n), axis, 0, 0, tiled=True)
    return logsumexp(each.T, jnp.isfinite(each.T))


# --- over classes ---------------------------------------------------------------------------------------------------


def _take(prototypes, index):
    return prototypes[index], prototypes


@jax.custom_vjp
def _take_and_pass(prototypes, index):
    """Some rows, and all: so that the gradient of some is added into that of all, without another array as large."""
    return _take(prototypes, index)


def _add_into(index, cotangents):
    some, every = cotangents
    return every.at[index].add(some), None


_take_and_pass.defvjp(lambda prototypes, index: (_take(prototypes, index), index), _add_into)


@dataclass(frozen=True)
class Sweep:
    """A pass over the other classes: blocks of `size` classes, and which sums of the logits are wanted."""

    how: Settings
    size: int | None
    exponential: bool
    plain: bool

    def logits(self, x, w, own, real, rows, hyper):
        """Logits [n, b] of some classes, and which of them count for which row."""
        ignore_above, _, *own_hyper = unwrapped(hyper)
        scores = self.how.scores(x, w, own_hyper)
        counts = jnp.arange(len(w), dtype=jnp.int32)[None] != own[:, None]
        counts = counts if real is None else counts & real[None]
        counts = counts if ignore_above is None else counts & (scores <= ignore_above)
        assert self.how.others is not None
        return self.how.others(scores, *(a[:, None] for a in rows), *own_hyper), counts

    def block(self, start, size, prototypes, own, real):
        """Prototypes, positions of targets and mask of `size` classes from `start` on."""
        part = lambda a: None if a is None else lax.dynamic_slice_in_dim(a, start, size)
        return part(prototypes), own - start, part(real)

    def fold(self, step, carry, classes: int):
        """`step(carry, start, size)` over blocks of classes, the last one smaller if need be."""
        assert self.size is not None
        count, rest = divmod(classes, self.size)
        carry = lax.fori_loop(0, count, lambda i, carry: step(carry, i * self.size, self.size), carry)
        return step(carry, count * self.size, rest) if rest else carry


def _dense(sweep: Sweep, x, prototypes, own, real, rows, hyper):
    """log Σ exp and Σ of the logits of all other classes, [n] each."""
    z, counts = sweep.logits(x, prototypes, own, real, rows, hyper)
    log_total = logsumexp(z, counts) if sweep.exponential else None
    return log_total, jnp.sum(jnp.where(counts, z, 0), axis=-1) if sweep.plain else None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(sweep: Sweep, x, prototypes, own, real, rows, hyper):
    """`_dense`, a block of classes at a time."""
    nothing = jnp.zeros(len(x), x.dtype)

    def step(carry, start, size):
        top, exponential, plain = carry
        z, counts = sweep.logits(x, *sweep.block(start, size, prototypes, own, real), rows, hyper)
        if sweep.exponential:
            now = jnp.maximum(top, jnp.max(z, axis=-1, where=counts, initial=-jnp.inf))
            base = jnp.where(jnp.isfinite(now), now, 0)
            terms = jnp.exp(jnp.where(counts, z - base[:, None], -jnp.inf))
            top, exponential = now, exponential * jnp.exp(top - base) + jnp.sum(terms, axis=-1)
        if sweep.plain:
            plain += jnp.sum(jnp.where(counts, z, 0), axis=-1)
        return top, exponential, plain

    start = varying((nothing - jnp.inf, nothing, nothing, x))[:3]
    top, exponential, plain = sweep.fold(step, start, len(prototypes))
    some = exponential > 0
    log_total = jnp.where(some, jnp.where(some, top, 0) + jnp.log(jnp.where(some, exponential, 1)), -jnp.inf)
    return log_total if sweep.exponential else None, plain if sweep.plain else None


def _forward(sweep: Sweep, *arguments):
    totals = _in_blocks(sweep, *arguments)
    return totals, (arguments, totals[0])


def _backward(sweep: Sweep, kept, cotangents):
    (x, prototypes, own, real, rows, hyper), log_total = kept
    to_log, to_plain = cotangents
    finite = None if log_total is None else jnp.where(jnp.isfinite(log_total), log_total, 0)[:, None]

    def step(carry, start, size):
        sums, whole = carry
        w, *where = sweep.block(start, size, prototypes, own, real)
        logits = lambda x, w, rows, hyper: sweep.logits(x, w, *where, rows, hyper)
        z, pull, counts = jax.vjp(logits, x, w, rows, hyper, has_aux=True)
        dz = jnp.zeros_like(z)
        if sweep.exponential:
            dz += to_log[:, None] * jnp.exp(jnp.where(counts, z - finite, -jnp.inf))
        if sweep.plain:
            dz += jnp.where(counts, to_plain[:, None], 0)
        dx, dw, *rest = pull(dz)
        sums = jax.tree.map(jnp.add, sums, (dx, *rest))
        return sums, lax.dynamic_update_slice_in_dim(whole, dw, start, axis=0)

    zeros = varying((jax.tree.map(jnp.zeros_like, ((x, rows, hyper), prototypes)), x))[0]
    (dx, drows, dhyper), dw = sweep.fold(step, zeros, len(prototypes))
    return dx, dw, None, None, drows, dhyper


_in_blocks.defvjp(_forward, _backward)
