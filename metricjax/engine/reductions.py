"""Reductions: from one Mean for each anchor to the loss."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.engine.devices import Axis, placed, summed
from metricjax.engine.pairs import Mean
from metricjax.ground.functions import by_content, check_function, check_settings, under_name

__all__ = [
    "Loss",
    "Reduction",
    "as_mean",
    "as_reduction",
    "joined",
    "of_sums",
    "quotient",
    "reduced",
    "reduction",
    "weighted",
    "with_count",
]

# A scalar `Float[Array, ""]`, as type checkers see it, unless the option `reduction` makes something else.
if TYPE_CHECKING:
    Loss: TypeAlias = Array
else:
    Loss = Any


@dataclass(frozen=True)
class Reduction:
    """A function of the Means of all anchors, and what it needs of them.

    of_sums: Σ total and Σ count over anchors are all that it needs.
    of_numbers: an anchor's total and count are one number each, not an array.
    """

    reduce: Callable[[Mean], Any]
    of_sums: bool = False
    of_numbers: bool = False

    role: ClassVar[str] = "reduction"

    def __call__(self, *mean: Mean) -> Any:
        check_settings(self, mean)
        return self.reduce(*mean)


def reduction(**declared: bool) -> Callable[[Callable[[Mean], Any]], Reduction]:
    """Make a `Reduction` of a function, under its name and with its documentation."""
    return lambda reduce: under_name(Reduction(by_content(reduce), **declared), reduce)


def of_sums(reduce: Callable[[Mean], Any]) -> Reduction:
    """Declare that a reduction needs only Σ total and Σ count over anchors, and give it those.

    In panels it then costs no further matrix product, and memory is that of the sums.

    >>> import jax.numpy as jnp
    >>> import metricjax as mj
    >>> @mj.of_sums
    ... def total(mean):
    ...     return mean.total
    >>> z, y = jnp.eye(4), jnp.arange(4) // 2
    >>> bool(jnp.isclose(mj.losses.supcon(z, y, reduction=total), 4 * mj.losses.supcon(z, y)))
    True
    """
    return reduction(of_sums=True)(reduce)


@reduction(of_sums=True, of_numbers=True)
def quotient(mean: Mean) -> Float[Array, ""]:
    """The default reduction: Σ total / Σ count, and 0 where nothing counts."""
    total, count = jnp.sum(mean.total), jnp.sum(mean.count)
    return total / jnp.where(count > 0, count, 1)


@reduction(of_sums=True, of_numbers=True)
def with_count(mean: Mean) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A reduction: the loss, and Σ count beside it (of a hinge loss, how many terms are active)."""
    return quotient(mean), jnp.sum(mean.count)


@reduction()
def as_mean(mean: Mean) -> Mean:
    """A reduction: totals and counts of each anchor, as they are."""
    return mean


def as_reduction(f: Callable[[Mean], Any]) -> Reduction:
    """A reduction of any form, once it is known to be one."""
    if isinstance(f, str):
        raise TypeError(f"reduction is {f!r}; wanted a function: mj.with_count, or your own; by default it is the mean")
    check_function("reduction", f)
    if isinstance(f, functools.partial):
        inner = as_reduction(f.func)
        return replace(inner, reduce=by_content(functools.partial(inner.reduce, *f.args, **f.keywords)))
    return f if isinstance(f, Reduction) else Reduction(by_content(f))


def weighted(means: tuple[Mean, ...], weights: Float[Array, " n"] | None) -> tuple[Mean, ...]:
    """Means of anchors [n, ...], times the weights of the anchors."""
    if weights is None:
        return means
    return jax.tree.map(lambda a: a * weights.reshape(-1, *[1] * (a.ndim - 1)), means)


def reduced(means: tuple[Mean, ...], reduction: Reduction, axis: Axis = None) -> Any:
    """The loss of Means [n, ...] of the anchors of all devices: each Mean is reduced, and the results are added."""
    if reduction.of_sums:
        means = jax.tree.map(lambda a: jnp.sum(a, axis=0), means)
    else:
        means = jax.tree.map(lambda a: placed(a, axis), means)
    return joined(means, reduction, axis)


def joined(means: tuple[Mean, ...], reduction: Reduction, axis: Axis = None) -> Any:
    """The loss of Means of which each device has its part of a sum."""
    return jax.tree.map(lambda *parts: sum(parts), *map(reduction, summed(means, axis)))
