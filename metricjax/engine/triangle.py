"""Sweeps over the tiles above the diagonal, in XLA.

S is symmetric: a tile serves its rows, and transposed the rows of its columns, so that the first sweep takes half a
product of all rows with all rows, and the second one and a half. Nothing of size n · n is written. Tiles in which no
rows of one class meet hold negatives only, and need no masks.

Of two towers, one after the other, only the tiles between them are looked at: again each serves the rows of both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from metricjax.engine import sizes
from metricjax.engine.devices import varying
from metricjax.engine.order import Ordered, in_order, towers_in_order
from metricjax.engine.pairs import PairLoss, unwrapped
from metricjax.engine.positives import Side
from metricjax.engine.sweeps import added, no_gradients, of_finished
from metricjax.engine.tiles import End, Masks, Named, added_to, log_of, loss_of_pairs, nothing_found, with_slopes
from metricjax.ground.numerics import gradients_of_product
from metricjax.ground.pairwise import Pairwise
from metricjax.ground.precision import at_precision

__all__ = ["Triangle"]


class _Tile(NamedTuple):
    """One tile: where its rows and columns begin."""

    row: Int[Array, ""]
    column: Int[Array, ""]
    height: int
    masks: Masks

    def sides(self) -> Iterator[tuple[Int[Array, ""], int]]:
        """Where the rows that pairs are seen from begin, and the axis of the others."""
        yield self.row, 1
        yield self.column, 0

    def part(self, tree: Any, start, axis: int | None = None) -> Any:
        def part(a: Array) -> Array:
            rows = lax.dynamic_slice_in_dim(a, start, self.height)
            return rows if axis is None else jnp.expand_dims(rows, axis)

        return jax.tree.map(part, tree)

    def with_part(self, tree: Any, start, parts: Any) -> Any:
        def with_part(a: Array, part: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(a, part.reshape(self.height, *a.shape[1:]), start, axis=0)

        return jax.tree.map(with_part, tree, parts)

    def plus(self, a: Array, start, part: Array) -> Array:
        return self.with_part(a, start, self.part(a, start) + part.reshape(self.height, *a.shape[1:]))


@dataclass(frozen=True)
class Triangle:
    """The sweeps of one loss, over tiles of `height` rows and columns."""

    height: int
    loss: PairLoss

    def laid_out(self, columns: Float[Array, "r d"], column: Side) -> Ordered:
        return (towers_in_order if self.loss.towers else in_order)(self.height, columns, column)

    def statistics(self, rows: Ordered, hyper: tuple, statistics: Sequence[Named]) -> dict[str, Array]:
        """Statistics that are given no others."""
        zeros = jnp.zeros(len(rows.x), rows.x.dtype)

        def step(found, tile):
            scores = self._scores(rows, tile)
            for name, statistic in tile.masks.seen(statistics):
                terms = lax.optimization_barrier(statistic.terms(scores, *unwrapped(hyper)))  # made once
                for start, axis in tile.sides():
                    part = added_to(tile.part(found[name], start, axis), terms, tile.masks.of(statistic), axis)
                    found = found | {name: tile.with_part(found[name], start, part)}
            return found

        start = {name: nothing_found(statistic, zeros) for name, statistic in statistics}
        found = self._swept(rows, step, varying(start, (rows.x, hyper)))
        return {name: log_of(a) if isinstance(a, tuple) else a for name, a in found.items()}

    def given_others(self, rows: Ordered, hyper: tuple, values: dict[str, Array], statistics: Sequence[Named]):
        """Of sums that are given others: each, under (name, ""), and its derivatives by these, under (name, of)."""

        def step(found, tile):
            scores = self._scores(rows, tile)
            for name, statistic in tile.masks.seen(statistics):
                for start, axis in tile.sides():
                    given = [tile.part(values[of], start, axis) for of in statistic.given]
                    where = tile.masks.of(statistic)
                    more = with_slopes(statistic, scores, given, unwrapped(hyper), where, axis)
                    for of, part in zip(("", *statistic.given), more, strict=True):
                        found = found | {(name, of): tile.plus(found[name, of], start, part)}
            return found

        zeros = jnp.zeros(len(rows.x), rows.x.dtype)
        start = {(name, of): zeros for name, s in statistics for of in ("", *s.given)}
        return self._swept(rows, step, varying(start, (rows.x, hyper)), all(s.of == "positives" for _, s in statistics))

    def gradients(self, rows: Ordered, hyper: tuple, statistics: Sequence[Named], end: End) -> tuple[Array, Any]:
        """The gradient of the rows, and of the hyper-parameters as far as terms depend on them."""

        def step(sums, tile):
            dx, dhyper = sums
            x, y = (tile.part(rows.x, start) for start, _ in tile.sides())
            scores, pull = _compared(self.loss.score, tile, x, y)
            ends = [End(axis, *tile.part(end[1:], start, axis)) for start, axis in tile.sides()]
            of_pairs = lambda s, hyper: loss_of_pairs(statistics, s, unwrapped(hyper), tile.masks, ends)
            total, back = jax.vjp(of_pairs, scores, hyper)
            of_scores, of_hyper = back(varying(jnp.ones_like(total), total))
            for (start, _), part in zip(tile.sides(), pull(of_scores), strict=True):
                dx = tile.plus(dx, start, part)
            return dx, added(dhyper, of_hyper)

        zeros = no_gradients((rows.x, hyper), rows.x.dtype)
        return self._swept(rows, step, varying(zeros, (rows.x, hyper)))

    def _scores(self, rows: Ordered, tile: _Tile) -> Float[Array, "t t"]:
        return self.loss.score.compare(*(tile.part(rows.x, start) for start, _ in tile.sides()))

    def _swept(self, rows: Ordered, step: Callable[[Any, _Tile], Any], carry: Any, positives_only: bool = False) -> Any:
        """`step(carry, tile)` for every tile that has a row, or every one that may hold positives.

        First come those with the same classes on both sides, or with rows that do not exist, which need masks.
        """
        height = sizes.rows_in_tile_of_positives(self.height) if positives_only else self.height
        count = len(rows.x) // height
        between = (a.ravel() for a in np.meshgrid(np.arange(count // 2), np.arange(count // 2, count), indexing="ij"))
        i, j = (side.astype(np.int32) for side in (between if self.loss.towers else np.triu_indices(count)))
        number, exists = rows.number.reshape(count, height), rows.exists.reshape(count, height)
        some, all_ = (jnp.logical_and(of[i], of[j]) for of in (jnp.any(exists, axis=1), jnp.all(exists, axis=1)))
        meet = (number[i, -1] >= number[j, 0]) & (number[j, -1] >= number[i, 0])
        kind = jnp.where(some, jnp.where(meet | ~all_, 0, 1), 2)
        tiles = jnp.stack([jnp.asarray(i), jnp.asarray(j)])[:, jnp.argsort(kind)]
        first, last = (jnp.sum(kind <= most, dtype=jnp.int32) for most in (0, 1))

        def visit(mixed: bool, which, carry):
            start, masks = tiles[:, which] * height, Masks()
            if mixed:
                i, j = (start[side] + jnp.arange(height, dtype=jnp.int32) for side in (0, 1))
                pairs = (i[:, None] < j[None]) & rows.exists[i][:, None] & rows.exists[j][None]
                alike = rows.number[i][:, None] == rows.number[j][None]
                masks = Masks(alike & pairs, ~alike & pairs)
            return step(carry, _Tile(start[0], start[1], height, masks))

        carry = lax.fori_loop(0, first, partial(visit, True), carry)
        return carry if positives_only else lax.fori_loop(first, last, partial(visit, False), carry)


def _compared(score: Pairwise, tile: _Tile, x, y) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """The scores of a tile, and a function from their gradient to that of rows and of columns."""
    if score.of_product is None:
        scores, pull = jax.vjp(score.compare, x, y)
        return scores, lambda change: of_finished(pull, change, tile.row >= 0)
    product = at_precision(jnp.matmul, score.precision)
    scores, pull = jax.vjp(score.of_product, product(x, y.T))
    of_ends = lambda change: gradients_of_product(product, change, x, y)
    return scores, lambda change: of_finished(of_ends, pull(change)[0], tile.row >= 0)
