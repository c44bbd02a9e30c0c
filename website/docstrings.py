"""Plain docstrings as Markdown: what is said of several arguments becomes a list, a public name in code a link.

MkDocs loads the extension by the path of this file; `linked` is for pages too.
"""

import inspect
import re

import griffe

import metricjax as mj

ROOMS = {name: getattr(mj, name) for name in dir(mj) if inspect.ismodule(getattr(mj, name))}
PUBLIC = {f"{room}.{name}" for room, module in ROOMS.items() for name in module.__all__}
PUBLIC |= {name for name in dir(mj) if not name.startswith("_") and name not in ROOMS}
FENCE = re.compile(r"^( *)```.*?^\1```", re.M | re.S)
CODE = re.compile(r"(?<![\[`\w])`(?:mj\.)?([a-z_]\w*(?:\.\w+)?)(\(\))?`(?![\]`])")
ARGUMENT = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (?=\S)")


class Plain(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = linked(listed(obj.docstring.value))


def listed(text: str) -> str:
    """Paragraphs of `name: what it is` lines as lists."""
    return "\n\n".join(_list(part) if ARGUMENT.match(part) else part for part in inspect.cleandoc(text).split("\n\n"))


def _list(paragraph: str) -> str:
    lines = []
    for line in paragraph.splitlines():
        lines.append(ARGUMENT.sub(r"- `\1`: ", line) if ARGUMENT.match(line) else f"  {line.strip()}")
    return "\n".join(lines)


def linked(markdown: str) -> str:
    """`room.name` and `mj.name` in code, not in blocks of it, with links to where they are documented."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [_links(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _links(markdown[end:])])


def _links(text: str) -> str:
    def link(code: re.Match) -> str:
        return f"[{code[0]}][metricjax.{code[1]}]" if code[1] in PUBLIC else code[0]

    return "\n".join(
        line if line.lstrip().startswith((">>>", "...", ":::", "#")) else CODE.sub(link, line)
        for line in text.split("\n")
    )
