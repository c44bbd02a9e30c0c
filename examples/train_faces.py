"""Train face embeddings on every device there is, and evaluate them on people that training never saw.

python examples/train_faces.py                                   # the ORL faces, on a laptop
python examples/train_faces.py --loss triplet --set margin=0.3
python examples/train_faces.py --dataset FOLDER_OF_PEOPLE
python examples/train_faces.py --dataset lfw_folder --pairs pairs.txt --test-folds 1,2
python examples/train_faces.py --dataset ms1mv3 --test lfw.bin --test agedb_30.bin --validation cfp_fp.bin \
    --encoder iresnet50 --embedding-size 512 --image-size 112 112 --pixels centred --precision bfloat16 \
    --loss arcface --set scale=64 --set margin=0.5 --mirror random --batch 1024 --steps 200000
"""

import argparse
import importlib.util
import pathlib
import signal
import sys
import time
import warnings
from collections.abc import Callable

import checkpoint_digests
import checkpoints
import command_line
import face_data
import face_encoder
import interruption
import jax
import json_file
import losses_by_name
import numpy as np
import one_run
import people_of_run
import tables
from checkpoints import Checkpoints, identity
from face_trainer import Trainer
from many_trainings import COLLAPSED
from tqdm import tqdm

import metricjax as mj

FARS = (0.1, 0.01, 0.001)
STEPS = 500
LOG_EVERY = 10
MOST_COMPARED = 5000  # images, by their raw pixels too
PATIENCE = 10  # logged steps of less spread than COLLAPSED, after which the run ends


def arguments(argv=None) -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    add_data(parser.add_argument_group("data").add_argument)
    add_encoder(parser.add_argument_group("encoder").add_argument)
    add_training(parser.add_argument_group("training").add_argument)
    add_hosts(parser.add_argument_group("several hosts (found out on TPU pods)").add_argument)
    args = parser.parse_args(argv)
    check(parser, args)
    args.out_is_given = args.out is not None
    args.out = args.out or command_line.dated_folder()
    if args.steps is None and not args.resume:
        args.steps = STEPS
    try:
        args.losses = losses_by_name.chosen_losses(args.loss, args.set)
    except ValueError as error:
        parser.error(str(error))
    return args


def add_data(add: Callable) -> None:
    what = "orl (default), lfw or tfds:NAME (downloads), a folder with a sub-folder per person, or one with train.rec"
    add("--dataset", default="orl", help=what)
    add("--landmarks", type=pathlib.Path, help="five points for each photograph of a folder, to align it by")
    add("--test-people", type=int, help="people kept for testing; default half of them, 500 at most")
    add("--test", action="append", default=[], type=pathlib.Path, metavar="SET.bin", help="pairs to test on")
    pairs = "LFW's pairs.txt, to run its protocol, or a list without folds; --dataset is then the folder of its people"
    add("--pairs", type=pathlib.Path, help=pairs)
    folds = "folds of --pairs to test on, where it has any; their people are not trained on"
    add("--test-folds", default="1,2", help=folds)
    best = "verification set, or a number of people to keep for it: the checkpoint of least equal error rate is used"
    add("--validation", metavar="SET.bin | PEOPLE", help=best)
    batch = "people and images of each (default 40 2), or one number: images drawn evenly; of all devices together"
    add("--batch", type=int, nargs="+", metavar=("P", "K"), help=batch)
    add("--workers", type=int, default=0, help="processes that read and decode, besides threads")
    how = "people: a mirrored face is another person; random: each image or not, by chance; none"
    add("--mirror", choices=("people", "random", "none"), default="people", help=how)


def add_encoder(add: Callable) -> None:
    add("--encoder", default="small_resnet", choices=mj.encoders.NAMED, help="default small_resnet")
    add("--embedding-size", type=int, default=128)
    add("--image-size", type=int, nargs=2, default=(64, 56), metavar=("H", "W"), help="what the encoder sees")
    add("--pixels", choices=("standardised", "centred"), default="standardised", help="each image, or from −1 to 1")
    inside = "of the encoder but its weights, statistics and last layer; losses and evaluation take float32"
    add("--precision", choices=("float32", "bfloat16"), default="float32", help=inside)
    again = "compute blocks again going backwards: a third more time, less memory (but not on a CPU)"
    add("--remat", action="store_true", help=again)
    add("--chunk", type=int, help="images encoded at a time: batches of any size in their memory; slow on a CPU")


def add_training(add: Callable) -> None:
    add("--loss", default="cosface+supcon", help="a loss of metricjax.losses, or several joined by +")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter of the loss")
    where = "of prototypes to the sphere: in the forward pass, after each update, or on the gradient too"
    add("--constraint", choices=losses_by_name.CONSTRAINTS, default="update", help=where)
    length = f"of the whole run (default {STEPS}, or as before); --resume with more of them trains on, and from there"
    add("--steps", type=int, help=f"{length} the learning rate follows the cosine of a run of the new length")
    add("--learning-rate", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add("--out", type=pathlib.Path, help="folder of results; default runs/DATE-TIME")
    add("--checkpoint-every", type=int, default=200, metavar="STEPS")
    add("--resume", action="store_true", help="go on from the latest whole checkpoint in --out")


def add_hosts(add: Callable) -> None:
    add("--coordinator", metavar="HOST:PORT", help="address of process 0")
    add("--processes", type=int, help="the number of processes")
    add("--process-id", type=int, help="the number of this process, from 0")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where arguments are out of range or do not go together."""
    if args.resume and args.out is None:
        parser.error("--resume needs --out, the folder of the run to go on with")
    least = dict.fromkeys(("steps", "checkpoint_every", "embedding_size", "image_size", "batch", "chunk"), 1)
    command_line.check_least(parser, args, {**least, "seed": 0, "workers": 0, "test_people": 0})
    if args.batch is not None and len(args.batch) > 2:
        parser.error(f"--batch is {args.batch}; wanted people and images of each, or one number of images")
    if len({path.stem for path in args.test}) < len(args.test):
        parser.error(f"--test: two of {', '.join(map(str, args.test))} have one name; wanted different ones")
    if not args.coordinator and (args.processes is not None or args.process_id is not None):
        parser.error("--processes and --process-id need --coordinator")


def join(args) -> None:
    """Make the processes of several hosts one, before anything asks for devices."""
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.processes, args.process_id)
    elif on_tpu():
        jax.distributed.initialize()  # which asks the TPU's own network for the others
    if jax.process_count() > 1 and not args.out_is_given:
        sys.exit(f"train_faces: there are {jax.process_count()} processes; they need --out, one folder for all")


def on_tpu() -> bool:
    chips = (*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


# --- training -------------------------------------------------------------------------------------------------------


def train(args, trainer: Trainer, data: face_data.Data, kept: Checkpoints, check_lock=lambda: None) -> dict:
    """Run the steps that are left; returns the history of what was monitored."""
    start, history, position = kept.restore() if args.resume else (0, {}, None)
    one_run.by_first(lambda: json_file.write(args.out / people_of_run.FILE, data.record))
    batches = face_data.Batches(args, data.train, position)
    shown, stop = jax.process_index() == 0, 0
    steps = {"initial": start, "total": args.steps, "unit": " steps", "disable": not shown}
    with interruption.noticed() as asked, tqdm(range(start, args.steps), "training", **steps) as bar:
        for number in bar:
            batch = next(batches)
            if number == start:
                seconds = trainer.compile(batch)
                began = time.perf_counter()
            seen = trainer.step(number, batch)
            done = number + 1
            logged = done % LOG_EVERY == 0 or done == args.steps
            if logged:
                bar.set_postfix(monitored(seen, done, history))
            stop = asked.agreed(logged)
            due = done % args.checkpoint_every == 0 or done == args.steps
            if due or stop:
                one_run.by_first(check_lock)
                measured = due and data.validation is not None
                metrics = validated(trainer.encoder(), data.validation) if measured else None
                kept.save(done, history, batches.get_state(), metrics)
            if stop:
                kept.finish()
                break
    if stop:
        came = signal.Signals(stop).name
        print(f"train_faces: {came} came; the checkpoint of step {done} is written, --resume goes on", file=sys.stderr)
        sys.exit(128 + stop)
    if shown and start < args.steps:
        rate = (args.steps - start) / (time.perf_counter() - began)
        where = f"{jax.device_count()} device(s) of {jax.process_count()} process(es)"
        print(f"step compiled in {seconds:.0f} s; {rate:.2f} steps a second on {where}, checkpoints included")
    return history


def monitored(seen: dict[str, jax.Array], done: int, history: dict) -> dict[str, str]:
    """The numbers of a step, added to the history, and in short; the run ends where it cannot recover."""
    numbers = {name: float(value) for name, value in seen.items()}
    if not all(np.isfinite(list(numbers.values()))):
        sys.exit(f"stopped at step {done}: the loss or an embedding is not finite ({numbers})")
    for name, value in {"step": done, **numbers}.items():
        history.setdefault(name, []).append(value)
    if len(history["spread"]) >= PATIENCE and max(history["spread"][-PATIENCE:]) < COLLAPSED:
        sys.exit(f"stopped at step {done}: the embeddings have collapsed to one point ({numbers})")
    return {name.split("/")[-1]: f"{value:.3f}" for name, value in numbers.items()}


def validated(encoder: face_encoder.FaceEncoder, held) -> dict[str, float]:
    """The equal error rate on people, or pairs, that were kept for choosing the checkpoint."""
    embeddings = encoder.embed(held.images)
    if isinstance(held, mj.data.Faces):
        return {"EER": mj.metrics.pair_scores(embeddings, held.labels).roc.equal_error_rate()}
    return {"EER": mj.metrics.equal_error_rate(held.similarities(embeddings), held.same)}


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(embed, data: face_data.Data) -> tuple[dict, np.ndarray | None, mj.metrics.PairScores | None]:
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
            result |= face_data.fold_sizes("LFW", kept.fold)
    for name, held in data.sets.items():
        similarity = held.similarities(embed(held.images))
        mean, deviation = mj.metrics.k_fold_accuracy(similarity, held.same, folds=face_data.FOLDS)
        result |= {f"{name} accuracy": mean, f"{name} deviation": deviation}
        result |= {f"{name} EER": mj.metrics.equal_error_rate(similarity, held.same)}
        result |= face_data.fold_sizes(name, np.arange(len(held.same)) % face_data.FOLDS)
    return result, embeddings, scores


def images_of(data: face_data.Data) -> int:
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
        sys.exit(f"train_faces: {error}")


def ready(args) -> None:
    """See that the folder of results is new, or move damaged checkpoints in it out of the way."""
    if args.resume:
        checkpoint_digests.set_damaged_aside(args.out)
    elif (args.out / checkpoint_digests.CHECKPOINTS).exists():
        raise ValueError(f"--out {args.out} holds a run already; give --resume to go on with it, or another folder")


def taken_up(args) -> dict:
    """What the latest checkpoint holds besides arrays; the run keeps its number of steps unless told otherwise."""
    done, saved = checkpoints.latest(args.out)
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
    data = face_data.load(args)
    if saved is not None:
        checkpoints.check_people(args.out, saved, data.record)
    trainer = Trainer(args, face_data.design(args, data), len(data.train.people))
    kept = Checkpoints(args.out, trainer, data.validation is not None, data.record)
    try:
        history = train(args, trainer, data, kept, check_lock)
    finally:
        kept.finish()  # however it ends, a checkpoint that was begun is completed
    one_run.by_first(lambda: None)  # all see its digest now
    encoder = face_encoder.load(args.out, trainer.mesh)  # of the best checkpoint
    results, embeddings, scores = {}, {}, {}
    ways = {"embeddings": encoder.embed, "raw pixels": face_encoder.raw_pixels}
    if images_of(data) > MOST_COMPARED:
        del ways["raw pixels"]
    for name, embed in ways.items():
        results[name], embeddings[name], scores[name] = evaluate(embed, data)
    seconds = time.perf_counter() - started
    people = {"trained on": data.trained_on, "tested on": data.tested.people if data.tested else []}
    named = {name: str(getattr(args, name)) for name in ("dataset", "landmarks", "pairs", "validation")}
    run = {**named, **identity(trainer, data.record)}
    report = {"results": results, "seconds": seconds, "run": run, "people": people, "history": history}
    if jax.process_index() == 0:
        write(args.out, report, data, embeddings["embeddings"], scores)
        print(f"\n{table(results)}\n\n{seconds:.0f} s; checkpoint, metrics.json and plots are in {args.out}")
    return report


def write(out: pathlib.Path, report: dict, data: face_data.Data, embeddings, scores: dict) -> None:
    json_file.write(out / "metrics.json", report)
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


if __name__ == "__main__":
    main()
