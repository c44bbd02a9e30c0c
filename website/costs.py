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
OF_METRIC = {
    "name": "",
    "ours_ms": "ms",
    "product_ms": "the bare product, ms",
    "peer_ms": "peer, ms",
    "peer": "peer",
    "MiB": "memory, MiB",
}
OF_SEARCH = {
    "shape": "",
    "product_ms": "the bare product, ms",
    "hard_negatives": "time",
    "hard_negatives_MiB": "memory, MiB",
}
IN_A_LOSS = {"name": "", "loss": "in", "default": "time", "temporaries_MiB": "memory, MiB"}
ABOUT = {
    "metrics": "Sizes are rows × features, queries × gallery × features, or a number of scores or labels. The product "
    "is that of the rows alone, memory the most that a run holds beyond its arguments.",
    "search": "Sizes are queries × corpus × features × negatives, with one positive of each query; times are multiples "
    "of the bare product. With a margin, ten times as many candidates are searched.",
    "miners": "Value and gradient of a loss with it, 4096 × 128: multiples of three products, S = X Xᵀ, S X and Xᵀ S.",
}
OPTIONS = {"mining": ("triplets", "miner"), "distances": ("distance",), "similarities": ("similarity",)}


def of_loss(name: str) -> str:
    benchmark = "class_losses" if CATALOGUE[name].kind == "classes" else "losses"
    found = [row for row in measured.rows(benchmark) if row["loss"].split(", ")[0] == name]
    if not found:
        return "Not measured."
    return _table(benchmark, found, OF_LOSS)


def beside(room: str, names: Sequence[str]) -> list[str]:
    """Of a miner, a distance or a metric, with a heading; nothing of what is not measured."""
    if room == "metrics":
        benchmark, columns = "metrics", OF_METRIC
        is_of_it = lambda row: row["name"].split()[0] in names
    elif names[0] == "hard_negatives":
        benchmark, columns = "search", OF_SEARCH
        is_of_it = lambda row: True
    else:
        benchmark, columns = "miners", IN_A_LOSS
        is_of_it = lambda row: row["name"] in names and row["option"] in OPTIONS.get(room, ())
    found = [row for row in measured.rows(benchmark) if is_of_it(row)]
    return ["## Cost", ABOUT[benchmark], _table(benchmark, found, columns)] if found else []


def _table(benchmark: str, rows: list[dict], columns: dict[str, str]) -> str:
    columns = {key: title for key, title in columns.items() if any(row.get(key) is not None for row in rows)}
    forms = {column: ".0f" for column in columns if column.endswith("MiB")}
    return measured.table_of(rows, columns, forms) + "\n\n" + measured.machine(benchmark)
