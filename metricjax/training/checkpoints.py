"""Checkpoints of a training: written while training goes on, only if finite, and noticed if damaged.

The two latest are kept, and the best one of a run that is validated. `identity` has whatever else of a run must be the
same to go on from them, except its people, for which see `people_of_run`.
"""

import copy
import json
import pathlib
import sys
import threading
from typing import Any

import jax
import orbax.checkpoint as ocp

from metricjax.ground import json_files
from metricjax.ground.names import some
from metricjax.trained import checkpoint_digests, people_of_run, run_folder

__all__ = ["Checkpoints", "check_people", "identity", "latest"]


class Checkpoints:
    """The checkpoints of one run, with `people` as its record of people; each process writes its own part.

    trainer: a `Trainer` or `TowerTrainer`: it has `recipe`, `state`, `placement`, `identity`, `descriptions`.
    """

    def __init__(self, folder: pathlib.Path, trainer: Any, chosen: bool = False, people: dict | None = None):
        self.folder, self.trainer, self.people = folder, trainer, people
        options = run_folder.options(chosen)
        self.manager = ocp.CheckpointManager((folder / checkpoint_digests.CHECKPOINTS).absolute(), options=options)
        self._written: threading.Event | None = None
        self._digesting: threading.Thread | None = None
        self._failed: Exception | None = None

    def save(self, step: int, history: dict, position, metrics: dict | None) -> None:
        """The state after `step` steps, what was monitored, where the input stands, and how good the encoder is."""
        self.finish()
        if broken := self.trainer.not_finite():
            last = self.manager.latest_step()
            left = "there is no earlier checkpoint" if last is None else f"the checkpoint of step {last} is kept"
            sys.exit(f"stopped at step {step}: not finite: {some(broken)}; {left}")
        state = dict(self.trainer.state)
        run = copy.deepcopy({"identity": self.identity(), "history": history, "position": position})
        items = ocp.args.Composite(
            encoder=ocp.args.StandardSave(state.pop("average")),
            state=ocp.args.StandardSave(state),
            run=ocp.args.JsonSave(run),
        )
        if jax.process_index() == 0:
            for name, described in self.trainer.descriptions().items():
                json_files.write(self.folder / name, described)
        self.manager.save(step, args=items, metrics=metrics)
        if jax.process_index() == 0:
            self._written = threading.Event()
            self._digesting = threading.Thread(target=self._digest, args=(step, self._written), daemon=True)
            self._digesting.start()

    def _digest(self, step: int, written: threading.Event) -> None:
        """Write digests as soon as the checkpoint has its final name, which it gets when it is complete."""
        there = self.folder / checkpoint_digests.CHECKPOINTS / str(step)
        while not there.is_dir() and not written.wait(0.1):
            pass
        try:
            if there.is_dir():
                checkpoint_digests.write(self.folder, step)
        except (ValueError, OSError) as error:
            self._failed = error

    def restore(self) -> tuple[int, dict, dict | None]:
        """Put the latest state into the trainer, on the devices there are; returns step, history, input position."""
        step, saved = latest(self.folder)
        made = saved["identity"]
        for name, value in self.identity().items():
            if name not in ("photographs", "steps") and made.get(name, value) != value:  # older versions have fewer
                raise ValueError(f"--resume: the checkpoint was made with {name} {made.get(name)}, not {value}")
        placed = lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)
        like = jax.tree.map(placed, self.trainer.state, self.trainer.placement)
        average = ocp.args.StandardRestore(like.pop("average"))
        found = run_folder.restored(self.folder, step, encoder=average, state=ocp.args.StandardRestore(like))
        self.trainer.state = {**found["state"], "average": found["encoder"]}
        if broken := self.trainer.not_finite():
            raise ValueError(f"--resume: checkpoint {step} is not finite: {some(broken)}")
        if jax.process_index() == 0 and not (self.folder / checkpoint_digests.DIGESTS / f"{step}.json").is_file():
            checkpoint_digests.write(self.folder, step)
        return step, saved["history"], saved["position"]

    def use_best(self) -> None:
        """Put the average of the checkpoint to use, the best of a run that was validated, into the trainer."""
        placed = lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)
        like = jax.tree.map(placed, self.trainer.state["average"], self.trainer.placement["average"])
        step = run_folder.step_to_use(self.folder)
        found = run_folder.restored(self.folder, step, encoder=ocp.args.StandardRestore(like))
        self.trainer.state = {**self.trainer.state, "average": found["encoder"]}

    def identity(self) -> dict:
        """What the run of these checkpoints and one that goes on from them must agree on."""
        return identity(self.trainer, self.people)

    def finish(self) -> None:
        """Wait until everything is written, digests included."""
        try:
            self.manager.wait_until_finished()
        finally:
            if self._digesting is not None and self._written is not None:
                self._written.set()
                self._digesting.join()
                self._digesting = None
        if self._failed is not None:
            raise self._failed


def latest(folder: pathlib.Path) -> tuple[int, dict]:
    """The latest checkpoint's step, and what it holds besides arrays."""
    steps = checkpoint_digests.steps(folder)
    if not steps:
        raise ValueError(f"--resume: {folder} holds no checkpoint")
    return steps[0], run_folder.besides_arrays(folder, steps[0])


def check_people(folder: pathlib.Path, saved: dict, people: dict) -> None:
    """A run goes on only with the people and photographs with which it began, so that nobody changes sides."""
    made, path = saved["identity"].get("photographs"), folder / people_of_run.FILE
    if made is None:
        raise ValueError("--resume: the checkpoint is of an older version, which did not note who was trained on")
    if made != people["digest"]:
        before = people_of_run.read(folder)
        known = before is not None and before.get("digest") == made
        which = people_of_run.difference(before, people) if before and known else f"{path} does not tell which"
        raise ValueError(f"--resume: the people and photographs are not those of the run: {which}")


def identity(trainer: Any, people: dict | None = None) -> dict:
    """What a checkpoint and the run that goes on from it must agree on, except `steps`, which may grow."""
    made = {**trainer.identity(), "photographs": None if people is None else people["digest"]}  # who is tested on, too
    return json.loads(json.dumps(made))  # as it comes back from a checkpoint
