"""What loggers write, also after a run was interrupted; libraries that are missing, or refuse."""

import csv
import json
import pathlib
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from metricjax.trained import people_of_run
from metricjax.training import loggers


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def logged(names, folder, steps, start=0, **more):
    with loggers.opened(names, folder, start, {"seed": 3}) as log:
        for step in steps:
            log(step, {"loss": step / 8, "distance/positive": 0.1, **more})


def test_any_callable_gets_each_step_of_process_0(tmp_path, monkeypatch):
    seen = []
    logged([lambda *given: seen.append(given), "csv"], tmp_path, [10, 20])
    numbers = {"loss": 2.5, "distance/positive": 0.1}
    assert len(seen) == 2 and seen[-1] == (20, numbers)
    assert rows(tmp_path)[-1] == {"step": "20", **{name: str(value) for name, value in numbers.items()}}
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    logged([lambda *given: seen.append(given), "csv"], tmp_path / "none", [10])
    assert len(seen) == 2 and not (tmp_path / "none").exists()


def test_a_table_goes_on_from_a_step_and_gets_new_columns(tmp_path):
    logged(["csv"], tmp_path, [10, 20, 30])
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("1")  # the beginning of a row
    logged(["csv"], tmp_path, [30, 40], start=20, **{"validation EER": 0.25})
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["10", "20", "30", "40"]
    assert [row["validation EER"] for row in found] == ["", "", "0.25", "0.25"]
    assert [float(row["loss"]) for row in found] == [1.25, 2.5, 3.75, 5]
    logged(["csv"], tmp_path, [10])  # a new run
    assert [list(row) for row in rows(tmp_path)] == [["step", "loss", "distance/positive"]]


@pytest.mark.parametrize("text", ["loss,step\n1,2\n", "", "step,loss\n" + "9" * 200_000])
def test_a_damaged_table_is_named(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged: "):
        logged(["csv"], tmp_path, [], start=10)


def test_a_file_of_metrics_grows(tmp_path, monkeypatch):
    now, path, history = [100.0], tmp_path / "metrics.json", {"step": [], "loss": []}
    monkeypatch.setattr(loggers, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    read = lambda: json.loads(path.read_text())
    with loggers.growing_json(path, history) as log:
        assert not path.exists()
        for step, waited, written in ((10, 0, 10), (20, 1, 10), (30, 5, 30), (40, 1, 30)):
            now[0] += waited
            history["step"].append(step)
            log(step, {"loss": 1.0})
            assert read()["history"]["step"][-1] == written
    assert read() == {"finished": False, "history": {"step": [10, 20, 30, 40], "loss": []}}
    assert people_of_run.read(tmp_path) is None  # it tells of no people
    path.unlink()
    with loggers.growing_json(path, history):
        pass
    assert not path.exists()  # as that of a run that has ended stays, where no step is left
    with pytest.raises(KeyError), loggers.growing_json(path, history) as log:
        log(10, {})
        path.unlink()
        log(20, {})
        raise KeyError
    assert not path.exists()


def events(folder):
    """(step from which what was there before is dropped, scalars) of each file."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in sorted(folder.iterdir(), key=lambda path: int(path.suffix[1:])):
        data, place, found, purged = path.read_bytes(), 0, [], None
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 12 + length + 4
            if event.HasField("session_log"):
                purged = event.step
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        yield purged, found


def test_tensorboard_reads_scalars_and_what_is_dropped(tmp_path, capfd):
    pytest.importorskip("tensorboardX")
    logged(["tensorboard"], tmp_path, [10, 20], **{"active triplets": 0.5})
    logged(["tensorboard"], tmp_path, [20], start=10)
    (first, scalars), (then, again) = events(tmp_path / "tensorboard")
    assert (first, then) == (None, 11)
    assert len(scalars) == 6 and len(again) == 2
    assert (20, "active_triplets", 0.5) in scalars
    assert (20, "distance/positive", np.float32(0.1)) in again
    assert capfd.readouterr() == ("", "")


class Run:
    """What `wandb.init` returns, as far as it is needed."""

    def __init__(self, **given):
        self.given, self.rows, self.ended = given, [], None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.ended = kind

    def log(self, numbers, step):
        self.rows.append((step, numbers))


@pytest.fixture
def runs(monkeypatch):
    made = []
    init = lambda **given: made.append(Run(**given)) or made[-1]
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=RuntimeError))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return made


def test_a_run_of_weights_and_biases_goes_on(tmp_path, runs, monkeypatch):
    logged(["wandb"], tmp_path, [10, 20])
    logged(["wandb"], tmp_path, [20], start=10)
    monkeypatch.setenv("WANDB_PROJECT", "faces")
    with pytest.raises(KeyboardInterrupt), loggers.opened(["wandb"], tmp_path):  # a new run
        raise KeyboardInterrupt
    first, same, other = (run.given for run in runs)
    assert first["id"] == same["id"] != other["id"]
    assert (first["project"], other["project"]) == ("metricjax", "faces")
    assert first["config"] == {"seed": 3} and first["dir"] == str(tmp_path) and first["name"] == tmp_path.name
    assert runs[0].rows[-1] == (20, {"loss": 2.5, "distance/positive": 0.1})
    assert [run.ended for run in runs] == [None, None, KeyboardInterrupt]


def test_weights_and_biases_may_refuse(tmp_path, runs, monkeypatch):
    def init(**_):
        raise RuntimeError("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(ValueError, match="--log wandb: no API key"), loggers.opened(["csv", "wandb"], tmp_path):
        pass


def test_weights_and_biases_offline(tmp_path):
    """In a process of its own, for its library changes much of the one that it is in."""
    pytest.importorskip("wandb")
    code = f"""
import os, pathlib
os.environ["WANDB_MODE"] = "offline"
from metricjax.training import loggers
for start in (0, 10):
    with loggers.opened(["wandb"], pathlib.Path({str(tmp_path)!r}), start) as log:
        log(start + 10, {{"loss": 0.5}})
"""
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name = (tmp_path / "wandb.id").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))) == 2


@pytest.mark.parametrize(("name", "library"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_library_is_named_before_training(name, library, monkeypatch, capsys):
    from metricjax.commands.train_arguments import arguments

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SystemExit):
        arguments(["--log", "csv", "--log", name])
    assert f"needs '{library}': python -m pip install \"metricjax[{name}]\"" in capsys.readouterr().err
    assert arguments(["--log", "csv"]).log == ["csv"]
