"""Tables of losses, with links to their pages, from catalogue and signatures."""

import inspect
import re

import metricjax as mj
from metricjax.losses.catalogue import BESIDE, CATALOGUE, Entry

HEADINGS = {
    "pairs": "loss",
    "views": "two views: `mj.losses.NAME(x, y, ...)`",
    "rows": "regularisers: `mj.losses.NAME(embeddings, ...)`",
    "prototypes": "regularisers of prototypes: `mj.losses.NAME(prototypes, ...)`",
    "classes": "class prototypes: `mj.losses.NAME(embeddings, labels, prototypes, ...)`",
}
# Options, and what is the same wherever it occurs.
LEFT_OUT = {"where", "axis_name", "block_size", 'average="active"', "similarity=similarities.cosine"}


def table(kind: str) -> str:
    """All losses of a kind."""
    lines = [f"| {HEADINGS[kind]} | | default hyper-parameters |", "|---|---|---|"]
    for name, entry in CATALOGUE.items():
        if entry.kind == kind:
            lines.append(f"| {_named(name, entry)} | {_sources(entry)} | {', '.join(_defaults(name))} |")
    return "\n".join(lines)


def _named(name: str, entry: Entry) -> str:
    needs = [f"with a {need}" for need in ("state", "key") if need in entry.takes]
    notes = "; ".join([*needs, *filter(None, [entry.note])])
    beside = [helper for helper, served in BESIDE.items() if name in served]
    beside = ", ".join(
        f"`losses.{other}`" for other in beside + [x for x, e in CATALOGUE.items() if e.added_to == name]
    )
    return f"`losses.{name}`" + (f", with {beside}" if beside else "") + (f" ({notes})" if notes else "")


def _sources(entry: Entry) -> str:
    """Authors and year; of three authors or more the first."""
    short = lambda paper: re.sub(r"^([^,&]*?), .*?(?= \d{4})", r"\1 et al.", re.match(r".*?\d{4}", paper)[0])
    return ", ".join(short(paper) for paper in entry.paper.split("; ") if paper)


def _defaults(name: str):
    for parameter in inspect.signature(getattr(mj.losses, name)).parameters.values():
        value = _value(parameter.default)
        shown = f"{parameter.name}={value}"
        if parameter.kind is parameter.KEYWORD_ONLY and value and not {parameter.name, shown} & LEFT_OUT:
            yield f"`{shown}`"


def _value(default) -> str:
    """As one writes it; nothing for a function without a public name."""
    if isinstance(default, float):
        return f"{default:.4g}"
    if isinstance(default, str):
        return f'"{default}"'
    for module in (mj.distances, mj.similarities, mj.mining):
        for name, public in vars(module).items():
            if public is default and callable(public):
                return f"{module.__name__.removeprefix('metricjax.')}.{name}"
    return "" if callable(default) else str(default)
