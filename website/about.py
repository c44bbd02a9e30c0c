"""What a page says of a loss, a miner, a distance or a metric by itself: picture, docstring, properties."""

import contextlib
import inspect
import io
import os
import pathlib
import re
import shutil
import typing
from unittest import mock

import metricjax as mj
from metricjax import commands
from metricjax.losses.catalogue import BESIDE, CATALOGUE, Entry
from website import costs, docstrings, loss_tables, pictures
from website.pictures import distances, losses, metrics, mining

ROOT = pathlib.Path(__file__).parents[1]
DRAWN = {
    draw.__name__: draw
    for draw in (losses.loss, mining.miner, distances.distance, distances.similarity, metrics.metric)
}

KINDS = {
    "pairs": "pairs of a batch",
    "views": "two views, or two kinds of things, row by row",
    "rows": "nothing: it looks at embeddings alone",
    "prototypes": "nothing: it looks at prototypes alone",
    "classes": "embeddings with a prototype of each class",
}


def functions(page: pathlib.Path, expanded: pathlib.Path) -> dict:
    """What pages may call. A picture is copied beside the page that shows it."""

    def picture(draw: str, name: str, says: str) -> str:
        source = pictures.drawn(DRAWN[draw], name)
        target = expanded / "pictures" / source.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
        return f"![{says}]({os.path.relpath(target, (expanded / page).parent)})"

    def loss(name: str) -> str:
        """Head of a loss's page."""
        beside = [helper for helper, served in BESIDE.items() if served[0] == name]
        parts = [picture("loss", name, f"{name}, and a toy set before and after training with it")]
        parts += [_shown("losses", each) for each in (name, *beside)]
        return "\n\n".join([*parts, "## Properties", properties(name), "## Cost", costs.of_loss(name)])

    def documented(room: str, *names: str, draw: str = "") -> str:
        """Head of the page of something else: its picture, if it has one, and docstrings."""
        parts = [picture(draw, names[0], f"{names[0]}, as the function gives it")] if draw else []
        parts += [_shown(room, name) for name in names]
        return "\n\n".join([*parts, *costs.beside(room, names)])

    def below(heading: str, file: str, before: str | None = None) -> str:
        """What stands below a heading of a file beside `docs`, and before another one; links go to the site's pages."""
        text = (ROOT / file).read_text().partition(f"{heading}\n\n")[2].partition(before or "\0")[0]
        to = lambda link: os.path.relpath(link[1], pathlib.Path("docs", page).parent)
        return re.sub(r"(?<=\]\()(docs/[^)]+)", to, text)

    return {
        "loss": loss,
        "documented": documented,
        "room": room,
        "picture": picture,
        "losses": loss_tables.table,
        "help_of": help_of,
        "below": below,
    }


def _shown(room: str, name: str) -> str:
    """The docstring of a public name; a class with the arguments that make it."""
    path = f"metricjax.{room}.{name}" if room else f"metricjax.{name}"
    return f"::: {path}\n    options: {{merge_init_into_class: true, docstring_section_style: list}}"


def room(name: str) -> str:
    """A page of all that a room has, "" for `mj` itself: a table of first lines, then all docstrings."""
    module = getattr(mj, name) if name else mj
    names = module.__all__ if name else sorted(public for public in docstrings.PUBLIC if "." not in public)
    lines = [f"| `{each}` | {_first_line(getattr(module, each))} |" for each in names]
    said = docstrings.listed(inspect.getdoc(module) or "") if name else ""
    parts = [said, "\n".join(["| name | |", "|---|---|", *lines])]
    head = docstrings.linked("\n\n".join(parts), docstrings.names_of(name))
    anchor = [f"[](){{ #metricjax.{name} }}"] if name else []
    return "\n\n".join([*anchor, head, *(_shown(name, each) for each in names)])


def _first_line(public) -> str:
    said = public.__doc__ if public.__doc__ != type(public).__doc__ else None
    return " ".join(inspect.cleandoc(said or "").partition("\n\n")[0].split()).replace("|", "\\|")


def help_of(command: str) -> str:
    """What `metricjax COMMAND --help` prints."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
        mock.patch.dict(os.environ, COLUMNS="100"),
        mock.patch("warnings.formatwarning"),
    ):
        commands.main([*command.split(), "--help"])
    if not printed.getvalue():
        raise ValueError(f"metricjax {command} --help prints nothing: is the extra `faces` installed?")
    return f"```text\n{printed.getvalue()}```"


def properties(name: str) -> str:
    """A table of what the catalogue and the signature say."""
    entry = CATALOGUE[name]
    said = {"It compares": KINDS[entry.kind], "It takes": _takes(entry)}
    if "state" in entry.takes:
        said["State"] = f'begins with `CATALOGUE["{name}"].first("state", classes)`; the next comes beside the loss'
    if entry.bias:
        said["Learnt bias"] = f'begins with `CATALOGUE["{name}"].first("bias", classes)`'
    if entry.lengths:
        said["Scale"] = f"that of {' and '.join(entry.lengths)} counts"
    said["Options"] = _options(name)
    if entry.kind == "pairs":
        any_rows = "any rows, a [memory bank](../guides/memory_banks.md) among them"
        said["References"] = "none" if "references" in entry.refuses else any_rows
    said["Forms"] = _forms(name)
    if entry.added_to:
        to = f"`losses.{entry.added_to}`" if entry.added_to in CATALOGUE else f"a loss over {entry.added_to}"
        said["Added to"] = to + (f", times {entry.weight:g}" if entry.weight != 1 else ", with a weight of your own")
    said["Source"] = entry.paper or "common"
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in said.items())])


def _takes(entry: Entry) -> str:
    several = "; prototypes `[c, k, d]`, several of a class" if entry.several else ""
    return ", ".join(f"`{take}`" for take in entry.takes) + several


def _options(name: str) -> str:
    """Names of what it takes besides hyper-parameters, and where these are explained."""
    loss = getattr(mj.losses, name)
    kind = str(loss.__annotations__.get("options", ""))
    for room, public in (
        ("anchors", "AnchorOptions"),
        ("prototypes", "SoftmaxOptions"),
        ("prototypes", "PrototypeOptions"),
    ):
        if public in kind:
            but = ", ".join(f"`{no}`" for no in CATALOGUE[name].refuses)
            return f"`{room}.{public}`" + (f", but not {but}" if but else "")
    hints = typing.get_type_hints(loss, include_extras=True)
    known = typing.get_args(hints["options"])[0].__annotations__ if "options" in hints else {}
    own = [option for option in ("where", "weights", "axis_name") if option in inspect.signature(loss).parameters]
    return ", ".join(f"`{option}`" for option in [*known, *own] if option not in CATALOGUE[name].refuses)


def _forms(name: str) -> str:
    """Ways through the engine."""
    source = inspect.getsource(getattr(mj.losses, name))
    if "distance=" not in source:  # of its own, which need not be symmetric as sweeps want it
        source += "".join(inspect.getsource(getattr(mj.losses, to)) for to in CATALOGUE if f"return {to}(" in source)
    if "over_towers(" in source:
        return "two sweeps over tiles for both directions at once, panels, or dense"
    if "over_statistics(" in source:
        return "two sweeps over tiles (two matrix products), panels, dense, or a fused kernel"
    if "block_size" in _options(name) or CATALOGUE[name].kind == "pairs":
        return "panels of rows, or dense"
    return "blocks of classes, or dense" if CATALOGUE[name].kind == "classes" else "of the batch at once"
