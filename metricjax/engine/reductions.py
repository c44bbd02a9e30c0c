"""Reductions: from one Mean for each anchor to the loss."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.engine.devices import placed, summed
from metricjax.engine.pairs import Mean
from metricjax.ground.functions import OFFERED, by_content, check_function, offered

# A scalar `Float[Array, ""]`, as type checkers see it, unless the option `reduction` makes something else.
if TYPE_CHECKING:
    Loss: TypeAlias = Array
else:
    Loss = Any


@offered("reduction")
def quotient(mean: Mean) -> Float[Array, ""]:
    """The default reduction: Σ total / Σ count, and 0 where nothing counts."""
    total, count = jnp.sum(mean.total), jnp.sum(mean.count)
    return total / jnp.where(count > 0, count, 1)


@offered("reduction")
def with_count(mean: Mean) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """A reduction: the loss, and Σ count beside it (of a hinge loss, how many terms are active)."""
    return quotient(mean), jnp.sum(mean.count)


@offered("reduction")
def as_mean(mean: Mean) -> Mean:
    """A reduction: totals and counts of each anchor, as they are."""
    return mean


PLAIN = (quotient, with_count)  # reductions of one number for each anchor, by Σ total and Σ count


def of_sums(reduction: Callable[[Mean], Any]) -> Callable[[Mean], Any]:
    """Declare that a reduction needs no more than Σ total and Σ count over anchors, and let it have those."""
    vars(reduction)["of_sums"] = True
    return reduction


def is_of_sums(reduction: Callable[[Mean], Any]) -> bool:
    return reduction in PLAIN or getattr(reduction, "of_sums", False)


def check_reduction(reduction: Callable[[Mean], Any]) -> Callable[[Mean], Any]:
    """A reduction, by its content."""
    if isinstance(reduction, str):
        wanted = f"a function: {', '.join(OFFERED['reduction'].values())}, or your own; by default it is the mean"
        raise TypeError(f"reduction is {reduction!r}; wanted {wanted}")
    check_function("reduction", reduction)
    return by_content(reduction)


def reduced(means: tuple[Mean, ...], weights, reduction, axis_name=None):
    """The loss: anchors weighted, devices joined, each Mean reduced, and the results added."""
    if weights is not None:
        weigh = lambda a: a * weights.reshape(-1, *[1] * (a.ndim - 1))
        means = jax.tree.map(weigh, means)
    if reduction in PLAIN:
        means = jax.tree.map(jnp.sum, means)
    elif is_of_sums(reduction) and weights is not None:
        means = jax.tree.map(lambda a: jnp.sum(a, axis=0), means)
    if axis_name is not None:
        if not is_of_sums(reduction):
            means = jax.tree.map(lambda a: placed(a, axis_name), means)
        means = summed(means, axis_name)
    return jax.tree.map(lambda *parts: sum(parts), *(reduction(mean) for mean in means))
