"""Does it matter whether distances on the hypersphere are chords or geodesics? Encoders of faces, trained all at once.

    python -m benchmarks.chord_or_geodesic [--steps 200] [--seeds 10] [--strengths 0.2 0.5 1] [--devices 2]

FaceNet (Schroff et al. 2015, arXiv:1503.03832) measures squared chords, whose gradient points through the sphere, and
renormalises. Here four distances × three ways to choose triplets × three places where the constraint acts × margins
matched in angle × seeds are one grid, in one program (`metricjax.variants`), for each of several strengths of
augmentation: the stronger, the harder the hardest positives and negatives. All variants of one seed begin with the same
weights and see the same batches. `python -m benchmarks.chord_geometry` has the geometry, and points without a network.

Constraints of an encoder, forward always u = z / ‖z‖: "normalised forward pass" is its exact derivative; "projection
after the update" hands the gradient of u to z as it is, radial part and all; "Riemannian gradient" removes the radial
part only. Margins are angles by which a negative has to be farther than a positive, around a given angle.

Results are of people that training never saw: equal error rate and collapse (spread below 0.1 at the end), means over
margins and seeds with 95 % intervals (Student's t over the means of seeds; Wilson's); and paired differences, seed by
seed, of the geodesic and each chord: their mean, its 95 % interval, and p of Student's paired test, as it is and
corrected for all comparisons in the table (Holm).
"""

import itertools
import os
from functools import partial

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import metricjax as mj
from benchmarks import faces
from benchmarks.chord_geometry import CONSTRAINTS, DISTANCES, margin, triplet
from benchmarks.report import save
from metricjax import variants
from metricjax.variants import Variant, holm, mean_and_half_width, paired_t, wilson

MINING = {
    "batch-hard": mj.mining.batch_hard,
    "semi-hard": mj.mining.semi_hard,
    "batch-all": mj.mining.all_triplets,
}
# The margin in radians, and the angle around which it holds: 0.45 near 0 is FaceNet's 0.2 of squared chords.
MARGINS = {"0.45 near 0": (0.45, 0.225), "0.45 near π/2": (0.45, np.pi / 2)}
GEODESIC, CHORDS = "geodesic", ("squared chord", "chord", "cosine")
AXES = ("strength", "distance", "mining", "constraint", "margin", "seed")
Found = dict[str, np.ndarray]  # by metric, arrays with these axes


def trained(args, strength: float) -> Found:
    """Train and evaluate the grid of one strength."""
    axes = DISTANCES, args.mining, range(len(CONSTRAINTS)), MARGINS.values(), range(args.seeds)
    losses = {f"{d}, {m}": partial(triplet, DISTANCES[d], MINING[m]) for d in DISTANCES for m in args.mining}
    grid = [
        Variant(f"{d}, {m}", seed, {"constraint": c, "margin": margin(d, *angles)})
        for d, m, c, angles, seed in itertools.product(*axes)
    ]
    seen, unseen = faces.load()
    task = faces.task(seen, losses, lambda n: optax.adam(args.learning_rate), args.seeds, args.steps, strength)
    bar = partial(tqdm, desc=f"strength {strength:g}", unit=f" x {len(grid)} variants")
    came = variants.train(task, grid, args.steps, at_once=args.at_once, devices=args.devices, progress=bar)
    seconds = {name: round(took) for name, took in came.seconds.items()}
    print(f"strength {strength:g}: {len(grid)} variants x {args.steps} steps, {came.at_once} at once, {seconds} s")
    found = faces.evaluated(came, unseen) | {"lowest spread": came.history["spread"].min(axis=0)}
    return {name: values.reshape([len(axis) for axis in axes]) for name, values in found.items()}


# --- what is reported -----------------------------------------------------------------------------------------------


def cells(found: Found, strengths: list[float], mining: list[str]) -> list[dict]:
    """One row for each strength, mining, constraint and distance, over margins and seeds."""
    rows: list[dict] = []
    for s, m, c, d in np.ndindex(len(strengths), len(mining), len(CONSTRAINTS), len(DISTANCES)):
        row: dict = {"strength": strengths[s], "mining": mining[m], "constraint": CONSTRAINTS[c]}
        row |= {"distance": list(DISTANCES)[d]}
        row |= {
            name: mean_and_half_width(found[name][s, d, m, c].mean(axis=0)) for name in ("EER", "MAP@R", "recall@1")
        }
        fallen = found["collapsed"][s, d, m, c]
        row |= {"collapsed": float(fallen.mean()), "collapsed, 95 %": wilson(int(fallen.sum()), fallen.size)}
        rows.append(row | {"lowest spread": float(found["lowest spread"][s, d, m, c].mean())})
    return rows


def paired(found: Found, strengths: list[float], mining: list[str]) -> list[dict]:
    """Geodesic less each chord, seed by seed, of the means over margins."""
    rows, number = [], {name: i for i, name in enumerate(DISTANCES)}
    for (s, m, c), chord in itertools.product(np.ndindex(len(strengths), len(mining), len(CONSTRAINTS)), CHORDS):
        less = {
            name: (found[name][s, number[GEODESIC], m, c] - found[name][s, number[chord], m, c]).mean(axis=0)
            for name in ("EER", "MAP@R", "collapsed")
        }
        row = {"strength": strengths[s], "mining": mining[m], "constraint": CONSTRAINTS[c], "chord": chord}
        row |= {name: mean_and_half_width(values) for name, values in less.items()}
        rows.append(row | {"p": paired_t(less["EER"])})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p, corrected"] = p
    return rows


def tables(rows: list[dict], pairs: list[dict]) -> None:
    place = lambda row: (row["strength"], row["mining"], row["constraint"])
    title = "{:<6g}{:12}{:28}".format
    print(f"\n{'equal error rate ± 95 %, and share collapsed':46}" + "".join(f"{d:>22}" for d in DISTANCES))
    for at, of in itertools.groupby(rows, place):
        of_each = ((*row["EER"], row["collapsed"]) for row in of)
        print(title(*at) + "".join(f"{mean:9.3f} ±{half:.3f}{fallen:6.0%}" for mean, half, fallen in of_each))
    print(f"\n{'geodesic less …: EER ± 95 %, p, corrected p':46}" + "".join(f"{chord:>32}" for chord in CHORDS))
    for at, of in itertools.groupby(pairs, place):
        of_each = ((*row["EER"], row["p"], row["p, corrected"]) for row in of)
        print(title(*at) + "".join(f"{mean:+11.3f} ±{half:.3f}{p:7.3f}{q:7.3f}" for mean, half, p, q in of_each))


def plot(found: Found, strengths: list[float], mining: list[str]) -> Figure:
    """Equal error rate of each run, with means, and the share of runs that collapsed."""
    figure = Figure(figsize=(13, 3.4 * len(strengths)), layout="constrained")
    grid = figure.subplots(
        2 * len(strengths), len(mining), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1] * len(strengths)
    )
    for s, m, c, d in np.ndindex(len(strengths), len(mining), len(CONSTRAINTS), len(DISTANCES)):
        above, below = grid[2 * s : 2 * s + 2, m]
        runs, place, color = found["EER"][s, d, m, c], d + 0.25 * (c - 1), f"C{c}"
        above.plot(np.full(runs.size, place), runs.ravel(), ".", color=color, ms=3, alpha=0.3)
        mean, half = mean_and_half_width(runs.mean(axis=0))
        above.errorbar(place, mean, half, fmt="_", color=color, ms=12, capsize=3, label=None if d else CONSTRAINTS[c])
        fallen = found["collapsed"][s, d, m, c]
        share, (low, high) = float(fallen.mean()), wilson(int(fallen.sum()), fallen.size)
        below.bar(place, share, 0.22, color=color)
        below.errorbar(place, share, [[share - low], [high - share]], fmt="none", color="0.3", capsize=2, lw=1)
        below.set(ylim=(0, 1), xticks=range(len(DISTANCES)), xticklabels=list(DISTANCES))
        above.set_title(f"{mining[m]}, augmentation × {strengths[s]:g}", fontsize=10)
    for axes in grid.ravel():
        axes.grid(alpha=0.3, axis="y")
    for above, below in zip(grid[::2, 0], grid[1::2, 0], strict=True):
        above.set_ylabel("equal error rate")
        below.set_ylabel("collapsed")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def main():
    parser = faces.parser(__doc__, seeds=10)
    add = parser.add_argument
    add("--strengths", type=float, nargs="+", default=[0.2, 0.5, 1.0], help="of augmentation")
    add("--mining", nargs="+", choices=MINING, default=list(MINING))
    add("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    args.devices = jax.devices()[: args.devices]
    each = [trained(args, strength) for strength in args.strengths]
    found = {name: np.stack([of[name] for of in each]) for name in each[0]}
    at = found, args.strengths, args.mining
    rows, pairs = cells(*at), paired(*at)
    tables(rows, pairs)
    print(f"\nraw pixels: {faces.raw_pixels(faces.load()[1]):.3f}; {int(np.sum(found['diverged']))} runs diverged")
    save("chord_or_geodesic", [*rows, *pairs], plot(*at), ["flax", "optax"])


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    main()
