"""What is the gradient of a triplet loss on the unit hypersphere, through chords and along the sphere?

    python -m benchmarks.chord_geometry

The length of a distance's gradient on the tangent plane, by the angle between two points, and how much of it points
through the sphere; how far the directions of triplets and batches differ between distances; and what is left of the
gradient where all points draw together. `benchmarks.chord_points` moves points by these gradients.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure

import metricjax as mj
from benchmarks.report import save
from metricjax import sphere
from metricjax.ground.numerics import inverse_length, normalize, safe_sqrt
from metricjax.ground.pairwise import Pairwise, pairwise

# --- distances of points that are on the sphere already -------------------------------------------------------------


@pairwise()
def cosine(x, y):
    """1 − x·y, with gradient −y."""
    return 1 - jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)


@pairwise()
def geodesic(x, y):
    """2 arcsin(‖x − y‖/2), as an arctangent: slope 0 at 0, and at 2 and beyond, where rounding may lead."""
    square = mj.distances.squared_euclidean.compare(x, y)
    return 2 * jnp.arctan2(safe_sqrt(square), safe_sqrt(4 - square))


DISTANCES: dict[str, Pairwise] = {
    "squared chord": mj.distances.squared_euclidean,
    "chord": mj.distances.euclidean,
    "cosine": cosine,
    "geodesic": geodesic,
}
Curves = dict[str, Callable[[np.ndarray], np.ndarray]]  # by distance, functions of the angle t between two points
PROFILES: Curves = {
    "squared chord": lambda t: 4 * np.sin(t / 2) ** 2,
    "chord": lambda t: 2 * np.sin(t / 2),
    "cosine": lambda t: 2 * np.sin(t / 2) ** 2,
    "geodesic": lambda t: t,
}
# The length of the gradient with respect to one point, of its part in the tangent plane, and of the part along x.
LENGTHS: Curves = {
    "squared chord": lambda t: 4 * np.sin(t / 2),
    "chord": np.ones_like,
    "cosine": np.ones_like,
    "geodesic": lambda t: 1 / np.cos(t / 2),
}
TANGENTIAL: Curves = {
    "squared chord": lambda t: 2 * np.sin(t),
    "chord": lambda t: np.cos(t / 2),
    "cosine": np.sin,
    "geodesic": np.ones_like,
}
RADIAL: Curves = {
    "squared chord": lambda t: 4 * np.sin(t / 2) ** 2,
    "chord": lambda t: np.sin(t / 2),
    "cosine": lambda t: -np.cos(t),
    "geodesic": lambda t: np.tan(t / 2),
}


def margin(distance: str, angle: float, reference: float) -> float:
    """The margin for which a negative has to be `angle` farther than a positive, where `reference` is half way."""
    return float(PROFILES[distance](reference + angle / 2) - PROFILES[distance](reference - angle / 2))


CONSTRAINTS = ("normalised forward pass", "projection after the update", "Riemannian gradient")


@jax.custom_vjp
def constrained(z, how):
    """u = z / ‖z‖, and for a gradient g of u, by `how`, one of three for z, in the order of `CONSTRAINTS`.

    0: (I − u uᵀ) g / ‖z‖, the derivative. 1: g itself, as if z had been on the sphere and were put back after the
    update. 2: (I − u uᵀ) g. A zero row stays zero, and has the gradients 0, g and g.
    """
    return normalize(z)


def _forward(z, how):
    u = normalize(z)
    return u, (u, inverse_length(z)[:, None], how)


def _backward(kept, g):
    u, inverse, how = kept
    tangent = sphere.to_tangent(u, g)
    return lax.select_n(jnp.asarray(how, jnp.int32), inverse * tangent, g, tangent), None


constrained.defvjp(_forward, _backward)


def triplet(distance, triplets, z, labels, numbers):
    """The triplet loss of embeddings z, with a variant's constraint and margin."""
    z = constrained(z, numbers["constraint"])
    return mj.losses.triplet(z, labels, margin=numbers["margin"], distance=distance, triplets=triplets)


# --- what gradients are ---------------------------------------------------------------------------------------------

CLASSES, EACH, FEATURES = 8, 4, 8
LABELS = np.repeat(np.arange(CLASSES), EACH)
SELECTIONS = {
    "batch hard": mj.mining.batch_hard,
    "semi-hard": mj.mining.semi_hard,
    "all triplets": mj.mining.all_triplets,
}


def matched(distance: str, angle: float, reference: str) -> float:
    return margin(distance, angle, angle / 2 if reference == "near" else np.pi / 2)


@partial(jax.jit, static_argnums=1)
def tangents(points, selection: str) -> dict[str, jax.Array]:
    """The gradients [n, d] of the triplet loss in the tangent plane, for each distance, with a margin of 0.9 rad."""

    def loss(z, name):
        how = {"margin": matched(name, 0.9, "far"), "triplets": SELECTIONS[selection]}
        return mj.losses.triplet(constrained(z, 2), jnp.asarray(LABELS), distance=DISTANCES[name], **how)

    return {name: jax.grad(loss)(points, name) for name in DISTANCES}


def degrees(a, b) -> float:
    """The mean angle between the rows of two arrays, of those which are not zero in either."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = np.sum(a * b, axis=-1)[lengths > 0] / lengths[lengths > 0]
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean())


APART = (("squared chord", "geodesic"), ("chord", "geodesic"), ("squared chord", "chord"))


def differences(gradients) -> dict[str, float]:
    return {f"{a} / {b}": degrees(gradients[a], gradients[b]) for a, b in APART}


def triplet_directions() -> list[dict]:
    """One anchor whose positive and negative lie in directions at right angles, as in many dimensions they do."""
    rows = []
    for near, far in ((5, 10), (10, 45), (45, 60), (60, 10), (60, 90), (90, 30), (90, 150), (120, 60), (150, 30)):
        w = {name: length(np.radians([near, far])) for name, length in TANGENTIAL.items()}
        gradients = {name: np.array([[-pull, push]]) for name, (pull, push) in w.items()}
        rows.append({"to positive": near, "to negative": far, **differences(gradients)})
    return rows


def around(key, spread: float, features: int) -> jax.Array:
    """Points in a cap of the sphere, `spread` from its centre in the mean of squares (if that is small)."""
    noise = jax.random.normal(key, (CLASSES * EACH, features)) / features**0.5
    return normalize(jnp.eye(1, features) + spread * noise)


def batch_directions(features: int = 64) -> list[dict]:
    keys = jax.random.split(jax.random.key(1), 3)
    random = sphere.random_uniform(keys[0], (CLASSES * EACH, features))
    centres = sphere.random_uniform(keys[1], (CLASSES, features))[LABELS]
    clustered = lambda noise: normalize(centres + noise * random)
    starts = {"random": random, "clusters, 45° wide": clustered(1.0), "clusters, 27° wide": clustered(0.5)}
    starts["in a cap of 0.1"] = around(keys[2], 0.1, features)
    each = itertools.product(starts.items(), SELECTIONS)
    found = {(start, name): differences(tangents(points, name)) for (start, points), name in each}
    return [{"points": start, "selection": name, **angles} for (start, name), angles in found.items()]


def contraction() -> list[dict]:
    """The length of a point's gradient of the batch-hard loss, times the number of points, as they draw together."""
    rows, key = [], jax.random.key(2)
    for spread in np.geomspace(0.003, 1, 11):
        gradients = tangents(around(key, float(spread), FEATURES), "batch hard")
        lengths = {name: float(jnp.linalg.norm(gradients[name], axis=1).mean() * len(LABELS)) for name in DISTANCES}
        rows.append({"spread": float(spread), **lengths})
    return rows


def slopes() -> list[dict]:
    """Closed forms, by the angle between two points in degrees: tangential length, and the share along x of all."""
    rows = []
    for degree in (1, 5, 15, 30, 60, 90, 120, 150, 175):
        t = np.radians(degree, dtype=float)
        row = {"angle": degree, **{name: float(f(t)) for name, f in TANGENTIAL.items()}}
        rows.append(row | {f"{name}, radial share": float(f(t) / LENGTHS[name](t)) for name, f in RADIAL.items()})
    return rows


# --- report ---------------------------------------------------------------------------------------------------------


def table(title: str, rows: list[dict], columns: Sequence[str] | None = None) -> None:
    columns = list(rows[0]) if columns is None else columns
    text = lambda a: f"{a:.3g}" if isinstance(a, float) else "–" if a is None else str(a)
    cells = [columns, *([text(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


def plot(contracted: list[dict]) -> Figure:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    length, turn, small = figure.subplots(1, 3)
    t = np.linspace(0.01, np.pi - 0.01, 200)
    for i, name in enumerate(DISTANCES):
        style = {"color": f"C{i}", "label": name, "linestyle": "--" if name == "cosine" else "-"}
        length.plot(np.degrees(t), TANGENTIAL[name](t), **style)
        small.plot([row["spread"] for row in contracted], [row[name] for row in contracted], **style)
        if name != "cosine":  # that of the squared chord
            pull, push = TANGENTIAL[name](np.radians(30)), TANGENTIAL[name](t)
            turn.plot(np.degrees(t), np.degrees(np.arctan2(push, pull)), **style)
    length.set(xlabel="angle between two points, degrees", ylabel="length of the tangential gradient")
    turn.set(xlabel="angle to the negative; 30° to the positive", ylabel="direction of the anchor's step, degrees")
    turn.set_title("0: to the positive, 90: away from the negative", fontsize=9)
    small.set(xlabel="spread of all points", ylabel="gradient of a point × points, batch hard")
    small.set(xscale="log", yscale="log")
    for axes in (length, turn, small):
        axes.grid(alpha=0.3)
    figure.legend(*length.get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return figure


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    tables = {
        "Tangential gradient of a distance, by the angle in degrees": slopes(),
        "Degrees between the gradients of an anchor under two distances": triplet_directions(),
        "Degrees between the gradients of a point under two distances, mean of a batch": batch_directions(),
        "Gradient of a point as all draw together": contraction(),
    }
    for title, rows in tables.items():
        table(title, rows)
    saved = [{"table": title, **row} for title, some in tables.items() for row in some]
    save("chord_geometry", saved, plot(rows))


if __name__ == "__main__":
    main()
