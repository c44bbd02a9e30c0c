"""Compare losses on faces: each gets the same random search over its hyper-parameters and learning rate.

python -m pip install -e ".[faces]"
metricjax compare                                    # the ORL faces, a few minutes on two cores
metricjax compare --losses supcon,arcface,triplet:semi_hard --trials 24 --baseline supcon
metricjax compare --dataset FOLDER_OF_PEOPLE --batch 40 2

People are split into three groups. Every trial of every loss trains a small network on the first, all in one program
(`metricjax.variants`), with the same initial weights, batches and number of steps; only the loss, its numbers and the
learning rate differ. The second group chooses the best trial of each loss, by its equal error rate. Each loss is then
trained anew with its chosen setting and fresh seeds, and the table has the results on the third group: means of seeds,
and half the widths of their 95 % intervals (Student's t). They hold for this split of the people; --seed makes others.
With --baseline a second table compares the others with that loss, seed by seed (`metricjax.variants.summary`).
"lost" is the share of trials that collapsed to a point or are not finite; they are chosen only if all are lost.

`compare_losses.png` shows the same, and the validation error of every trial: how much a loss depends on its numbers.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from scipy.stats import qmc
from tqdm import tqdm

import metricjax as mj
from metricjax.commands import command_line
from metricjax.ground import json_files
from metricjax.losses.catalogue import CATALOGUE, Entry
from metricjax.plots.seeds import draw_seeds
from metricjax.trained.baseline import raw_pixels
from metricjax.training.many_trainings import COLLAPSED, batches, measured, with_mirror_images
from metricjax.variants import Summary, Task, Variant

__all__ = [
    "arguments",
    "between",
    "figure",
    "is_known",
    "load",
    "loss_of",
    "main",
    "pixels",
    "rank",
    "settings",
    "summarised",
    "table",
    "task_on",
    "trained",
]

# What is searched, (low, high, how drawn), around the defaults of the papers and what suits a few dozen people.
LEARNING_RATE = (5e-4, 1e-2, "log")
MARGIN_SOFTMAX = {"scale": (8, 64, "log"), "margin": (0.05, 0.5, "linear")}
SPACES: dict[str, dict[str, tuple[float, float, str]]] = {
    "contrastive": {"margin": (0.4, 1.4, "linear"), "positive_margin": (0.0, 0.4, "linear")},  # chords, of 2 at most
    "triplet": {"margin": (0.05, 1.0, "log")},  # squared chords, of 4 at most
    "margin": {"margin": (0.05, 0.4, "log"), "beta": (0.6, 1.4, "linear")},
    "multi_similarity": {"alpha": (1, 10, "log"), "beta": (10, 100, "log"), "base": (0.2, 0.8, "linear")},
    "circle": {"scale": (16, 256, "log"), "margin": (0.1, 0.5, "linear")},
    "supcon": {"temperature": (0.03, 0.5, "log")},
    "nt_xent": {"temperature": (0.03, 0.5, "log")},
    "nca": {"temperature": (0.1, 2, "log")},
    "normalized_softmax": {"temperature": (0.02, 0.2, "log")},
    "cosface": MARGIN_SOFTMAX,
    "arcface": MARGIN_SOFTMAX,
    "proxy_anchor": {"scale": (8, 64, "log"), "margin": (0.0, 0.3, "linear")},
    "proxy_nca_pp": {"temperature": (0.05, 0.5, "log")},
}
SELECTIONS = ("batch_hard", "semi_hard", "all_triplets", "easy_positive_hard_negative")
PLAIN = {"pairs": ("embeddings", "labels"), "classes": ("embeddings", "labels", "prototypes")}  # neither state nor key


def is_known(entry: Entry) -> bool:
    """Whether a loss compares points of the sphere, a prototype of each class among them or none."""
    on_sphere = entry.kind == "pairs" or not (entry.lengths or entry.several)
    return PLAIN.get(entry.kind) == entry.takes and on_sphere and not entry.added_to


# triplet alone is triplet:batch_hard; of losses without a space only the learning rate is searched.
KNOWN = [*SPACES, *(f"triplet:{selection}" for selection in SELECTIONS)]
KNOWN += [name for name, entry in CATALOGUE.items() if is_known(entry) and name not in SPACES]
DEFAULT = (
    "contrastive,triplet:batch_hard,triplet:semi_hard,triplet:all_triplets,multi_similarity,circle,supcon,"
    "normalized_softmax,cosface,arcface,proxy_anchor"
)
EMBEDDING = 64


def arguments(argv=None) -> argparse.Namespace:
    parser = command_line.parser("compare", __doc__)
    add = parser.add_argument
    add("--dataset", default="orl", help="orl (default), lfw (downloads), or a folder with a sub-folder per person")
    add("--losses", default=DEFAULT, metavar="A,B,...", help=f"of {', '.join(KNOWN)}")
    add("--trials", type=int, default=12, help="settings tried of each loss")
    add("--seeds", type=int, default=5, help="trainings with the chosen setting of each loss")
    add("--steps", type=int, default=200, help="of each training")
    add("--batch", type=int, nargs=2, default=(20, 3), metavar=("P", "K"), help="people, and images of each")
    add("--image-size", type=int, nargs=2, default=(32, 28), metavar=("H", "W"))
    add("--baseline", metavar="LOSS", help="compare the others with it, seed by seed: differences, p, and p after Holm")
    add("--seed", type=int, default=0, help="of the split of people, of the search, and first of the trainings")
    add("--out", type=pathlib.Path, help="folder of results; default runs/DATE-TIME")
    args = parser.parse_args(argv)
    args.out = args.out or command_line.dated_folder()
    least = {"trials": 1, "seeds": 1, "steps": 1, "batch": 2, "image_size": 8, "seed": 0}
    command_line.check_least(parser, args, least)
    args.losses = args.losses.split(",")
    for name in args.losses:
        if name not in KNOWN:
            parser.error(f"--losses: {name!r} is unknown; wanted some of {', '.join(KNOWN)}")
        if args.losses.count(name) > 1:
            parser.error(f"--losses names {name} {args.losses.count(name)} times")
    if args.baseline and args.baseline not in args.losses:
        parser.error(f"--baseline is {args.baseline}; wanted one of --losses: {', '.join(args.losses)}")
    return args


# --- people and batches ---------------------------------------------------------------------------------------------


def load(args) -> list[mj.data.Faces]:
    """Photographs of half of the people to train on, of a quarter to choose by, of a quarter to test on."""
    known: dict[str, Callable[..., mj.data.Faces]] = {"orl": mj.data.orl, "lfw": mj.data.lfw}
    read = known.get(args.dataset, partial(mj.data.folder, args.dataset))
    faces = read(tuple(args.image_size))
    people = len(faces.people)
    if people < 8:
        raise ValueError(f"--dataset {args.dataset} has {people} people; wanted at least 8, in three groups")
    quarter = np.random.default_rng(args.seed).permutation(people) * 4 // people
    return [faces.of_people(np.isin(quarter, part)) for part in ([0, 1], [2], [3])]


def pixels(images: np.ndarray, size) -> jax.Array:
    """Grey, at mean 0 and variance 1."""
    return mj.data.scaled(jnp.asarray(images.mean(axis=-1, keepdims=True), jnp.float32), size)


# --- training -------------------------------------------------------------------------------------------------------


def loss_of(name: str):
    """The loss as a `Task` wants it, with its hyper-parameters from the numbers of a variant."""
    base, _, selection = name.partition(":")
    how = {"triplets": getattr(mj.mining, selection)} if selection else {}

    def loss(params, embeddings, batch, numbers):
        hyper = {key: numbers[key] for key in SPACES.get(base, {})}
        prototypes = [params["prototypes"]] if CATALOGUE[base].kind == "classes" else []
        return getattr(mj.losses, base)(embeddings, batch[1], *prototypes, **hyper, **how)

    return loss


def task_on(faces: mj.data.Faces, args) -> Task:
    photographs, person = with_mirror_images(faces)
    people, clean = 2 * len(faces.people), pixels(photographs, args.image_size)
    # Augmented beforehand: within the program it would take longer than the training.
    copies = max(1, min(8, 20_000 // len(clean)))  # of each, as memory allows
    images = mj.data.augmented(jax.random.key(args.seed), jnp.tile(clean, (copies, 1, 1, 1)))
    if args.batch[0] > people:
        raise ValueError(f"--batch wants {args.batch[0]} people; with mirror images, training has {people}")
    seeds = range(args.seed, args.seed + 1 + args.seeds)  # the first for the search, the others for what is chosen
    index = batches(person, args.batch[0], args.batch[1], seeds, args.steps)
    labels = jnp.asarray(person)
    network = lambda key: mj.encoders.SmallConvNet(EMBEDDING, (*args.image_size, 1), rngs=nnx.Rngs(key))
    graph = nnx.graphdef(nnx.eval_shape(lambda: network(jax.random.key(0))))

    def init(key):
        """The same for all losses, whether or not they look at prototypes."""
        key = jax.random.fold_in(key, args.seed)
        prototypes = jax.random.normal(jax.random.fold_in(key, 1), (people, EMBEDDING))
        return {"encoder": nnx.state(network(key), nnx.Param), "prototypes": mj.sphere.project(prototypes)}

    def batch(seed, step):
        rows, key = index[seed, step], jax.random.fold_in(jax.random.key(seed), step)
        copy = jax.random.randint(key, rows.shape, 0, copies)
        return images[copy * len(clean) + rows], labels[rows]

    return Task(
        init=init,
        embed=lambda params, batch: nnx.merge(graph, params["encoder"])(batch[0]),
        losses={name: loss_of(name) for name in args.losses},
        batch=batch,
        optimizer=lambda n: optax.adam(optax.cosine_decay_schedule(n["learning_rate"], args.steps)),
        watch=lambda embeddings, batch: {"spread": mj.metrics.health(embeddings, batch[1])["spread"]},
    )


def settings(name: str, args) -> list[dict[str, float]]:
    """Random settings of a loss, a Latin hypercube: each number comes once from each of `trials` parts of its range."""
    space = {"learning_rate": LEARNING_RATE, **SPACES.get(name.partition(":")[0], {})}
    hypercube = qmc.LatinHypercube(len(space), rng=np.random.default_rng([args.seed, KNOWN.index(name)]))
    drawn = hypercube.random(args.trials).tolist()
    return [{key: between(*space[key], part) for key, part in zip(space, parts, strict=True)} for parts in drawn]


def between(low: float, high: float, how: str, part: float) -> float:
    """The number that has this part of the range below it."""
    return low * (high / low) ** part if how == "log" else low + (high - low) * part


def trained(task: Task, variants: list[Variant], faces: mj.data.Faces, args, words: str) -> list[dict]:
    """Train all variants; of each its numbers, whether it was lost, and its metrics on `faces`, None if not finite."""
    at_once = 1 if jax.default_backend() == "cpu" else len(variants)  # what "auto" would find, for half the compiling
    every = -(-args.steps // 20)
    progress = partial(tqdm, desc=f"{words}: {len(variants)} trainings", unit=f" x {every} steps")
    how = {"every": every, "at_once": at_once, "devices": jax.devices(), "progress": progress}
    done, images = mj.variants.train(task, variants, args.steps, **how), pixels(faces.images, args.image_size)
    embed = jax.jit(lambda params: jax.lax.map(lambda params: task.embed(params, (images,)), params))
    found = []
    for variant, z, spread in zip(variants, np.asarray(embed(done.params)), done.history["spread"][-1], strict=True):
        outcome = "not finite" if not np.isfinite(z).all() else "collapsed" if spread < COLLAPSED else "trained"
        metrics = measured(z, faces.labels) if outcome != "not finite" else None
        found.append({"setting": variant.numbers, "outcome": outcome, "metrics": metrics})
    return found


# --- results --------------------------------------------------------------------------------------------------------


def rank(trial: dict) -> tuple[bool, float]:
    """The less the better: by equal error rate, and a lost trial after all others."""
    return trial["outcome"] != "trained", trial["metrics"]["EER"] if trial["metrics"] else np.inf


def summarised(results: dict[str, dict], metrics: Iterable[str], baseline: str | None) -> Summary:
    """Each metric of each loss over its seeds; a training that is not finite is lost."""
    of = lambda found, metric: [t["metrics"] and t["metrics"][metric] for t in found["test"]]
    values = {metric: {loss: of(found, metric) for loss, found in results.items()} for metric in metrics}
    return mj.variants.summary(values, baseline=baseline)


def table(results: dict[str, dict], baseline: dict[str, float]) -> str:
    cell = lambda mean, half=None: f"{mean:8.3f}" + (f" ± {half:.3f}" if half is not None else " " * 8)
    lines = [f"{'people never seen in training':30}" + "".join(f"   {name:13}" for name in baseline) + "  lost"]
    for loss, found in results.items():
        cells = "".join(cell(*found["summary"][name]) for name in baseline if found["summary"])
        setting = ", ".join(f"{key} {value:.3g}" for key, value in found["setting"].items())
        lines.append(f"{loss:30}{cells or '   not finite':{16 * len(baseline)}}{found['lost']:6.0%}  {setting}")
    lines.append(f"{'raw pixels':30}" + "".join(map(cell, baseline.values())))
    return "\n".join(lines)


def figure(results: dict[str, dict], over_seeds: Summary, baseline: dict[str, float]) -> Figure:
    drawn = Figure(figsize=(15, 1.8 + 0.42 * len(results)), layout="constrained")
    tested, retrieved, tried = drawn.subplots(1, 3, sharey=True)
    legend: dict[str, Any] = {}
    for axes, name in ((tested, "EER"), (retrieved, "MAP@R")):
        legend |= draw_seeds(axes, {loss: over_seeds.metrics[name][loss] for loss in results})
        legend["raw pixels"] = axes.axvline(baseline[name], color="C3", ls=":")
        axes.set_title(f"test: {name}")
    for y, found in enumerate(results.values()):
        for outcome, style in (("trained", "C0o"), ("collapsed", "C1x")):
            rates = [t["metrics"]["EER"] for t in found["trials"] if t["outcome"] == outcome]
            (legend[f"trial: {outcome}"],) = tried.plot(rates, np.full(len(rates), y), style, ms=5, alpha=0.6)
        if best := found["trials"][found["best"]]["metrics"]:
            (legend["chosen"],) = tried.plot(best["EER"], y, "ko", ms=9, mfc="none")
        if missing := sum(t["metrics"] is None for t in found["trials"]):
            tried.annotate(f"{missing} not finite", (1, y), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    tried.set_title("validation: EER of every trial")
    tried.grid(alpha=0.3)
    drawn.legend(legend.values(), legend, loc="outside lower center", ncols=len(legend), frameon=False)
    return drawn


def main(argv=None) -> dict:
    args, started = arguments(argv), time.perf_counter()
    try:
        to_train, to_choose, to_test = groups = load(args)
        task = task_on(to_train, args)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"metricjax compare: {error}")
    search = [Variant(name, 0, setting) for name in args.losses for setting in settings(name, args)]
    tried, results = trained(task, search, to_choose, args, "searching"), {}
    for i, name in enumerate(args.losses):
        trials = tried[i * args.trials : (i + 1) * args.trials]
        best = min(range(args.trials), key=lambda k: rank(trials[k]))
        lost = sum(t["outcome"] != "trained" for t in trials) / args.trials
        results[name] = {"setting": trials[best]["setting"], "lost": lost, "best": best, "trials": trials}
    anew = [Variant(name, 1 + seed, found["setting"]) for name, found in results.items() for seed in range(args.seeds)]
    tested = trained(task, anew, to_test, args, "testing")
    for i, found in enumerate(results.values()):
        found["test"] = tested[i * args.seeds : (i + 1) * args.seeds]
    baseline = measured(raw_pixels(np.asarray(pixels(to_test.images, args.image_size))), to_test.labels)
    over_seeds = summarised(results, baseline, args.baseline)
    for name, found in results.items():
        of = {metric: rows[name] for metric, rows in over_seeds.metrics.items()}
        found["summary"] = {metric: (s.mean, s.half_width) for metric, s in of.items() if s.mean is not None}
    results = dict(sorted(results.items(), key=lambda item: item[1]["summary"].get("EER", (np.inf,))[0]))
    report = {"results": results, "raw pixels": baseline, "run": {**vars(args), "out": str(args.out)}}
    report["over seeds"] = dataclasses.asdict(over_seeds)
    report["seconds"] = time.perf_counter() - started
    report["people"] = {name: g.people for name, g in zip(("training", "validation", "test"), groups, strict=True)}
    json_files.write(args.out / "compare_losses.json", report)
    figure(results, over_seeds, baseline).savefig(args.out / "compare_losses.png", dpi=130)
    print(f"\n{table(results, baseline)}\n")
    if args.baseline:
        print(f"{over_seeds}\n")
    print(f"{report['seconds']:.0f} s; json and figure are in {args.out}")
    return report
