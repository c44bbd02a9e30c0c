"""Which implementation runs a loss: the one file that chooses, by sizes and by what the loss declares.

Each implementation of a pair-based loss is `run(how, loss, size, given) -> loss`, with `size` anchors at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from metricjax.engine.class_blocks import dense, in_blocks, take, take_in_place
from metricjax.engine.devices import Axis, summed
from metricjax.engine.kernels.choice import kernels_for, kernels_for_statistics
from metricjax.engine.pairs import Mean, PairLoss, chosen_triplets, means_of
from metricjax.engine.panels import means_in_panels, sum_in_panels, sums_in_panels
from metricjax.engine.positives import Side, with_short_lists
from metricjax.engine.reductions import Reduction, joined, quotient, reduced, weighted
from metricjax.engine.selected_triplets import TripletWays, sum_of_triplets
from metricjax.engine.sizes import BUDGET, LIST, Size, anchors_in_panel, rows_in_swept_tile
from metricjax.engine.statistics import Declared
from metricjax.engine.two_sweeps import Ways, sum_of_rows
from metricjax.ground.pairwise import Pairwise

__all__ = ["Given", "Settings", "of_classes", "of_pairs", "of_triplets", "sweeps_towers"]


class Settings(NamedTuple):
    """The options of one call that are neither arrays nor relations between labels."""

    reduction: Reduction = quotient
    block_size: int | str | None = "auto"
    axis_name: Axis = None
    memory_budget: int = BUDGET
    implementation: str = "auto"


class Given(NamedTuple):
    """The arrays of one call, as rows and columns.

    came: how many rows came; an empty batch is given one.
    x: embedded rows; None where the columns are the rows.
    spoil: NaN if a row that exists holds NaN or infinity, else 0.
    in_bfloat16: rows came in bfloat16.
    """

    came: int
    x: Float[Array, "n d"] | None
    columns: Float[Array, "m d"]
    hyper: tuple
    weights: Float[Array, " n"]
    row: Side
    column: Side
    spoil: Float[Array, ""]
    in_bfloat16: bool

    @property
    def rows(self) -> Float[Array, "n d"]:
        """Embedded rows, whether they are the columns or not."""
        return self.columns if self.x is None else self.x

    @property
    def scored(self) -> tuple[Array | None, Array, tuple]:
        return self.x, self.columns, self.hyper

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.row, self.column


def of_pairs(
    how: Settings, loss: PairLoss, size: Size | None, given: Given, means: tuple[Mean, ...]
) -> Callable[..., Any]:
    """The implementation for a row function whose Means of one anchor have the shapes of `means`."""
    if size is None:
        return _dense
    if not how.reduction.of_sums:
        return _means_in_panels
    numbers = all(mean.total.ndim == mean.count.ndim == 1 for mean in means)
    one = len(means) == 1 and numbers
    if numbers and (one or how.reduction.of_numbers) and _is_swept(how, loss, given):
        return partial(_in_sweeps, several=not one)
    if one:
        return _sum_in_panels
    return _shares_in_panels if how.reduction.of_numbers else _sums_in_panels


def _is_swept(how: Settings, loss: PairLoss, given: Given) -> bool:
    """Whether statistics of rows are all that is needed, and S is symmetric: then two sweeps are faster than panels."""
    plain = isinstance(loss.rows, Declared) and loss.score.symmetric
    numbers = all(jnp.ndim(h) == 0 for h in jax.tree.leaves(given.hyper))
    wanted = how.implementation in ("sweeps", "kernel") or (how.implementation, how.block_size) == ("auto", "auto")
    return plain and _are_alike(loss, given) and numbers and wanted


def _are_alike(loss: PairLoss, given: Given) -> bool:
    """Whether rows are the columns, and the order of classes tells which pairs are positive and which negative."""
    alike = loss.towers or (loss.same is None and given.row.labels.ndim == 1)
    return given.x is None and alike and loss.miner is None


def sweeps_towers(score: Pairwise, n: int, options: dict[str, Any]) -> bool:
    """Whether both directions between two towers of n rows can be swept at once, and are too large for a dense form."""
    numbers = {"where", "weights", "precision", "memory_budget"}
    return score.symmetric and anchors_in_panel(n, n) is not None and set(options) <= numbers


def of_triplets(how: Settings, loss: PairLoss, size: Size | None, given: Given) -> Callable[..., Any]:
    """The implementation for selected triplets.

    A few triplets a row are gathered. Of many, distances are picked out of the scores.
    """
    if size is None:
        return _dense
    if not how.reduction.of_sums:
        return _means_in_panels
    if not how.reduction.of_numbers:
        return _sums_in_panels
    few = min(LIST, len(given.columns))
    gathers = loss.select.one is not None or _triplets_of_a_row(loss, given) < few  # type: ignore[union-attr]
    return _triplets_in_panels if gathers else _sum_in_panels


def of_classes(size: Size | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Sums over blocks of `size` classes, and how each row's own prototype is taken out."""
    return (dense, take) if size is None else (in_blocks, take_in_place)


def _triplets_of_a_row(loss: PairLoss, given: Given) -> int:
    scores, mask = (jax.ShapeDtypeStruct((1, len(given.columns)), dtype) for dtype in (given.columns.dtype, bool))
    row = jax.tree.map(lambda a: a[:1], given.row)
    *_, valid = jax.eval_shape(partial(chosen_triplets, loss), scores, mask, mask, row)
    return valid.size


def _dense(how: Settings, loss: PairLoss, size: None, given: Given) -> Any:
    of_all_rows = partial(means_of, loss, given.rows, given.columns, given.hyper)
    return _of_anchors(how, given, with_short_lists(of_all_rows, *given.sides, loss.lengths))


def _means_in_panels(how: Settings, loss: PairLoss, size: Size, given: Given) -> Any:
    return _of_anchors(how, given, means_in_panels(size, loss, *given.scored, *given.sides))


def _sums_in_panels(how: Settings, loss: PairLoss, size: Size, given: Given) -> Any:
    return _of_sums(how, given, sums_in_panels(size, loss, *given.scored, given.weights, *given.sides))


def _sum_in_panels(how: Settings, loss: PairLoss, size: Size, given: Given) -> Any:
    return _of_sums(how, given, (sum_in_panels(size, loss, *given.scored, (given.weights,), *given.sides),))


def _shares_in_panels(how: Settings, loss: PairLoss, size: Size, given: Given) -> Any:
    """Each total is divided by its own count, so that counts have to be known before totals are added."""
    fixed = lax.stop_gradient(given.scored)
    own = [jnp.sum(mean.count * given.weights) for mean in means_in_panels(size, loss, *fixed, *given.sides)]
    counts = summed(own, how.axis_name)
    shares = tuple(given.weights / jnp.where(count > 0, count, 1) for count in counts)
    total = sum_in_panels(size, loss, *given.scored, shares, *given.sides).total
    return _of_sums(how, given, (Mean(total * sum(counts), sum(own, start=jnp.zeros_like(total))),))


def _in_sweeps(how: Settings, loss: PairLoss, size: Size, given: Given, several: bool) -> Any:
    rows = len(given.columns) // (2 if loss.towers else 1)
    tile = how.block_size if isinstance(how.block_size, int) else rows_in_swept_tile(rows)
    asked = how.implementation == "kernel"
    kernels = kernels_for_statistics(loss, given.columns, given.hyper, given.in_bfloat16) if asked else None
    ways = Ways(size, tile, how.implementation == "sweeps", kernels)
    total, count = sum_of_rows(ways, loss, given.columns, given.hyper, given.weights, *given.sides)
    return _of_sums(how, given, (Mean(total * count if several else total, count),))


def _triplets_in_panels(how: Settings, loss: PairLoss, size: Size, given: Given) -> Any:
    extremes = how.implementation == "kernel" and loss.select.extremes and _are_alike(loss, given)  # type: ignore[union-attr]
    ways = TripletWays(size, kernels_for(loss.score, given.columns, given.in_bfloat16) if extremes else None)
    return _of_sums(how, given, (sum_of_triplets(ways, loss, *given.scored, given.weights, *given.sides),))


def _of_anchors(how: Settings, given: Given, means: tuple[Mean, ...]) -> Any:
    every = (_spoilt(means, given), given.weights)
    means, weights = jax.tree.map(lambda a: a[: given.came], every)
    return reduced(weighted(means, weights), how.reduction, how.axis_name)


def _of_sums(how: Settings, given: Given, sums: tuple[Mean, ...]) -> Any:
    return joined(_spoilt(sums, given), how.reduction, how.axis_name)


def _spoilt(means: tuple[Mean, ...], given: Given) -> tuple[Mean, ...]:
    return tuple(mean._replace(total=mean.total + given.spoil) for mean in means)
