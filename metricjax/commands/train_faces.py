"""`metricjax train --task faces`: an encoder is trained, and tested on people never seen; see `train_arguments`."""

import pathlib
import time
import warnings

import jax
import numpy as np

import metricjax as mj
from metricjax.commands import tables, train_data
from metricjax.commands.train_arguments import arguments
from metricjax.commands.train_run import curves, finished, in_folder, recipe_of, start_from_weights, taken_up
from metricjax.ground import json_files
from metricjax.trained import run_folder
from metricjax.trained.baseline import raw_pixels
from metricjax.training import loggers, loop
from metricjax.training.batches import Batches
from metricjax.training.checkpoints import Checkpoints, check_people, identity
from metricjax.training.trainer import Trainer

__all__ = ["equal_error_rate", "evaluate", "images_of", "main", "train", "trained_and_tested", "write"]

FARS = (0.1, 0.01, 0.001)
MOST_COMPARED = 5000  # images, by their raw pixels too


# --- training -------------------------------------------------------------------------------------------------------


def train(args, kept: Checkpoints, data: train_data.Data, check_lock, log: loggers.Logger | None = None) -> dict:
    """Run the steps that are left; returns the history of what was monitored. `log` is one more logger."""

    def validate() -> loop.Validated:
        error = equal_error_rate(kept.trainer.encoder(), data.validation)
        return loop.Validated(error, {"EER": error})

    return loop.run_steps(
        kept,
        lambda position: Batches(kept.trainer.recipe, data.train, position, workers=args.workers),
        checkpoint_every=args.checkpoint_every,
        resume=args.resume,
        validate=None if data.validation is None else validate,
        log=args.log if log is None else [log, *args.log],
        check_lock=check_lock,
    )


def equal_error_rate(encoder: mj.Encoder, held) -> float:
    """That of people, or pairs, that were kept for choosing the checkpoint."""
    embeddings = encoder.embed(held.images)
    if isinstance(held, mj.data.Faces):
        return mj.metrics.pair_scores(embeddings, held.labels).roc.equal_error_rate()
    return mj.metrics.equal_error_rate(held.similarities(embeddings), held.same)


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


def main(argv=None) -> dict:
    return in_folder(arguments(argv), trained_and_tested)


def trained_and_tested(args, check_lock) -> dict:
    started = time.perf_counter()
    saved = taken_up(args) if args.resume else None
    data = train_data.load(args)
    if saved is not None:
        check_people(args.out, saved, data.record)
    trainer = Trainer(recipe_of(args), train_data.design(args, data), len(data.train.people))
    start_from_weights(args, trainer)
    with finished(Checkpoints(args.out, trainer, data.validation is not None, data.record)) as kept:
        history = train(args, kept, data, check_lock)
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
        table = tables.of_ways("people never seen in training", results)
        print(f"\n{table}\n\n{seconds:.0f} s; checkpoint, metrics.json and plots are in {args.out}")
    return report


def write(out: pathlib.Path, report: dict, data: train_data.Data, embeddings, scores: dict) -> None:
    json_files.write(out / "metrics.json", report)
    figures = curves(report["history"])
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
