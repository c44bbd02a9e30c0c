"""The command `metricjax train`: train an encoder, evaluate it, and leave a run; see `train_arguments`."""

import importlib.util
import pathlib
import signal
import sys
import time
import warnings

import jax
import numpy as np
from tqdm import tqdm

import metricjax as mj
from metricjax.commands import tables, train_data
from metricjax.commands.train_arguments import STEPS, arguments
from metricjax.ground import json_files
from metricjax.trained import checkpoint_digests, people_of_run, run_folder
from metricjax.trained.baseline import raw_pixels
from metricjax.training import interruption, loggers, one_run
from metricjax.training.batches import Batches
from metricjax.training.checkpoints import Checkpoints, check_people, identity, latest
from metricjax.training.many_trainings import COLLAPSED
from metricjax.training.recipe import Recipe
from metricjax.training.start import weights_of
from metricjax.training.trainer import Trainer

__all__ = [
    "evaluate",
    "images_of",
    "join",
    "main",
    "monitored",
    "on_tpu",
    "ready",
    "recipe_of",
    "table",
    "taken_up",
    "train",
    "trained_and_tested",
    "validated",
    "write",
]

FARS = (0.1, 0.01, 0.001)
LOG_EVERY = 10
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left, {rate_noinv_fmt}"
MOST_COMPARED = 5000  # images, by their raw pixels too
PATIENCE = 10  # logged steps of less spread than COLLAPSED, after which the run ends


def join(args) -> None:
    """Make the processes of several hosts one, before anything asks for devices."""
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.processes, args.process_id)
    elif on_tpu():
        jax.distributed.initialize()  # which asks the TPU's own network for the others
    if jax.process_count() > 1 and not args.out_is_given:
        sys.exit(f"metricjax train: there are {jax.process_count()} processes; they need --out, one folder for all")


def on_tpu() -> bool:
    chips = (*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


# --- training -------------------------------------------------------------------------------------------------------


def train(
    args,
    trainer: Trainer,
    data: train_data.Data,
    kept: Checkpoints,
    check_lock=lambda: None,
    log: loggers.Logger = lambda step, numbers: None,
) -> dict:
    """Run the steps that are left; returns the history of what was monitored.

    `log` gets `(step, numbers)` of each step that is monitored or validated, beside the loggers that args.log names.
    """
    start, history, position = kept.restore() if args.resume else (0, {}, None)
    one_run.by_first(lambda: json_files.write(args.out / people_of_run.FILE, data.record))
    batches = Batches(trainer.recipe, data.train, position, workers=args.workers)
    shown, stop = jax.process_index() == 0, 0
    steps = {"initial": start, "total": args.steps, "unit": " steps", "disable": not shown, "bar_format": BAR}
    run = identity(trainer, data.record)
    with (
        interruption.noticed() as asked,
        loggers.growing_json(args.out / "metrics.json", history) as grow,
        loggers.opened([grow, log, *args.log], args.out, start, run) as report,
        tqdm(desc="compiling" if start < args.steps else "trained", **steps) as bar,
    ):
        for number in range(start, args.steps):
            batch, numbers = next(batches), {}
            if number == start:
                seconds = trainer.compile(batch)
                began = time.perf_counter()
                last = start, began
                bar.set_description_str("training")
                bar.unpause()  # steps a second are those after compiling
            seen = trainer.step(number, batch)
            done = number + 1
            logged = done % LOG_EVERY == 0 or done == args.steps
            if logged:
                numbers = monitored(seen, done, history)
                bar.set_description_str(f"loss {numbers['loss']:.3f}, spread {numbers['spread']:.2f}", refresh=False)
                bar.update(done - bar.n)  # here only, for other steps may just be on their way to the device
                now = time.perf_counter()
                numbers["steps per second"] = (done - last[0]) / (now - last[1])
                last = done, now
            stop = asked.agreed(logged)
            due = done % args.checkpoint_every == 0 or done == args.steps
            measured = due and data.validation is not None
            metrics = validated(trainer.encoder(), data.validation) if measured else None
            numbers |= {f"validation {name}": value for name, value in (metrics or {}).items()}
            if numbers:
                report(done, numbers)  # before a checkpoint, whose loggers have all up to it
            if due or stop:
                one_run.by_first(check_lock)
                kept.save(done, history, batches.get_state(), metrics)
            if stop:
                kept.finish()
                break
    if stop:
        came = signal.Signals(stop).name
        kept_for = f"{came} came; the checkpoint of step {done} is written, --resume goes on"
        print(f"metricjax train: {kept_for}", file=sys.stderr)
        sys.exit(128 + stop)
    if shown and start < args.steps:
        rate = (args.steps - start) / (time.perf_counter() - began)
        where = f"{jax.device_count()} device(s) of {jax.process_count()} process(es)"
        print(f"step compiled in {seconds:.0f} s; {rate:.2f} steps a second on {where}, checkpoints included")
    return history


def monitored(seen: dict[str, jax.Array], done: int, history: dict) -> dict[str, float]:
    """The numbers of a step, which are added to the history; the run ends where it cannot recover."""
    numbers = {name: float(value) for name, value in seen.items()}
    if not all(np.isfinite(list(numbers.values()))):
        sys.exit(f"stopped at step {done}: the loss or an embedding is not finite ({numbers})")
    for name, value in {"step": done, **numbers}.items():
        history.setdefault(name, []).append(value)
    if len(history["spread"]) >= PATIENCE and max(history["spread"][-PATIENCE:]) < COLLAPSED:
        sys.exit(f"stopped at step {done}: the embeddings have collapsed to one point ({numbers})")
    return numbers


def validated(encoder: mj.Encoder, held) -> dict[str, float]:
    """The equal error rate on people, or pairs, that were kept for choosing the checkpoint."""
    embeddings = encoder.embed(held.images)
    if isinstance(held, mj.data.Faces):
        return {"EER": mj.metrics.pair_scores(embeddings, held.labels).roc.equal_error_rate()}
    return {"EER": mj.metrics.equal_error_rate(held.similarities(embeddings), held.same)}


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(embed, data: train_data.Data) -> tuple[dict, np.ndarray | None, mj.metrics.PairScores | None]:
    """The results of one way to embed images; of people never seen, if any, embeddings and scores of all pairs."""
    result: dict[str, float | None] = {}
    embeddings = scores = None
    if (faces := data.tested) is not None:
        embeddings = embed(faces.images)
        scores = mj.metrics.pair_scores(embeddings, faces.labels)
        curve = scores.roc
        result |= {"AUC": curve.auc(), "EER": curve.equal_error_rate()}
        for far in FARS:
            result[f"TAR@FAR={far:g}"] = curve.tar_at_far(far) if far * curve.impostors >= 1 else None
        result |= {"genuine pairs": curve.genuine, "impostor pairs": curve.impostors}
        result |= mj.metrics.retrieval(embeddings, faces.labels, ks=(1, 5))
        if data.pairs is not None:
            who = [faces.people[label] for label in faces.labels]
            kept, similarity = data.pairs.similarities(embeddings, faces.files, who)
            if len(kept.same) < len(data.pairs.same):
                left = len(data.pairs.same) - len(kept.same)
                warnings.warn(f"{left} pairs are left out: a photograph of each is missing", stacklevel=1)
            mean, deviation = mj.metrics.k_fold_accuracy(similarity, kept.same, folds=kept.fold)
            result |= {"LFW accuracy": mean, "LFW deviation": deviation, "LFW pairs": len(kept.same)}
            result |= train_data.fold_sizes("LFW", kept.fold)
    for name, held in data.sets.items():
        similarity = held.similarities(embed(held.images))
        mean, deviation = mj.metrics.k_fold_accuracy(similarity, held.same, folds=train_data.FOLDS)
        result |= {f"{name} accuracy": mean, f"{name} deviation": deviation}
        result |= {f"{name} EER": mj.metrics.equal_error_rate(similarity, held.same)}
        result |= train_data.fold_sizes(name, np.arange(len(held.same)) % train_data.FOLDS)
    return result, embeddings, scores


def images_of(data: train_data.Data) -> int:
    return max(len(held.images) for held in (data.tested, *data.sets.values()) if held is not None)


def table(results: dict[str, dict]) -> str:
    lines = [tables.line("people never seen in training", *results)]
    names = next(iter(results.values()))
    return "\n".join([*lines, *(tables.line(name, *(found[name] for found in results.values())) for name in names)])


def main(argv=None) -> dict:
    args = arguments(argv)
    join(args)
    try:
        with one_run.only(args.out) as check_lock:
            one_run.by_first(lambda: ready(args))
            return trained_and_tested(args, check_lock)
    except (ValueError, OSError) as error:
        sys.exit(f"metricjax train: {error}")


def ready(args) -> None:
    """See that the folder of results is new, or move damaged checkpoints in it out of the way."""
    if args.resume:
        checkpoint_digests.set_damaged_aside(args.out)
    elif (args.out / checkpoint_digests.CHECKPOINTS).exists():
        raise ValueError(f"--out {args.out} holds a run already; give --resume to go on with it, or another folder")


def recipe_of(args) -> Recipe:
    """What the command line says of the training itself."""
    names = ["losses", "steps", "learning_rate", "constraint", "mirror", "augment", "seed", "sampled_classes"]
    names += ["remat", "chunk"]
    return Recipe(batch=tuple(args.batch), **{name: getattr(args, name) for name in names})


def taken_up(args) -> dict:
    """What the latest checkpoint holds besides arrays; the run keeps its number of steps unless told otherwise."""
    done, saved = latest(args.out)
    before = saved["identity"].get("steps", STEPS)
    args.steps = before if args.steps is None else args.steps
    if args.steps < done:
        raise ValueError(f"--steps is {args.steps}; wanted {done} at least, which are done already")
    if args.steps != before and jax.process_index() == 0:
        print(f"--steps {args.steps}, not {before}: the learning rate goes on as in a run of {args.steps} steps")
    return saved


def trained_and_tested(args, check_lock) -> dict:
    started = time.perf_counter()
    saved = taken_up(args) if args.resume else None
    data = train_data.load(args)
    if saved is not None:
        check_people(args.out, saved, data.record)
    trainer = Trainer(recipe_of(args), train_data.design(args, data), len(data.train.people))
    if args.weights is not None and not args.resume:
        trainer.start_from(weights_of(args.weights, trainer.design, args.seed))
    kept = Checkpoints(args.out, trainer, data.validation is not None, data.record)
    try:
        history = train(args, trainer, data, kept, check_lock)
    finally:
        kept.finish()  # however it ends, a checkpoint that was begun is completed
    one_run.by_first(lambda: None)  # all see its digest now
    encoder = run_folder.load(args.out, trainer.mesh)  # of the best checkpoint
    results, embeddings, scores = {}, {}, {}
    ways = {"embeddings": encoder.embed, "raw pixels": raw_pixels}
    if images_of(data) > MOST_COMPARED:
        del ways["raw pixels"]
    for name, embed in ways.items():
        results[name], embeddings[name], scores[name] = evaluate(embed, data)
    seconds = time.perf_counter() - started
    people = {"trained on": data.trained_on, "tested on": data.tested.people if data.tested else []}
    named = {name: str(getattr(args, name)) for name in ("dataset", "landmarks", "pairs", "validation", "weights")}
    run = {**named, **identity(trainer, data.record)}
    report = {"results": results, "seconds": seconds, "run": run, "people": people, "history": history}
    if jax.process_index() == 0:
        write(args.out, report, data, embeddings["embeddings"], scores)
        print(f"\n{table(results)}\n\n{seconds:.0f} s; checkpoint, metrics.json and plots are in {args.out}")
    return report


def write(out: pathlib.Path, report: dict, data: train_data.Data, embeddings, scores: dict) -> None:
    json_files.write(out / "metrics.json", report)
    figures = {"training": mj.plots.training_curves(report["history"])}
    if (faces := data.tested) is not None:
        queries = np.linspace(0, len(embeddings) - 1, 8).astype(int)
        nearest = (faces.images, faces.labels, embeddings[queries] @ embeddings.T, queries)
        figures |= {
            "roc": mj.plots.roc_curves({name: s.roc for name, s in scores.items()}),
            "scores": mj.plots.score_histograms(scores),
            "neighbours": mj.plots.neighbour_sheet(*nearest),
        }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=120)
