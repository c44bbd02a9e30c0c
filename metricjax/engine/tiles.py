"""What the pairs of a tile of scores add to the statistics of rows, and to gradients: for XLA and for kernels alike.

Numbers of the rows on one side of a tile [t, u] have an axis of length 1 where the other side stands.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metricjax.engine.devices import varying
from metricjax.engine.statistics import Statistic

__all__ = ["End", "Found", "Masks", "Named", "added_to", "log_of", "loss_of_pairs", "nothing_found", "with_slopes"]

Named = tuple[str, Statistic]
Found = Array | tuple[Array, Array]  # of a sum; of a log-sum-exp the largest term so far, and Σ e^{term − largest}


class Masks(NamedTuple):
    """Which pairs of a tile are positive, and which negative; None where all are negatives."""

    positives: Bool[Array, "t u"] | None = None
    negatives: Bool[Array, "t u"] | None = None

    def of(self, statistic: Statistic) -> Bool[Array, "t u"] | None:
        return self.positives if statistic.of == "positives" else self.negatives

    def seen(self, statistics: Sequence[Named]) -> Iterator[Named]:
        """The statistics to which pairs of the tile add."""
        return (one for one in statistics if self.positives is not None or one[1].of == "negatives")


class End(NamedTuple):
    """What is known of the rows on one side of a tile, by the names of statistics. axis: of the other side.

    levels: log-sum-exps, 0 for that of nothing. cotangents: of all statistics. values: of those that others are given.
    """

    axis: int
    values: dict[str, Array]
    levels: dict[str, Array]
    cotangents: dict[str, Array]


def nothing_found(statistic: Statistic, zeros: Array) -> Found:
    """The statistic of rows that have no pairs."""
    return (zeros - jnp.inf, zeros) if statistic.kind == "logsumexp" else zeros


def added_to(
    found: Found,
    terms: Float[Array, "t u"],
    where: Bool[Array, "t u"] | None,
    axis: int,
    exp: Callable[[Array], Array] = jnp.exp,
) -> Found:
    """The statistic so far, with the terms of a tile."""
    if not isinstance(found, tuple):
        return found + jnp.sum(_marked(terms, where), axis=axis, keepdims=True)
    terms = terms if where is None else jnp.where(where, terms, -jnp.inf)
    before, total = found
    top = jnp.maximum(before, jnp.max(terms, axis=axis, keepdims=True))
    finite = jnp.where(jnp.isfinite(top), top, 0)
    return top, total * exp(before - finite) + jnp.sum(exp(terms - finite), axis=axis, keepdims=True)


def log_of(found: tuple[Array, Array]) -> Array:
    """The log-sum-exp, −∞ of nothing."""
    top, total = found
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, -jnp.inf)


def with_slopes(
    statistic: Statistic, scores: Float[Array, "t u"], given: list[Array], hyper: tuple, where: Any, axis: int
) -> tuple[Array, ...]:
    """What a tile adds to a sum that is given other statistics, and to its derivatives by each of these."""

    def total(*given):
        return jnp.sum(_marked(statistic.terms(scores, *given, *hyper), where), axis=axis, keepdims=True)

    more, pull = jax.vjp(total, *given)
    return more, *pull(varying(jnp.ones_like(more), more))


def loss_of_pairs(
    statistics: Sequence[Named],
    scores: Float[Array, "t u"],
    hyper: tuple,
    masks: Masks,
    ends: Sequence[End],
    exp: Callable[[Array], Array] = jnp.exp,
) -> Float[Array, ""]:
    """A number whose gradients are what the pairs of a tile, seen from its ends, add to those of the loss."""
    total = jnp.zeros((), scores.dtype)
    for name, statistic in masks.seen(statistics):
        where = masks.of(statistic)
        for end in ends:
            terms = statistic.terms(scores, *(end.values[of] for of in statistic.given), *hyper)
            if statistic.kind == "logsumexp":
                terms = terms if where is None else jnp.where(where, terms, -jnp.inf)
                terms = exp(terms - end.levels[name])
            else:
                terms = _marked(terms, where)
            total += jnp.sum(terms * end.cotangents[name])
    return total


def _marked(terms: Array, where: Array | None) -> Array:
    return terms if where is None else jnp.where(where, terms, 0)
