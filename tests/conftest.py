"""Strict settings for every test: no silent promotion of dtypes or ranks, warnings are errors, eight CPU devices."""

import gc
import itertools
import os
import pathlib
import tempfile
from importlib import metadata

# Tests spend their time compiling: machine code is not optimised; XLA's programs are, as for everybody. JAX 0.10 has an
# older way to make machine code of them, which takes half the time; the newest has no such choice any more.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"  # as many processes as cores compile already
os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false" if metadata.version("jax") < "0.11" else ""
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "agg"

import jax
import jaxtyping
import numpy as np
import pytest
from jax import lax

pytest.register_assert_rewrite("tests.helpers")

# Shapes and dtypes of every call are checked; an int will do for a float.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook("metricjax", CHECKER)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.path.join(tempfile.gettempdir(), "metricjax-tests-compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

gc.set_threshold(10_000, 10, 10)  # what is traced stays: looking through millions of objects often finds little garbage


def pytest_addoption(parser):
    what = "hostile inputs that each reader of files is tried on"
    parser.addoption("--fuzz", type=int, default=200, metavar="NUMBER", help=f"{what} (default 200)")
    what = "the K-th part, from 0, of the tests dealt out to N parts (default 0/1)"
    parser.addoption("--part", default="0/1", metavar="K/N", help=what)


SLOW_ROOMS = (
    "benchmarks",
    "clusters",
    "commands",
    "encoders",
    "examples",
    "plots",
    "recognition",
    "trained",
    "training",
    "website",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Some rooms are slow, and hostile files; tests of one loss share compiled programs, after each other."""
    for item in items:
        if item.path.parent.name in SLOW_ROOMS or "fuzz" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    case = lambda item: getattr(item, "callspec", None) and item.callspec.params.get("case")
    names = {}
    items.sort(key=lambda item: names.setdefault(id(case(item)) if case(item) else item.path, len(names)))
    k, n = map(int, config.getoption("--part").split("/"))
    config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % n != k])
    items[:] = items[k::n]


TESTS, MAPS = itertools.count(1), pathlib.Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def few_programs():
    """Each compiled program holds memory maps, of which Linux gives a process 65,530: drop the programs in time."""
    yield
    if next(TESTS) % 50 == 0 and MAPS.exists() and len(MAPS.read_bytes().splitlines()) > 25_000:
        jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def fuzz(request):
    """How many hostile inputs to try; numbered from 0, each the seed of its own."""
    return range(request.config.getoption("--fuzz"))


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def accelerator_sizes(monkeypatch):
    """What is traced meanwhile gets the sizes and forms of GPUs and TPUs; not what was traced for its shapes before."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *operands, default, **_: default(*operands))


@pytest.fixture
def debug_nans():
    jax.config.update("jax_debug_nans", True)
    yield
    jax.config.update("jax_debug_nans", False)


@pytest.fixture
def young_objects():
    """The garbage collector, which each check for leaks calls, looks at new objects only."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def unchecked():
    """Without the type checker in front: what users see of wrong arguments, and arguments that are NumPy arrays."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def standard_promotion():
    """As users have it: Flax and Optax rely on the standard promotion of types."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
