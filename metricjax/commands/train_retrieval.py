"""`metricjax train --task retrieval`: embeddings of images, searched among classes never seen; see the arguments."""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import metricjax as mj
from metricjax.commands import retrieval_data, tables
from metricjax.commands.fitting import filled
from metricjax.commands.retrieval_arguments import arguments
from metricjax.commands.train_run import curves, finished, in_folder, ready, recipe_of, start_from_weights, taken_up
from metricjax.ground import json_files
from metricjax.trained import run_folder
from metricjax.trained.baseline import raw_pixels
from metricjax.training import loop, one_run
from metricjax.training.batches import Batches
from metricjax.training.checkpoints import Checkpoints, check_people, identity
from metricjax.training.trainer import Trainer
from metricjax.variants import summary

__all__ = ["concatenated", "main", "measured", "reality_checked", "searched", "table", "trained", "trained_and_tested"]

FOLDS = 4  # of the reality check
LEAST = 25  # steps between validations: a small set has shorter epochs
MOST_COMPARED = 5000  # images, by their raw pixels too
SHOWN = ("r_precision", "map@r")


def main(argv=None) -> dict:
    return in_folder(arguments(argv), trained_and_tested)


def trained_and_tested(args, check_lock) -> dict:
    """One training, one for each seed, or four for each by cross-validation; the report."""
    started = time.perf_counter()
    saved = taken_up(args) if args.resume else None
    collection = retrieval_data.opened(args)
    seeds = range(args.seed, args.seed + args.seeds)
    if args.reality_check:
        columns = [reality_checked(args, collection, seed, check_lock) for seed in seeds]
    else:
        parts = retrieval_data.parts(args, collection)
        columns = []
        for seed in seeds:
            out = args.out if args.seeds == 1 else args.out / f"seed-{seed}"
            encoder, before = trained(args, parts, out, seed, check_lock, saved)
            columns.append(searched(args, encoder, before, parts.test))
    report = {"results": means(columns), "of seeds": columns, "seconds": time.perf_counter() - started}
    if jax.process_index() == 0:
        json_files.write(
            args.out / ("results.json" if len(columns) > 1 or args.reality_check else "metrics.json"), report
        )
        print(f"\n{table(columns)}\n\n{report['seconds']:.0f} s; checkpoints, numbers and plots are in {args.out}")
    return report


# --- one training ---------------------------------------------------------------------------------------------------


def trained(
    args, parts: retrieval_data.Parts, out: pathlib.Path, seed: int, check_lock, saved: dict | None = None
) -> tuple[mj.Encoder, np.ndarray | None]:
    """Train on these parts into a folder; the encoder of the best checkpoint, and embeddings of the test before that.

    Of a large test there are none.
    """
    if saved is not None:
        check_people(out, saved, parts.record)
    own = argparse.Namespace(**{**vars(args), "seed": seed, "out": out})
    one_run.by_first(lambda: ready(own))
    grey = parts.train[0].shape[-1] == 1
    flags = filled(own, retrieval_data.settings(own, len(parts.train), grey), len(parts.train.people))
    told = f"{len(parts.train.people)} classes to train on, {len(parts.train)} images: {flags}"
    one_run.by_first(lambda: print(told))
    trainer = Trainer(recipe_of(own), retrieval_data.design(own, parts.train), len(parts.train.people))
    start_from_weights(own, trainer)
    before = trainer.encoder().embed(parts.test.images) if len(parts.test.images) <= MOST_COMPARED else None
    batches = Batches(trainer.recipe, parts.train, workers=own.workers)
    every = own.checkpoint_every or -(-LEAST // batches.per_epoch) * batches.per_epoch

    held = parts.validation

    def validate() -> loop.Validated:
        assert held is not None
        numbers = measured(trainer.encoder(), held, own.ks)
        return loop.Validated(1 - numbers["map@r"], numbers)

    with finished(Checkpoints(out, trainer, held is not None, parts.record)) as kept:
        history = loop.run_steps(
            kept,
            lambda position: batches if position is None else Batches(trainer.recipe, parts.train, position),
            checkpoint_every=every,
            resume=own.resume,
            validate=None if held is None else validate,
            patience=own.patience,
            log=own.log,
            check_lock=check_lock,
        )
    run = {"dataset": own.dataset, "weights": str(own.weights), **identity(trainer, parts.record)}
    report = {"history": history, "run": run, "classes": parts.train.people, "tested on": parts.test.people}
    if jax.process_index() == 0:
        json_files.write(out / "metrics.json", report)
        for name, figure in curves(history).items():
            figure.savefig(out / f"{name}.png", dpi=120)
    return run_folder.load(out, trainer.mesh), before


def measured(encoder: mj.Encoder, held: mj.data.Faces, ks: tuple[int, ...]) -> dict[str, float]:
    """Each image is searched among the others: what a validation reports."""
    embeddings, largest = jnp.asarray(encoder.embed(held.images)), int(np.bincount(held.labels).max())
    means = mj.metrics.retrieval_means(embeddings, jnp.asarray(held.labels), ks=ks, largest_class=largest)
    return {name: float(means[name].total / means[name].count) for name in (*(f"recall@{k}" for k in ks), *SHOWN)}


# --- results --------------------------------------------------------------------------------------------------------


def searched(args, encoder: mj.Encoder, before: np.ndarray | None, test: mj.data.Faces) -> dict[str, dict[str, float]]:
    """Retrieval among the test classes by the embeddings and, of a small test, before training and by raw pixels."""
    found = {"embeddings": encoder.embed(test.images)}
    if before is not None:
        found |= {"before training": before, "raw pixels": raw_pixels(test.images)}
    if jax.process_index() == 0 and args.seeds == 1:
        queries = np.linspace(0, len(test.images) - 1, 8).astype(int)
        nearest = (test.images, test.labels, found["embeddings"][queries] @ found["embeddings"].T, queries)
        mj.plots.neighbour_sheet(*nearest).savefig(args.out / "neighbours.png", dpi=120)
    return {name: retrieved(embeddings, test.labels, args.ks) for name, embeddings in found.items()}


def retrieved(embeddings: np.ndarray, labels: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
    found = mj.metrics.retrieval(embeddings, labels, ks=ks)
    return {name: found[name] for name in (*(f"recall@{k}" for k in ks), *SHOWN)}


def reality_checked(args, collection: retrieval_data.Collection, seed: int, check_lock) -> dict[str, dict[str, float]]:
    """Four models by cross-validation over the training classes: the test by all four in a row, and their mean."""
    each, numbers = [], []
    for fold in range(FOLDS):
        parts = retrieval_data.parts(args, collection, (fold, FOLDS))
        encoder, _ = trained(args, parts, args.out / f"seed-{seed}" / f"fold-{fold}", seed, check_lock)
        each.append(encoder.embed(parts.test.images))
        numbers.append(retrieved(each[-1], parts.test.labels, args.ks))
    separated = {name: float(np.mean([found[name] for found in numbers])) for name in numbers[0]}
    return {"concatenated": retrieved(concatenated(each), parts.test.labels, args.ks), "separated": separated}


def concatenated(embeddings: list[np.ndarray]) -> np.ndarray:
    """Embeddings of several models in a row, of length 1 again; each model has the same weight."""
    return np.concatenate(embeddings, axis=1) / np.sqrt(len(embeddings))


def means(columns: list[dict]) -> dict[str, dict[str, float]]:
    mean = lambda way, name: float(np.mean([column[way][name] for column in columns]))
    return {way: {name: mean(way, name) for name in numbers} for way, numbers in columns[0].items()}


def table(columns: list[dict]) -> str:
    """Measures of the test classes; of several seeds means, and half the widths of their 95 % intervals."""
    if len(columns) == 1:
        (found,) = columns
        lines = [tables.line("classes never seen in training", *found)]
        names = next(iter(found.values()))
        return "\n".join([*lines, *(tables.line(name, *(way[name] for way in found.values())) for name in names)])
    names = next(iter(columns[0].values()))
    over = {name: {way: [column[way][name] for column in columns] for way in columns[0]} for name in names}
    return f"classes never seen in training, {len(columns)} seeds\n{summary(over)}"
