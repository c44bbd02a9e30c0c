"""Numbers in tables, as several commands print them."""

from collections.abc import Mapping

__all__ = ["line", "of_ways", "shown"]

Value = float | int | str | None


def shown(value: Value, digits: int = 3) -> str:
    """A dash for None, commas in integers, `digits` places of floats; text stays as it is."""
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def line(name: str, *values: Value, digits: int = 3) -> str:
    """A row: its name, and a value in each column."""
    return f"{name:32}" + "".join(f"{shown(value, digits):>14}" for value in values)


def of_ways(title: str, results: Mapping[str, Mapping[str, Value]]) -> str:
    """A table of the numbers of several ways: a column for each way, a row for each name."""
    names = next(iter(results.values()))
    rows = (line(name, *(found[name] for found in results.values())) for name in names)
    return "\n".join([line(title, *results), *rows])
