"""What does it cost to train many variants of a face encoder in one program, and what comes of them?

    python -m benchmarks.variants [--steps 200] [--seeds 3] [--devices 1] [--usual 16]

The grid: distance × mining × constraint × margin × learning rate × seed, of a small convolutional network on the ORL
faces, with people held out (benchmarks/faces.py). Times are those of

    one program       `metricjax.variants.train`: one compilation, all variants
    one at a time     a step for each loss, with the numbers as arguments, jitted, called from Python
    the usual way     hyper-parameters as Python constants: every variant is compiled anew (measured on --usual variants
                      spread over the grid, and scaled up)

Parameters of the first two are compared. The table has means and 95 % intervals over seeds; the plot, what was watched
during training.
"""

import os
import time
from collections.abc import Iterable
from functools import partial

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import metricjax as mj
from benchmarks import chord_geometry, faces
from benchmarks.chord_geometry import CONSTRAINTS, triplet
from benchmarks.report import save
from metricjax import variants
from metricjax.variants import Task, Variant, mean_and_half_width

DISTANCES = {name: chord_geometry.DISTANCES[name] for name in ("squared chord", "geodesic")}
MINING = {"batch-hard": mj.mining.batch_hard, "semi-hard": mj.mining.semi_hard}
LOSSES = {f"{d}, {m}": partial(triplet, DISTANCES[d], MINING[m]) for d in DISTANCES for m in MINING}


def optimizer(n):
    return optax.adam(n["learning_rate"])


# --- the same, without the harness ----------------------------------------------------------------------------------


def one_at_a_time(task: Task, grid: Iterable[Variant], steps: int) -> tuple[float, float, list]:
    """Seconds of compiling and of training, and the parameters."""
    stepping, compiling, training, params = {}, 0.0, 0.0, []
    init = jax.jit(task.init)

    def step(loss, state, seed, i, n):
        params, optimizer_state = state
        batch = task.batch(seed, i)
        gradient = jax.grad(lambda p: task.losses[loss](p, task.embed(p, batch), batch, n))(params)
        updates, optimizer_state = task.optimizer(n).update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    for variant in grid:
        start = init(jax.random.key(variant.seed))
        state = start, task.optimizer(variant.numbers).init(start)
        clock = time.perf_counter()
        if variant.loss not in stepping:
            f = jax.jit(partial(step, variant.loss), donate_argnums=0)
            stepping[variant.loss] = f.lower(state, variant.seed, 0, variant.numbers).compile()
            compiling += time.perf_counter() - clock
            clock = time.perf_counter()
        for i in range(steps):
            state = stepping[variant.loss](state, variant.seed, i, variant.numbers)
        params.append(jax.block_until_ready(state[0]))
        training += time.perf_counter() - clock
    return compiling, training, params


def the_usual_way(task: Task, grid: list[Variant], steps: int, some: int) -> float:
    """Seconds of compiling and training all, from `some` of them."""
    chosen = [grid[i] for i in np.linspace(0, len(grid) - 1, some).astype(int)]
    total = 0.0
    for variant in tqdm(chosen, "the usual way", unit=" variants"):
        batch = lambda seed, i, seed_=variant.seed: task.batch(seed_, i)
        loss = lambda p, z, b, n, v=variant: task.losses[v.loss](p, z, b, v.numbers)
        constants = Task(task.init, task.embed, {variant.loss: loss}, batch, lambda n, v=variant: optimizer(v.numbers))
        compiling, training, _ = one_at_a_time(constants, [variant], steps)
        total += compiling + training
    return total / some * len(grid)


# --- what is reported -----------------------------------------------------------------------------------------------


def plot(grid: list[Variant], trained: variants.Trained) -> Figure:
    """What was watched, mean over everything but the loss and the constraint."""
    names = ("active triplets", "spread", "gradient norm")
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for color, loss in enumerate(LOSSES):
            for style, constraint in zip(("-", "--", ":"), range(len(CONSTRAINTS)), strict=True):
                these = [i for i, v in enumerate(grid) if (v.loss, v.numbers["constraint"]) == (loss, constraint)]
                label = f"{loss}, {CONSTRAINTS[constraint]}"
                mean = trained.history[name][:, these].mean(axis=1)
                axes.plot(trained.steps, mean, style, color=f"C{color}", label=label, lw=1.2)
        axes.set(title=name, xlabel="step", yscale="linear" if name == "spread" else "log")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def table(grid: list[Variant], found: dict[str, np.ndarray], trained: variants.Trained) -> list[dict]:
    """Prints and returns one row for each combination, over seeds."""
    shown = ("EER", "TAR@FAR=0.01", "recall@1", "MAP@R")
    print(f"{'':62}" + "".join(f"{name:>18}" for name in shown) + f"{'active':>9}{'spread':>9}{'collapsed':>11}")
    groups: dict[tuple, list[int]] = {}
    for i, v in enumerate(grid):
        groups.setdefault((v.loss, *v.numbers.values()), []).append(i)
    rows = []
    for (loss, constraint, margin, rate), these in groups.items():
        name = f"{loss}, {CONSTRAINTS[constraint]}, {margin:g}, {rate:g}"
        row = {"loss": loss, "constraint": CONSTRAINTS[constraint], "margin": margin, "learning rate": rate}
        row |= {k: mean_and_half_width(found[k][these]) for k in shown}
        row |= {k: float(np.mean(trained.history[k][-1][these])) for k in ("active triplets", "spread")}
        row |= {k: float(np.mean(found[k][these])) for k in ("collapsed", "diverged")}
        cells = "".join(f"{mean:11.3f} ±{half:5.3f}" for mean, half in (row[k] for k in shown))
        print(f"{name:62}{cells}{row['active triplets']:9.3f}{row['spread']:9.2f}{row['collapsed']:11.0%}")
        rows.append(row)
    return rows


def print_times(times: dict[str, tuple[float, float]], count: int) -> None:
    """Seconds of compiling and of training `count` steps of variants, and the rates that these are."""
    print(f"{'':16}{'compiling':>12}{'training':>12}{'variant-steps/s':>18}{'with compiling':>18}{'× one program':>16}")
    whole = sum(times["one program"])
    for name, (c, t) in times.items():
        print(f"{name:16}{c:10.1f} s{t:10.1f} s{count / t:18.0f}{count / (c + t):18.0f}{(c + t) / whole:16.2f}")


def main():
    parser = faces.parser(__doc__, seeds=3)
    add = parser.add_argument
    add("--margins", type=float, nargs="+", default=[0.2, 0.5])
    add("--learning-rates", type=float, nargs="+", default=[1e-3])
    add("--usual", type=int, default=16, help="number of variants to compile one by one; 0 leaves that out")
    args = parser.parse_args()
    devices = jax.devices()[: args.devices]
    numbers = {"constraint": range(len(CONSTRAINTS)), "margin": args.margins, "learning_rate": args.learning_rates}
    grid = variants.product(list(LOSSES), range(args.seeds), **numbers)
    seen, unseen = faces.load()
    task = faces.task(seen, LOSSES, optimizer, args.seeds, args.steps)
    bar = partial(tqdm, desc="one program", unit=f" x {len(grid)} variants")
    trained = variants.train(task, grid, args.steps, at_once=args.at_once, devices=devices, progress=bar)
    compiling, training, params = one_at_a_time(task, tqdm(grid, "one at a time", unit=" variants"), args.steps)
    both = jax.tree.leaves(trained.params), zip(*(jax.tree.leaves(p) for p in params), strict=True)
    apart = max(float(np.max(np.abs(np.asarray(a) - np.stack(b)))) for a, b in zip(*both, strict=True))
    times = {
        "one program": (trained.seconds["compiling"], trained.seconds["training"]),
        "one at a time": (compiling, training),
    }
    if args.usual:
        usual = the_usual_way(task, grid, args.steps, min(args.usual, len(grid)))
        times["the usual way"] = (usual - training, training)
    print(f"\n{len(grid)} variants x {args.steps} steps, {trained.at_once} at once on {len(devices)} devices")
    print_times(times, len(grid) * args.steps)
    print(f"largest difference of a parameter between the first two: {apart:.1e}")
    if trained.seconds["measuring"] > 0.1:
        print(f"measuring the number to train at once took {trained.seconds['measuring']:.1f} s more\n")
    rows = table(grid, faces.evaluated(trained, unseen), trained)
    timing = {"at_once": trained.at_once, "devices": len(devices), "variants": len(grid), "steps": args.steps}
    timing |= {"seconds": times, "measuring": trained.seconds["measuring"], "apart": apart}
    save("variants", [timing, *rows], plot(grid, trained), ["flax", "optax"])


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    main()
