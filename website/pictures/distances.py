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
    if name == "lp":
        return _compared({f"lp({p})": mj.distances.lp(p) for p in (1, 2, 4)})
    if name == "poincare":
        return _compared({"poincare(1)": mj.distances.poincare(1)}, inside=True)
    return _compared({name: getattr(mj.distances, name)})


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
        for i, (name, function) in enumerate(functions.items()):
            width = 1.5 + len(functions) - 1 - i  # some lie on others
            value = lambda v, function=function, row=row: function(base[None], row(v)[None])[0, 0]
            with jax.enable_x64(True):
                found, slopes = map(np.array, jax.jit(jax.vmap(jax.value_and_grad(value)))(values))
            (line,) = axes.plot(shown, found, lw=width, label=name)
            axes.plot(shown, slopes, ":", lw=width, color=line.get_color())
        axes.plot([], ":", color="gray", label="slope" if len(functions) == 1 else "slopes")
        axes.set(xlabel=label, **({"xticks": range(0, 181, 45)} if shown is ANGLES else {}))
        axes.legend(fontsize=7)
    return figure
