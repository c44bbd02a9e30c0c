"""Figures of what training and evaluation produced. Each function returns a Matplotlib figure."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from metricjax.extras import extra
from metricjax.metrics import PairScores, Roc

with extra("plots"):
    from matplotlib.figure import Figure


def training_curves(history: Mapping[str, Sequence[float]], step: str = "step") -> Figure:
    """One panel for each quantity of `history` against `history[step]`; names that share a prefix share a panel.

    The prefix is what stands before the first "/": "distance/positive" and "distance/negative" are one panel.
    """
    groups: dict[str, list[str]] = {}
    for name in history:
        if name != step:
            groups.setdefault(name.split("/")[0], []).append(name)
    figure = Figure(figsize=(4 * len(groups), 3.2), layout="constrained")
    for axes, (title, names) in zip(np.ravel(figure.subplots(1, len(groups))), groups.items(), strict=True):
        for name in names:
            axes.plot(history[step], history[name], label=name.split("/")[-1])
        axes.set(title=title, xlabel=step)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    return figure


def roc_curves(curves: Mapping[str, Roc]) -> Figure:
    """True accept rate against false accept rate, on a logarithmic axis that ends where the impostor pairs end."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(curve.far, curve.tar, label=f"{name} (EER {curve.equal_error_rate():.3f})", drawstyle="steps-post")
    least = min(1 / curve.impostors for curve in curves.values())
    axes.set(xscale="log", xlim=(least, 1), ylim=(0, 1.01), xlabel="false accept rate", ylabel="true accept rate")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    return figure


def det_curves(curves: Mapping[str, Roc]) -> Figure:
    """False reject rate against false accept rate, both axes scaled by the normal quantile (Martin et al. 1997).

    Scores that are normal in both kinds of pairs give a straight line. Rates of 0 and 1 lie outside.
    """
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    probit = np.vectorize(NormalDist().inv_cdf, otypes=[float])
    for name, curve in curves.items():
        inside = (curve.far > 0) & (curve.far < 1) & (curve.frr > 0) & (curve.frr < 1)
        far, frr = curve.far[inside], curve.frr[inside]
        axes.plot(probit(far), probit(frr), label=f"{name} (EER {curve.equal_error_rate():.3f})")
    ticks = np.array([1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(probit(ticks), [f"{tick:g}" for tick in ticks])
    limits = lambda pairs: tuple(probit([min(0.05, *(1 / n for n in pairs)), 0.95]))
    axes.set(
        xlim=limits([curve.impostors for curve in curves.values()]),
        ylim=limits([curve.genuine for curve in curves.values()]),
        xlabel="false accept rate",
        ylabel="false reject rate",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    return figure


def score_histograms(scores: Mapping[str, PairScores]) -> Figure:
    """Densities of the scores of genuine and impostor pairs, one panel for each entry."""
    figure = Figure(figsize=(5 * len(scores), 3.4), layout="constrained")
    for axes, (name, pairs) in zip(np.ravel(figure.subplots(1, len(scores))), scores.items(), strict=True):
        for kind, counts in (("same person", pairs.genuine), ("different people", pairs.impostors)):
            axes.stairs(counts / counts.sum() / np.diff(pairs.edges), pairs.edges, fill=True, alpha=0.5, label=kind)
        axes.set(title=name, xlabel="similarity", ylabel="density")
        axes.legend()
    return figure


def neighbour_sheet(
    images: np.ndarray, labels: np.ndarray, similarity: np.ndarray, queries: Sequence[int] | np.ndarray, count: int = 6
) -> Figure:
    """Queries in the first column, their nearest neighbours to the right; those of another class are framed in red.

    Args:
      images: [n, height, width, 1 or 3] uint8.
      labels: [n].
      similarity: [queries, n], larger is closer.
      queries: index of the image that each row of `similarity` belongs to; it is not its own neighbour.
      count: neighbours shown.
    """
    figure = Figure(figsize=(1.1 * (count + 1), 1.35 * len(queries)), layout="constrained")
    grid = figure.subplots(len(queries), count + 1, squeeze=False)
    for row, (query, scores) in enumerate(zip(queries, similarity, strict=True)):
        order = [i for i in np.argsort(-scores, kind="stable") if i != query][:count]
        for axes, index in zip(grid[row], [query, *order], strict=False):
            axes.imshow(np.squeeze(images[index]), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            wrong = labels[index] != labels[query]
            title = "query" if index == query else f"{scores[index]:.2f}" + (" ✗" if wrong else "")
            axes.set_title(title, fontsize=8, color="red" if wrong else "black")
            for spine in axes.spines.values():
                spine.set(color="red" if wrong else "black", linewidth=3 if wrong else 0.5)
    return figure
