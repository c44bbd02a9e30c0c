"""Numbers in tables, as several commands print them."""

__all__ = ["line", "shown"]

Value = float | int | str | None


def shown(value: Value, digits: int = 3) -> str:
    """A dash for None, commas in integers, `digits` places of floats; text stays as it is."""
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def line(name: str, *values: Value, digits: int = 3) -> str:
    """A row: its name, and a value in each column."""
    return f"{name:32}" + "".join(f"{shown(value, digits):>14}" for value in values)
