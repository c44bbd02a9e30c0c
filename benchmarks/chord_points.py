"""Do chords through the unit hypersphere move points another way than the angle does? Points, without a network.

    python -m benchmarks.chord_points [--seeds 12] [--steps 150]

8 classes of 4 points, spread over the sphere at first or drawn together in a cap, are moved by SGD on a triplet loss,
with every distance, selection, way to stay on the sphere, margin and learning rate. Margins are matched in angle, where
positives coincide ("near") or around a right angle ("far"). The learning rate is chosen on seeds of its own.

An anchor is in order if its closest negative is farther than its farthest positive, and than 0.19 radians: where none
of all triplets is active all anchors are, under every distance and margin. (Semi-hard selection may see no active
triplet before.) Lost steps are those during which an anchor was not in order, on the average over anchors: they decide
between learning rates, and between distances.
"""

import argparse
import itertools
import os
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.figure import Figure

import metricjax as mj
from benchmarks.chord_geometry import (
    APART,
    CLASSES,
    CONSTRAINTS,
    DISTANCES,
    EACH,
    FEATURES,
    LABELS,
    SELECTIONS,
    matched,
    table,
    triplet,
)  # fmt: skip
from benchmarks.faces import COLLAPSED
from benchmarks.report import save
from metricjax import variants
from metricjax.ground.numerics import normalize
from metricjax.variants import holm, mean_and_half_width, wilcoxon, wilson

ANGLES = (0.2, 0.45, 0.9)  # 0.45 is FaceNet's margin of 0.2, where positives coincide
REFERENCES = ("near", "far")  # where margins are matched: at coinciding positives, or around a right angle
STARTS = (("uniform", 8), ("uniform", 3), ("cap", 8), ("cap", 3))  # a seed modulo 4 is the number of its start
AT_ONCE = 64
RATES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
EVERY = 5  # steps from report to report
TUNING = 3  # seeds that choose the learning rate


def start(key) -> jax.Array:
    """[n, 8], in three dimensions for every other seed: the gradient leaves the other coordinates at 0."""
    kind = jax.random.key_data(key)[-1] % len(STARTS)
    features = jnp.array([d for _, d in STARTS], jnp.float32)[kind]
    spread = jnp.array([1e6 if name == "uniform" else 0.02 for name, _ in STARTS], jnp.float32)[kind]
    noise = jax.random.normal(key, (CLASSES * EACH, FEATURES), jnp.float32) * spread / jnp.sqrt(features)
    inside = jnp.arange(FEATURES, dtype=jnp.float32) < features
    return normalize(jnp.eye(1, FEATURES, dtype=jnp.float32) + jnp.where(inside[None], noise, 0))


def loss(distance: str, selection: str, points, embeddings, batch, numbers):
    return triplet(DISTANCES[distance], SELECTIONS[selection], points, jnp.asarray(LABELS), numbers)


def optimizer(numbers) -> optax.GradientTransformation:
    rate = numbers["rate"]
    projected = optax.chain(optax.sgd(rate), mj.transforms.project_to_sphere())
    each = (optax.sgd(rate), projected, mj.transforms.riemannian_sgd(rate))

    def update(gradient, state, points):
        moves = [one.update(gradient, one.init(points), points)[0] for one in each]
        return lax.select_n(numbers["constraint"].astype(int), *moves), state

    return optax.GradientTransformation(lambda points: (), update)


def watch(points, batch) -> dict:
    """The share of anchors in order, and the spread of the points, 1 if they are even."""
    same = jnp.asarray(LABELS[:, None] == LABELS[None])
    products = points @ points.T
    negative = jnp.max(products, axis=1, where=~same, initial=-1)
    ordered = (jnp.min(products, axis=1, where=same, initial=1) > negative) & (negative < np.cos(0.19))
    return {"ordered": jnp.mean(ordered), "spread": jnp.sqrt(jnp.sum(jnp.var(points, axis=0)))}


TASK = variants.Task(
    init=start,
    embed=lambda points, batch: normalize(points),
    losses={f"{d}, {s}": partial(loss, d, s) for d, s in itertools.product(DISTANCES, SELECTIONS)},
    batch=lambda seed, step: (),
    optimizer=optimizer,
    watch=watch,
)


def combinations(selections: Sequence[str], angles: Sequence[float]) -> list[dict]:
    """All that is compared but rates and seeds. Where a margin does not depend on the reference, it comes once."""
    each = itertools.product(DISTANCES, selections, range(len(CONSTRAINTS)), angles, REFERENCES, range(len(STARTS)))
    keys = ("distance", "selection", "constraint", "angle", "reference", "start")
    once = lambda row: row["reference"] == "near" or row["distance"] not in ("geodesic", "cosine")
    return [row for row in (dict(zip(keys, values, strict=True)) for values in each) if once(row)]


def trained(rows: list[dict], rates: list[Sequence[float]], seeds: Sequence[int], steps: int) -> dict[str, np.ndarray]:
    """What is measured of each row with each of its rates and seeds, [rows, rates, seeds]."""
    runs = []
    for row, some in zip(rows, rates, strict=True):
        numbers = {"constraint": row["constraint"], "margin": matched(row["distance"], row["angle"], row["reference"])}
        name, place = f"{row['distance']}, {row['selection']}", lambda seed, row=row: len(STARTS) * seed + row["start"]
        runs += [variants.Variant(name, place(s), {**numbers, "rate": r}) for r, s in itertools.product(some, seeds)]
    done = variants.train(TASK, runs, steps, every=EVERY, at_once=AT_ONCE, devices=jax.devices())
    shape = (len(rows), len(rates[0]), len(seeds))
    ordered = done.history["ordered"]
    measures = {
        "lost steps": steps * np.mean(1 - ordered, axis=0),
        "in order": ordered[-1] == 1,
        "no active triplet": done.history["loss"][-1] == 0,
        "steps": since(done.history["loss"] == 0, done.steps),
        "spread": done.history["spread"][-1],
        "collapsed": done.history["spread"][-1] < COLLAPSED,
        "length": np.linalg.norm(np.asarray(done.params), axis=-1).mean(axis=1),
    }
    measures = {name: np.asarray(values).reshape(shape) for name, values in measures.items()}
    return measures | {"curve": ordered.T.reshape(*shape, -1)}


def since(holds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The first of the steps [r] from which on it holds [r, K], infinite where at the end it does not."""
    stays = np.logical_and.accumulate(holds[::-1])[::-1]
    return np.where(stays[-1], steps[np.argmax(stays, axis=0)], np.inf)


def summaries(rows: list[dict], found: dict[str, np.ndarray], tuned: dict[str, np.ndarray], by: str) -> list[dict]:
    """Runs at the chosen rates, pooled by distance, start and `by`, and shares of the runs at all rates.

    Margins are matched where positives coincide, unless `by` is "reference".
    """
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        if by == "reference" or row["reference"] == "near":
            groups.setdefault((row["start"], row[by], row["distance"]), []).append(i)
    summary = []
    for (start, value, distance), places in sorted(groups.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        here = {name: values[places, 0] for name, values in found.items()}  # [rows, seeds]
        count, steps = here["steps"].size, here["steps"][np.isfinite(here["steps"])]
        row = {"start": named(start), by: shown(by, value), "distance": distance, "runs": count}
        for name in ("no active triplet", "in order", "collapsed"):
            row |= {name: float(here[name].mean()), f"{name}, 95 %": wilson(int(here[name].sum()), count)}
        row["steps"] = float(np.median(here["steps"])) if 2 * len(steps) > count else None
        for name in ("lost steps", "spread"):
            row[name], row[f"{name}, ±"] = mean_and_half_width(here[name].mean(axis=0))
        row |= {"length": float(np.median(here["length"])), "rate": float(np.median([rows[i]["rate"] for i in places]))}
        row["no active triplet, all rates"] = float(tuned["no active triplet"][places].mean())
        row["collapsed, all rates"] = float(tuned["collapsed"][places].mean())
        summary.append(row)
    return summary


def tests(rows: list[dict], found: dict[str, np.ndarray], by: str) -> list[dict]:
    """Differences of lost steps between distances, paired by seed: Wilcoxon's test, p-values after Holm.

    What differs in anything but distance, start and `by` is averaged first, so that a seed is one observation.
    """
    lost: dict[tuple, list] = {}
    for row, values in zip(rows, found["lost steps"][:, 0], strict=True):
        if row["reference"] == "near":
            lost.setdefault((row["start"], row[by], row["distance"]), []).append(values)
    results = []
    for start, value in sorted({key[:2] for key in lost}, key=str):
        for a, b in APART:
            gaps = np.mean(lost[start, value, b], axis=0) - np.mean(lost[start, value, a], axis=0)
            mean, half = mean_and_half_width(gaps)
            row = {"start": named(start), by: shown(by, value), "pair": f"{b} − {a}", "lost steps": mean, "±": half}
            results.append({**row, "p": wilcoxon(gaps)})
    for row, p in zip(results, holm([row["p"] for row in results]), strict=True):
        row["p, Holm"] = p
    return results


def named(start: int) -> str:
    return "{}, d = {}".format(*STARTS[start])


def shown(by: str, value) -> str:
    return CONSTRAINTS[value] if by == "constraint" else value


# --- report ---------------------------------------------------------------------------------------------------------


def plot(rows: list[dict], found, tuned, steps: int, rates: Sequence[float]) -> Figure:
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True)
    x = np.append(np.arange(EVERY, steps, EVERY), steps)
    for i, name in enumerate(DISTANCES):
        for how, (curve, rate) in enumerate(axes.T):
            places = [
                k for k, row in enumerate(rows)
                if (row["distance"], row["constraint"], row["reference"]) == (name, how, "near")
            ]  # fmt: skip
            for kind, line in (("uniform", ":"), ("cap", "-")):
                here = [k for k in places if STARTS[rows[k]["start"]][0] == kind]
                curve.plot(x, found["curve"][here].mean(axis=(0, 1, 2)), line, color=f"C{i}", label=f"{name}, {kind}")
            rate.plot(rates, tuned["no active triplet"][places].mean(axis=(0, 2)), "o-", color=f"C{i}", markersize=4)
            curve.set(title=CONSTRAINTS[how], xlabel="step, at the chosen rate")
            rate.set(xlabel="learning rate", xscale="log")
            curve.grid(alpha=0.3)
            rate.grid(alpha=0.3)
    axes[0, 0].set(ylabel="anchors in order", ylim=(-0.02, 1.02))
    axes[1, 0].set(ylabel="runs that end without an active triplet")
    axes[0, 0].legend(fontsize=8, ncols=2)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12, help="that test; three more choose the learning rate")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--angles", type=float, nargs="+", default=list(ANGLES), help="margins in radians")
    parser.add_argument("--selections", nargs="+", default=list(SELECTIONS))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    args = parser.parse_args()
    rows = combinations(args.selections, args.angles)
    tuned = trained(rows, [args.rates] * len(rows), range(TUNING), args.steps)
    best = np.argmin(tuned["lost steps"].mean(axis=2), axis=1)
    rows = [row | {"rate": args.rates[k]} for row, k in zip(rows, best, strict=True)]
    found = trained(rows, [[row["rate"]] for row in rows], range(TUNING, TUNING + args.seeds), args.steps)
    tables = {f"By {by}": summaries(rows, found, tuned, by) for by in ("constraint", "selection", "reference")}
    tables |= {f"By {by}: paired differences": tests(rows, found, by) for by in ("constraint", "selection")}
    for title, some in tables.items():
        table(title, some, [name for name in some[0] if "95 %" not in name])
    saved = [{"table": title, **row} for title, some in tables.items() for row in some]
    save("chord_points", saved, plot(rows, found, tuned, args.steps, args.rates), ("optax", "scipy"))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    main()
