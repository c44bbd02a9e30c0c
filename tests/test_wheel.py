"""The wheel, installed without extras in an environment of its own: a loss, help, and the doctests of the core."""

import os
import pathlib
import re
import subprocess
import sys
import venv

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
WITH_EXTRAS = (
    "data",
    "encoders",
    "plots",
    "transforms",
    "variants",
    "trained",
    "training",
    "recognition",
    "commands",
)
CODE = """
import importlib.util, pydoc, sys
import jax.numpy as jnp
import metricjax as mj
assert "site-packages" in mj.__file__, mj.__file__
assert not [name for name in ("flax", "optax", "matplotlib", "grain") if importlib.util.find_spec(name)]
assert mj.losses.supcon(jnp.eye(4), jnp.arange(4) // 2) > 0
assert "over_anchors(" in pydoc.plain(pydoc.render_doc(mj)) and not hasattr(mj, "plots")
print(mj.__version__)
"""


@pytest.mark.slow
def test_wheel_without_extras(tmp_path):
    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("metricjax-*.whl")
    venv.create(tmp_path / "alone", with_pip=True)
    python = tmp_path / "alone" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, "pytest")
    assert run(python, "-c", CODE).strip() in wheel.name
    (package,) = (tmp_path / "alone").glob("lib/*/site-packages/metricjax")
    assert (package / "py.typed").exists()
    options = ["--doctest-modules", "-o", "doctest_optionflags=NUMBER", "-p", "no:cacheprovider", "-q"]
    said = run(python, "-m", "pytest", *options, *(f"--ignore={package / name}" for name in WITH_EXTRAS), package)
    assert int(re.search(r"(\d+) passed", said)[1]) > 100, said
