"""Figures of a training run."""

from collections.abc import Mapping, Sequence

import numpy as np

from metricjax.plots.style import Figure, line_style

__all__ = ["training_curves"]


def training_curves(history: Mapping[str, Sequence[float]], step: str = "step") -> Figure:
    """One panel for each quantity of `history` against `history[step]`; names that share a prefix share a panel.

    The prefix is what stands before the first "/": "distance/positive" and "distance/negative" are one panel.
    """
    groups: dict[str, list[str]] = {}
    for name in history:
        if name != step:
            groups.setdefault(name.split("/")[0], []).append(name)
    if step not in history or not groups:
        raise ValueError(f"history holds {sorted(history)}; wanted {step!r} and at least one quantity more")
    figure = Figure(figsize=(4 * len(groups), 3.2), layout="constrained")
    for axes, (title, names) in zip(np.ravel(figure.subplots(1, len(groups))), groups.items(), strict=True):
        for number, name in enumerate(names):
            axes.plot(history[step], history[name], label=name.split("/")[-1], **line_style(number))
        axes.set(title=title, xlabel=step)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    return figure
