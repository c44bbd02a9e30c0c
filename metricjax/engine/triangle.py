"""Two sweeps over the tiles above the diagonal: statistics of rows, then the gradient from both ends of each pair.

S is symmetric: a tile serves its rows, and transposed the rows of its columns, so that the first sweep takes half a
product of all rows with all rows, and the second one and a half. Nothing of size n · n is written. Rows stand in order
of class: positives then lie in few tiles, and all others hold negatives only and need no masks.

Of two towers, one after the other, only the tiles between them are looked at: again each serves the rows of both.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from metricjax.engine import sizes
from metricjax.engine.devices import varying
from metricjax.engine.pairs import Mean, PairLoss, as_means, unwrapped, with_fixed_count
from metricjax.engine.positives import Side
from metricjax.engine.statistics import Statistic
from metricjax.engine.sweeps import added, no_gradients, of_finished
from metricjax.ground.numerics import gradients_of_product
from metricjax.ground.pairwise import Pairwise
from metricjax.ground.precision import at_precision

__all__ = ["Ordered", "Tile", "gradients_in_sweeps", "means_in_sweeps"]


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


def means_in_sweeps(height: int, loss: PairLoss, columns, hyper, column: Side) -> tuple[Mean, ...]:
    """The Means of all rows, in one sweep."""
    rows = _laid_out(height, loss, columns, column)
    return _as_they_came(rows, _means(loss, rows, _values(height, loss, rows, hyper)[0], hyper))


def gradients_in_sweeps(height: int, loss: PairLoss, columns, hyper, cotangents: Callable, column: Side):
    """The gradients of columns and hyper-parameters, and the Means, in two sweeps.

    `cotangents` makes those of the totals of all rows, of the Means.
    """
    rows = _laid_out(height, loss, columns, column)
    values, slopes = _values(height, loss, rows, hyper)
    totals = lambda *a: (lambda means: ([m.total for m in means], means))(_means(loss, rows, *a))
    _, pull, means = jax.vjp(totals, values, hyper, has_aux=True)
    came = _as_they_came(rows, means)
    spread = [jnp.zeros(len(rows.x), c.dtype).at[rows.place].set(c) for c in cotangents(came)]
    of_values, of_hyper = pull(spread)
    for name, slope in slopes.items():
        for given, change in slope.items():
            of_values[given] += of_values[name] * change
    dx, more = _second_sweep(height, loss, rows, hyper, values, of_values)
    return (dx[rows.place], added(more, of_hyper)), came


def _laid_out(height: int, loss: PairLoss, columns, column: Side) -> Ordered:
    return (_towers if loss.towers else _ordered)(height, columns, column)


def _towers(height: int, columns, column: Side) -> Ordered:
    """Row i of either tower is of class i."""
    n, d = len(columns) // 2, columns.shape[1]
    filled = lambda a: jnp.pad(a.reshape(2, n, -1), [(0, 0), (0, -n % height), (0, 0)])
    x, exists = filled(columns), filled(column.where)[..., 0]
    number = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), exists.shape)
    place = jnp.concatenate([first + jnp.arange(n, dtype=jnp.int32) for first in (0, x.shape[1])])
    others = jnp.sum(exists, axis=1, keepdims=True, dtype=jnp.int32) - 1
    positives, negatives = exists, jnp.where(exists, others, 0)
    counts = (a.reshape(-1).astype(columns.dtype) for a in (positives, negatives))
    return Ordered(x.reshape(-1, d), place, number.reshape(-1), exists.reshape(-1), *counts)


def _ordered(height: int, columns, column: Side) -> Ordered:
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


def _as_they_came(rows: Ordered, means: tuple[Mean, ...]) -> tuple[Mean, ...]:
    return jax.tree.map(lambda a: a[rows.place], means)


def _means(loss: PairLoss, rows: Ordered, values, hyper) -> tuple[Mean, ...]:
    found = loss.rows.finished(values, rows.positives, rows.negatives, unwrapped(hyper))  # type: ignore[attr-defined]
    return tuple(with_fixed_count(mean, rows.x) for mean in as_means(found))


# --- tiles ----------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """One tile: where its rows and columns begin, and which pairs are of one class; None where all are negatives."""

    row: Int[Array, ""]
    column: Int[Array, ""]
    height: int
    same: Bool[Array, "t t"] | None
    differ: Bool[Array, "t t"] | None

    def masked(self, statistic: Statistic) -> Bool[Array, "t t"] | None:
        return self.same if statistic.of == "positives" else self.differ

    def sides(self) -> Iterator[tuple[Int[Array, ""], int]]:
        """Where the rows that pairs are seen from begin, and the axis of the others."""
        yield self.row, 1
        yield self.column, 0

    def part(self, a: Array, start, axis: int | None = None) -> Array:
        part = lax.dynamic_slice_in_dim(a, start, self.height)
        return part if axis is None else jnp.expand_dims(part, axis)

    def with_part(self, a: Array, start, part: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(a, part, start, axis=0)

    def plus(self, a: Array, start, part: Array) -> Array:
        return self.with_part(a, start, self.part(a, start) + part)


def _swept(
    height: int,
    loss: PairLoss,
    rows: Ordered,
    step: Callable[[Any, Tile], Any],
    carry: Any,
    positives_only: bool = False,
):
    """`step(carry, tile)` for every tile that has a row, or every one that may hold positives.

    First come those with the same classes on both sides, or with rows that do not exist, which need masks.
    """
    count = len(rows.x) // height
    between = (a.ravel() for a in np.meshgrid(np.arange(count // 2), np.arange(count // 2, count), indexing="ij"))
    i, j = (side.astype(np.int32) for side in (between if loss.towers else np.triu_indices(count)))
    number, exists = rows.number.reshape(count, height), rows.exists.reshape(count, height)
    some, all_ = (jnp.logical_and(of[i], of[j]) for of in (jnp.any(exists, axis=1), jnp.all(exists, axis=1)))
    meet = (number[i, -1] >= number[j, 0]) & (number[j, -1] >= number[i, 0])
    kind = jnp.where(some, jnp.where(meet | ~all_, 0, 1), 2)
    tiles = jnp.stack([jnp.asarray(i), jnp.asarray(j)])[:, jnp.argsort(kind)]
    first, last = (jnp.sum(kind <= most, dtype=jnp.int32) for most in (0, 1))

    def visit(mixed: bool, which, carry):
        start = tiles[:, which] * height
        same = differ = None
        if mixed:
            i, j = (start[side] + jnp.arange(height, dtype=jnp.int32) for side in (0, 1))
            pairs = (i[:, None] < j[None]) & rows.exists[i][:, None] & rows.exists[j][None]
            alike = rows.number[i][:, None] == rows.number[j][None]
            same, differ = alike & pairs, ~alike & pairs
        return step(carry, Tile(start[0], start[1], height, same, differ))

    carry = lax.fori_loop(0, first, partial(visit, True), carry)
    return carry if positives_only else lax.fori_loop(first, last, partial(visit, False), carry)


def _terms(statistic: Statistic, tile: Tile, scores, values, hyper, start, axis: int) -> Array:
    """The terms of the pairs of a tile, seen from the rows that begin at `start`."""
    given = (tile.part(values[name], start, axis) for name in statistic.given)
    return statistic.terms(scores, *given, *unwrapped(hyper))


def _looked_at(loss: PairLoss, tile: Tile, given: bool | None = None) -> Iterator[tuple[str, Statistic]]:
    """The statistics to which the pairs of a tile add: all, or those that are given others, or those that are not."""
    for name, statistic in loss.rows.statistics:  # type: ignore[attr-defined]
        if (tile.same is not None or statistic.of == "negatives") and given in (None, bool(statistic.given)):
            yield name, statistic


# --- the first sweep ------------------------------------------------------------------------------------------------


def _values(height: int, loss: PairLoss, rows: Ordered, hyper) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """The statistics of all rows; and of those that are given others, their slopes by these."""
    statistics = loss.rows.statistics  # type: ignore[attr-defined]
    values = _first_sweep(height, loss, rows, hyper, {name: s for name, s in statistics if not s.given})
    later = {name: s for name, s in statistics if s.given}
    if not later:
        return values, {}
    sums = _sums_given(height, loss, rows, hyper, values, later)
    slopes = {name: {of: sums[name, of] for of in s.given} for name, s in later.items()}
    return values | {name: sums[name, ""] for name in later}, slopes


def _scores(loss: PairLoss, rows: Ordered, tile: Tile) -> Float[Array, "t t"]:
    return loss.score.compare(*(tile.part(rows.x, start) for start, _ in tile.sides()))


def _first_sweep(height: int, loss: PairLoss, rows: Ordered, hyper, statistics: dict[str, Statistic]):
    zeros = jnp.zeros(len(rows.x), rows.x.dtype)
    start = {name: (zeros - jnp.inf, zeros) if s.kind == "logsumexp" else zeros for name, s in statistics.items()}

    def step(found, tile):
        scores = _scores(loss, rows, tile)
        for name, statistic in _looked_at(loss, tile, given=False):
            terms = lax.optimization_barrier(_terms(statistic, tile, scores, {}, hyper, None, 0))  # made once
            add = _with_exponents if statistic.kind == "logsumexp" else _with_terms
            for begin, axis in tile.sides():
                found = found | {name: add(found[name], tile, begin, terms, tile.masked(statistic), axis)}
        return found

    found = _swept(height, loss, rows, step, varying(start, (rows.x, hyper)))
    return {name: _log(*a) if statistics[name].kind == "logsumexp" else a for name, a in found.items()}


def _sums_given(height: int, loss: PairLoss, rows: Ordered, hyper, values, statistics: dict[str, Statistic]):
    """Of sums that are given others: each, under (name, ""), and its derivatives by these, under (name, of)."""

    def step(found, tile):
        scores = _scores(loss, rows, tile)
        for name, statistic in _looked_at(loss, tile, given=True):
            for begin, axis in tile.sides():
                given = [tile.part(values[of], begin) for of in statistic.given]

                def total(*given, statistic=statistic, axis=axis):
                    known = (jnp.expand_dims(value, axis) for value in given)
                    terms = statistic.terms(scores, *known, *unwrapped(hyper))
                    return jnp.sum(_marked(terms, tile.masked(statistic)), axis=axis)

                more, pull = jax.vjp(total, *given)
                slopes = pull(varying(jnp.ones_like(more), more))
                for of, part in zip(("", *statistic.given), (more, *slopes), strict=True):
                    found = found | {(name, of): tile.plus(found[name, of], begin, part)}
        return found

    zeros = jnp.zeros(len(rows.x), rows.x.dtype)
    start = {(name, of): zeros for name, s in statistics.items() for of in ("", *s.given)}
    positives_only = all(s.of == "positives" for s in statistics.values())
    height = sizes.rows_in_tile_of_positives(height) if positives_only else height
    return _swept(height, loss, rows, step, varying(start, (rows.x, hyper)), positives_only)


def _marked(terms: Array, where: Array | None) -> Array:
    return terms if where is None else jnp.where(where, terms, 0)


def _with_terms(sums, tile: Tile, start, terms, where, axis: int):
    return tile.plus(sums, start, jnp.sum(_marked(terms, where), axis=axis))


def _with_exponents(found, tile: Tile, start, terms, where, axis: int):
    """The largest term of each row so far, and Σ e^{term − largest}, with those of a tile."""
    terms = terms if where is None else jnp.where(where, terms, -jnp.inf)
    before, total = (tile.part(a, start) for a in found)
    top = jnp.maximum(before, jnp.max(terms, axis=axis))
    finite = jnp.where(jnp.isfinite(top), top, 0)
    total = total * jnp.exp(before - finite) + jnp.sum(jnp.exp(terms - jnp.expand_dims(finite, axis)), axis=axis)
    return tuple(tile.with_part(a, start, part) for a, part in zip(found, (top, total), strict=True))


def _log(top, total):
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, -jnp.inf)


# --- the second sweep -----------------------------------------------------------------------------------------------


def _second_sweep(height: int, loss: PairLoss, rows: Ordered, hyper, values, cotangents) -> tuple[Array, Any]:
    """The gradient of the rows, and of the hyper-parameters as far as terms depend on them."""
    statistics = dict(loss.rows.statistics)  # type: ignore[attr-defined]
    some = {name: values[name] != -jnp.inf if s.kind == "logsumexp" else True for name, s in statistics.items()}
    cotangents = {name: jnp.where(some[name], cotangents[name], 0) for name in statistics}
    levels = {name: jnp.where(some[name], values[name], 0) for name in statistics}

    def step(sums, tile):
        dx, dhyper = sums
        ends = [tile.part(rows.x, start) for start, _ in tile.sides()]
        scores, pull = _compared(loss.score, tile, *ends)

        def loss_of_pairs(scores, hyper):
            total = jnp.zeros((), scores.dtype)
            for name, statistic in _looked_at(loss, tile):
                where = tile.masked(statistic)
                for start, axis in tile.sides():
                    terms = _terms(statistic, tile, scores, values, hyper, start, axis)
                    if statistic.kind == "logsumexp":
                        terms = terms if where is None else jnp.where(where, terms, -jnp.inf)
                        terms = jnp.exp(terms - tile.part(levels[name], start, axis))
                    else:
                        terms = _marked(terms, where)
                    total += jnp.sum(terms * tile.part(cotangents[name], start, axis))
            return total

        total, back = jax.vjp(loss_of_pairs, scores, hyper)
        of_scores, of_hyper = back(varying(jnp.ones_like(total), total))
        for (start, _), part in zip(tile.sides(), pull(of_scores), strict=True):
            dx = tile.plus(dx, start, part)
        return dx, added(dhyper, of_hyper)

    zeros = no_gradients((rows.x, hyper), rows.x.dtype)
    return _swept(height, loss, rows, step, varying(zeros, (rows.x, hyper)))


def _compared(score: Pairwise, tile: Tile, x, y) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """The scores of a tile, and a function from their gradient to that of rows and of columns."""
    if score.of_product is None:
        scores, pull = jax.vjp(score.compare, x, y)
        return scores, lambda change: of_finished(pull, change, tile.row >= 0)
    product = at_precision(jnp.matmul, score.precision)
    scores, pull = jax.vjp(score.of_product, product(x, y.T))
    of_ends = lambda change: gradients_of_product(product, change, x, y)
    return scores, lambda change: of_finished(of_ends, pull(change)[0], tile.row >= 0)
