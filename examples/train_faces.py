"""Train face embeddings and evaluate them on people that training never saw.

python examples/train_faces.py                                   # the ORL faces, on a laptop
python examples/train_faces.py --loss triplet --set margin=0.3
python examples/train_faces.py --dataset FOLDER_OF_PEOPLE
python examples/train_faces.py --dataset lfw_folder --pairs pairs.txt --test-folds 1,2
"""

import argparse
import datetime
import itertools
import json
import pathlib
import sys
import time
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import losses_by_name
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tqdm import tqdm

import metricjax as mj

PHOTOGRAPH = (112, 92)  # height and width in memory: those of the ORL set
FARS = (0.1, 0.01, 0.001)
LOG_EVERY = 10
COLLAPSED, PATIENCE = 0.05, 10  # so little spread (1 is even) in so many logged steps is a collapse


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="orl", help="orl (default), lfw (downloads), or a folder with a sub-folder per person")
    add("--pairs", type=pathlib.Path, help="LFW's pairs.txt, to run its protocol; --dataset is LFW's folder then")
    add("--test-folds", default="1,2", help="folds of --pairs to test on; their people are not trained on")
    add("--loss", default="cosface+supcon", help="a loss of metricjax.losses, or several joined by +")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter of the loss")
    where = "of prototypes to the sphere: in the forward pass, after each update, or on the gradient too"
    add("--constraint", choices=losses_by_name.CONSTRAINTS, default="update", help=where)
    add("--steps", type=int, default=800)
    add("--batch", type=int, nargs=2, metavar=("P", "K"), help="people, and images of each; default 20 2")
    add("--image-size", type=int, nargs=2, default=(64, 56), metavar=("H", "W"), help="what the encoder sees")
    add("--embedding-size", type=int, default=128)
    add("--learning-rate", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add("--out", type=pathlib.Path, help="folder of results; default runs/DATE-TIME")
    add("--checkpoint-every", type=int, default=200, metavar="STEPS")
    add("--resume", action="store_true", help="go on from the latest checkpoint in --out")
    args = parser.parse_args(argv)
    if args.resume and args.out is None:
        parser.error("--resume needs --out, the folder of the run to go on with")
    if args.out is None:
        args.out = pathlib.Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    elif not args.resume and (args.out / "checkpoints").exists():
        parser.error(f"--out {args.out} holds a run already; give --resume to go on with it, or another folder")
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; wanted at least 1")
    try:
        args.losses = losses_by_name.chosen_losses(args.loss, args.set)
    except ValueError as error:
        parser.error(str(error))
    return args


# --- data -----------------------------------------------------------------------------------------------------------


def load(args) -> tuple[mj.data.Faces, mj.data.Faces, mj.data.Pairs | None]:
    """Training photographs, test photographs of other people, and the pairs to compare, if a protocol names them."""
    if args.pairs is not None:
        pairs = mj.data.read_pairs(args.pairs).of_folds([int(fold) for fold in args.test_folds.split(",")])
        if len(np.unique(pairs.fold)) < 2:
            raise ValueError(
                f"--test-folds {args.test_folds} names fewer than 2 folds: thresholds come from the others"
            )
        if args.dataset in ("orl", "lfw"):
            raise ValueError("--pairs names files: give the folder that holds LFW's people as --dataset")
        faces = mj.data.folder(args.dataset, PHOTOGRAPH, at_least=1)
        tested = np.array([name in pairs.people() for name in faces.people])
        several = np.bincount(faces.labels) > 1
        return faces.of_people(~tested & several), faces.of_people(tested), pairs
    read = {"orl": mj.data.orl, "lfw": mj.data.lfw}.get(args.dataset, partial(mj.data.folder, args.dataset))
    faces = read(PHOTOGRAPH)
    trained = np.arange(len(faces.people)) < len(faces.people) // 2
    if trained.sum() < 2:
        raise ValueError(f"--dataset {args.dataset} has {len(faces.people)} people; wanted 2 to train on, 2 to test on")
    return faces.of_people(trained), faces.of_people(~trained), None


# --- training -------------------------------------------------------------------------------------------------


class Trainer:
    """The jitted steps, and the state they act on."""

    def __init__(self, args, faces: mj.data.Faces):
        self.args, self.losses = args, args.losses
        self.batch = tuple(args.batch or (min(20, 2 * len(faces.people)), 2))
        # A mirrored face counts as another person: twice the people to tell apart, from the same photographs.
        self.images = jnp.concatenate([faces.images, faces.images[:, :, ::-1]])
        self.labels = jnp.concatenate([faces.labels, faces.labels + len(faces.people)])
        shape = (*args.image_size, faces.images.shape[-1])
        model = mj.encoders.SmallResNet(args.embedding_size, shape, rngs=nnx.Rngs(args.seed))
        self.graph, encoder = nnx.split(model, nnx.Param)
        self.classes = 2 * len(faces.people)
        key = jax.random.key(args.seed + 1)
        heads = losses_by_name.heads(self.losses, self.classes, args.embedding_size, key)
        rate = optax.warmup_cosine_decay_schedule(0, args.learning_rate, args.steps // 10, args.steps)
        by_kind = {
            "encoder": optax.adamw(rate, weight_decay=0.1),
            "sphere": losses_by_name.CONSTRAINTS[args.constraint](rate),
            "free": optax.adam(rate),
        }
        kinds = {"encoder": "encoder", "heads": losses_by_name.kinds(heads)}
        self.optimizer = optax.partition(by_kind, kinds)
        params = {"encoder": encoder, "heads": heads}
        self.state = {
            "params": params,
            "average": jax.tree.map(jnp.copy, params),  # over the last steps: what is evaluated
            "optimizer": self.optimizer.init(params),
            "kept": losses_by_name.kept(self.losses, self.classes, args.embedding_size),
        }

    def encode(self, params, images):
        """Embeddings before they are projected to the sphere: some losses look at their length."""
        return nnx.merge(self.graph, params["encoder"]).features(images)

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def step(self, state, number, index):
        """One update on the images `index`; everything random is a function of the seed and the step's number."""
        key = jax.random.fold_in(jax.random.key(self.args.seed), number)
        images = mj.data.augmented(key, mj.data.scaled(self.images[index], self.args.image_size))
        labels = self.labels[index]

        def loss(params):
            embeddings = self.encode(params, images)
            given = (self.losses, embeddings, labels, params["heads"], state["kept"], number, key)
            value, kept = losses_by_name.total_loss(*given)
            return value, (kept, embeddings)

        (value, (kept, embeddings)), gradient = jax.value_and_grad(loss, has_aux=True)(state["params"])
        updates, optimizer = self.optimizer.update(gradient, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        average = optax.incremental_update(params, state["average"], step_size=0.01)
        state = {"params": params, "average": average, "optimizer": optimizer, "kept": kept}
        return state, {"loss": value, **mj.metrics.health(embeddings, labels)}

    @partial(jax.jit, static_argnums=0)
    def _embed(self, params, images):
        images = mj.data.scaled(images, self.args.image_size)
        one = lambda images: mj.sphere.project(self.encode(params, images))
        return mj.sphere.project(one(images) + one(images[:, :, ::-1]))

    def embed(self, images: np.ndarray, size: int = 100) -> np.ndarray:
        """Embeddings averaged with those of the mirror images."""
        parts = [images[i : i + size] for i in range(0, len(images), size)]
        pad = lambda a: np.concatenate([a, np.zeros((size - len(a), *a.shape[1:]), a.dtype)])
        return np.concatenate(
            [np.asarray(self._embed(self.state["average"], pad(part)))[: len(part)] for part in parts]
        )


def checkpointer(args) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager((args.out / "checkpoints").absolute(), options=options)


def restored(args, trainer: Trainer, manager: ocp.CheckpointManager) -> tuple[int, dict]:
    """The step to go on from and the history until then; the trainer's state is replaced."""
    step = manager.latest_step()
    if step is None:
        raise ValueError(f"--resume: {args.out} holds no checkpoint")
    saved = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
    for name, value in identity(args, trainer).items():
        made = saved["identity"].get(name)
        if made != value:
            raise ValueError(f"--resume: the checkpoint was made with {name} {made}, not {value}")
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, trainer.state)
    trainer.state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]
    return step, saved["history"]


def identity(args, trainer: Trainer) -> dict:
    """What a checkpoint must agree on with the run that goes on from it."""
    word = lambda value: getattr(value, "__name__", str(value))
    named = {name: {k: word(v) for k, v in hyper.items()} for name, hyper in args.losses.items()}
    made = {"people": trainer.classes, "losses": named, "batch": list(trainer.batch)}
    for key in ("embedding_size", "image_size", "dataset", "steps", "seed", "learning_rate", "constraint"):
        made[key] = getattr(args, key)
    return json.loads(json.dumps(made))  # as it comes back from a checkpoint


def train(args, trainer: Trainer) -> dict:
    """Run the steps that are left; returns the history of what was monitored."""
    labels, (people, images) = np.asarray(trainer.labels), trainer.batch
    manager = checkpointer(args)
    start, history = restored(args, trainer, manager) if args.resume else (0, {})
    epoch = partial(mj.samplers.pk_batches, labels, people, images, seed=args.seed)
    epochs = (epoch(epoch=number) for number in itertools.count())
    batches = itertools.islice(itertools.chain.from_iterable(epochs), start, args.steps)
    with tqdm(batches, "training", total=args.steps, initial=start, unit=" steps") as bar:
        for number, index in enumerate(bar, start):
            trainer.state, seen = trainer.step(trainer.state, number, index)
            done = number + 1
            if done % LOG_EVERY == 0 or done == args.steps:
                seen = {name: float(value) for name, value in seen.items()}
                if not all(np.isfinite(list(seen.values()))):
                    sys.exit(f"stopped at step {done}: the loss or an embedding is not finite ({seen})")
                for name, value in {"step": done, **seen}.items():
                    history.setdefault(name, []).append(value)
                if len(history["spread"]) >= PATIENCE and max(history["spread"][-PATIENCE:]) < COLLAPSED:
                    sys.exit(f"stopped at step {done}: the embeddings have collapsed to one point ({seen})")
                bar.set_postfix({name.split("/")[-1]: f"{value:.3f}" for name, value in seen.items()})
            if done % args.checkpoint_every == 0 or done == args.steps:
                run = ocp.args.JsonSave({"identity": identity(args, trainer), "history": history})
                manager.save(done, args=ocp.args.Composite(state=ocp.args.StandardSave(trainer.state), run=run))
    manager.wait_until_finished()
    return history


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(
    embeddings: np.ndarray, faces: mj.data.Faces, pairs: mj.data.Pairs | None
) -> tuple[dict, mj.metrics.PairScores]:
    """Verification over all pairs, retrieval, and LFW's protocol where its pairs are given."""
    scores = mj.metrics.pair_scores(embeddings, faces.labels)
    curve = scores.roc
    result: dict[str, float | None] = {"AUC": curve.auc(), "EER": curve.equal_error_rate()}
    for far in FARS:
        result[f"TAR@FAR={far:g}"] = curve.tar_at_far(far) if far * curve.impostors >= 1 else None
    result |= {"genuine pairs": curve.genuine, "impostor pairs": curve.impostors}
    result |= mj.metrics.retrieval(embeddings, faces.labels, ks=(1, 5))
    if pairs is not None:
        kept, similarity = pairs.similarities(embeddings, faces.files)
        if len(kept.same) < len(pairs.same):
            left = len(pairs.same) - len(kept.same)
            warnings.warn(f"{left} pairs are left out: a photograph of each is missing", stacklevel=1)
        mean, deviation = mj.metrics.k_fold_accuracy(similarity, kept.same, folds=kept.fold)
        result |= {"LFW accuracy": mean, "LFW deviation": deviation, "LFW pairs": len(kept.same)}
    return result, scores


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The baseline: pixels less the mean image of the set."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return flat - flat.mean(axis=0)


def table(results: dict[str, dict]) -> str:
    shown = lambda v: "–" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.3f}"
    names = list(next(iter(results.values())))
    lines = [f"{'people never seen in training':32}" + "".join(f"{column:>14}" for column in results)]
    lines += [f"{name:32}" + "".join(f"{shown(r[name]):>14}" for r in results.values()) for name in names]
    return "\n".join(lines)


def main(argv=None) -> dict:
    args = arguments(argv)
    started = time.perf_counter()
    try:
        trained_on, tested_on, pairs = load(args)
        trainer = Trainer(args, trained_on)
        args.out.mkdir(parents=True, exist_ok=True)
        history = train(args, trainer)
    except (ValueError, OSError) as error:
        sys.exit(f"train_faces: {error}")
    embeddings = trainer.embed(tested_on.images)
    results, scores = {}, {}
    for name, points in (("embeddings", embeddings), ("raw pixels", raw_pixels(tested_on.images))):
        results[name], scores[name] = evaluate(points, tested_on, pairs)
    seconds = time.perf_counter() - started
    people = {"trained on": trained_on.people, "tested on": tested_on.people}
    report = {"results": results, "seconds": seconds, "run": identity(args, trainer), "people": people}
    report["history"] = history
    (args.out / "metrics.json").write_text(json.dumps(report, indent=1))
    queries = np.linspace(0, len(embeddings) - 1, 8).astype(int)
    for name, figure in {
        "training": mj.plots.training_curves(history),
        "roc": mj.plots.roc_curves({name: s.roc for name, s in scores.items()}),
        "scores": mj.plots.score_histograms(scores),
        "neighbours": mj.plots.neighbour_sheet(
            tested_on.images, tested_on.labels, embeddings[queries] @ embeddings.T, queries
        ),
    }.items():
        figure.savefig(args.out / f"{name}.png", dpi=120)
    print(f"\n{table(results)}\n\n{seconds:.0f} s; checkpoint, metrics.json and plots are in {args.out}")
    return report


if __name__ == "__main__":
    main()
