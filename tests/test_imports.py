"""The rooms of metricjax (its packages and flat modules) and the arrows between them (which imports which).

`python -m tests.test_imports [TREE]` counts those of this tree, or of another one.
"""

import ast
import graphlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = (
    {"ground"},
    {"distances", "similarities", "relations", "sphere", "samplers"},
    {"engine"},
    {"search"},
    {"mining"},
    {"anchors"},
    {"prototypes"},
    {"losses"},
    {"compose", "memory"},
    {"clusters", "metrics"},
    {"data", "encoders", "plots", "transforms", "variants"},
    {"trained"},
    {"recognition", "training"},
    {"commands"},
    {"__main__"},
)
ENGINE_IS_FOR = {"anchors", "prototypes", "losses", "metrics", "search", "clusters", "mining", "compose", "memory"}
COLLECTIVES = {"all_gather", "all_to_all", "axis_index", "axis_size", "pcast", "pmax", "pmean", "pmin", "ppermute"}
COLLECTIVES |= {"psum", "psum_scatter"}


def parsed(root):
    """For each module: its path below metricjax, and its syntax."""
    package = root / "metricjax"
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package), ast.parse(path.read_text())


def imported(tree):
    """The dotted names below metricjax that a module imports, `from metricjax import *` not among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("metricjax.") for name in names if name.startswith("metricjax."))


def arrows(root):
    """For each room, the other rooms that it imports."""
    graph = {path.parts[0].removesuffix(".py"): set() for path, _ in parsed(root) if path.name != "__init__.py"}
    for path, tree in parsed(root):
        room = path.parts[0].removesuffix(".py")
        if room in graph:
            graph[room] |= {name.split(".")[0] for name in imported(tree)} & graph.keys() - {room}
    return graph


def floors(graph):
    """For each room, how many stand below it, one upon another; CycleError where there is a circle."""
    height = {}
    for room in graphlib.TopologicalSorter(graph).static_order():
        height[room] = 1 + max((height[below] for below in graph[room]), default=0)
    return height


def counted(root):
    graph = arrows(root)
    flat = [room for room in graph if (root / "metricjax" / f"{room}.py").exists()]
    try:
        high = max(floors(graph).values())
    except graphlib.CycleError as circle:
        high = "none, for a circle: " + " -> ".join(circle.args[1])
    counts = f"rooms {len(graph)}, arrows {sum(map(len, graph.values()))}, floors {high}"
    return f"{counts}, flat modules {len(flat)}: {', '.join(flat)}"


def test_no_circle_and_no_import_upward():
    print("\n" + counted(ROOT))
    graph = arrows(ROOT)
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert graph.keys() == floor.keys()
    assert not {(room, other) for room in graph for other in graph[room] if floor[other] >= floor[room]}


def test_the_engine_is_for_few():
    assert {room for room, others in arrows(ROOT).items() if "engine" in others} <= ENGINE_IS_FOR


def test_collectives_stand_in_one_file():
    names = lambda node: {getattr(node, field, None) for field in ("attr", "id", "name")}
    users = {path.as_posix() for path, tree in parsed(ROOT) for node in ast.walk(tree) if names(node) & COLLECTIVES}
    assert users == {"engine/devices.py"}


if __name__ == "__main__":
    tree = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    print(counted(tree))
    for room, others in sorted(arrows(tree).items()):
        print(f"  {room}: {', '.join(sorted(others))}")
