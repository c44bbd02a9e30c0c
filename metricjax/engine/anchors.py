"""The anchor driver's engine: from the caller's arrays to rows and columns, panels of rows, and the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from metricjax.engine import devices
from metricjax.engine.devices import of_all, summed, varying
from metricjax.engine.pairs import Mean, Problem, as_triplets, check_own_functions, means_of
from metricjax.engine.panels import added_panels, panels, prepared, summed_panels, summed_triplets
from metricjax.engine.positives import Side, in_order_of_class, with_lists_if_short
from metricjax.engine.reductions import PLAIN, is_of_sums, quotient, reduced
from metricjax.engine.sizes import LIST, anchors_in_panel
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import a_row_for_none, existing, spoiling, spoilt, widen
from metricjax.ground.pairwise import Pairwise
from metricjax.mining import Triplets


class Batch(NamedTuple):
    """The arrays of one call, as they came."""

    embeddings: Array
    labels: Array
    where: Array | None = None
    weights: Array | None = None
    references: Array | None = None
    reference_labels: Array | None = None
    reference_where: Array | None = None


class Settings(NamedTuple):
    """The options of one call that are neither arrays nor relations between labels."""

    reduction: Callable[[Mean], Any] = quotient
    block_size: int | str | None = "auto"
    axis_name: str | tuple[str, ...] | None = None


@dataclass(frozen=True)
class Part:
    """A pair-based loss that was not run yet, so that it can share the scores with others; in sums, its value."""

    problem: Problem
    how: Settings
    batch: Batch
    hyper: tuple

    def value(self) -> Any:
        """The loss by itself."""
        return over_all_anchors(self.how._replace(reduction=quotient), self.problem, self.batch, self.hyper)

    def __add__(self, other: Any) -> Any:
        return self.value() + other

    def __mul__(self, other: Any) -> Any:
        return self.value() * other

    __radd__, __rmul__ = __add__, __mul__

    def shared(self) -> tuple:
        """What two parts have to have in common to be run as one; of those that cannot be, no two have this."""
        problem, arrays = self.problem, (self.batch, self.problem.same, self.problem.miner)
        leaves, structure = jax.tree.flatten(arrays)
        alone = id(self) if problem.kind not in ("whole", "apart") or problem.given is not None else None
        return alone, problem.score, problem.is_similarity, self.how, structure, tuple(map(id, leaves))


def as_part(mean: Mean) -> Float[Array, ""]:
    """The reduction that asks `over_anchors` for a `Part`; elsewhere it is the default one."""
    return quotient(mean)


@jitted
def over_all_anchors(how, problem, batch, hyper):
    n, batch = len(batch.embeddings), _with_a_row(batch)
    x, columns, row, column, weights = _sides(problem.score, batch, how.axis_name)
    x, columns, reduce = _seeing_nan(x, columns, batch, how)
    x, columns, weights, hyper = varying((x, columns, weights, hyper))
    size, rows = _panel_height(batch, how), None if _rows_are_columns(batch, how) else x
    check_own_functions(problem, x, columns, hyper, row, column, plain=how.reduction in PLAIN)
    problem = prepared(problem, len(x) if size is None else size, rows, columns, row, column, how.axis_name)
    if problem.kind in ("apart", "reaching") and problem.same is None and len(columns) > LIST:
        row, column = in_order_of_class(row, column)
    of_rows = lambda means: reduce(*_first(n, (means, weights)))
    if size is None:
        return of_rows(with_lists_if_short(partial(means_of, problem, x, columns, hyper), row, column, problem.lengths))
    if not is_of_sums(how.reduction):
        return of_rows(panels(size, problem, rows, columns, hyper, row, column))
    if how.reduction not in PLAIN:
        means = added_panels(size, problem, rows, columns, hyper, weights, row, column)
        return reduce(means, None)
    if len(jax.eval_shape(lambda *a: means_of(problem, *a), x, columns, hyper, row, column)) == 1:
        mean = summed_panels(size, problem, rows, columns, hyper, (weights,), row, column)
        return reduce((mean,), None)
    # Each total is divided by its own count, so that counts have to be known before totals are added.
    fixed = lax.stop_gradient((rows, columns, hyper))
    own = [jnp.sum(mean.count * weights) for mean in panels(size, problem, *fixed, row, column)]
    counts = summed(own, how.axis_name)
    shares = tuple(weights / jnp.where(count > 0, count, 1) for count in counts)
    total = summed_panels(size, problem, rows, columns, hyper, shares, row, column).total
    return reduce((Mean(total * sum(counts), sum(own)),), None)


@jitted
def over_all_triplets(how, problem, batch, hyper):
    size = _panel_height(_with_a_row(batch), how)
    gathers = problem.negative_of is not None or not _selects_many(problem.select)
    if size is None or how.reduction not in PLAIN or not gathers:
        return over_all_anchors(how, problem, batch, hyper)
    batch = _with_a_row(batch)
    x, columns, row, column, weights = _sides(problem.score, batch, how.axis_name)
    x, columns, reduce = _seeing_nan(x, columns, batch, how)
    x, columns, weights, hyper = varying((x, columns, weights, hyper))
    rows = None if _rows_are_columns(batch, how) else x
    check_own_functions(problem, x, columns, hyper, row, column, plain=True)
    problem = prepared(problem, size, rows, columns, row, column, how.axis_name)
    if problem.negative_of is not None and problem.same is None and len(columns) > LIST:
        row, column = in_order_of_class(row, column)
    mean = summed_triplets(size, problem, rows, columns, hyper, weights, row, column)
    return reduce((mean,), None)


def _selects_many(select: Callable[[Array, Array, Array], Triplets], m: int = 64) -> bool:
    """Whether each row selects as many triplets as it has columns: then picking beats gathering embeddings."""
    scores, mask = jax.ShapeDtypeStruct((1, m), jnp.float32), jax.ShapeDtypeStruct((1, m), jnp.bool_)
    return math.prod(as_triplets(jax.eval_shape(select, scores, mask, mask)).valid.shape) >= m


# --- from the caller's arrays to rows and columns -------------------------------------------------------------------


def _with_a_row(batch: Batch) -> Batch:
    """The batch, whose empty sides get a row that does not exist: no arithmetic has to know of sides without rows."""
    rows, columns = ("embeddings", "labels", "weights"), ("references", "reference_labels")
    arrays = batch._asdict()
    for names, where in ((rows, "where"), (columns, "reference_where")):
        if arrays[names[0]] is not None and not len(arrays[names[0]]):
            arrays |= {name: a_row_for_none(arrays[name]) for name in names} | {where: jnp.zeros(1, bool)}
    return Batch(**arrays)


def _first(n: int, tree: Any) -> Any:
    """The rows that came, where one was added to none."""
    return tree if n else jax.tree.map(lambda a: a[:0], tree)


def _sides(score: Pairwise, batch: Batch, axis_name):
    """Rows, columns, what is known of each, and the anchors' weights; columns come from every device of the axis."""
    n, everywhere = len(batch.embeddings), devices.count(axis_name)
    gathered = partial(of_all, axis=axis_name)
    present = lambda where, n: jnp.ones(n * everywhere, bool) if where is None else gathered(where)
    ids, own = jnp.arange(n * everywhere, dtype=jnp.int32), devices.row_ids(n, axis_name)
    x = score.embed(existing(widen(batch.embeddings), batch.where))
    row = Side(batch.labels, jnp.ones(n, bool) if batch.where is None else batch.where, own)
    weights = jnp.ones(n, x.dtype) if batch.weights is None else batch.weights.astype(x.dtype)
    if batch.references is None:
        return x, gathered(x), row, Side(gathered(batch.labels), present(batch.where, n), ids), weights
    columns = gathered(score.embed(existing(batch.references.astype(x.dtype), batch.reference_where)))
    labels, where = gathered(jnp.asarray(batch.reference_labels)), present(batch.reference_where, len(batch.references))
    return x, columns, row, Side(labels, where, -1 - jnp.arange(len(columns), dtype=jnp.int32)), weights


def _seeing_nan(x, columns, batch: Batch, how: Settings) -> tuple[Array, Array, Callable[..., Any]]:
    """Rows and columns whose gradients, and `reduced` of Means whose totals, are NaN if a row that exists holds NaN.

    So it shows whatever was selected and compared.
    """
    spoil = lax.stop_gradient(spoilt(columns) if batch.references is None else spoilt(columns) + spoilt(x))
    seen = lambda mean: mean._replace(total=mean.total + spoil)
    reduce = lambda means, weights: reduced(tuple(map(seen, means)), weights, how.reduction, how.axis_name)
    return spoiling(x, spoil), spoiling(columns, spoil), reduce


def _panel_height(batch: Batch, how: Settings) -> int | None:
    """Anchors per panel, None for the dense form."""
    n, m = len(batch.embeddings), len(batch.embeddings if batch.references is None else batch.references)
    if isinstance(how.block_size, int):
        return min(how.block_size, n)
    return None if how.block_size is None else anchors_in_panel(n, m * devices.count(how.axis_name))


def _rows_are_columns(batch: Batch, how: Settings) -> bool:
    """Then panels take their rows out of the columns, and need no array of rows besides."""
    return batch.references is None and how.axis_name is None
