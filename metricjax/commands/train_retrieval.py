"""`metricjax train --task retrieval`: embeddings of images, searched among classes never seen; see the arguments."""

import argparse
import math
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metricjax as mj
from metricjax.commands import retrieval_data, tables
from metricjax.commands.fitting import filled
from metricjax.commands.retrieval_arguments import arguments
from metricjax.commands.train_data import design
from metricjax.commands.train_run import curves, finished, in_folder, ready, recipe_of, start_from_weights, taken_up
from metricjax.ground import json_files
from metricjax.metrics.seeds import mean_and_half_width
from metricjax.trained import checkpoint_digests, run_folder
from metricjax.trained.baseline import raw_pixels
from metricjax.training import loop, one_run
from metricjax.training.batches import Batches, steps_per_epoch
from metricjax.training.checkpoints import Checkpoints, check_people
from metricjax.training.trainer import Trainer
from metricjax.variants import summary

__all__ = [
    "Model",
    "check_folders",
    "concatenated",
    "embedded",
    "folder",
    "is_one",
    "main",
    "means",
    "nearest",
    "of_folds",
    "table",
    "tested",
    "trained",
    "trained_and_tested",
    "validated",
]

LEAST = 25  # steps between validations: a small set has shorter epochs
MOST_COMPARED = 5000  # images, by raw pixels and by the untrained encoder, too
AT_ONCE = 1024  # images read and embedded
SHOWN = ("r_precision", "map@r")

Results = dict[str, dict[str, float]]  # for each way to embed, its measures


class Model(NamedTuple):
    """What a training left: embeddings of the test images, and what is found by them, and by what is compared."""

    embeddings: np.ndarray
    results: Results


def main(argv=None) -> dict:
    return in_folder(arguments(argv), trained_and_tested)


def trained_and_tested(args, check_lock) -> dict:
    """One training, one for each seed, or four for each by cross-validation; the report."""
    started = time.perf_counter()
    seeds = range(args.seed, args.seed + args.seeds)
    one_run.by_first(lambda: check_folders(args, seeds))
    parts = retrieval_data.parts(args, retrieval_data.opened(args))
    columns = []
    for seed in seeds:
        models = [trained(args, part, folder(args, seed, i), seed, check_lock) for i, part in enumerate(parts)]
        columns.append(of_folds(args, models, parts[0].test) if args.reality_check else models[0].results)
    seconds = time.perf_counter() - started
    report: dict[str, Any] = {"results": means(columns), "seconds": seconds}
    if jax.process_index() == 0:
        path = args.out / "metrics.json"
        if is_one(args):
            report = {**json_files.read(path), **report}
        else:
            report |= {"of seeds": columns, "half width of 95 % interval": means(columns, 1)}
        json_files.write(path, report)
        print(f"\n{table(columns)}\n\n{seconds:.0f} s; checkpoints, metrics.json and plots are in {args.out}")
    return report


def is_one(args) -> bool:
    """Whether there is only one training, which --out is the folder of."""
    return args.seeds == 1 and not args.reality_check


def folder(args, seed: int, fold: int) -> pathlib.Path:
    """Where a training leaves its results."""
    if is_one(args):
        return args.out
    return args.out / f"seed-{seed}" / (f"fold-{fold}" if args.reality_check else "")


def check_folders(args, seeds: range) -> None:
    """Before any training: the folders of all of them are new or, of some of them, to go on with."""
    folds = range(retrieval_data.FOLDS if args.reality_check else 1)
    places = [folder(args, seed, fold) for seed in seeds for fold in folds]
    for place in places:
        ready(argparse.Namespace(resume=args.resume, out=place))
    if args.resume and not any(checkpoint_digests.steps(place) for place in places):
        raise ValueError(f"--resume: {args.out} holds no checkpoint")


# --- one training ---------------------------------------------------------------------------------------------------


def trained(args, parts: retrieval_data.Parts, out: pathlib.Path, seed: int, check_lock) -> Model:
    """Train on these parts into a folder, and test the encoder of the best checkpoint."""
    own = argparse.Namespace(**{**vars(args), "seed": seed, "out": out})
    own.resume = args.resume and bool(checkpoint_digests.steps(out))
    saved = taken_up(own) if own.resume else None
    if saved is not None:
        check_people(out, saved, parts.record)
    flags = filled(own, retrieval_data.settings(own, parts.train))
    told = f"{len(parts.train.people)} classes to train on, {len(parts.train)} images: {flags}"
    one_run.by_first(lambda: print(told))
    recipe = recipe_of(own)
    per_epoch = steps_per_epoch(recipe, parts.train)
    trainer = Trainer(recipe, design(own, parts), len(parts.train.people), mirrored=False)
    start_from_weights(own, trainer)
    results, test, held = {}, parts.test, parts.validation
    if len(test) <= MOST_COMPARED:
        first = not own.resume or own.weights is None  # else the weights it began with are not at hand
        results = {"untrained": tested(embedded(trainer.encoder(), test), test, own.ks)} if first else {}
        results["raw pixels"] = tested(raw_pixels(np.stack([test[i] for i in range(len(test))])), test, own.ks)

    def validate() -> loop.Validated:
        assert held is not None
        numbers = validated(trainer.encoder(), held, own.ks)
        return loop.Validated(1 - numbers["map@r"], numbers)

    with finished(Checkpoints(out, trainer, held is not None, parts.record)) as kept:
        history = loop.run_steps(
            kept,
            lambda position: Batches(recipe, parts.train, position, workers=own.workers),
            checkpoint_every=own.checkpoint_every or math.ceil(LEAST / per_epoch) * per_epoch,
            resume=own.resume,
            validate=None if held is None else validate,
            patience=own.patience,
            log=own.log,
            check_lock=check_lock,
        )
    embeddings = embedded(run_folder.load(out, trainer.mesh), test)  # of the best checkpoint
    results = {"embeddings": tested(embeddings, test, own.ks), **results}
    named = {name: str(getattr(own, name)) for name in ("dataset", "weights", "sampler")}
    run = {"task": "retrieval", **named, **kept.identity()}
    classes = {"trained on": parts.train.people, "chosen by": held.people if held else [], "tested on": test.people}
    if jax.process_index() == 0:
        report = {"results": results, "run": run, "classes": classes, "history": history}
        json_files.write(out / "metrics.json", report)
        figures = {**curves(history), "neighbours": nearest(embeddings, test)}
        for name, figure in figures.items():
            figure.savefig(out / f"{name}.png", dpi=120)
    return Model(embeddings, results)


def embedded(encoder: mj.Encoder, source: mj.data.Source) -> np.ndarray:
    """Embeddings of all images of a source, a part of which are in memory at a time."""
    found = []
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(source), AT_ONCE):
            images = threads.map(source.__getitem__, range(start, min(start + AT_ONCE, len(source))))
            found.append(encoder.embed(np.stack(list(images))))
    return np.concatenate(found)


def validated(encoder: mj.Encoder, held: mj.data.Source, ks: tuple[int, ...]) -> dict[str, float]:
    """Each image is searched for among the others: what is reported of an epoch."""
    embeddings, largest = jnp.asarray(embedded(encoder, held)), int(np.bincount(held.labels).max())
    means = mj.metrics.retrieval_means(embeddings, jnp.asarray(held.labels), ks=ks, largest_class=largest)
    return {name: float(means[name].total / means[name].count) for name in (*(f"recall@{k}" for k in ks), *SHOWN)}


# --- results --------------------------------------------------------------------------------------------------------


def tested(embeddings: np.ndarray, test: mj.data.Source, ks: tuple[int, ...]) -> dict[str, float]:
    """`validated`, of embeddings, exact however large classes are."""
    found = mj.metrics.retrieval(embeddings, test.labels, ks=ks)
    return {name: found[name] for name in (*(f"recall@{k}" for k in ks), *SHOWN)}


def of_folds(args, models: list[Model], test: mj.data.Source) -> Results:
    """The four models of the reality check: the test by all of them in a row, and the mean of each by itself."""
    each = [model.results["embeddings"] for model in models]
    separated = {name: float(np.mean([found[name] for found in each])) for name in each[0]}
    together = tested(concatenated([model.embeddings for model in models]), test, args.ks)
    return {"concatenated": together, "separated": separated}


def concatenated(embeddings: list[np.ndarray]) -> np.ndarray:
    """Embeddings of several models in a row, of length 1 again; each model has the same weight."""
    return np.concatenate(embeddings, axis=1) / np.sqrt(len(embeddings)).astype(embeddings[0].dtype)


def nearest(embeddings: np.ndarray, test: mj.data.Source, queries: int = 8, count: int = 6):
    """A sheet of a few images of the test, with what is found for them."""
    asked = np.unique(np.linspace(0, len(test) - 1, queries).astype(int))
    scores = embeddings[asked] @ embeddings.T
    shown = np.unique([asked, *np.argsort(-scores, axis=1, kind="stable")[:, : count + 1].T])
    images, labels = np.stack([test[i] for i in shown]), test.labels[shown]
    return mj.plots.neighbour_sheet(images, labels, scores[:, shown], np.searchsorted(shown, asked), count)


def means(columns: list[Results], which: int = 0) -> dict[str, dict[str, float | None]]:
    """Means over seeds or, as number 1, half the widths of their 95 % intervals; None where there is none."""
    of = lambda way, name: mean_and_half_width([column[way][name] for column in columns])[which]
    shown = lambda value: float(value) if np.isfinite(value) else None
    return {way: {name: shown(of(way, name)) for name in numbers} for way, numbers in columns[0].items()}


def table(columns: list[Results]) -> str:
    """Measures of the test classes; of several seeds means, and half the widths of their 95 % intervals."""
    if len(columns) == 1:
        return tables.of_ways("classes never seen in training", columns[0])
    names = next(iter(columns[0].values()))
    over = {name: {way: [column[way][name] for column in columns] for way in columns[0]} for name in names}
    return f"classes never seen in training, {len(columns)} seeds\n{summary(over)}"
