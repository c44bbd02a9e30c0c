"""Runs that are interrupted, damaged, begun twice, or not finite: what is kept, and what is said."""

import csv
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import encoders
from metricjax.commands.train_run import recipe_of
from metricjax.ground import json_files
from metricjax.trained import checkpoint_digests, mesh, people_of_run, run_folder
from metricjax.trained.design import design_of
from metricjax.training import Batches, Checkpoints, Trainer, interruption, loggers, loop, one_run
from tests.helpers.people import write_people

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
SMALL = ["--encoder", "tiny", "--image-size", "16", "14", "--embedding-size", "8", "--batch", "4", "2"]


@pytest.fixture(scope="module")
def example():
    example = importlib.import_module("metricjax.commands.train_faces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.NAMED, "tiny", partial(encoders.SmallResNet, widths=(8,)))
        on = mesh.data_mesh
        patch.setattr(mesh, "data_mesh", lambda devices=None: on(devices or jax.devices()[:1]))
        patch.setattr(example, "write", lambda *_: None)  # plots
        yield example


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[3] * 8, size=(14, 16), noise=20)


def run(example, people, out, *more):
    return example.main(
        [*SMALL, "--dataset", str(people), "--out", str(out), "--checkpoint-every", "2", *map(str, more)]
    )


@pytest.fixture(scope="module")
def trained(example, people, tmp_path_factory):
    """A run of six steps: the checkpoints of 4 and 6 are left."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    run(example, people, out, "--steps", 6)
    assert {folder.name for folder in (out / "checkpoints").iterdir()} == {"4", "6"}
    return out


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copied")


def trainer_of(example, people, out):
    args = example.arguments([*SMALL, "--dataset", str(people), "--out", str(out), "--steps", "6", "--resume"])
    loaded = example.train_data.load(args)
    return Trainer(recipe_of(args), example.train_data.design(args, loaded), len(loaded.train.people))


def assert_ends_alike(example, people, out, expected):
    trainers = [trainer_of(example, people, folder) for folder in (out, expected)]
    for trainer, folder in zip(trainers, (out, expected), strict=True):
        assert Checkpoints(folder, trainer).restore()[0] == 6
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), trainers[0].state, trainers[1].state)


def refused(*arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value.code)
    return caught.value.code


# --- going on -------------------------------------------------------------------------------------------------------


def test_a_signal_ends_a_run_after_its_step_and_it_goes_on(example, people, trained, tmp_path, monkeypatch, capfd):
    step, before = Trainer.step, [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def interrupted(self, number, batch):
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert refused(example, people, tmp_path / "run", "--steps", 6) == 128 + signal.SIGTERM
    assert "SIGTERM came; the checkpoint of step 3 is written" in capfd.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    (tmp_path / "link").symlink_to(people)
    report = run(example, tmp_path / "link", tmp_path / "run", "--resume")  # as many steps as before, the same people
    assert report["history"]["step"] == [6]
    assert_ends_alike(example, people, tmp_path / "run", trained)


def test_what_was_logged_goes_on_too(example, people, tmp_path, monkeypatch, capsys):
    """No step is logged twice, metrics.json grows, and a bar of 80 columns says what is done."""
    step, out, log = Trainer.step, tmp_path / "run", ("--log", "csv", "--validation", 2, "--steps", 6)
    unfinished = lambda: json.loads((out / "metrics.json").read_text())

    def interrupted(self, number, batch):
        if number == 4:
            assert unfinished() == {"finished": False, "history": unfinished()["history"]}
            raise KeyError("the power fails")
        return step(self, number, batch)

    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    monkeypatch.setenv("COLUMNS", "80")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        patch.setattr(loggers, "EVERY", 0.0)
        patch.setattr(loggers, "SHARE", np.inf)
        with pytest.raises(KeyError):
            run(example, people, out, "--checkpoint-every", 3, *log)
    bar = [line for line in capsys.readouterr().err.split("\r") if "steps/s" in line]
    assert bar[0].startswith("compiling |") and "training |" in "".join(bar)
    assert bar[-1].startswith("loss ") and all(len(line.strip("\n")) <= 80 for line in bar)
    assert unfinished()["history"]["step"] == [1, 2, 3, 4]
    assert people_of_run.read(out)["trained on"]
    report = run(example, people, out, "--checkpoint-every", 3, *log, "--resume")
    assert report["history"]["step"] == [1, 2, 3, 4, 5, 6]
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == list("123456")
    assert [float(row["loss"]) for row in rows] == report["history"]["loss"]
    assert [row["step"] for row in rows if row["validation EER"]] == ["3", "6"]
    assert all(float(row["steps per second"]) > 0 for row in rows)


def test_more_steps_train_on_and_fewer_are_refused(example, people, copied, capsys):
    assert "--steps is 5; wanted 6 at least" in refused(example, people, copied, "--resume", "--steps", 5)
    before = run_folder.load(copied).digest
    report = run(example, people, copied, "--resume", "--steps", 8)
    assert "--steps 8, not 6: the learning rate goes on as in a run of 8 steps" in capsys.readouterr().out
    assert report["history"]["step"] == [6, 8] and report["run"]["steps"] == 8
    assert run_folder.load(copied).digest != before  # at the old rate, 0, it would stay the same


def test_other_people_are_refused(example, people, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "Trainer", None)
    other = shutil.copytree(people, tmp_path / "people")
    (other / "Person_1").rename(other / "Aaron")
    message = refused(example, other, copied, "--resume")
    assert "the people and photographs are not those of the run: missing (trained on): Person_1; new" in message
    assert "missing (trained on): Person_3" in refused(example, people, copied, "--resume", "--test-people", 5)
    (copied / "people.json").unlink()
    assert "people.json does not tell which" in refused(example, other, copied, "--resume")


@pytest.mark.parametrize("batch", [["4", "2"], ["7"]])
def test_batches_go_on_from_any_position(example, people, batch):
    args = example.arguments(["--dataset", str(people), "--batch", *batch])
    loaded = example.train_data.load(args)
    batches = Batches(recipe_of(args), loaded.train)
    expected = [next(batches) for _ in range(12)]
    assert batches.get_state() == {"next_index": 12}
    for start in (1, 5, 9):  # of several epochs
        batches = Batches(recipe_of(args), loaded.train, {"next_index": start})
        for number in range(start, 12):
            found = next(batches)
            np.testing.assert_array_equal(found["labels"], expected[number]["labels"])
            np.testing.assert_array_equal(found["images"], expected[number]["images"])
    assert batches.get_state() == {"next_index": 12}


# --- what is written ------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_not_saved(example, people, copied):
    trainer = trainer_of(example, people, copied)
    kept = Checkpoints(copied, trainer)
    _, history, position = kept.restore()
    assert trainer.not_finite() == []
    whole = trainer.state
    for part, value in {"params": jnp.inf, "average": -jnp.inf, "optimizer": jnp.nan}.items():
        leaves, structure = jax.tree.flatten(whole[part])
        place = max(i for i, leaf in enumerate(leaves) if leaf.dtype.kind == "f")
        leaves[place] = leaves[place].at[(0,) * leaves[place].ndim].set(value)
        trainer.state = {**whole, part: structure.unflatten(leaves)}
        with pytest.raises(SystemExit) as caught:
            kept.save(7, history, position, None)
        assert f"stopped at step 7: not finite: {part}/" in caught.value.code
        assert "the checkpoint of step 6 is kept" in caught.value.code
    assert checkpoint_digests.checked(copied) == ([6, 4], {})


@pytest.mark.parametrize("kind", ["flipped", "cut", "missing"])
def test_damage_anywhere_in_a_checkpoint_is_noticed(example, copied, fuzz, kind):
    digests, step = checkpoint_digests, copied / "checkpoints" / "6"
    files = sorted(path for path in step.rglob("*") if path.is_file())
    assert {"encoder", "state", "run"} <= {path.relative_to(step).parts[0] for path in files}
    for seed in fuzz[: max(20, len(fuzz) // 4)] if kind != "missing" else range(len(files)):
        rng = np.random.default_rng(seed)
        path = files[seed % len(files)]
        content = path.read_bytes()
        some = bytearray(content)
        if kind == "flipped" and some:
            some[rng.integers(len(some))] ^= 1 << rng.integers(8)
            path.write_bytes(some)
        elif kind == "cut" and some:
            path.write_bytes(content[: rng.integers(len(content))])
        else:
            path.unlink()
        assert path.relative_to(step).as_posix() in digests.damage(copied, 6)
        path.write_bytes(content)
    assert digests.damage(copied, 6) is None


def spoil(run, step, name="encoder/_METADATA"):
    with open(run / "checkpoints" / str(step) / name, "ab") as file:
        file.write(b"x")


def test_the_checkpoint_before_a_damaged_one_is_used(example, people, trained, copied, capsys):
    load = run_folder.load
    shutil.rmtree(copied / "checkpoints" / "6")
    expected = load(copied).digest
    shutil.copytree(trained / "checkpoints" / "6", copied / "checkpoints" / "6")
    assert load(copied).digest == load(trained).digest != expected
    spoil(copied, 6)
    capsys.readouterr()
    assert load(copied).digest == expected
    assert "checkpoint 6 is passed over: encoder/_METADATA is not as it was written" in capsys.readouterr().err
    run(example, people, copied, "--resume")
    assert f"checkpoint 6 is moved to {copied / 'damaged' / '6'}" in capsys.readouterr().err
    assert_ends_alike(example, people, copied, trained)
    spoil(copied, 6), spoil(copied, 4, "state/_METADATA")
    assert "holds no whole checkpoint (6: encoder/_METADATA" in refused(example, people, copied, "--resume")
    with pytest.raises(ValueError, match=r"holds no whole checkpoint \(6: encoder/_METADATA .*; 4: state/_METADATA"):
        load(copied)


def test_checkpoints_without_digests(example, trained, copied, capsys):
    """One alone was interrupted at its end; if none has a digest, they are as older versions left them."""
    (copied / "digests" / "6.json").unlink()
    assert checkpoint_digests.checked(copied)[0] == [4]
    shutil.rmtree(copied / "digests")
    assert run_folder.load(copied).digest == example.run_folder.load(trained).digest
    assert "have no digests, so that damage to them is not noticed" in capsys.readouterr().err
    spoil(copied, 6)
    with pytest.raises(ValueError, match=r"checkpoints/6 cannot be read") as caught:
        run_folder.load(copied)
    assert "\n" not in str(caught.value)


def test_a_design_that_is_not_the_checkpoints_is_refused(example, copied):
    path = copied / "encoder.json"
    path.write_text(path.read_text().replace("112", "113", 1))
    with pytest.raises(ValueError, match=r"encoder.json is damaged: 'photograph' is \[113, 112\]; the checkpoint has"):
        run_folder.load(copied)


def test_a_damaged_design_is_refused_by_name(example, copied, fuzz):
    path = copied / "encoder.json"
    good, read = path.read_bytes(), lambda path: design_of(json_files.read(path), path)
    design, written = read(path), json.loads(good)
    damaged = [b"", b"\xff", b"[]", b"{}", b'"x"', good[:20]]
    wrong = {
        "name": [[], "none"],
        "embedding_size": [-1, "8", 1.5, True],
        "photograph": [[1], [1, "2"], 3],
        "channels": [2],
    }
    damaged += [json.dumps({**written, name: value}).encode() for name, values in wrong.items() for value in values]
    for seed in fuzz:
        rng, some = np.random.default_rng(seed), bytearray(good)
        some[rng.integers(len(some))] = rng.integers(256)
        damaged.append(bytes(some))
    fields = set(written)
    for content in damaged:
        path.write_bytes(content)
        try:
            found = read(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # another number of the right kind is noticed by the checkpoint, which has this one too
            assert type(found) is type(design) and set(vars(found)) == fields


# --- one run at a time, and signals ---------------------------------------------------------------------------------

HOLDER = """
import pathlib, socket, sys, time
{before}
from metricjax.training import one_run
one_run.DEAD_AFTER, one_run.TOUCHED_EVERY = 2.0, 0.2
with one_run.only(pathlib.Path({folder!r})):
    print("held", flush=True)
    time.sleep(60)
"""


def held(folder, before=""):
    code = HOLDER.format(folder=str(folder), before=before)
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_second_run_is_refused_while_the_first_lives(example, people, tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(one_run, "DEAD_AFTER", 2.0)
    monkeypatch.setattr(one_run, "TOUCHED_EVERY", 0.2)
    process = held(tmp_path, "socket.gethostname = lambda: 'elsewhere'" if elsewhere else "")
    try:
        for more in ([], ["--resume"]):
            message = refused(example, people, tmp_path, *more)
            assert f"{tmp_path} is in use by the run of process {process.pid} on " in message
            assert ("elsewhere" in message) == elsewhere
    finally:
        process.kill()
        process.communicate()
    with one_run.only(tmp_path) as check:  # at once on this host, after 2 seconds if it was on another
        check()
        (tmp_path / "run.lock").unlink()
        with pytest.raises(ValueError, match=r"its lock was lost \(marker-missing\)"):
            for _ in range(100):
                threading.Event().wait(0.1)
                check()


TWO = """
import os, signal, sys
import jax
jax.distributed.initialize("localhost:" + sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from metricjax.training import interruption, one_run
first = jax.process_index() == 0
with interruption.noticed() as asked:
    if not first:
        os.kill(os.getpid(), signal.SIGTERM)
    print([asked.agreed(False), asked.agreed(True)])
def act():
    if not first:
        raise AssertionError("only process 0 was to act")
    raise ValueError("it is in use")
try:
    one_run.by_first(act)
except ValueError as error:
    print(error)
"""


def test_processes_agree_on_a_signal_and_on_what_the_first_one_found():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", TWO, port]
    started = [
        subprocess.Popen([*command, str(process)], env=environment(), stdout=subprocess.PIPE, text=True)
        for process in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    for found, said in zip(printed, ("it is in use", "process 0 has ended, and says why"), strict=True):
        assert f"[0, {signal.SIGTERM:d}]" in found and said in found


def test_a_second_signal_ends_at_once():
    code = """
    import os, signal
    from metricjax.training import interruption
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup leaves it ignored
    with interruption.noticed() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        print(asked.agreed(True), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print("never")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment(), capture_output=True, text=True
    )
    assert found.returncode == -signal.SIGTERM and found.stdout == f"{signal.SIGINT:d}\n"
    assert "a second signal ends at once" in found.stderr


def test_signals_are_left_alone_where_python_cannot_hear_them(example):
    heard = []

    def elsewhere():
        with interruption.noticed() as asked:
            heard.append(asked.signal)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [0]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup leaves it
    try:
        with interruption.noticed() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked.signal == 0
    finally:
        signal.signal(signal.SIGINT, before)
