"""Why circle loss is called so: its decision boundary and gradients beside those of triplet loss and AM-softmax.

python examples/circle_decision_boundary.py                  # m = 0.25, γ = 80
python examples/circle_decision_boundary.py --margin 0.325   # against margins of 0.35, as in the paper's figure 5

One anchor, its positive at cosine s_p and its negative at s_n: any loss is then a function on the plane (s_n, s_p).
Each point of the plane becomes a batch of three unit vectors, and all that is drawn are values and gradients of
metricjax's losses on it, divided by their scale γ. They show three claims of Sun et al. 2020, arXiv:2002.10857
(figures 1, 2 and 5):

- `gradients.png`: triplet loss and AM-softmax pull s_p and push s_n equally hard, and as hard near the boundary as far
  from it. Circle loss pulls harder where s_p is the worse of the two (A), pushes harder where s_n is (B), and eases
  off as either gets better.
- `boundaries.png`: the boundary is the line s_p − s_n = margin of the first two, and the circle s_n² + (s_p − 1)² = 2m²
  of the third. The line's margin is 1 − 2m here, so that the two touch, in T = (m, 1 − m).
- Its paths, and the table: descent of the first two ends anywhere along the line; circle loss narrows the passage
  around T. It does not lead to T: its paths aim at (−m, 1 + m), where both weights vanish, and only the middle one
  meets T. Past the boundary a softplus still has a slope, the less the larger γ, so that ends depend on γ and STEPS.
"""

import argparse
import json
import pathlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import metricjax as mj

LEFT = -0.2  # the plane is s_n from here to 1, s_p from 0 to 1
LIMIT = 0.999  # of a cosine: at 1, where the unit vector's other coordinate is 0, autodiff finds no slope
STARTS = np.repeat(np.arange(1, 10)[:, None] / 10, 2, axis=1)  # s_n = s_p: an untrained encoder tells nothing apart
MARKED = {"A": (0.2, 0.2), "B": (0.8, 0.8)}  # low and high on the diagonal, as in the paper's figure 1
RATE, STEPS = 0.002, 2500
NUMBERS = [f"{what}, {where}" for where in ("crossing", "end") for what in ("spread", "distance from T")]
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito's, for all eyes


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--margin", type=float, default=0.25, help="m of circle loss; that of the others is 1 - 2m")
    add("--scale", type=float, default=80.0, help="γ of circle loss and AM-softmax")
    add("--grid", type=int, default=200, help="points along a length of 1")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/circle_decision_boundary"), help="folder of the figures")
    args = parser.parse_args(argv)
    if not 0 < args.margin < 0.5:
        parser.error(f"--margin is {args.margin}; wanted more than 0 and less than 0.5")
    return args


# --- losses of point = (s_n, s_p) -----------------------------------------------------------------------------------


def batch(point):
    """The anchor, its label 1, and a vector of class 0 at cosine s_n from it and one of class 1 at s_p."""
    return jnp.array([[1.0, 0.0]]), jnp.array([1]), jnp.stack([point, jnp.sqrt(1 - point**2)], axis=-1)


def triplet(point, margin, scale):
    anchor, label, others = batch(point)
    to = {"references": others, "reference_labels": jnp.arange(2)}
    return mj.losses.triplet(anchor, label, margin=1 - 2 * margin, distance=mj.distances.cosine, **to)


def am_softmax(point, margin, scale):
    anchor, label, others = batch(point)
    return mj.losses.cosface(anchor, label, others, margin=1 - 2 * margin, scale=scale) / scale


def circle(point, margin, scale):
    anchor, label, others = batch(point)
    to = {"references": others, "reference_labels": jnp.arange(2)}
    return mj.losses.circle(anchor, label, margin=margin, scale=scale, **to) / scale


LOSSES = {"Triplet loss": triplet, "AM-softmax (CosFace)": am_softmax, "Circle loss": circle}


class Panel(NamedTuple):
    """What is known of one loss. Points and gradients are (s_n, s_p) along the last axis."""

    values: np.ndarray  # [rows along s_p, columns along s_n]
    gradients: np.ndarray  # [rows, columns, 2]
    marked: np.ndarray  # [2, 2], the gradients at A and B
    boundary: float  # the loss on the decision boundary
    paths: np.ndarray  # [steps, starts, 2]
    crossings: np.ndarray  # [starts, 2], where the paths cross the boundary


def axis_values(grid: int) -> list[np.ndarray]:
    """s_n and s_p of the plane's points: the centres of square cells."""
    return [(np.arange(round(low * grid), grid) + 0.5) / grid for low in (LEFT, 0)]


def computed(name: str, margin: float, scale: float, grid: int) -> Panel:
    loss = jax.jit(jax.vmap(jax.value_and_grad(partial(LOSSES[name], margin=margin, scale=scale))))
    points = np.stack(np.meshgrid(*axis_values(grid)), axis=-1).astype(np.float32)
    values, gradients = loss(points.reshape(-1, 2))
    # A hinge's boundary is where it reaches 0, a softplus's where its argument does: softplus(0) = log 2.
    boundary = 0.0 if LOSSES[name] is triplet else float(np.log(2)) / scale

    def step(points, _):
        value, gradient = loss(points)
        return jnp.clip(points - RATE * gradient, -LIMIT, LIMIT), (points, value)

    paths, heights = map(np.asarray, jax.lax.scan(step, jnp.asarray(STARTS, jnp.float32), length=STEPS)[1])
    crossing = np.minimum(np.sum(heights > boundary, axis=0), STEPS - 1)
    marked = np.asarray(loss(jnp.array(list(MARKED.values())))[1])
    on_plane = np.asarray(values).reshape(points.shape[:2]), np.asarray(gradients).reshape(points.shape)
    return Panel(*on_plane, marked, boundary, paths, paths[crossing, np.arange(len(STARTS))])


def closed_form(name: str, margin: float) -> np.ndarray:
    """The boundary by the paper's formula, [points, 2]. The circle is one from s_n = −m on, where α_n stops at 0."""
    if LOSSES[name] is circle:
        angle = np.linspace(-3 * np.pi / 4, 0, 200)
        return np.stack([margin * 2**0.5 * np.cos(angle), 1 + margin * 2**0.5 * np.sin(angle)], axis=-1)
    return np.linspace(-1, 1, 200)[:, None] + np.array([0, 1 - 2 * margin])


def spread_and_distance(points: np.ndarray, margin: float) -> tuple[float, float]:
    """Root mean square distance of the points from their mean, and their mean distance from T."""
    from_target = np.linalg.norm(points - np.array([margin, 1 - margin]), axis=-1)
    return float(np.sqrt(np.sum(points.var(axis=0)))), float(np.mean(from_target))


# --- figures --------------------------------------------------------------------------------------------------------


def draw_boundary(axes: Axes, panel: Panel, grid: int, **style):
    """A contour of the loss itself, on the plane; a hinge is 0 on all of one side, hence the little more."""
    axes.set(xlim=(LEFT, 1), ylim=(0, 1), aspect="equal", xlabel="$s_n$", ylabel="$s_p$", yticks=np.arange(6) / 5)
    axes.label_outer()
    return axes.contour(*axis_values(grid), panel.values, levels=[panel.boundary + 1e-5], **style)


def boundaries(panels: dict[str, Panel], margin: float, grid: int) -> Figure:
    """Decision boundary, downhill gradient, and paths of descent."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    for axes, (name, panel) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        draw_boundary(axes, panel, grid, colors=GREEN, linewidths=6, alpha=0.5)
        axes.plot([], [], color=GREEN, lw=6, alpha=0.5, label="boundary")
        axes.plot(*closed_form(name, margin).T, "k--", lw=1, label="its closed form")
        every = slice(grid // 24, None, max(grid // 12, 1))
        s_n, s_p = (values[every] for values in axis_values(grid))
        axes.quiver(s_n, s_p, *-panel.gradients[every, every].transpose(2, 0, 1), color="0.65", scale=22, width=0.004)
        axes.plot([], [], color="0.5", marker=r"$\nwarrow$", ms=9, ls="", label="−gradient")
        over = {"clip_on": False, "zorder": 3, "ls": ""}
        axes.plot(*panel.paths.transpose(2, 0, 1), color=BLUE, lw=1)
        axes.plot(*panel.paths[0].T, "o", color=BLUE, mfc="white", ms=5, label="start of descent", **over)
        axes.plot(*panel.paths[-1].T, "s", color=VERMILION, ms=6, label="its end", **over)
        axes.plot(*panel.crossings.T, "o", color=BLUE, ms=3.5, label="crossing of the boundary", **over)
        axes.plot(margin, 1 - margin, "*", color=ORANGE, mec="black", ms=14, label="T", **over)
        for letter, point in MARKED.items():
            axes.annotate(letter, point, (6, -4), textcoords="offset points", weight="bold")
        axes.set_title(name)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)
    return figure


def gradients(panels: dict[str, Panel], margin: float, grid: int) -> Figure:
    """How hard s_n is pushed (above) and s_p is pulled (below)."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    cells = figure.subplots(2, 3)
    for column, (name, panel) in zip(cells.T, panels.items(), strict=True):
        for i, axes in enumerate(column):
            size = np.abs(panel.gradients[..., i])
            mesh = axes.pcolormesh(*axis_values(grid), size, cmap="cividis", vmin=0, vmax=1 + margin)
            draw_boundary(axes, panel, grid, colors="white", linestyles="dashed", linewidths=1.5)
            for (letter, point), gradient in zip(MARKED.items(), panel.marked, strict=True):
                axes.plot(*point, "o", color="white", mec="black")
                style = {"textcoords": "offset points", "ha": "center", "bbox": {"fc": "white", "alpha": 0.8, "pad": 2}}
                axes.annotate(f"{letter}: {abs(gradient[i]):.2f}", point, (0, 9), **style)
        column[0].set_title(name)
    for row, symbol in zip(cells, ("s_n", "s_p"), strict=True):
        figure.colorbar(mesh, ax=row, pad=0.01, label=rf"$|\partial L / \partial {symbol}|\ /\ \gamma$")
    return figure


def main(argv=None) -> dict[str, Panel]:
    args = arguments(argv)
    panels = {name: computed(name, args.margin, args.scale, args.grid) for name in LOSSES}
    args.out.mkdir(parents=True, exist_ok=True)
    for draw in (boundaries, gradients):
        draw(panels, args.margin, args.grid).savefig(args.out / f"{draw.__name__}.png", dpi=150)
    print(f"{'paths of descent':22}{'crossing the boundary':>26}{'at their end':>26}")
    print(f"{'':22}" + f"{'spread':>13}{'from T':>13}" * 2)
    rows = []
    for name, panel in panels.items():
        numbers = [x for points in (panel.crossings, panel.paths[-1]) for x in spread_and_distance(points, args.margin)]
        rows.append({"loss": name, **dict(zip(NUMBERS, numbers, strict=True))})
        print(f"{name:22}" + "".join(f"{number:13.3f}" for number in numbers))
    (args.out / "numbers.json").write_text(
        json.dumps({"margin": args.margin, "scale": args.scale, "rows": rows}, indent=1)
    )
    print(f"boundaries.png, gradients.png and numbers.json are in {args.out}")
    return panels


if __name__ == "__main__":
    main()
