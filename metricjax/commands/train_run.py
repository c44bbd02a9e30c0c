"""What the tasks of `metricjax train` share: hosts, the folder of a run, and what goes on from a checkpoint."""

import contextlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator

import jax

import metricjax as mj
from metricjax.commands.train_arguments import STEPS
from metricjax.trained import checkpoint_digests
from metricjax.training import one_run
from metricjax.training.checkpoints import Checkpoints, latest
from metricjax.training.recipe import Recipe
from metricjax.training.start import weights_of
from metricjax.training.trainer import Trainer

__all__ = ["curves", "finished", "in_folder", "join", "on_tpu", "ready", "recipe_of", "start_from_weights", "taken_up"]


def in_folder(args, act: Callable) -> dict:
    """`act(args, check_lock)` while no other run has the folder --out; errors end it with one line."""
    join(args)
    try:
        with one_run.only(args.out) as check_lock:
            one_run.by_first(lambda: ready(args))
            return act(args, check_lock)
    except (ValueError, OSError) as error:
        sys.exit(f"metricjax train: {error}")


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
    names += [name for name in ("class_power", "miner", "bank", "bank_warm_up") if hasattr(args, name)]
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


def start_from_weights(args, trainer: Trainer) -> None:
    """With --weights, a new training begins with them."""
    if args.weights is not None and not args.resume:
        trainer.start_from(weights_of(args.weights, trainer.design, args.seed))


@contextlib.contextmanager
def finished(kept: Checkpoints) -> Iterator[Checkpoints]:
    """However a training ends, a checkpoint that was begun is completed; all processes see its digest then."""
    try:
        yield kept
    finally:
        kept.finish()
    one_run.by_first(lambda: None)


def curves(history: dict) -> dict:
    """Figures of what was monitored, and of what was validated, by their names."""
    drawn = {"training": {name: values for name, values in history.items() if name != "validation"}}
    if "validation" in history:
        drawn["validation"] = history["validation"]
    return {name: mj.plots.training_curves(values) for name, values in drawn.items()}
