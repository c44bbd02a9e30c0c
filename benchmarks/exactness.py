"""How far are value and gradient of every loss from those in float64, whichever way they are computed?

    python -m benchmarks.exactness [--rows 256] [--features 64] [--classes 512]

The reference is the dense form in float64, differentiated by JAX. "dense", "panels" (of 64 rows, or blocks of 64
classes), "default" and "devices" (`mj.over_mesh` over eight virtual devices) compute in float32, on the same
numbers. An error is the largest difference as a share of the largest number; embeddings have 4 rows of a class,
scattered around it.
"""

import argparse
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import metricjax as mj
from benchmarks.losses import of_arrays
from benchmarks.report import save
from metricjax.losses.catalogue import CATALOGUE, Entry

PANEL = 64


def inputs(entry: Entry, n: int, d: int, classes: int) -> dict:
    """Arrays that a loss takes, in float64."""
    rng, labels = np.random.default_rng(0), np.arange(n) // 4
    around = lambda: rng.standard_normal((n // 4 + 1, d))[labels] + rng.standard_normal((n, d))
    embeddings, prototypes = around(), rng.standard_normal((classes, 2, d) if entry.several else (classes, d))
    known = {"embeddings": embeddings, "x": embeddings, "y": embeddings + rng.standard_normal((n, d)), "labels": labels}
    return known | {"prototypes": prototypes, "centers": prototypes}


def graded(name: str, entry: Entry, known: dict, mesh=None, **options):
    """Value, and gradient by all arrays of numbers."""
    over = {} if mesh is None else {"over": lambda loss: mj.over_mesh(loss, "data", mesh)}
    loss = of_arrays(name, len(known["prototypes"]), **over)
    options |= {"deviation": 0.0} if "key" in entry.takes else {}  # float64 draws other numbers from a key
    by = [argument for argument in entry.takes if argument in known and argument != "labels"]

    def value(arrays):
        given = {**known, **dict(zip(by, arrays, strict=True))}
        return loss(*(given[argument] for argument in entry.takes if argument in given), **options)

    return jax.tree.map(np.array, jax.jit(jax.value_and_grad(value))([known[argument] for argument in by]))


def errors(name: str, n: int, d: int, classes: int, mesh) -> list[dict]:
    """One row for each way through the engine that the loss has."""
    entry = CATALOGUE[name]
    known = inputs(entry, n, d, classes)
    options = inspect.signature(getattr(mj.losses, name)).parameters
    blocks = "options" in options and "RowOptions" not in str(options["options"].annotation)
    with jax.enable_x64(True):
        exact = graded(name, entry, jax.tree.map(jnp.array, known), **({"block_size": None} if blocks else {}))
    single = jax.tree.map(lambda a: jnp.array(a, jnp.float32 if a.dtype == np.float64 else jnp.int32), known)
    ways = {"default": {}} | ({"dense": {"block_size": None}, "panels": {"block_size": PANEL}} if blocks else {})
    ways |= {"devices": {"mesh": mesh}} if "options" in options or "axis_name" in options else {}
    apart = lambda a, b: float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))
    rows = []
    for way, how in ways.items():
        value, gradient = graded(name, entry, single, **how)
        both = zip(gradient, exact[1], strict=True)
        rows.append({"loss": name, "way": way, "value": apart(value, exact[0])})
        rows[-1]["gradient"] = max(apart(a, b) for a, b in both)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--losses", nargs="+", default=list(CATALOGUE), choices=list(CATALOGUE))
    add("--rows", type=int, default=256)
    add("--features", type=int, default=64)
    add("--classes", type=int, default=512)
    args = parser.parse_args()
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    measured = functools.partial(errors, n=args.rows, d=args.features, classes=args.classes, mesh=mesh)
    rows = [row for name in tqdm(args.losses, unit=" losses") for row in measured(name)]
    for row in sorted(rows, key=lambda row: -row["gradient"])[:10]:
        print("{loss:28} {way:8} value {value:.0e}   gradient {gradient:.0e}".format(**row))
    save("exactness", rows, plot(rows))


def plot(rows: list[dict]) -> Figure:
    """Errors of all losses, each a point, for each way through the engine."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    ways = list(dict.fromkeys(row["way"] for row in rows))
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("value", "gradient"), strict=True):
        for place, way in enumerate(ways):
            found = sorted(max(row[key], 1e-9) for row in rows if row["way"] == way)
            axes.scatter(found, place + np.linspace(-0.3, 0.3, len(found)), s=8)
        axes.set(xscale="log", xlabel=f"error of the {key}", yticks=range(len(ways)), yticklabels=ways)
        axes.axvline(np.finfo(np.float32).eps, color="gray", lw=0.8, ls=":")
    return figure


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
