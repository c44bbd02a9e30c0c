"""What a user meets: names by `dir` and `help`, with extras and without them; types, as mypy and pyright see them."""

import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import typing
from importlib import metadata

import pytest

import metricjax as mj

ROOT = pathlib.Path(__file__).parents[1]
LAZY = {"data": "images", "encoders": "flax", "plots": "plots", "transforms": "optax", "variants": "optax"}
LAZY |= {"trained": "images", "training": "images", "Encoder": "images", "load": "images", "export": "images"}
NEEDED = ("flax", "optax", "matplotlib", "tensorflow_datasets", "PIL", "grain")
ROOMS = [name for name in dir(mj) if inspect.ismodule(getattr(mj, name))]


def run(*command, **settings):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **settings)


def python(code, without=()):
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    done = run(sys.executable, "-c", f"import sys\n{hidden}{code}")
    assert not done.returncode, done.stderr
    return done.stdout


def test_names_of_the_readme_are_public():
    named = set(re.findall(r"\bmj\.(\w+)", (ROOT / "README.md").read_text()))
    assert named
    assert named <= set(dir(mj))


def test_dir_shows_public_names_only_also_after_use():
    code = """
import jax.numpy as jnp, metricjax as mj
before = dir(mj)
mj.losses.supcon(jnp.eye(4), jnp.zeros(4, int))
import metricjax.engine.panels, metricjax.ground.names, metricjax.transforms.rows, metricjax.losses.pairs
assert dir(mj) == before, set(dir(mj)) ^ set(before)
assert not {"engine", "ground", "compose", "importlib", "TYPE_CHECKING"} & set(before)
assert [name for name in before if name.startswith("_")] == ["__version__"]
"""
    python(code)


@pytest.mark.parametrize("room", ROOMS)
def test_dir_of_a_room(room):
    module = getattr(mj, room)
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        assert not name.startswith("_") and not inspect.ismodule(value), name
        assert not inspect.isroutine(value) or value.__module__.startswith("metricjax."), name


def test_every_module_lists_all_its_public_names():
    for found in pkgutil.walk_packages(mj.__path__, "metricjax."):
        name, module = found.name.removeprefix("metricjax."), importlib.import_module(found.name)
        own = {
            key
            for key, value in vars(module).items()
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == found.name
        }
        public = {key for key in own if not key.startswith("_")}
        if public:
            assert public <= set(module.__all__), name
        for key in getattr(module, "__all__", ()):
            assert hasattr(module, key), f"{name}.{key}"


def test_without_extras():
    code = f"""
import inspect, pydoc, metricjax as mj
from metricjax import *
public = set(dir(mj))
assert public >= set({list(LAZY)})
assert {{name for name, _ in inspect.getmembers(mj)}} == public - set({list(LAZY)})
text = pydoc.plain(pydoc.render_doc(mj))
assert "over_anchors(" in text and "importlib" not in text
for _, room in inspect.getmembers(mj, inspect.ismodule):
    pydoc.render_doc(room)
for name, extra in {LAZY}.items():
    assert not hasattr(mj, name)
    hint = f'python -m pip install "metricjax[{{extra}}]"'
    ways = [(AttributeError, f"mj.{{name}}"), (ImportError, f"from metricjax import {{name}}")]
    for error, code in ways if name[0].islower() and name not in ("load", "export") else ways[:1]:
        try:
            exec(code)
        except error as message:
            assert hint in str(message), message
        else:
            raise AssertionError(code)
"""
    python(code, without=NEEDED)


def test_dir_imports_no_extra():
    code = f"""
import metricjax as mj
dir(mj), mj.__all__
assert not [name for name in {list(LAZY)} if f"metricjax.{{name}}" in sys.modules]
assert all(hasattr(mj, name) for name in {list(LAZY)})
"""
    python(code)


def test_version():
    assert mj.__version__ == metadata.version("metricjax")


SCRIPT = """
import jax
import jax.numpy as jnp
import metricjax as mj

z, y = jnp.eye(4), jnp.zeros(4, int)
reveal_type(mj.losses.supcon(z, y))  # Array
reveal_type(mj.losses.arcface(z, y, z, scale=3.0, block_size=2))  # Array
reveal_type(mj.losses.adaface(z, y, z)[0])  # Array
reveal_type(mj.losses.info_nce(z, z) + mj.losses.koleo(z))  # Array
reveal_type(mj.distances.euclidean(z, z))  # Array
reveal_type(mj.sphere.project(z))  # Array
reveal_type(mj.mining.batch_hard(z, z == 0, z > 0))  # Triplets
reveal_type(mj.search.top_k(z, z, 1))  # Neighbours
reveal_type(mj.data.Pairs)  # Pairs
reveal_type(mj.encoders.SmallResNet)  # SmallResNet
reveal_type(mj.plots.roc_curves({}))  # Figure
reveal_type(mj.variants.product)  # Variant
reveal_type(mj.transforms.project_to_sphere)  # axis
value, gradient = jax.value_and_grad(mj.losses.triplet)(z, y)
loss, active = mj.losses.triplet(z, y, reduction=mj.with_count)
mj.losses.supcon(z, y, temprature=0.1)  # error
mj.losses.supcon(z, y, block_sise=2)  # error
mj.losses.arcface(z, y, z, block_size="small")  # error
mj.losses.supcon(z)  # error
mj.losses.supkon(z, y)  # error
mj.encoders.SmallResnet  # error
mj.loses  # error
"""


def public_functions():
    for room in ROOMS:
        for name in getattr(getattr(mj, room), "__all__", ()):
            value = getattr(getattr(mj, room), name)
            if callable(value) and not inspect.isclass(value) and typing.get_origin(value) is None:
                yield f"{room}.{name}"


CHECKERS = {
    "mypy": ("mypy", "--config-file=", "--python-executable", sys.executable),
    "pyright": ("pyright", "--pythonpath", sys.executable),
}
LINE = re.compile(r":(\d+):(?:\d+:? -)? (error|note|information): (.*)")


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_types(checker, tmp_path):
    names = list(public_functions())
    lines = [*SCRIPT.splitlines(), *(f"reveal_type(mj.{name})" for name in names)]
    (tmp_path / "script.py").write_text("\n".join(lines))
    text = run(sys.executable, "-m", *CHECKERS[checker], "script.py", cwd=tmp_path).stdout
    said = [(int(number), kind, what) for number, kind, what in LINE.findall(text) if "defined in" not in what]
    errors = {number for number, kind, _ in said if kind == "error"}
    assert errors == {number for number, line in enumerate(lines, 1) if line.endswith("# error")}, text
    types = {number: re.split(' is "', what, maxsplit=1)[1] for number, kind, what in said if kind != "error"}
    for number, line in enumerate(lines, 1):
        if "# " in line and number not in errors:
            assert re.search(rf"\b{line.split('# ')[1]}\b", types[number]), (line, types[number])
    seen = {name: types[number] for number, name in enumerate(names, len(SCRIPT.splitlines()) + 1)}
    signature = re.compile(r'^(def )?\(|^"?Overload|Pairwise|Selection')
    assert not {name for name, kind in seen.items() if not signature.search(kind)}
    returned = {name: kind.rpartition("-> ")[2] for name, kind in seen.items() if name.startswith("losses.")}
    assert not {name for name, kind in returned.items() if not re.match(r"(tuple\[)?[\w.]*(Array|SubCenters)\b", kind)}
