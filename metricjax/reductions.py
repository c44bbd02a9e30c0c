"""Reductions: from one Mean for each anchor to the loss."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from metricjax.functions import OFFERED, by_content, check_function, offered
from metricjax.problems import Mean

Loss: TypeAlias = Any  # a scalar `Float[Array, ""]`, unless the option `reduction` makes something else


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
            means = jax.tree.map(lambda a: _placed(a, axis_name), means)
        means = lax.psum(means, axis_name)
    return jax.tree.map(lambda *parts: sum(parts), *(reduction(mean) for mean in means))


def of_all(tree: Any, axis_name) -> Any:
    """The rows of all devices, in order."""
    return tree if axis_name is None else lax.all_gather(tree, axis_name, tiled=True)


def _placed(a: Float[Array, "n ..."], axis_name) -> Float[Array, "all ..."]:
    """This device's part of a long array of zeros: the sum over devices is the whole array, the same everywhere."""
    mine = lax.axis_index(axis_name) == jnp.arange(lax.axis_size(axis_name))
    whole = jnp.where(mine.reshape(-1, *[1] * a.ndim), a[None], 0)
    return whole.reshape(-1, *a.shape[1:])
