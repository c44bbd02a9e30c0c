"""The prototype driver's engine: targets, each row's own logit, the sums over other classes, and their Mean."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from metricjax.engine import devices, implementations
from metricjax.engine.class_blocks import OtherClasses, Scores, number_of_classes
from metricjax.engine.devices import of_all, summed, varying
from metricjax.engine.pairs import Mean, shown, unwrapped
from metricjax.engine.reductions import Reduction, quotient, reduced, weighted
from metricjax.engine.sizes import BUDGET, Size, classes_in_block, in_float32
from metricjax.ground.checks import check_budget
from metricjax.ground.functions import check_closed, jitted, own_functions
from metricjax.ground.numerics import a_row_for_none, existing, softplus, spoilt, widen
from metricjax.ground.pairwise import Pairwise

__all__ = ["ClassLoss", "Targets", "known_labels", "over_all_prototypes", "targets"]


@dataclass(frozen=True)
class ClassLoss:
    """The static part of one call."""

    target: Callable[..., Array]
    others: Callable[..., Array] | None
    similarity: Pairwise
    pool: Callable[..., Array] | None
    join: str
    reduction: Reduction = quotient
    block_size: int | str | None = "auto"
    memory_budget: int = BUDGET
    axis_name: str | tuple[str, ...] | None = None
    num_classes: int | None = None

    def check(self, given: int, sampled: bool, smooth: bool) -> None:
        """Check that options fit together, and fit the number of prototypes."""
        number, most = self.num_classes, given * devices.count(self.axis_name)
        if number is not None and not (number >= 1 and (sampled or number <= most)):
            raise ValueError(f"num_classes is {number}; wanted 1 to {most}, the number of prototypes")
        if not (self.block_size in (None, "auto") or (isinstance(self.block_size, int) and self.block_size > 0)):
            raise ValueError(f"block_size is {self.block_size!r}; wanted 'auto', None or a positive int")
        check_budget(self.memory_budget)
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
def over_all_prototypes(loss: ClassLoss, arrays, hyper):
    embeddings, labels, prototypes, where, weights, classes, rows = arrays
    came = len(embeddings)
    if not came:  # a row that does not exist: no arithmetic has to deal with none
        embeddings, labels, *rows = map(a_row_for_none, (embeddings, labels, *rows))
        where, weights = jnp.zeros(1, bool), a_row_for_none(weights)
    axis, n = loss.axis_name, len(embeddings)
    x = loss.similarity.embed(existing(widen(embeddings), where))
    rows = tuple(existing(a.astype(x.dtype), where) for a in rows)
    x, rows, hyper = varying((x, rows, hyper), prototypes)
    all_x, all_labels, all_rows = of_all((x, labels, rows), axis)
    to = targets(all_labels, number_of_classes(prototypes), classes, loss.num_classes, axis)
    _, smoothing, *own_hyper = unwrapped(hyper)
    size = _block_size(loss, all_x, prototypes)
    sums, take = implementations.of_classes(size)
    own_rows, prototypes = take(prototypes, jnp.maximum(to.own, 0))
    scores = Scores(loss.similarity, loss.pool, reverse=size is not None)
    _check_own_functions(loss, scores, all_x, prototypes, rows, own_hyper)
    alone = lambda tree: jax.tree.map(lambda a: a[None], tree)
    here = jax.vmap(lambda x, w: scores(alone(x), alone(w), own_hyper)[0, 0])(all_x, own_rows)
    own = varying(summed(jnp.where(to.own >= 0, here, 0), axis), x)
    mine = partial(devices.mine, n=n, axis=axis)
    logit = loss.target(mine(own), *rows, *own_hyper)
    total = logit
    if loss.others is not None:
        others = OtherClasses(
            scores, loss.others, size, loss.join != "sum", loss.join == "sum" or smoothing is not None
        )
        arguments = (all_x, prototypes, to.own, to.real, (own, *all_rows), hyper)
        log_sum, sum_and_number = sums(others, *arguments)
        log_sum = devices.log_summed(log_sum, axis) if others.exponential else None
        total = _total(loss.join, logit, log_sum, mine(summed(sum_and_number, axis)), smoothing)
    exists = mine(to.known) if where is None else where & mine(to.known)
    mean = Mean(jnp.where(exists, total, 0) + spoilt(all_x), exists.astype(x.dtype))
    mean, weights = jax.tree.map(lambda a: a[:came], (mean, None if weights is None else weights.astype(x.dtype)))
    return reduced(weighted((mean,), weights), loss.reduction, axis)


def _check_own_functions(loss: ClassLoss, scores: Scores, x, prototypes, rows, hyper) -> None:
    """Check that users' functions use no traced value but their arguments and return what they should, in any form."""
    own = {"target": loss.target, "others": loss.others, "similarity": loss.similarity.compare, "pool": loss.pool}
    if not own_functions(tuple(own.values())):
        return
    r, c = number_of_classes(prototypes) + 1, number_of_classes(prototypes)

    def of_some(x, prototypes, rows, hyper):
        x, *rows = (jnp.broadcast_to(a[:1], (r, *a.shape[1:])) for a in (x, *rows))
        z = scores(x, prototypes, hyper)
        numbers = z[:, 0], *rows
        target = loss.target(*numbers, *hyper)
        return target, None if loss.others is None else loss.others(z, *(a[:, None] for a in numbers), *hyper)

    found = check_closed(own, of_some, x, prototypes, rows, hyper)
    for name, value, shape in zip(("target", "others"), found, ((r,), (r, c)), strict=True):
        if value is not None and getattr(value, "shape", None) != shape:
            wanted = f"a logit for each, {list(shape)}"
            raise ValueError(f"{name} returned {shown(value)} for scores {list(shape)}; wanted {wanted}")


def _total(join: str, logit, log_sum, sum_and_number, smoothing):
    """Each row's total, from its target's logit, and log Σ exp, Σ and number of the logits of other classes."""
    plain_sum, number = sum_and_number
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
        first, limit = devices.index(axis) * here, devices.count(axis) * here if num_classes is None else num_classes
        position = known_labels(labels, num_classes=limit) - first
        own = jnp.where((position >= 0) & (position < here), position, -1)
        real = None if num_classes is None else jnp.arange(here, dtype=jnp.int32) + first < limit
    else:
        classes, labels = (known_labels(a, num_classes=num_classes) for a in (classes, labels))
        order = jnp.argsort(classes).astype(jnp.int32)
        nearest = order[jnp.minimum(jnp.searchsorted(classes[order], labels), here - 1)]
        own = jnp.where((labels >= 0) & (classes[nearest] == labels), nearest, -1)
        real = classes >= 0
    return Targets(own, summed((own >= 0).astype(jnp.int32), axis) > 0, real)


def _block_size(loss: ClassLoss, x, prototypes) -> Size | None:
    """Classes in a block, None for the dense form."""
    (n, d), c = x.shape, number_of_classes(prototypes)
    if isinstance(loss.block_size, int):
        return min(loss.block_size, c)
    if loss.block_size is None:
        return None
    pooled = 0 if loss.pool is None else prototypes.shape[1]
    return classes_in_block(n, d, c, in_float32(loss.memory_budget, x.dtype), pooled)


def known_labels(labels, where=None, num_classes: int | None = None) -> Int[Array, " n"]:
    """Labels in 32 bits, −1 where a row or its class does not exist; any from 0 up is a class without `num_classes`."""
    num_classes = jnp.iinfo(jnp.int32).max if num_classes is None else num_classes
    if jnp.iinfo(labels.dtype).max < num_classes:  # it does not fit into their dtype
        labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < num_classes)
    return jnp.where(known if where is None else known & where, labels, -1).astype(jnp.int32)
