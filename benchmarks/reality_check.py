"""metricjax beside PyTorch Metric Learning: what both train from the same beginning on the same batches.

    python -m pip install -e ".[faces]" torch pytorch-metric-learning
    python -m benchmarks.reality_check [--omniglot FOLDER] [--seeds 5] [--steps 300] [--quick]

Three convolutions and a linear map, 28 × 28 pixels, six losses. For each seed both get the same initial weights and
prototypes, the same P × K batches, and Adam with the same numbers; only the arithmetic is each one's own. Printed are

    agreement   the largest relative difference of the loss over the first 50 steps and over all, for how many steps
                it stays within 1e-4 for every seed, and the first 50 steps once more in float64 (one seed)
    quality     recall@1 and MAP@R of classes never seen, means and 95 % intervals (Student's t) over seeds, and those
                of the paired difference; both are measured by `metrics.retrieval`, once also by their calculator;
                and what the pixels themselves would have
    time        of a step, of the encoder's part of it, and of the loss alone: medians of interleaved blocks

Two threads for both. The ORL faces: people s1 to s20 and their mirror images to train on, s21 to s40 to test on.
Omniglot's small set: the first three alphabets to train on, the other two to test on; FOLDER has it unpacked, without
one it is downloaded.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import metricjax as mj
from benchmarks.reality_check_ours import ALL, CLASSES, ENCODER, IMAGES, LOSSES, SIZE, THREADS, Ours, initial, our_loss
from benchmarks.report import medians, save
from metricjax.training import many_trainings
from metricjax.variants import holm, mean_and_half_width, paired_t, summary

COPIES, MOVED = 10, {"turn": 0.2, "zoom": 0.15, "shift": 0.1, "light": 0.0, "hide": 0.0}
AGREEING, CLOSE = 50, 1e-4  # steps, and how near their losses should be
BLOCK, ROUNDS = 20, 15  # steps timed at once, and how often
FRAMEWORKS = ("metricjax", "PyTorch Metric Learning")
MEASURES = ("recall@1", "map@r")


# --- data -----------------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Images [n, 28, 28, 1] to train on, in copies, and of classes never seen; labels are counted from 0 in each."""

    images: np.ndarray
    labels: np.ndarray
    unseen: np.ndarray
    unseen_labels: np.ndarray


def split_of(images: np.ndarray, labels: np.ndarray, unseen: np.ndarray, unseen_labels: np.ndarray) -> Split:
    """Less the mean of those to train on, which are then turned, zoomed and shifted, once and for all."""
    mean = np.mean(images / np.float32(255), axis=0)
    centred = lambda some: some / np.float32(255) - mean
    augmented = jax.jit(lambda key: mj.data.augmented(key, jnp.asarray(centred(images)), **MOVED))
    copies = [np.asarray(augmented(key)) for key in jax.random.split(jax.random.key(0), COPIES)]
    return Split(np.concatenate(copies), np.tile(labels, COPIES), centred(unseen), unseen_labels)


def orl() -> Split:
    faces = mj.data.orl(SIZE)
    first = np.arange(len(faces.people)) < len(faces.people) // 2
    unseen = faces.of_people(~first)
    return split_of(*many_trainings.with_mirror_images(faces.of_people(first)), unseen.images, unseen.labels)


def omniglot(folder: str | None) -> Split:
    characters = mj.data.omniglot(folder, SIZE)
    first = np.arange(len(characters.alphabets)) < 3
    seen, unseen = characters.of_alphabets(first), characters.of_alphabets(~first)
    return split_of(seen.images, seen.labels, unseen.images, unseen.labels)


# --- side by side ---------------------------------------------------------------------------------------------------


def relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The difference as a share of the larger, 0 where both are 0."""
    larger = np.maximum(np.abs(a), np.abs(b))
    return np.abs(a - b) / np.where(larger > 0, larger, 1)


def trained(kind: Any, loss: str, begin: dict, split: Split, index: np.ndarray) -> tuple[Any, np.ndarray]:
    """A training by one of the two, and its loss at each step."""
    training = kind(loss, begin, split.images, split.labels)
    return training, np.array([float(value) for value in [training.step(chosen) for chosen in index]])


def in_float64(kinds: tuple, loss: str, begin: dict, split: Split, index: np.ndarray) -> float:
    """How far the losses are apart where rounding decides nothing."""
    with jax.enable_x64(True):
        begin, split = jax.tree.map(np.float64, begin), split._replace(images=np.float64(split.images))
        histories = [trained(kind, loss, begin, split, index[:AGREEING])[1] for kind in kinds]
    return float(np.max(relative(*histories)))


def compared(theirs: Any, name: str, split: Split, seeds: int, steps: int) -> list[dict]:
    """One row for each loss: how far the losses of both are apart, and what was measured after each seed's training."""
    index = np.array(many_trainings.batches(split.labels, CLASSES, IMAGES, range(seeds), steps))
    begin = [initial(seed, len(np.unique(split.labels))) for seed in range(seeds)]
    pixels = mj.metrics.retrieval(split.unseen.reshape(len(split.unseen), -1), split.unseen_labels, ks=(1,))
    kinds, rows = (Ours, theirs.Theirs), []
    for loss in tqdm(LOSSES, name, unit=" losses"):
        differ, calculators, measured = [], 0.0, {who: [] for who in FRAMEWORKS}
        for seed in range(seeds):
            histories = []
            for who, kind in zip(FRAMEWORKS, kinds, strict=True):
                training, history = trained(kind, loss, begin[seed], split, index[seed])
                histories.append(history)
                z = training.embed(split.unseen)
                measured[who].append(mj.metrics.retrieval(z, split.unseen_labels, ks=(1,)))
            differ.append(relative(*histories))
            found = theirs.by_calculator(z, split.unseen_labels)
            calculators = max(calculators, *(abs(found[m] - measured[who][-1][m]) for m in MEASURES))
        largest = np.max(differ, axis=0)
        row = {"set": name, "loss": loss, "first": float(largest[:AGREEING].max()), "all": float(largest.max())}
        row |= {"agreeing": int(np.argmax(np.append(largest, np.inf) > CLOSE)), "calculators": calculators}
        row["pixels"] = {measure: float(pixels[measure]) for measure in MEASURES}
        row["float64"] = in_float64(kinds, loss, begin[0], split, index[0])
        row |= {m: {who: [each[m] for each in measured[who]] for who in FRAMEWORKS} for m in MEASURES}
        rows.append(row)
    return rows


def timed(theirs: Any, split: Split, rounds: int) -> list[dict]:
    """One row for each loss: milliseconds of a step and of the loss alone, ours and theirs."""
    index = np.array(many_trainings.batches(split.labels, CLASSES, IMAGES, [0], BLOCK))[0]
    begin = initial(0, len(np.unique(split.labels)))
    z, y = Ours(ENCODER, begin, split.images, split.labels).embed(split.images[index[0]]), split.labels[index[0]]
    runs: dict[tuple, tuple[Callable, int]] = {}

    def steps(training):
        return lambda: [training.step(chosen) for chosen in index][-1]

    def times(call):
        return lambda: [call() for _ in range(BLOCK)][-1]

    for name in ALL:
        for who, kind in zip(FRAMEWORKS, (Ours, theirs.Theirs), strict=True):
            runs[name, "step", who] = steps(kind(name, begin, split.images, split.labels)), BLOCK
        for who, alone in zip(FRAMEWORKS, (our_loss, theirs.their_loss), strict=True):
            runs[name, "loss", who] = times(alone(name, z, y, begin["prototypes"])), BLOCK
    for run, _ in runs.values():
        jax.block_until_ready(run())
    seconds, failed = medians(runs, rounds, float("inf"))
    for error in failed.values():
        raise error
    rows = []
    for name in ALL:
        row = {"loss": name}
        for part in ("step", "loss"):
            row |= {f"{part}, {who}": 1e3 * seconds[name, part, who] for who in FRAMEWORKS}
        rows.append(row)
    return rows


# --- what is reported -----------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> None:
    """Prints Markdown."""
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(cells) + " |")
    print()


def interval(values: Any, signed: bool = False) -> str:
    mean, half = mean_and_half_width(values)
    return f"{mean:{'+' if signed else ''}.3f} ± {half:.3f}"


def print_quality(rows: list[dict], steps: int) -> None:
    first = f"first {min(AGREEING, steps)}"
    head = ["set", "loss", f"apart, {first} steps", f"all {steps}", f"steps within {CLOSE:.0e}", f"float64, {first}"]
    apart = lambda row: [f"{row['first']:.0e}", f"{row['all']:.0e}", f"{row['agreeing']}", f"{row['float64']:.0e}"]
    table(head, [[row["set"], row["loss"], *apart(row)] for row in rows])
    for measure in MEASURES:
        differences = [np.subtract(*(row[measure][who] for who in FRAMEWORKS)) for row in rows]
        p = holm([paired_t(some) for some in differences])
        cells = [
            [
                row["set"],
                row["loss"],
                *(interval(row[measure][who]) for who in FRAMEWORKS),
                interval(some, True),
                f"{q:.2f}",
            ]
            for row, some, q in zip(rows, differences, p, strict=True)
        ]
        table(["set", "loss", *(f"{measure}, {who}" for who in FRAMEWORKS), "paired difference", "p (Holm)"], cells)
    print(
        f"Their calculator and `metrics.retrieval` differ by {max(row['calculators'] for row in rows):.0e} at most.\n"
    )


def print_times(rows: list[dict]) -> None:
    head = [f"{part}, {who}" for part in ("step", "loss alone") for who in FRAMEWORKS]
    cells = [
        [row["loss"], *(f"{row[f'{part}, {who}']:.2f} ms" for part in ("step", "loss") for who in FRAMEWORKS)]
        for row in rows
    ]
    table(["loss", *head], cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sets", nargs="+", choices=("ORL", "Omniglot"), default=["ORL", "Omniglot"])
    add("--omniglot", metavar="FOLDER", help="Omniglot's small set, unpacked; default: it is downloaded")
    add("--seeds", type=int, default=5)
    add("--steps", type=int, default=300)
    add("--quick", action="store_true", help="ORL, 2 seeds of 5 steps: to see that it works")
    args = parser.parse_args()
    if args.quick:
        args.sets, args.seeds, args.steps = ["ORL"], 2, 5
    from benchmarks import reality_check_torch as theirs

    sets = {name: orl() if name == "ORL" else omniglot(args.omniglot) for name in args.sets}
    rows = [row for name, split in sets.items() for row in compared(theirs, name, split, args.seeds, args.steps)]
    print_quality(rows, args.steps)
    times = timed(theirs, sets[args.sets[-1]], 1 if args.quick else ROUNDS)
    print_times(times)
    results = {}
    for row in rows:
        of_set = results.setdefault(f"MAP@R, {row['set']}", {})
        of_set |= {f"{row['loss']}, {who}": row["map@r"][who] for who in FRAMEWORKS}
    figure = mj.plots.variants(summary(results))
    save("reality_check", [*rows, *times], figure, ["optax", *theirs.PACKAGES])


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # JAX computes with as many threads as it may use processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    main()
