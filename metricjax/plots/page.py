"""A web page in one file: no scripts, nothing fetched; every text that comes from outside is escaped here."""

import base64
import html
import io
import pathlib
from collections.abc import Sequence
from string import Template

from matplotlib import rc_context
from matplotlib.figure import Figure

from metricjax.ground.files import replacing
from metricjax.ground.names import printable

__all__ = ["escape", "figures", "left_out", "page", "paragraph", "picture", "table", "write"]

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1a1a1a; --page: #fff; --faint: #595959; --line: #d0d0d0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #16181c; --faint: #a8a8a8; --line: #44484f; }
}
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; }
nav a { margin-right: .8rem; white-space: nowrap; }
a { color: inherit; }
.why { color: var(--faint); font-style: italic; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; max-width: 44rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.meaning { color: var(--faint); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: .6rem 0; max-width: 100%; }
figure img { width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
figcaption { color: var(--faint); font-size: .88rem; }
@media print {
  :root { color-scheme: light; --text: #000; --page: #fff; --faint: #444; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  nav { display: none; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def escape(text: str) -> str:
    """A text from outside as HTML, which can always be encoded."""
    return html.escape(printable(text))


def page(title: str, sections: Sequence[tuple[str, str]], introduction: str) -> str:
    """The page of sections, each a heading and what is below it, in HTML."""
    links = " ".join(f'<a href="#part{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(sections))
    parts = [
        f'<section id="part{i}">\n<h2>{escape(heading)}</h2>\n{body}\n</section>'
        for i, (heading, body) in enumerate(sections)
    ]
    return _PAGE.substitute(title=escape(title), body="\n".join([introduction, f"<nav>{links}</nav>", *parts]))


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def left_out(why: str) -> str:
    """A sentence in place of what cannot be shown."""
    return f'<p class="why">{escape(why)}</p>'


def figures(*pictures: str) -> str:
    return '<div class="figures">\n' + "\n".join(pictures) + "\n</div>"


def picture(figure: Figure, alt: str, caption: str = "", kind: str = "svg") -> str:
    """A figure as part of the page: "svg" for lines, "png" for photographs and clouds of points."""
    held = io.BytesIO()
    # Without a date and with a fixed salt for its names, the same figure is the same file.
    with rc_context({"svg.hashsalt": "metricjax"}):
        figure.savefig(held, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    data = base64.b64encode(held.getvalue()).decode()
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    width = round(figure.get_figwidth() * 96)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{escape(alt)}" src="data:{mime};base64,{data}">'
    return f'<figure style="width: {width}px">{image}{below}</figure>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table; the columns `numbers` are set on the right, and a column "meaning" is fainter."""
    kind = lambda i: ' class="number"' if i in numbers else ' class="meaning"' if columns[i] == "meaning" else ""
    line = lambda cell, cells: "<tr>" + "".join(f"<{cell}{kind(i)}>{escape(c)}</{cell}>" for i, c in enumerate(cells))
    head = line("th", columns) + "</tr>"
    return "\n".join(
        ['<div class="wide"><table>', head, *(line("td", row) + "</tr>" for row in rows), "</table></div>"]
    )


def write(path: pathlib.Path, text: str) -> None:
    """The whole file or nothing: another one of that name stays until the new one is complete."""
    with replacing(path) as file:
        file.write(text.encode())
