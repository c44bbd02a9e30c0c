"""The anchor driver's engine: from the caller's arrays to rows and columns, and what the loss asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from metricjax.engine import devices, implementations
from metricjax.engine.devices import of_all, varying
from metricjax.engine.implementations import Given, Settings
from metricjax.engine.pairs import PairLoss, check_own_functions, probed
from metricjax.engine.positives import Side, in_order_of_class
from metricjax.engine.reductions import quotient
from metricjax.engine.sizes import LIST, Size, anchors_in_panel, in_float32
from metricjax.engine.sweeps import with_prepared_miner
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import a_row_for_none, existing, spoiling, spoilt, widen
from metricjax.ground.pairwise import Pairwise

__all__ = ["Batch", "DeferredLoss", "deferring", "over_all_anchors", "run_or_defer"]


class Batch(NamedTuple):
    """The arrays of one call, as they came."""

    embeddings: Array
    labels: Array
    where: Array | None = None
    weights: Array | None = None
    references: Array | None = None
    reference_labels: Array | None = None
    reference_where: Array | None = None
    reference_ids: Array | None = None


@dataclass(frozen=True)
class DeferredLoss:
    """A pair-based loss that has not been run yet, so that it can share its scores with others; in sums, its value."""

    loss: PairLoss
    how: Settings
    batch: Batch
    hyper: tuple

    def value(self) -> Any:
        """The loss by itself."""
        return over_all_anchors(self.how, self.loss, self.batch, self.hyper)

    def __add__(self, other: Any) -> Any:
        return self.value() + other

    def __mul__(self, other: Any) -> Any:
        return self.value() * other

    __radd__, __rmul__ = __add__, __mul__

    def shared(self) -> tuple:
        """What two parts have to have in common to be run as one."""
        leaves, structure = jax.tree.flatten((self.batch, self.loss.same, self.loss.miner))
        return self.loss.score, self.loss.is_similarity, self.how, structure, tuple(map(id, leaves))


_DEFERRING = ContextVar("_DEFERRING", default=False)


@contextmanager
def deferring(whether: bool = True) -> Iterator[None]:
    """Pair-based losses with the default reduction are meanwhile returned as a `DeferredLoss` instead of being run."""
    before = _DEFERRING.set(whether)
    try:
        yield
    finally:
        _DEFERRING.reset(before)


def run_or_defer(part: DeferredLoss) -> Any:
    """The value of a loss, or inside `deferring` the loss itself, to be run with others."""
    return part if _DEFERRING.get() and part.how.reduction == quotient else part.value()


@jitted
def over_all_anchors(how: Settings, loss: PairLoss, batch: Batch, hyper: tuple) -> Any:
    """The loss over all anchors, or whatever its reduction makes of their Means."""
    given, size = _given(how, loss.score, batch, hyper), _panel_height(how, batch, loss.heavy)
    arrays = (given.rows, given.columns, given.hyper, *given.sides)
    check_own_functions(loss, *arrays, numbers=how.reduction.of_numbers)
    may_list = loss.same is None and len(given.columns) > LIST
    if loss.select is not None:
        asked = {"list"} if loss.select.one is not None and size is not None else set()
        run = implementations.of_triplets(how, loss, size, given)
    else:
        means, asked = probed(loss, *arrays) if may_list or size is not None else ((), set())
        run = implementations.of_pairs(how, loss, size, given, means)
    loss = replace(loss, reaches="rows" in asked)
    rows = len(given.rows) if size is None else size
    loss = with_prepared_miner(rows, loss, given.x, given.columns, *given.sides, how.axis_name)
    if "list" in asked and may_list:
        row, column = in_order_of_class(*given.sides)
        given = given._replace(row=row, column=column)
    return run(how, loss, size, given)


# --- from the caller's arrays to rows and columns -------------------------------------------------------------------


def _given(how: Settings, score: Pairwise, batch: Batch, hyper: tuple) -> Given:
    """Rows and columns as the implementations take them.

    Their gradients are NaN if a row that exists holds NaN, whatever was selected and compared.
    """
    came, batch = len(batch.embeddings), _without_empty_sides(batch)
    x, columns, row, column, weights = _sides(score, batch, how.axis_name)
    spoil = lax.stop_gradient(spoilt(columns) if batch.references is None else spoilt(columns) + spoilt(x))
    x, columns = spoiling(x, spoil), spoiling(columns, spoil)
    # A number is as unknown to XLA as a learned one: from a constant it makes another program, of other memory.
    is_float = lambda a: jnp.issubdtype(a.dtype, jnp.inexact)
    hyper = jax.tree.map(lambda a: lax.optimization_barrier(a) if is_float(a) else a, hyper)
    x, columns, weights, hyper, row, column = varying((x, columns, weights, hyper, row, column))
    rows_are_columns = batch.references is None and how.axis_name is None
    in_bfloat16 = batch.embeddings.dtype == jnp.bfloat16
    return Given(came, None if rows_are_columns else x, columns, hyper, weights, row, column, spoil, in_bfloat16)


def _without_empty_sides(batch: Batch) -> Batch:
    """The batch, with a row that does not exist on each empty side: no arithmetic has to deal with empty sides."""
    rows, columns = ("embeddings", "labels", "weights"), ("references", "reference_labels", "reference_ids")
    arrays = batch._asdict()
    for names, where in ((rows, "where"), (columns, "reference_where")):
        if arrays[names[0]] is not None and not len(arrays[names[0]]):
            arrays |= {name: a_row_for_none(arrays[name]) for name in names} | {where: jnp.zeros(1, bool)}
    return Batch(**arrays)


def _sides(score: Pairwise, batch: Batch, axis_name):
    """Rows, columns, what is known of each, and the anchors' weights; columns come from every device of the axis."""
    n, everywhere = len(batch.embeddings), devices.count(axis_name)
    gathered = partial(of_all, axis=axis_name)
    present = lambda where, n: jnp.ones(n * everywhere, bool) if where is None else gathered(where)
    own = devices.row_ids(n, axis_name)
    x = score.embed(existing(widen(batch.embeddings), batch.where))
    row = Side(batch.labels, jnp.ones(n, bool) if batch.where is None else batch.where, own)
    weights = jnp.ones(n, x.dtype) if batch.weights is None else batch.weights.astype(x.dtype)
    if batch.references is None:
        ids = jnp.arange(n * everywhere, dtype=jnp.int32)
        return x, gathered(x), row, Side(gathered(batch.labels), present(batch.where, n), ids), weights
    columns = gathered(score.embed(existing(batch.references.astype(x.dtype), batch.reference_where)))
    labels, where = gathered(jnp.asarray(batch.reference_labels)), present(batch.reference_where, len(batch.references))
    ids = -1 - jnp.arange(len(columns), dtype=jnp.int32)  # no row's
    if batch.reference_ids is not None:
        of_rows = gathered(jnp.asarray(batch.reference_ids).astype(jnp.int32))
        ids = jnp.where(of_rows < 0, ids, of_rows)
    return x, columns, row, Side(labels, where, ids), weights


def _panel_height(how: Settings, batch: Batch, heavy: bool) -> Size | None:
    """Anchors per panel, None for the dense form."""
    n, columns = max(1, len(batch.embeddings)), batch.embeddings if batch.references is None else batch.references
    if isinstance(how.block_size, int):
        return min(how.block_size, n)
    if how.block_size is None or how.implementation == "dense":
        return None
    m = max(1, len(columns)) * devices.count(how.axis_name)
    size = anchors_in_panel(n, m, in_float32(how.memory_budget, batch.embeddings.dtype), heavy)
    return n if size is None and how.implementation != "auto" else size
