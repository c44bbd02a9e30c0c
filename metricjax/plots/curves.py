"""Curves of verification, identification and retrieval, several in one figure to be compared."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metricjax.metrics import Bands, PairScores, Roc, Searches
from metricjax.plots.style import BLUE, FEW, VERMILLION, Figure, add_legend, as_written, line_style, short, some

__all__ = ["cmc_curves", "det_curves", "recall_curves", "roc_curves", "score_histograms"]

_TICKS = {
    "10⁻⁸": 1e-8, "10⁻⁷": 1e-7, "10⁻⁶": 1e-6, "10⁻⁵": 1e-5, "10⁻⁴": 1e-4, "10⁻³": 1e-3,
    "0.01": 0.01, "0.05": 0.05, "0.2": 0.2, "0.5": 0.5, "0.8": 0.8, "0.95": 0.95,
}  # fmt: skip
_probit = np.vectorize(NormalDist().inv_cdf, otypes=[float])


def roc_curves(curves: Mapping[str, Roc], bands: Mapping[str, Bands] | None = None) -> Figure:
    """True accept rate against false accept rate, on a logarithmic axis that ends where the impostor pairs end.

    `bands` are the `Bands` of some of the curves: false accept rates, with `lower` and `upper` bounds of the true
    accept rate there. They are shaded.
    """
    figure, axes = _axes("curves", curves)
    bands = _of_curves(bands, curves)
    for number, (name, curve) in enumerate(curves.items()):
        label = f"{short(name, 24)} (EER {curve.equal_error_rate():.3f})"
        axes.plot(curve.far, curve.tar, label=label, drawstyle="steps-post", **line_style(number))
        if name in bands:
            band = bands[name]
            colour = line_style(number)["color"]
            axes.fill_between(band.fars, band.lower, band.upper, color=colour, alpha=0.2, linewidth=0)
    least = min(0.1, *(1 / curve.impostors for curve in curves.values()))
    axes.set(xscale="log", xlim=(least, 1), ylim=(0, 1.01), xlabel="false accept rate", ylabel="true accept rate")
    axes.grid(alpha=0.3)
    add_legend(axes, "lower right")
    return figure


def det_curves(curves: Mapping[str, Roc], bands: Mapping[str, Bands] | None = None) -> Figure:
    """False reject rate against false accept rate, both axes scaled by the normal quantile (Martin et al. 1997).

    Scores that are normal in both kinds of pairs give a straight line. Rates of 0 and 1 lie outside. `bands` are those
    of `roc_curves`, of the true accept rate.
    """
    figure, axes = _axes("curves", curves)
    bands = _of_curves(bands, curves)
    limits = lambda pairs: tuple(_probit([min(0.05, *(1 / n for n in pairs)), 0.95]))
    reject_limits = limits([curve.genuine for curve in curves.values()])
    for number, (name, curve) in enumerate(curves.items()):
        inside = (curve.far > 0) & (curve.far < 1) & (curve.frr > 0) & (curve.frr < 1)
        far, frr = curve.far[inside], curve.frr[inside]
        label = f"{short(name, 24)} (EER {curve.equal_error_rate():.3f})"
        axes.plot(_probit(far), _probit(frr), label=label, **line_style(number))
        if name in bands:
            band = bands[name]
            inside = (np.asarray(band.fars) > 0) & (np.asarray(band.fars) < 1)
            tiny = 1e-12  # far outside the axes: a bound of 0 or 1 has no quantile
            bounds = [_probit(np.clip(1 - np.asarray(tar)[inside], tiny, 1 - tiny)) for tar in (band.upper, band.lower)]
            colour = line_style(number)["color"]
            axes.fill_between(_probit(np.asarray(band.fars)[inside]), *bounds, color=colour, alpha=0.2, linewidth=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(_probit(list(_TICKS.values())), list(_TICKS), fontsize=9)
    axes.set(
        xlim=limits([curve.impostors for curve in curves.values()]),
        ylim=reject_limits,
        xlabel="false accept rate",
        ylabel="false reject rate",
    )
    axes.grid(alpha=0.3)
    add_legend(axes, "upper right")
    return figure


def score_histograms(scores: Mapping[str, PairScores]) -> Figure:
    """Densities of the scores of genuine and impostor pairs, one panel for each entry."""
    some("scores", scores)
    figure = Figure(figsize=(5 * len(scores), 3.4), layout="constrained")
    for axes, (name, pairs) in zip(np.ravel(figure.subplots(1, len(scores))), scores.items(), strict=True):
        kinds = (("same person", pairs.genuine, BLUE), ("different people", pairs.impostors, VERMILLION))
        for kind, counts, colour in kinds:
            density = counts / counts.sum() / np.diff(pairs.edges)
            axes.stairs(density, pairs.edges, fill=True, alpha=0.4, label=kind, color=colour)
            axes.stairs(density, pairs.edges, color=colour)
        seen = np.flatnonzero(pairs.genuine + pairs.impostors)
        axes.set_xlim(pairs.edges[seen[0]] - 0.02, pairs.edges[seen[-1] + 1] + 0.02)
        axes.set(xlabel="similarity", ylabel="density")
        as_written(axes.set_title(short(name, 60)))
        axes.set_ylim(0, 1.2 * axes.dataLim.ymax)  # the legend stands above the columns
        axes.legend(loc="upper center", ncols=2)
    return figure


def cmc_curves(searches: Mapping[str, Searches], most: int = 50) -> Figure:
    """Share of mated queries whose best mate is among the first k, for k from 1 to `most`, on a logarithmic axis."""
    if most < 1:
        raise ValueError(f"most is {most}; wanted a positive rank")
    figure, axes = _axes("searches", searches)
    for number, (name, found) in enumerate(searches.items()):
        rates = found.cmc(range(1, most + 1))
        shares = [rates[f"rank-{k}"] for k in range(1, most + 1)]
        label = f"{short(name, 24)} (rank 1: {shares[0]:.3f})"
        axes.plot(range(1, most + 1), shares, label=label, drawstyle="steps-post", **line_style(number))
    _ranks(axes, np.arange(1, most + 1))
    axes.set(xlabel="rank k", ylabel="mated queries identified within k")
    add_legend(axes, "lower right")
    return figure


def recall_curves(results: Mapping[str, Mapping[str, Any]], measure: str = "recall") -> Figure:
    """A measure @k of `metrics.retrieval` over k, on a logarithmic axis: "recall", "precision", "ndcg" …

    Each entry is what `retrieval(..., ks=(1, 2, 5, 10, …))` returns; its keys say which k there are.
    """
    figure, axes = _axes("results", results)
    everywhere: set[int] = set()
    for number, (name, found) in enumerate(results.items()):
        ks = sorted(int(key.removeprefix(f"{measure}@")) for key in found if key.startswith(f"{measure}@"))
        if not ks:
            raise ValueError(f"results[{name!r}] has no {measure}@k; wanted one beside {', '.join(found)}")
        label = f"{short(name, 24)} (@{ks[0]}: {found[f'{measure}@{ks[0]}']:.3f})"
        values = [found[f"{measure}@{k}"] for k in ks]
        axes.plot(ks, values, label=label, marker="o", markersize=4, **line_style(number))
        everywhere |= set(ks)
    _ranks(axes, np.array(sorted(everywhere)))
    axes.set(xlabel="k", ylabel=f"{measure}@k")
    add_legend(axes, "upper right" if measure == "precision" else "lower right")
    return figure


def _axes(name: str, entries: Mapping) -> tuple[Figure, Axes]:
    some(name, entries)
    figure = Figure(figsize=(5 if len(entries) <= FEW else 7.5, 4), layout="constrained")
    return figure, figure.subplots()


def _of_curves(bands: Mapping[str, Bands] | None, curves: Mapping[str, Roc]) -> Mapping[str, Bands]:
    for name in bands or {}:
        if name not in curves:
            raise ValueError(f"bands has {name!r}; wanted names of curves: {', '.join(curves)}")
    return bands or {}


def _ranks(axes: Axes, ks: np.ndarray) -> None:
    """A logarithmic axis of ranks that names 1, 2, 5, 10 … as far as they go, and shares from 0 to 1."""
    steps = [step * 10**power for power in range(7) for step in (1, 2, 5)]
    axes.set(xscale="log", xlim=(ks[0] / 1.1, ks[-1] * 1.1), ylim=(0, 1.02))
    shown = [step for step in steps if ks[0] <= step <= ks[-1]] or [int(ks[0])]
    axes.set_xticks(shown, [f"{step:,}" for step in shown])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
