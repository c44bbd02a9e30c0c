"""Panels of rows: a loss over a few anchors at a time, and its gradient taken while the panel is still in cache.

Reverse-mode differentiation through a scan would keep every panel. The custom rules here keep none: the gradient is
taken in the forward rule where its weights are known by then, and otherwise each panel is computed again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from metricjax.pairwise import Pairwise


class Mean(NamedTuple):
    """A quotient in the making. Means add over blocks and devices; divide once, at the end."""

    total: Float[Array, "..."]
    count: Shaped[Array, "..."]  # type: ignore[assignment]  # hides tuple.count


class Side(NamedTuple):
    """What is known of each row (or column) besides its embedding. Columns with a row's id are the row itself."""

    labels: Shaped[Array, "n ..."]
    where: Bool[Array, " n"]
    ids: Int[Array, " n"]


class Problem(NamedTuple):
    """The functions of one loss: hashable, so that they can be static arguments.

    by_pair: each total is a sum of terms that depend on one score each, in the same way for all anchors.
    """

    rows: Callable[..., Any]  # the row function, or the terms of selected triplets
    score: Pairwise
    is_similarity: bool
    by_pair: bool
    same: Callable[[Array, Array], Array] | None
    miner: Callable[[Array, Array, Array], tuple[Array, Array]] | None


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A hyper-parameter that is not an array: part of the tree's structure instead of a leaf."""

    value: Any


def unwrapped(hyper: tuple) -> tuple:
    return tuple(h.value if isinstance(h, Static) else h for h in hyper)


# --- one panel of rows ----------------------------------------------------------------------------------------------


def scores_and_masks(problem: Problem, x, columns, row: Side, column: Side):
    """Scores of some rows against all columns, and the masks of their positives and negatives."""
    scores = problem.score.compare(x, columns)
    same = problem.same or (lambda a, b: jnp.all(a == b))
    match = jax.vmap(lambda a: jax.vmap(lambda b: same(a, b))(column.labels))(row.labels)
    other = row.where[:, None] & column.where[None] & (row.ids[:, None] != column.ids[None])
    positives, negatives = match & other, ~match & other
    if problem.miner is not None:
        distances = lax.stop_gradient(1 - scores if problem.is_similarity else scores)
        positives, negatives = problem.miner(distances, positives, negatives)
    return scores, positives, negatives


def means_of(problem: Problem, x, columns, hyper, row: Side, column: Side) -> tuple[Mean, ...]:
    """The Means of some anchors: [r] arrays."""
    means = problem.rows(*scores_and_masks(problem, x, columns, row, column), *unwrapped(hyper))
    return tuple(counted(mean, x) for mean in ((means,) if isinstance(means, Mean) else means))


def counted(mean: Mean, x: Array) -> Mean:
    return Mean(mean.total, lax.stop_gradient(mean.count).astype(x.dtype))


def varying(tree: Any) -> Any:
    """Inside `shard_map`: every float array varies over each mesh axis that any of them varies over.

    A custom derivative rule cannot sum a gradient over devices for an argument that does not vary; with the change
    made here, outside the rule, ordinary differentiation does. Elsewhere this adds zero.
    """
    leaves = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    zero = sum((jnp.where(jnp.any(jnp.isnan(a.ravel()[:1])), 0, 0) for a in leaves), start=jnp.int32(0))
    return jax.tree.map(lambda a: a + zero.astype(a.dtype), tree)


@jax.custom_vjp
def doubled_gradient(x):
    return x


doubled_gradient.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))


# --- panel after panel ----------------------------------------------------------------------------------------------


def sweep(step: Callable, carry: Any, size: int, arrays: Any) -> tuple[Any, Any]:
    """Scan `step(carry, block)` over blocks of rows; padded rows do not exist (`where` is False)."""
    n = len(jax.tree.leaves(arrays)[0])
    count = math.ceil(n / size)

    def blocks(a):
        padded = jnp.pad(a, [(0, count * size - n)] + [(0, 0)] * (a.ndim - 1))
        return padded.reshape(count, size, *a.shape[1:])

    carry, out = lax.scan(step, carry, jax.tree.map(blocks, arrays))
    return carry, jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:n], out)


def _zeros_like(tree: Any) -> Any:
    zeros = jax.tree.map(jnp.zeros_like, tree)
    return varying((zeros, tree))[0]


def _panel_gradient(problem, columns, hyper, column):
    """A scan step: the Means of a block of rows, and the gradient of Σ cotangent · total while it is in cache."""

    def step(sums, block):
        x, cotangents, row = block
        totals = lambda *a: (lambda means: ([m.total for m in means], means))(means_of(problem, *a, row, column))
        _, pull, means = jax.vjp(totals, x, columns, hyper, has_aux=True)
        dx, *rest = pull(list(cotangents))
        return jax.tree.map(jnp.add, sums, tuple(rest)), (dx, means)

    return step


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def panels(problem, size, x, columns, hyper, row, column):
    """The Means of all anchors. The backward rule computes each panel again, so that nothing of size n·m is kept."""
    step = lambda _, block: ((), means_of(problem, block[0], columns, hyper, block[1], column))
    return sweep(step, (), size, (x, row))[1]


def _panels_forward(problem, size, x, columns, hyper, row, column):
    return panels(problem, size, x, columns, hyper, row, column), (x, columns, hyper, row, column)


def _panels_backward(problem, size, saved, cotangents):
    x, columns, hyper, row, column = saved
    step = _panel_gradient(problem, columns, hyper, column)
    sums, (dx, _) = sweep(step, _zeros_like((columns, hyper)), size, (x, [c.total for c in cotangents], row))
    return dx, *sums, None, None


panels.defvjp(_panels_forward, _panels_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed_panels(problem, size, x, columns, hyper, weights, row, column):
    """The weighted sum of the one Mean: its gradient is taken in the forward rule, in the same pass as the loss."""
    (mean,) = panels(problem, size, x, columns, hyper, row, column)
    return (Mean(jnp.sum(mean.total * weights), jnp.sum(mean.count * weights)),)


def _summed_panels_forward(problem, size, x, columns, hyper, weights, row, column):
    step = _panel_gradient(problem, columns, hyper, column)
    sums, (dx, (mean,)) = sweep(step, _zeros_like((columns, hyper)), size, (x, [weights], row))
    value = (Mean(jnp.sum(mean.total * weights), jnp.sum(mean.count * weights)),)
    return value, ((dx, *sums), mean)


def _summed_panels_backward(problem, size, saved, cotangent):
    gradients, mean = saved
    (total, count) = cotangent[0]
    return *jax.tree.map(lambda g: g * total, gradients), mean.total * total + mean.count * count, None, None


summed_panels.defvjp(_summed_panels_forward, _summed_panels_backward)
