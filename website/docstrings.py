"""Plain docstrings as Markdown: what is said of attributes becomes a list, a doctest a block, a public name a link.

MkDocs loads the extension by the path of this file; `linked` is for pages too.
"""

import inspect
import pathlib
import re

import griffe

import metricjax as mj

ROOMS = {name: getattr(mj, name) for name in dir(mj) if inspect.ismodule(getattr(mj, name))}
PUBLIC = {f"{room}.{name}" for room, module in ROOMS.items() for name in module.__all__}
PUBLIC |= {name for name in dir(mj) if not name.startswith("_") and name not in ROOMS}
PAGES = {path.stem for path in (pathlib.Path(__file__).parents[1] / "docs" / "reference").glob("*.md")} & set(ROOMS)
FENCE = re.compile(r"^( *)```.*?^\1```", re.M | re.S)
CODE = re.compile(r"(?<![\[`\w])`(mj\.)?([A-Za-z]\w*(?:\.\w+){0,2})(\(\))?`(?![\]`])")
ARGUMENT = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (?=\S)")
ARXIV = re.compile(r"(?<![\[/\w])arXiv:(\d{4}\.\d{4,5})\b")


def _found(public: str):
    room, _, name = public.rpartition(".")
    return getattr(ROOMS.get(room, mj), name)


def _defined(public: str) -> str:
    found = _found(public)
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', public.rpartition('.')[2])}"


# The room of what is defined somewhere; of a name that `mj` itself has too, the room counts.
HOMES = {_defined(public): public.rpartition(".")[0] for public in sorted(PUBLIC, key=lambda name: ("." in name, name))}
METHODS = {
    f"{public}.{name}"
    for public in PUBLIC
    if inspect.isclass(_found(public))
    for name, member in vars(_found(public)).items()
    if not name.startswith("_") and callable(member) | isinstance(member, property | classmethod) and member.__doc__
}


class Plain(griffe.Extension):
    """Rewrites every docstring before it is rendered, and leaves out members that have none."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if isinstance(obj, griffe.Module) and obj.path == f"metricjax.{obj.name}" and obj.name in ROOMS:
            _unshadowed(obj)
        if obj.is_class:
            for name, member in list(obj.members.items()):
                if name != "__init__" and not member.is_alias and not member.docstring:
                    del obj.members[name]
        if obj.docstring:
            obj.docstring.value = linked(listed(obj.docstring.value, arguments(obj)), scope(obj))


def _unshadowed(room: griffe.Module) -> None:
    """Let a public object that has the name of a module of its room take the module's place, as it does in Python."""
    for name in ROOMS[room.name].__all__:
        module = room.members.get(name)
        if isinstance(module, griffe.Module):
            for public, member in list(room.members.items()):
                if member.is_alias and member.target_path.startswith(f"{module.path}."):
                    room.set_member(public, module.members[member.target_path.rpartition(".")[2]])
            room.set_member(name, module.members[name])


def arguments(obj: griffe.Object) -> set[str] | None:
    """Names that may begin a line of a list: of a class any, which are its attributes."""
    return None if obj.is_class else {parameter.name for parameter in getattr(obj, "parameters", ())}


def scope(obj: griffe.Object) -> dict[str, str]:
    """What a name without a room means in the docstring of an object: something of the same room, or a method."""
    own = obj if obj.is_class else obj.parent
    room = HOMES.get(obj.path, HOMES.get(own.path if own else "", obj.path.split(".")[1] if "." in obj.path else ""))
    names = names_of(room if room in ROOMS else "")
    if own is not None and own.is_class:
        names |= {
            name.removeprefix(f"{own.name}."): path for name, path in names.items() if name.startswith(f"{own.name}.")
        }
    taken = {parameter.name for parameter in getattr(obj, "parameters", ())} | {obj.name}
    return {name: public for name, public in names.items() if name not in taken}


def names_of(room: str) -> dict[str, str]:
    """All public names of a room, and methods with those of their class; "" is `mj` itself."""
    prefix = f"{room}." if room else ""
    inside = {public for public in PUBLIC if public.rpartition(".")[0] == room}
    methods = {method for method in METHODS if method.rpartition(".")[0] in inside}
    return {public.removeprefix(prefix): public for public in inside | methods}


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
        known = (code[2] in PUBLIC | METHODS and (code[1] or "." in code[2])) or (code[1] and code[2] in PAGES)
        whole = code[2] if known else names.get(code[2])
        return f"[{code[0]}][metricjax.{whole}]" if whole else code[0]

    return "\n".join(
        line
        if line.lstrip().startswith((">>>", "...", ":::", "#"))
        else ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", CODE.sub(link, line))
        for line in text.split("\n")
    )
