"""What the benchmarks measured of a loss, a miner, a distance or a metric, for its page."""

from collections.abc import Sequence

from metricjax.losses.catalogue import CATALOGUE
from website import measured

OF_LOSS = {
    "shape": "batch × features, or batch × classes × features",
    "loss": "loss",
    "default": "time by default",
    "panels": "in panels",
    "autodiff": "dense, differentiated by JAX",
    "temporaries_MiB": "memory by default, MiB",
}
OF_METRIC = {"name": "", "ours_ms": "ms", "product_ms": "the bare product, ms", "peer_ms": "peer, ms", "peer": "peer"}
IN_A_LOSS = {"name": "", "loss": "in", "default": "time", "temporaries_MiB": "memory, MiB"}
ABOUT = {
    "metrics": "Shapes are rows × features, or queries × gallery × features; the product is that of the rows.",
    "miners": "Value and gradient of a loss with it, 4096 × 128: multiples of three products, S = X Xᵀ, S X and Xᵀ S.",
}
OPTIONS = {"mining": ("triplets", "miner"), "distances": ("distance",), "similarities": ("similarity",)}


def of_loss(name: str) -> str:
    benchmark = "class_losses" if CATALOGUE[name].kind == "classes" else "losses"
    found = [row for row in measured.rows(benchmark) if row["loss"].split(", ")[0] == name]
    if not found:
        return "Not measured."
    columns = {column: title for column, title in OF_LOSS.items() if any(column in row for row in found)}
    return _table(benchmark, found, columns)


def beside(room: str, names: Sequence[str]) -> list[str]:
    """Of a miner, a distance or a metric, with a heading; nothing if it was not measured."""
    benchmark, options = ("metrics", (None,)) if room == "metrics" else ("miners", OPTIONS.get(room, ()))
    is_of_it = lambda row: row["name"].split()[0] in names and row.get("option") in options
    found = [row for row in measured.rows(benchmark) if is_of_it(row)]
    columns = OF_METRIC if room == "metrics" else IN_A_LOSS
    return ["## Cost", ABOUT[benchmark], _table(benchmark, found, columns)] if found else []


def _table(benchmark: str, rows: list[dict], columns: dict[str, str]) -> str:
    return measured.table_of(rows, columns, {"temporaries_MiB": ".0f"}) + "\n\n" + measured.machine(benchmark)
