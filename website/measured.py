"""Numbers and tables of what benchmarks saved: pages quote nothing else, and say on what machine it was measured."""

import functools
import json
import pathlib

import numpy as np

from metricjax import variants

MEASURED = pathlib.Path(__file__).parents[1] / "docs" / "measured"


@functools.cache
def saved(name: str) -> dict:
    """What `python -m benchmarks.NAME` wrote, `rows` and the `machine` that they were taken on, or an example."""
    return json.loads((MEASURED / f"{name}.json").read_text())


def rows(name: str, **wanted) -> list[dict]:
    """The rows of a benchmark that have the values wanted."""
    found = [row for row in saved(name)["rows"] if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        raise KeyError(f"no row of measured/{name}.json has {wanted}")
    return found


def number(name: str, key: str, form: str = ".2f", **wanted) -> str:
    """One number of the only row that has the values wanted."""
    (row,) = rows(name, **wanted)
    return format(row[key], form)


def table(name: str, columns: dict[str, str], forms: dict[str, str] | None = None, **wanted) -> str:
    """Rows as a table: `columns` are keys and what stands above them, `forms` how their numbers are written."""
    return table_of(rows(name, **wanted), columns, forms) + "\n\n" + machine(name)


def table_of(rows: list[dict], columns: dict[str, str], forms: dict[str, str] | None = None) -> str:
    """The same, of rows that were chosen already."""
    lines = [columns.values(), ["---"] * len(columns)]
    lines += [[_cell(row.get(key), (forms or {}).get(key, ".2f")) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value, form: str) -> str:
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def interval(values: list[float], form: str = ".3f") -> str:
    """The mean over seeds with its 95 % interval."""
    mean, half = variants.mean_and_half_width(values)
    return f"{mean:{form}} ± {half:.3f}"


def p_values(pairs: list[tuple[list[float], list[float]]]) -> list[float]:
    """Of paired tests of each two, corrected for their number (Holm)."""
    return variants.holm([variants.paired_t(np.subtract(one, other)) for one, other in pairs])


def machine(name: str) -> str:
    """The line below a table: how it is measured again, and what it was measured on."""
    about = dict(saved(name)["machine"])
    processor, python = about.pop("device"), about.pop("python")
    command = about.pop("command", f"python -m benchmarks.{name}")
    cores = f"{about.pop('cores')} cores, " if "cores" in about else ""
    day = f", {about.pop('date')}" if "date" in about else ""
    versions = ", ".join(f"{package} {version}" for package, version in about.items())
    return f"*Measured by `{command}`: {cores}{processor}, {versions}, Python {python}{day}.*"


def functions() -> dict:
    """What pages may call."""
    own = (saved, rows, number, table, table_of, interval, p_values, machine)
    return {"mean": np.mean} | {f.__name__: f for f in own}
