"""A declared loss in two sweeps, on the platforms where that is faster; in panels elsewhere, with the same values.

The first sweep finds the statistics of rows; between the two, plain JAX makes the loss and the cotangents of the
statistics out of them; the second makes the gradient of each pair of rows from the statistics of both.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from metricjax.engine import panels
from metricjax.engine.kernels.choice import Kernels
from metricjax.engine.kernels.row_sweeps import RowSweeps
from metricjax.engine.order import Ordered
from metricjax.engine.pairs import Mean, PairLoss, as_means, unwrapped, with_fixed_count
from metricjax.engine.positives import Side
from metricjax.engine.sizes import Size, of_platform
from metricjax.engine.sweeps import added, with_tangent
from metricjax.engine.tiles import End, Named
from metricjax.engine.triangle import Triangle

__all__ = ["Sweeps", "Ways", "sum_of_rows"]


@runtime_checkable
class Sweeps(Protocol):
    """How the pairs of a loss are gone through: the methods of `Triangle` say what each of these gives."""

    @property
    def loss(self) -> PairLoss: ...

    def laid_out(self, columns: Array, column: Side) -> Ordered: ...

    def statistics(self, rows: Ordered, hyper: tuple, statistics: Sequence[Named]) -> dict[str, Array]: ...

    def given_others(
        self, rows: Ordered, hyper: tuple, values: dict[str, Array], statistics: Sequence[Named]
    ) -> dict[tuple[str, str], Array]: ...

    def gradients(self, rows: Ordered, hyper: tuple, statistics: Sequence[Named], end: End) -> tuple[Array, Any]: ...


class Ways(NamedTuple):
    """Rows of a panel and of a tile, whether platforms other than CPUs are to sweep too, and the kernels, if any."""

    panel: Size
    tile: Size
    everywhere: bool
    kernels: Kernels | None = None

    def taken(self, loss: PairLoss, of_hyper: bool, in_sweeps: Callable[[Sweeps], Any], in_panels: Callable[[], Any]):
        """What the platform runs: a kernel if it has one; else sweeps in XLA or panels."""
        in_xla = lambda: of_platform(self.tile, lambda height: in_sweeps(Triangle(height, loss)))
        others = in_xla if self.everywhere else in_panels
        if self.kernels is None:
            return in_xla() if self.everywhere else lax.platform_dependent(cpu=in_xla, default=others)
        kernels = {
            platform: lambda backend=backend: in_sweeps(RowSweeps(backend, loss, of_hyper))
            for platform, backend in self.kernels.backends().items()
        }
        return lax.platform_dependent(**{"cpu": in_xla, "default": others} | kernels)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def sum_of_rows(ways: Ways, loss, columns, hyper, weights, row, column) -> Mean:
    """Σ of weight · total over all rows, which are the columns, and Σ of weight · count.

    Of several Means, each total is divided by its own count before they are added.
    """
    in_panels = lambda loss, *arrays: panels.means_in_panels(ways.panel, loss, None, *arrays)
    in_sweeps = lambda sweeps, columns, hyper, row, column: _means(sweeps, columns, hyper, column)
    return _joined(_either(ways, False, in_sweeps, in_panels, loss, columns, hyper, row, column), weights)[0]


@partial(sum_of_rows.defjvp, symbolic_zeros=True)
def _sum_of_rows_tangent(ways, primals, tangents):
    weights = primals[3]

    def in_panels(loss, columns, hyper, weights, row, column):
        means = panels.means_in_panels(ways.panel, loss, None, columns, hyper, row, column)
        shares = list(_joined(means, weights)[1])
        (_, *gradients), means = panels.gradients_in_panels(ways.panel, loss, None, columns, hyper, shares, row, column)
        return tuple(gradients), means

    def in_sweeps(sweeps, columns, hyper, weights, row, column):
        return _gradients(sweeps, columns, hyper, lambda means: _joined(means, weights)[1], column)

    is_zero = lambda t: isinstance(t, SymbolicZero)
    of_hyper = not all(map(is_zero, jax.tree.leaves(tangents[2], is_leaf=is_zero)))
    gradients, means = _either(ways, of_hyper, in_sweeps, in_panels, *primals)
    value, _, of_weights = _joined(means, weights)
    return with_tangent(value, means, (*gradients, of_weights), tangents[1:4])


def _either(ways: Ways, of_hyper: bool, in_sweeps: Callable, in_panels: Callable, *given: Any) -> Any:
    """What the platform is faster at. Its own derivatives are those of panels: sweeps have no reverse mode."""

    def run(loss, *arrays):
        return ways.taken(loss, of_hyper, lambda sweeps: in_sweeps(sweeps, *arrays), lambda: in_panels(loss, *arrays))

    found = jax.custom_jvp(run)
    found.defjvp(lambda primals, tangents: jax.jvp(in_panels, primals, tangents))
    return found(*given)


# --- the two sweeps -------------------------------------------------------------------------------------------------


def _means(sweeps: Sweeps, columns, hyper, column: Side) -> tuple[Mean, ...]:
    """The Means of all rows, in one sweep."""
    rows = sweeps.laid_out(columns, column)
    return _as_they_came(rows, _finished(sweeps.loss, rows, _values(sweeps, rows, hyper)[0], hyper))


def _gradients(sweeps: Sweeps, columns, hyper, cotangents: Callable, column: Side):
    """The gradients of columns and hyper-parameters, and the Means, in two sweeps.

    `cotangents` makes those of the totals of all rows, of the Means.
    """
    rows = sweeps.laid_out(columns, column)
    values, slopes = _values(sweeps, rows, hyper)
    totals = lambda *a: (lambda means: ([m.total for m in means], means))(_finished(sweeps.loss, rows, *a))
    _, pull, means = jax.vjp(totals, values, hyper, has_aux=True)
    came = _as_they_came(rows, means)
    spread = [jnp.zeros(len(rows.x), c.dtype).at[rows.place].set(c) for c in cotangents(came)]
    of_values, of_hyper = pull(spread)
    for name, slope in slopes.items():
        for given, change in slope.items():
            of_values[given] += of_values[name] * change
    statistics = _statistics(sweeps.loss)
    dx, more = sweeps.gradients(rows, hyper, statistics, _end(statistics, values, of_values))
    return (dx[rows.place], added(more, of_hyper)), came


def _statistics(loss: PairLoss) -> Sequence[Named]:
    return loss.rows.statistics  # type: ignore[attr-defined]


def _values(sweeps: Sweeps, rows: Ordered, hyper) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """The statistics of all rows; and of those that are given others, their slopes by these."""
    first, later = ([one for one in _statistics(sweeps.loss) if bool(one[1].given) == given] for given in (False, True))
    values = sweeps.statistics(rows, hyper, first)
    if not later:
        return values, {}
    sums = sweeps.given_others(rows, hyper, values, later)
    slopes = {name: {of: sums[name, of] for of in s.given} for name, s in later}
    return values | {name: sums[name, ""] for name, _ in later}, slopes


def _finished(loss: PairLoss, rows: Ordered, values, hyper) -> tuple[Mean, ...]:
    found = loss.rows.finished(values, rows.positives, rows.negatives, unwrapped(hyper))  # type: ignore[attr-defined]
    return tuple(with_fixed_count(mean, rows.x) for mean in as_means(found))


def _as_they_came(rows: Ordered, means: tuple[Mean, ...]) -> tuple[Mean, ...]:
    return jax.tree.map(lambda a: a[rows.place], means)


def _end(statistics: Sequence[Named], values, cotangents) -> End:
    """What the second sweep needs to know of each row; log-sum-exps of nothing have no gradient."""
    some = {name: values[name] != -jnp.inf if s.kind == "logsumexp" else True for name, s in statistics}
    given = {of for _, s in statistics for of in s.given}
    return End(
        axis=1,
        values={name: values[name] for name in given},
        levels={name: jnp.where(some[name], values[name], 0) for name, s in statistics if s.kind == "logsumexp"},
        cotangents={name: jnp.where(some[name], cotangents[name], 0) for name, _ in statistics},
    )


# --- the Means of rows ----------------------------------------------------------------------------------------------


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
