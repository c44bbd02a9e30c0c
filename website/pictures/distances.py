"""Distances and similarities over angle and length, and their slopes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import metricjax as mj

# Three orthogonal directions, also orthogonal to (1, 1, 1, 1): rows of mean 0, as signal-to-noise distances want them.
BASIS = np.array([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
ANGLES = np.linspace(0.5, 179.5, 359)  # degrees


def distance(name: str) -> Figure:
    """Over the angle between two directions, over the length of one of them, and the slopes of both."""
    made = {"lp": lambda: mj.distances.lp(1.0), "poincare": lambda: mj.distances.poincare(1.0)}
    return _compared({name: made[name]() if name in made else getattr(mj.distances, name)}, inside=name == "poincare")


def similarity(_: str) -> Figure:
    return _compared({name: getattr(mj.similarities, name) for name in mj.similarities.__all__})


def _compared(functions: dict[str, Callable], inside: bool = False) -> Figure:
    figure = Figure(figsize=(8.4, 2.7), layout="constrained")
    radius = 0.9 if inside else 1.0
    base = radius * BASIS[0]
    by_angle = lambda t: radius * (jnp.cos(t) * BASIS[0] + jnp.sin(t) * BASIS[1])
    by_length = lambda r: r * (BASIS[0] + BASIS[1]) / np.sqrt(2)
    lengths = np.linspace(0.01, 0.95 if inside else 3, 200)
    cases = ((by_angle, np.radians(ANGLES), ANGLES, f"angle between two rows of length {radius:g}, degrees"),)
    cases += ((by_length, lengths, lengths, f"length of a row at 45° to one of length {radius:g}"),)
    for axes, (row, values, shown, label) in zip(figure.subplots(1, 2), cases, strict=True):
        for name, function in functions.items():
            value = lambda v, function=function, row=row: function(base[None], row(v)[None])[0, 0]
            with jax.enable_x64(True):
                found, slopes = map(np.array, jax.jit(jax.vmap(jax.value_and_grad(value)))(values))
            (line,) = axes.plot(shown, found, label=name)
            axes.plot(shown, slopes, ":", color=line.get_color(), label=f"slope of {name}")
        axes.set(xlabel=label)
        axes.legend(fontsize=7)
    return figure
