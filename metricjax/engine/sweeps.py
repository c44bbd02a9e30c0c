"""Sweeps over panels of rows: a loop that carries sums, and the gradients of a loss taken while a panel is in cache."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from metricjax.engine.devices import Axis, summed, varying
from metricjax.engine.miners import prepared
from metricjax.engine.pairs import Mean, PairLoss, as_distances, distances_of, scores_and_masks, with_key_per_row
from metricjax.engine.positives import Side
from metricjax.engine.sizes import Size, of_platform

__all__ = [
    "RowOf",
    "added",
    "as_one",
    "gradient_sweep",
    "no_gradients",
    "of_finished",
    "rows_of",
    "sum_and_tangent",
    "sweep",
    "weighted_sum",
    "with_prepared_miner",
    "with_tangent",
]


def sweep(step: Callable, carry: Any, size: Size, arrays: Any) -> tuple[Any, Any]:
    """Scan `step(carry, block)` over blocks of rows; padded rows do not exist (`where` is False)."""
    return of_platform(size, lambda size: _scanned(step, carry, size, arrays))


def _scanned(step: Callable, carry: Any, size: int, arrays: Any) -> tuple[Any, Any]:
    n = len(jax.tree.leaves(arrays)[0])
    count = math.ceil(n / size)

    def blocks(a):
        padded = jnp.pad(a, [(0, count * size - n)] + [(0, 0)] * (a.ndim - 1))
        return padded.reshape(count, size, *a.shape[1:])

    carry, out = lax.scan(step, carry, jax.tree.map(blocks, arrays))
    return carry, jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:n], out)


def rows_of(x: Array | None, columns: Array, row: Side) -> Array:
    """The rows of a panel, taken out of the columns where these are the rows too."""
    return columns[row.ids] if x is None else x


@dataclasses.dataclass(frozen=True)
class RowOf:
    """What a miner that is being prepared gets as `row_of`: `keyed` gives other miners the keys of these rows."""

    loss: PairLoss
    columns: Array
    row: Side

    def __call__(self, index: Array) -> Array:
        return distances_of(self.loss, self.columns, index)

    def keyed(self, miners: Any) -> Any:
        return with_key_per_row(miners, self.row)


def with_prepared_miner(size: Size, loss: PairLoss, x, columns, row: Side, column: Side, axis: Axis) -> PairLoss:
    """The loss with a miner for one row at a time, where its own has to look at the whole batch first."""
    if loss.miner is None or loss.miner.prepare is None:
        return loss
    bare = dataclasses.replace(loss, miner=None)

    def total(f):
        """Σ of f(distances, positives, negatives, row_of) over panels and devices."""

        def of_panel(x, row):
            scores, *masks = scores_and_masks(bare, rows_of(x, columns, row), columns, row, column)
            return f(as_distances(loss, scores), *masks, RowOf(loss, columns, row))

        def step(sums, block):
            return jax.tree.map(jnp.add, sums, of_panel(*block)), None

        first = jax.tree.map(lambda a: a[:1], (x, row))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_panel, *first))
        return summed(sweep(step, varying(zeros, (columns, row)), size, (x, row))[0], axis)

    return dataclasses.replace(loss, miner=prepared(loss.miner, total))


def gradient_sweep(panel: Callable, size: Size, x, columns, hyper, cotangents, row: Side):
    """The Means of all anchors and the gradients of `x`, `columns` and `hyper`, taken while each panel is in cache.

    `panel(sums, x, cotangents, row) -> (sums, dx, means)` adds to the sums the gradients of columns and
    hyper-parameters. `x` is None where the rows are the columns: their gradient is then added to that of the columns.
    """

    def step(sums, block):
        x, cotangents, row = block
        sums, dx, means = panel(sums, rows_of(x, columns, row), cotangents, row)
        if x is None:
            sums, dx = (sums[0].at[row.ids].add(dx), sums[1]), None
        return sums, (dx, means)

    zeros = no_gradients((columns, hyper), columns.dtype)
    sums, (dx, means) = sweep(step, varying(zeros, columns), size, (x, cotangents, row))
    return (dx, *sums), means


def no_gradients(tree: Any, dtype: Any) -> Any:
    """Zeros that gradients of the tree are added to; of a key or an integer any zero will do, as nothing is added."""
    zero = lambda a: jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.inexact) else jnp.zeros((), dtype)
    return jax.tree.map(zero, tree)


def added(sums: Any, more: Any) -> Any:
    """The sums of two gradients; that of integers and keys, which a bound function may hold, stays 0."""
    is_none = lambda a: a.dtype == jax.dtypes.float0
    return jax.tree.map(lambda a, b: a if is_none(b) else a + b, sums, more)


def of_finished(f: Callable[[Array], Any], a: Array, always: Any) -> Any:
    """`f(a)`, where `always` is true, though the compiler does not know it.

    XLA for CPUs makes an array again for each of its uses, but what it hands to a branch it makes once.
    """
    zeros = lambda a: varying(jax.tree.map(lambda b: jnp.zeros(b.shape, b.dtype), jax.eval_shape(f, a)), a)
    return lax.platform_dependent(a, cpu=lambda a: lax.cond(always, f, zeros, a), default=f)


# --- a sum and its tangent, which is the gradient times the tangent -------------------------------------------------


def as_one(f: Callable, *arguments: Any) -> Any:
    """`f(*arguments)`, taken as a whole by partial evaluation, which otherwise moves constants out of the scans."""
    whole = jax.custom_jvp(f)
    whole.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
    return whole(*arguments)


def weighted_sum(means: tuple[Mean, ...], weights: tuple[Float[Array, " n"], ...]) -> Mean:
    """Σ over all Means and anchors of weight times total, and of weight times count."""
    sums = [jax.tree.map(lambda a, w=w: jnp.sum(a * w), mean) for mean, w in zip(means, weights, strict=True)]
    return jax.tree.map(lambda *a: sum(a), *sums)


def sum_and_tangent(means: tuple[Mean, ...], weights, gradients, tangents) -> tuple[Mean, Mean]:
    """`weighted_sum` and its tangent; of gradients and tangents, the last are those of the weights."""
    gradients = (*gradients, tuple(mean.total for mean in means))
    return with_tangent(weighted_sum(means, weights), means, gradients, tangents)


def with_tangent(value: Mean, means: tuple[Mean, ...], gradients, tangents) -> tuple[Mean, Mean]:
    """A sum of Means, whose count is Σ weight · count, and its tangent by the gradients of its total.

    Of gradients and tangents, the last are those of the weights, which are one array for each Mean or for all.
    """
    both = [both for both in zip(gradients, tangents, strict=True) if both[0] is not None]
    pairs = [pair for gradient, tangent in both for pair in _pairs_of_leaves(gradient, tangent)]
    # Left out where nothing is differentiated: then its gradient is not computed at all.
    some = lambda pairs: [jnp.sum(g * t) for g, t in pairs if not isinstance(t, SymbolicZero)]
    of_weights = tangents[-1] if isinstance(tangents[-1], tuple) else (tangents[-1],) * len(means)
    change, counts = some(pairs), some(zip((mean.count for mean in means), of_weights, strict=True))
    zero = jnp.zeros_like(value.total)
    return value, Mean(sum(change, start=zero), sum(counts, start=zero))


def _pairs_of_leaves(gradient, tangent):
    is_zero = lambda t: isinstance(t, SymbolicZero)
    return zip(jax.tree.leaves(gradient), jax.tree.leaves(tangent, is_leaf=is_zero), strict=True)
