"""The steps of a training: what is monitored, validated, reported and kept meanwhile, and how it ends."""

import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from metricjax.ground import json_files
from metricjax.trained import people_of_run
from metricjax.training import interruption, loggers, one_run
from metricjax.training.checkpoints import Checkpoints
from metricjax.training.many_trainings import COLLAPSED

__all__ = ["Validated", "monitored", "run_steps"]

LOG_EVERY = 10
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left, {rate_noinv_fmt}"
PATIENCE = 10  # logged steps of less spread than COLLAPSED, after which the run ends


class Validated(NamedTuple):
    """What was measured of an encoder: an error, the less the better, by which it is chosen; and numbers to report."""

    error: float
    numbers: dict[str, float]


def run_steps(
    kept: Checkpoints,
    input_from: Callable[[Any], Any],
    *,
    checkpoint_every: int,
    resume: bool = False,
    validate: Callable[[], Validated] | None = None,
    patience: int | None = None,
    log: Iterable[str | loggers.Logger] = (),
    check_lock: Callable[[], None] = lambda: None,
) -> dict:
    """Run the steps that are left of `kept.trainer`; returns the history of what was monitored.

    A checkpoint is written every `checkpoint_every` steps, of an encoder that was validated just before.

    Args:
      kept: the checkpoints, which know the trainer and the folder.
      input_from: makes batches, which have `get_state`, that go on from such a position; from None, at the beginning.
      resume: go on from the latest checkpoint.
      patience: the training ends after this number of validations without a lesser error.
      log: callables that get `(step, numbers)` of each step that is monitored or validated, and names of loggers.
      check_lock: raises where another run may have the folder.
    """
    trainer, folder = kept.trainer, kept.folder
    start, history, position = kept.restore() if resume else (0, {}, None)
    ended = patience is not None and _waited(history) >= patience
    steps = start if ended else trainer.recipe.steps
    one_run.by_first(lambda: json_files.write(folder / people_of_run.FILE, kept.people))
    batches = input_from(position)
    shown, stop, done = jax.process_index() == 0, 0, start
    bar_of = {"initial": start, "total": steps, "unit": " steps", "disable": not shown, "bar_format": BAR}
    with (
        interruption.noticed() as asked,
        loggers.growing_json(folder / "metrics.json", history) as grow,
        loggers.opened([grow, *log], folder, start, kept.identity()) as report,
        tqdm(desc="compiling" if start < steps else "trained", **bar_of) as bar,
    ):
        for number in range(start, steps):
            batch, numbers = next(batches), {}
            if number == start:
                seconds = trainer.compile(batch)
                began = time.perf_counter()
                last = start, began
                bar.set_description_str("training")
                bar.unpause()  # steps a second are those after compiling
            seen = trainer.step(number, batch)
            done = number + 1
            logged = done % LOG_EVERY == 0 or done == steps
            if logged:
                numbers = monitored(seen, done, history)
                bar.set_description_str(f"loss {numbers['loss']:.3f}, spread {numbers['spread']:.2f}", refresh=False)
                bar.update(done - bar.n)  # here only, for other steps may just be on their way to the device
                now = time.perf_counter()
                numbers["steps per second"] = (done - last[0]) / (now - last[1])
                last = done, now
            stop = asked.agreed(logged)
            due = done % checkpoint_every == 0 or done == steps
            found = validate() if due and validate is not None else None
            if found is not None:
                numbers |= _noted(found, done, history)
            if numbers:
                report(done, numbers)  # before a checkpoint, whose loggers have all up to it
            if due or stop:
                one_run.by_first(check_lock)
                measured = None if found is None else {"error": found.error, **found.numbers}
                kept.save(done, history, batches.get_state(), measured)
            if stop:
                kept.finish()
                break
            if found is not None and patience is not None and _waited(history) >= patience:
                bar.write(f"no better for {patience} validations: the training ends at step {done}", file=sys.stderr)
                break
    if stop:
        came = signal.Signals(stop).name
        kept_for = f"{came} came; the checkpoint of step {done} is written, --resume goes on"
        print(f"metricjax train: {kept_for}", file=sys.stderr)
        sys.exit(128 + stop)
    if shown and start < steps:
        rate = (done - start) / (time.perf_counter() - began)
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


def _noted(found: Validated, done: int, history: dict) -> dict[str, float]:
    """The numbers of a validation under their names in a log; the history gets them, too."""
    past = history.setdefault("validation", {})
    for name, value in {"step": done, "error": found.error, **found.numbers}.items():
        past.setdefault(name, []).append(value)
    return {f"validation {name}": value for name, value in found.numbers.items()}


def _waited(history: dict) -> int:
    """How many validations have passed since the one with the least error."""
    errors = history.get("validation", {}).get("error", [])
    return len(errors) - 1 - int(np.argmin(errors)) if errors else 0
