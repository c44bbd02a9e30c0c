"""What benchmarks have in common: times as ratios, tables, and results saved as JSON and as a plot.

Contestants are run in turn, round after round, in one process, and the fastest run of each counts: absolute times mean
little on a machine that does other things too. On an accelerator, which does not, the median counts.
"""

import ctypes
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

import jax
from matplotlib.figure import Figure


def fastest(contestants: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Seconds of the fastest of `rounds` runs of each, interleaved; compilation is left out.

    In one order and the other in turn: large memory that a run gives back costs time in the run after it.
    """
    for run in contestants.values():
        jax.block_until_ready(run())
    best, order = dict.fromkeys(contestants, float("inf")), list(contestants.items())
    for _ in range(rounds):
        order.reverse()
        for name, run in order:
            started = time.perf_counter()
            jax.block_until_ready(run())
            best[name] = min(best[name], time.perf_counter() - started)
    return best


QUEUED = 0.005  # seconds of calls that are queued, where one is shorter: what is timed is not the way to the device


def medians(contestants: Mapping[str, tuple[Callable, int]], rounds: int, seconds: float):
    """Median seconds of each of `(run, number of times that a run does it)`, and the errors of those that failed.

    All have been run before. Rounds are interleaved, and end when `seconds` are over.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    calls, failed, began = dict.fromkeys(contestants, 1), {}, time.perf_counter()

    def timed(name: str) -> float:
        run, count = contestants[name]
        started = time.perf_counter()
        for _ in range(calls[name]):
            result = run()
        jax.block_until_ready(result)
        return (time.perf_counter() - started) / (calls[name] * count)

    for done in range(rounds):
        for name in contestants:
            if name in failed or (done and time.perf_counter() - began > seconds):
                continue
            try:
                times[name].append(timed(name))
                if done == 0 and (of_a_run := times[name][0] * contestants[name][1]) < QUEUED / 2:
                    calls[name] = min(20, int(QUEUED / of_a_run))
                    times[name] = [timed(name)]
            except Exception as error:
                failed[name] = error
    return {name: statistics.median(t) for name, t in times.items() if name not in failed}, failed


def temporaries(f: Callable, *arguments) -> int:
    """Bytes of temporaries of the compiled `f`, which is not run; arguments may be shapes."""
    return jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def peak(run: Callable[[], object]) -> float | None:
    """MiB of the machine's own memory that a run holds at most beyond what it found; None where Linux does not tell."""
    process = pathlib.Path("/proc/self")
    held = lambda most: int(re.search(rf"{most}:\s*(\d+) kB", (process / "status").read_text())[1]) / 1024
    jax.block_until_ready(run())
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed, back to the system: the run has to ask for it again
        (process / "clear_refs").write_text("5")  # the peak begins again at what is held now
    except (OSError, AttributeError):
        return None
    before = held("VmRSS")
    jax.block_until_ready(run())
    return max(0.0, held("VmHWM") - before)


def machine(packages: Sequence[str] = ()) -> dict[str, str | int]:
    """What the numbers were taken on."""
    versions = {name: metadata.version(name) for name in ("jax", *packages)}
    on = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "python": platform.python_version()}
    return {**versions, **on, "date": datetime.date.today().isoformat()}


def bars(rows: list[dict], label: str, values: Mapping[str, str], title: str, log: bool = False) -> Figure:
    """One group of horizontal bars for each row, one bar in it for each of `values` (key and legend)."""
    figure = Figure(figsize=(7, max(1.5, 0.6 + 0.22 * len(rows) * (len(values) + 1))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(values)
    for i, (key, legend) in enumerate(values.items()):
        places = [place + i * height for place in range(len(rows))]
        drawn = axes.barh(places, [row.get(key) or 0 for row in rows], height, label=legend)
        texts = [f"{row[key]:,.{0 if row[key] >= 100 else 2}f}" if row.get(key) else "" for row in rows]
        axes.bar_label(drawn, texts, padding=2, fontsize=7)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], [row[label] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel=title, xscale="log" if log else "linear")
    axes.margins(x=0.2, y=0.02)
    figure.legend(fontsize=8, loc="outside upper right", ncols=len(values))
    return figure


def save(name: str, rows: list[dict], figure: Figure, packages: Sequence[str] = ()) -> None:
    """Write runs/benchmarks/NAME.json, beside what the rows were taken on, and NAME.png."""
    path = pathlib.Path("runs/benchmarks") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"machine": machine(packages), "rows": rows}, indent=1))
    figure.savefig(path.with_suffix(".png"), dpi=150)
    print(f"{path}.json, {path}.png")
