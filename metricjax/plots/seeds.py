"""Figures of trainings that were repeated with several seeds."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from metricjax.metrics.seeds import OverSeeds, Summary
from metricjax.plots.style import VERMILLION, Figure, as_written, short, some

__all__ = ["draw_seeds", "variants"]


def variants(summary: Summary) -> Figure:
    """One panel for each metric of `variants.summary`: every seed's result, means and their 95 % intervals.

    The baseline's mean is a line; at the right stand how many trainings were lost, and p after Holm.
    """
    some("summary.metrics", summary.metrics)
    height = max(map(len, summary.metrics.values()))
    figure = Figure(figsize=(2 + 4 * len(summary.metrics), 1.3 + 0.4 * height), layout="constrained")
    for axes, (metric, rows) in zip(
        np.ravel(figure.subplots(1, len(summary.metrics))), summary.metrics.items(), strict=True
    ):
        draw_seeds(axes, rows)
        as_written(axes.set_title(short(metric, 60)))
        if summary.baseline is not None and (mean := rows[summary.baseline].mean) is not None:
            axes.axvline(mean, color=VERMILLION, linestyle=":", zorder=0)
        for y, row in enumerate(rows.values()):
            axes.annotate(_words(row), (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    return figure


def draw_seeds(axes: Axes, rows: dict[str, OverSeeds]) -> dict[str, Any]:
    """One line for each variant, the first above, its seeds below its mean; returns what a legend is made of."""
    legend: dict[str, Any] = {}
    for y, row in enumerate(rows.values()):
        values = [value for value in row.values if value is not None]
        (legend["one seed"],) = axes.plot(values, np.full(len(values), y + 0.2), "o", color="0.6", ms=4, mew=0)
        if row.mean is not None:
            bar = axes.errorbar(row.mean, y, xerr=row.half_width, fmt="ko", ms=5, capsize=4)
            legend["mean over seeds, 95 % interval"] = bar
    axes.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    as_written(*(label for label in axes.set_yticklabels([short(name, 40) for name in rows])))
    axes.grid(alpha=0.3)
    return legend


def _words(row: OverSeeds) -> str:
    lost = [f"{row.lost} of {row.seeds} lost"] if row.lost else []
    d = row.difference
    return ", ".join([*lost, *([f"p {d.p_corrected:.2g}"] if d is not None and d.p_corrected is not None else [])])
