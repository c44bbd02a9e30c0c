"""A declared loss in two sweeps, on the platforms where that is faster; in panels elsewhere, with the same values."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metricjax.engine import panels
from metricjax.engine.pairs import Mean
from metricjax.engine.sizes import Size, of_platform
from metricjax.engine.sweeps import with_tangent
from metricjax.engine.triangle import gradients_in_sweeps, means_in_sweeps

__all__ = ["Ways", "sum_of_rows"]


class Ways(NamedTuple):
    """Rows of a panel and of a tile, and whether platforms other than CPUs are to sweep too."""

    panel: Size
    tile: Size
    everywhere: bool

    def taken(self, in_sweeps: Callable[[int], Any], in_panels: Callable[[], Any]) -> Any:
        swept = lambda: of_platform(self.tile, in_sweeps)
        return swept() if self.everywhere else lax.platform_dependent(cpu=swept, default=in_panels)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def sum_of_rows(ways: Ways, loss, columns, hyper, weights, row, column) -> Mean:
    """Σ of weight · total over all rows, which are the columns, and Σ of weight · count.

    Of several Means, each total is divided by its own count before they are added.
    """
    in_panels = lambda loss, *arrays: panels.means_in_panels(ways.panel, loss, None, *arrays)
    in_sweeps = lambda height, loss, columns, hyper, _, column: means_in_sweeps(height, loss, columns, hyper, column)
    return _joined(_either(ways, in_sweeps, in_panels, loss, columns, hyper, row, column), weights)[0]


@partial(sum_of_rows.defjvp, symbolic_zeros=True)
def _sum_of_rows_tangent(ways, primals, tangents):
    weights = primals[3]

    def in_panels(loss, columns, hyper, weights, row, column):
        means = panels.means_in_panels(ways.panel, loss, None, columns, hyper, row, column)
        shares = list(_joined(means, weights)[1])
        (_, *gradients), means = panels.gradients_in_panels(ways.panel, loss, None, columns, hyper, shares, row, column)
        return tuple(gradients), means

    def in_sweeps(height, loss, columns, hyper, weights, row, column):
        return gradients_in_sweeps(height, loss, columns, hyper, lambda means: _joined(means, weights)[1], column)

    gradients, means = _either(ways, in_sweeps, in_panels, *primals)
    value, _, of_weights = _joined(means, weights)
    return with_tangent(value, means, (*gradients, of_weights), tangents[1:4])


def _either(ways: Ways, in_sweeps: Callable, in_panels: Callable, *given: Any) -> Any:
    """What the platform is faster at. Its own derivatives are those of panels: sweeps have no reverse mode."""
    found = jax.custom_jvp(lambda *a: ways.taken(lambda height: in_sweeps(height, *a), lambda: in_panels(*a)))
    found.defjvp(lambda primals, tangents: jax.jvp(in_panels, primals, tangents))
    return found(*given)


def _joined(means: tuple[Mean, ...], weights) -> tuple[Mean, tuple, Any]:
    """The sum of the Means of all rows, the cotangents of their totals in it, and its gradient by the weights."""
    totals, counts = ([jnp.sum(getattr(mean, part) * weights) for mean in means] for part in ("total", "count"))
    if len(means) == 1:
        return Mean(totals[0], counts[0]), (weights,), means[0].total
    nothing = jnp.zeros_like(totals[0])
    least = [jnp.where(count > 0, count, 1) for count in counts]
    shares = [total / count for total, count in zip(totals, least, strict=True)]
    each = zip(means, shares, least, strict=True)
    of_weights = sum((mean.total - share * mean.count) / count for mean, share, count in each)
    return (
        Mean(sum(shares, start=nothing), sum(counts, start=nothing)),
        tuple(weights / count for count in least),
        of_weights,
    )
