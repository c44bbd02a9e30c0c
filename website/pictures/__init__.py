"""Pictures of losses, miners, distances and metrics, each drawn from what the real function returns.

`drawn` keeps them in `build/pictures`, by a digest of the package and of the module that draws: prose changes without
drawing anew. All of them take minutes; whoever looks at pages without looking at pictures sets the variable
`METRICJAX_BLANK_PICTURES`.
"""

import functools
import hashlib
import inspect
import os
import pathlib
from collections.abc import Callable

import matplotlib
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parents[2]
BLANK = "METRICJAX_BLANK_PICTURES"
STYLE = {"font.size": 8, "axes.titlesize": 8, "savefig.dpi": 130, "savefig.facecolor": "white"}


@functools.cache
def digest(module: pathlib.Path) -> str:
    """Of everything that a picture depends on."""
    sources = [module, pathlib.Path(__file__), *sorted((ROOT / "metricjax").rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def drawn(draw: Callable[[str], Figure], name: str) -> pathlib.Path:
    """The picture that `draw(name)` makes, as a file."""
    blank, module = bool(os.environ.get(BLANK)), pathlib.Path(inspect.getfile(draw))
    path = ROOT / "build" / "pictures" / ("blank" if blank else digest(module)) / f"{draw.__name__}-{name}.png"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(8.4, 2.7)) if blank else draw(name)
            figure.savefig(path, metadata={"Software": None})
    return path
