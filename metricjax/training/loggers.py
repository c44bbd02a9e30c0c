"""What a training reports: to any callable, or by name to a table, to TensorBoard, or to Weights & Biases."""

import contextlib
import csv
import importlib
import io
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from metricjax.ground import json_files
from metricjax.ground.extras import extra
from metricjax.ground.files import replacing
from metricjax.training import one_run

__all__ = ["NAMED", "Logger", "check", "growing_json", "opened"]

Logger = Callable[[int, dict[str, float]], Any]  # how many steps are done, which rises, and numbers by name
EVERY, SHARE = 5.0, 0.01  # seconds from one version of a file to the next, and share of the time to write them


@contextlib.contextmanager
def opened(
    loggers: Iterable[str | Logger], folder: pathlib.Path, start: int = 0, run: Mapping[str, Any] | None = None
) -> Iterator[Logger]:
    """One logger for several, each a callable or a name in NAMED; what was opened by name is closed, however it ends.

    Process 0 alone logs. Names write into the run's folder. `start` is the step from which a training goes on: what was
    logged of later steps is dropped. `run` has the settings of the run, for loggers that show them.

    >>> seen = []
    >>> with opened([lambda step, numbers: seen.append((step, numbers))], pathlib.Path("runs")) as log:
    ...     log(10, {"loss": 0.5})
    >>> seen
    [(10, {'loss': 0.5})]
    """
    made: list[Logger] = []
    with contextlib.ExitStack() as closed_later:
        by_name = lambda name: closed_later.enter_context(NAMED[name](folder, start, run or {}))
        each = (by_name(logger) if isinstance(logger, str) else logger for logger in loggers)
        one_run.by_first(lambda: made.extend(each))

        def log(step: int, numbers: dict[str, float]) -> None:
            for logger in made:
                logger(step, numbers)

        yield log


def check(names: Iterable[str]) -> None:
    """ImportError that says what to install, unless the libraries of these loggers are there."""
    for name in names:
        if name in _LIBRARIES:
            _library(name)


@contextlib.contextmanager
def growing_json(path: pathlib.Path, history: Mapping[str, Any]) -> Iterator[Logger]:
    """A file with `history` so far, which others fill: every few seconds, and at the end. It says that more will come.

    Where a training ends by an error, perhaps that another run has its folder now, nothing more is written.
    """
    due, waits = 0.0, False

    def write() -> None:
        json_files.write(path, {"finished": False, "history": history})

    def log(step: int, numbers: dict[str, float]) -> None:
        nonlocal due, waits
        now = time.monotonic()
        waits = now < due
        if not waits:
            write()
            due = now + max(EVERY, (time.monotonic() - now) / SHARE)

    yield log
    if waits:
        write()


# --- by name --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _csv(folder: pathlib.Path, start: int, run: Mapping[str, Any]) -> Iterator[Logger]:
    """`metrics.csv`: a row for each step that is logged, a column for each name; empty where there is no number."""
    path = folder / "metrics.csv"
    columns, rows = _read(path, start) if start and path.exists() else (["step"], [])
    _write(path, columns, rows)

    def log(step: int, numbers: dict[str, float]) -> None:
        nonlocal columns
        if new := [name for name in numbers if name not in columns]:
            columns = [*columns, *new]
            _write(path, columns, _read(path, step)[1])
        with open(path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns).writerow({"step": step, **numbers})

    yield log


def _read(path: pathlib.Path, last: int) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a table, and its whole rows up to a step."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        try:
            columns, rows = list(reader.fieldnames or ()), list(reader)
        except csv.Error as error:
            raise ValueError(f"{path} is damaged: it holds no table ({error})") from None
    if columns[:1] != ["step"]:
        raise ValueError(f"{path} is damaged: its first column is not 'step'")
    whole = [row for row in rows if None not in row and None not in row.values() and row["step"].isdecimal()]
    return columns, [row for row in whole if int(row["step"]) <= last]


def _write(path: pathlib.Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


@contextlib.contextmanager
def _tensorboard(folder: pathlib.Path, start: int, run: Mapping[str, Any]) -> Iterator[Logger]:
    """Scalars in `tensorboard/`, written by tensorboardX."""
    purged = {"purge_step": start + 1 if start else None, "filename_suffix": f".{start}"}
    writer = _library("tensorboard").SummaryWriter(str(folder / "tensorboard"), **purged)

    def log(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name.replace(" ", "_"), value, step)

    with contextlib.closing(writer):
        yield log


@contextlib.contextmanager
def _wandb(folder: pathlib.Path, start: int, run: Mapping[str, Any]) -> Iterator[Logger]:
    """A run of the project "metricjax", or of WANDB_PROJECT; with WANDB_MODE=offline it is kept in `wandb/`."""
    path, library = folder / "wandb.id", _library("wandb")
    if not (start and path.exists()):
        path.write_text(secrets.token_hex(4))
    named = {"project": os.environ.get("WANDB_PROJECT", "metricjax"), "name": folder.resolve().name}
    same = {"id": path.read_text().strip(), "resume": "allow"}
    try:
        made = library.init(dir=str(folder), config=dict(run), **named, **same)
    except library.Error as error:  # no account, no network
        raise ValueError(f"--log wandb: {' '.join(str(error).split())}") from None
    with made:
        yield lambda step, numbers: made.log(numbers, step=step)


def _library(name: str) -> Any:
    with extra(name):
        return importlib.import_module(_LIBRARIES[name])


_LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by extra
NAMED: dict[str, Callable[[pathlib.Path, int, Mapping[str, Any]], AbstractContextManager[Logger]]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
