"""What all figures share: colours that colour-blind people tell apart, legends that do not grow, text as it is."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import matplotlib.figure
import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes

from metricjax.ground.names import printable

__all__ = [
    "COLOURS",
    "DASHES",
    "Corner",
    "Figure",
    "add_legend",
    "as_written",
    "check_images",
    "check_people",
    "line_style",
    "name_of",
    "short",
    "some",
]

# Okabe and Ito's colours (2008), the strongest contrasts first; their yellow is too pale for a line on white.
COLOURS = tuple(color_sequences["okabe_ito"][i] for i in (5, 6, 3, 7, 1, 2, 0))
BLUE, VERMILLION = COLOURS[:2]
DASHES = ("-", "--", ":", "-.")
FEW, _ENTRIES = 5, 14  # entries of a legend that have room among the lines, and that are shown at all
Corner = Literal["lower right", "upper right", "best"]


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the line of that number, from 0: 28 that differ."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def add_legend(axes: Axes, loc: Corner) -> None:
    """Few entries stand inside the axes, more beside them; of many only the first are shown."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    left = len(handles) - _ENTRIES
    figure = axes.get_figure(root=True)
    if len(handles) <= FEW or figure is None:
        made = axes.legend(loc=loc)
    else:
        shown, title = (handles[:_ENTRIES], names[:_ENTRIES]), f"and {left} more" if left > 0 else None
        made = figure.legend(*shown, loc="outside right upper", title=title, fontsize=9)
    as_written(*made.get_texts())


def as_written(*texts) -> None:
    """Names are shown as they are: nothing in one starts a formula, "$" or, where all text is set by TeX, "_"."""
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)


class Figure(matplotlib.figure.Figure):
    """A figure that shows names: characters that no font here has are boxes in it, without a warning for each.

    Notebooks show it as it is, whether or not pyplot was told to draw in them; where it was, pyplot's way is taken.
    """

    def _repr_png_(self) -> bytes:
        held = io.BytesIO()
        self.savefig(held, format="png", bbox_inches="tight")  # as pyplot does there
        return held.getvalue()

    def draw(self, *arguments: Any) -> None:
        with _without_glyphs():
            super().draw(*arguments)

    def get_tightbbox(self, *arguments: Any, **options: Any) -> Any:
        with _without_glyphs():
            return super().get_tightbbox(*arguments, **options)


@contextlib.contextmanager
def _without_glyphs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from (current )?font", UserWarning)
        yield


def short(name: str, length: int) -> str:
    """As much of a name as fits, `printable`; with a blank before "" and before "_", as Matplotlib drops such names."""
    name = printable(name)
    name = f" {name}" if name[:1] in ("", "_") else name
    return name if len(name) <= length else name[: length - 1] + "…"


def some(name: str, entries: Mapping) -> None:
    if not entries:
        raise ValueError(f"{name} is empty; wanted at least one entry to draw")


def name_of(label: Any, people) -> str:
    """The person's name, or the label itself where names are not given."""
    return str(label) if people is None else str(people[int(label)])


def check_people(labels: np.ndarray, people) -> None:
    """There is one label per row, and `people[label]` for each of them."""
    if labels.ndim != 1:
        raise ValueError(f"labels has shape {labels.shape}; wanted one label for each row")
    if people is None or not len(labels):
        return
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels has dtype {labels.dtype}; wanted integers, the place of each name in people")
    if labels.min() < 0 or labels.max() >= len(people):
        raise ValueError(f"people has {len(people)} names; wanted one for each label, {labels.min()} to {labels.max()}")


def check_images(images: np.ndarray, rows: int) -> None:
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) != rows:
        raise ValueError(f"images has shape {images.shape}; wanted [{rows}, height, width, 1 or 3]")
    if images.dtype != np.uint8:
        raise TypeError(f"images has dtype {images.dtype}; wanted uint8")
