"""Plain docstrings as Markdown: what is said of attributes becomes a list, a doctest a block, a public name a link.

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
CODE = re.compile(r"(?<![\[`\w])`(mj\.)?([A-Za-z]\w*(?:\.\w+)?)(\(\))?`(?![\]`])")
ARGUMENT = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (?=\S)")
ARXIV = re.compile(r"(?<![\[/\w])arXiv:(\d{4}\.\d{4,5})\b")


def _of_rooms(public: str) -> tuple[str, str]:
    """Where a public object is defined, and its room."""
    room, _, name = public.rpartition(".")
    found = getattr(ROOMS.get(room, mj), name)
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', name)}", room


# Of a name that `mj` itself has too, the room counts.
HOMES = dict(map(_of_rooms, sorted(PUBLIC, key=lambda public: ("." in public, public))))


class Plain(griffe.Extension):
    """Rewrites every docstring before it is rendered, and leaves out members that have none."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.is_class:
            for name, member in list(obj.members.items()):
                if name != "__init__" and not member.is_alias and not member.docstring:
                    del obj.members[name]
        if obj.docstring:
            obj.docstring.value = linked(listed(obj.docstring.value, arguments(obj)), scope(obj))


def arguments(obj: griffe.Object) -> set[str] | None:
    """Names that may begin a line of a list: of a class any, which are its attributes."""
    return None if obj.is_class else {parameter.name for parameter in getattr(obj, "parameters", ())}


def scope(obj: griffe.Object) -> dict[str, str]:
    """What a name without a room means in the docstring of an object: a public one of the same room or class."""
    path = obj.path if obj.path in HOMES else obj.path.rpartition(".")[0]
    room = HOMES.get(path, path.split(".")[1] if path.count(".") else "")
    prefix = f"{room}." if room in ROOMS else ""
    names = {public.removeprefix(prefix): public for public in PUBLIC if public.rpartition(".")[0] == prefix[:-1]}
    own = obj if obj.is_class else obj.parent if obj.parent and obj.parent.is_class else None
    if own is not None and own.path in HOMES:
        public = f"{prefix}{own.name}"
        methods = {name for name, member in own.members.items() if not member.is_alias and member.docstring}
        names |= {name: f"{public}.{name}" for name in methods} | {
            f"{own.name}.{name}": f"{public}.{name}" for name in methods
        }
    taken = {parameter.name for parameter in getattr(obj, "parameters", ())} | {obj.name}
    return {name: public for name, public in names.items() if name not in taken}


def listed(text: str, names: set[str] | None = frozenset()) -> str:
    """Doctests as blocks, and paragraphs of `name: what it is` as lists, if one of `names` (None: any) comes first."""

    def shown(part: str) -> str:
        first = ARGUMENT.match(part)
        if part.startswith(">>>"):
            return f"```pycon\n{part}\n```"
        return _list(part) if first and (names is None or set(first[1].split(", ")) <= names) else part

    return "\n\n".join(map(shown, inspect.cleandoc(text).split("\n\n")))


def _list(paragraph: str) -> str:
    lines = []
    for line in paragraph.splitlines():
        lines.append(ARGUMENT.sub(r"- `\1`: ", line) if ARGUMENT.match(line) else f"  {line.strip()}")
    return "\n".join(lines)


def linked(markdown: str, names: dict[str, str] | None = None) -> str:
    """`room.name` and `mj.name` in code, not in blocks of it, and numbers of arXiv, as links; and the `names` given."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [_links(markdown[end : fence.start()], names or {}), fence[0]]
        end = fence.end()
    return "".join([*parts, _links(markdown[end:], names or {})])


def _links(text: str, names: dict[str, str]) -> str:
    def link(code: re.Match) -> str:
        whole = code[2] if code[2] in PUBLIC and (code[1] or "." in code[2]) else names.get(code[2])
        return f"[{code[0]}][metricjax.{whole}]" if whole else code[0]

    return "\n".join(
        line
        if line.lstrip().startswith((">>>", "...", ":::", "#"))
        else ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", CODE.sub(link, line))
        for line in text.split("\n")
    )
