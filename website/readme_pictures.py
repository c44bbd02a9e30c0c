"""The three pictures of README and start page, from what benchmarks saved: `python -m website.readme_pictures`."""

import matplotlib
from matplotlib.figure import Figure

from benchmarks import exactness
from website.measured import MEASURED, rows
from website.pictures import STYLE

ASSETS = MEASURED.parent / "assets"
SIZE = (8.4, 2.8)
LINES = {"supcon": "metricjax: supcon", "supcon, dense": "the same, dense", "optax.ntxent": "optax.ntxent"}


def speed() -> Figure:
    """How many times as long peers take, and memory by batch."""
    figure = Figure(figsize=SIZE, layout="constrained")
    times, memory = figure.subplots(1, 2)
    compared = sorted(rows("peers"), key=lambda row: row["times"])
    names = [
        f"{row['loss']}, batch {row['batch']}" + (" (Optax)" if row["peer"] == "optax" else "") for row in compared
    ]
    colours = ["tab:orange" if row["peer"] == "optax" else "tab:blue" for row in compared]
    bars = times.barh(names, [row["times"] for row in compared], color=colours)
    times.bar_label(bars, [f"{row['times']:.0f} ×" for row in compared], padding=2)
    times.set(xscale="log", title="time of PyTorch Metric Learning, or Optax, over ours")
    times.margins(x=0.2)
    for loss, label in LINES.items():
        (row,) = rows("memory", loss=loss)
        batches = [int(key) for key in row if key != "loss"]
        memory.plot(batches, [row[str(batch)] / 1024 for batch in batches], "o-", label=label)
    memory.set(xscale="log", yscale="log", xlabel="batch", ylabel="GiB", title="temporaries of value and gradient")
    memory.set_xticks(batches, [f"{batch:,}" for batch in batches])
    memory.minorticks_off()
    memory.legend()
    return figure


def variants() -> Figure:
    """The time of a grid by each way to train it, and what came of it."""
    timing, *found = rows("variants")
    figure = Figure(figsize=SIZE, layout="constrained")
    times, errors = figure.subplots(1, 2, width_ratios=(1, 1.2))
    seconds = {name: sum(both) for name, both in timing["seconds"].items()}
    times.bar_label(times.barh(list(seconds), list(seconds.values())), fmt="%.0f s", padding=2)
    times.invert_yaxis()
    times.set(title=f"{timing['variants']} variants of {timing['steps']} steps", xlabel="seconds")
    times.margins(x=0.2)
    found.sort(key=lambda row: row["EER"][0])
    means, halves = zip(*(row["EER"] for row in found), strict=True)
    errors.errorbar(means, range(len(found)), xerr=halves, fmt="o", ms=3)
    errors.set_yticks(range(len(found)), [f"{row['loss']}, {row['constraint']}" for row in found], fontsize=6)
    errors.invert_yaxis()
    errors.set(title="what came of them: means and 95 % over seeds", xlabel="equal error rate")
    return figure


def exact() -> Figure:
    """Errors of every loss, by each way through the engine."""
    return exactness.plot(rows("exactness"))


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        for draw in (speed, variants, exact):
            draw().savefig(ASSETS / f"{draw.__name__}.png")
