"""The command `metricjax` itself: what it lists, what it refuses, and what it says without its extra."""

import subprocess
import sys
from importlib import metadata

import pytest

import metricjax as mj
from metricjax import commands


def run(*arguments, before=""):
    code = f"import sys\n{before}\nfrom metricjax.commands import main\nmain({list(arguments)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_it_is_installed_and_lists_its_commands(capsys):
    (script,) = metadata.entry_points(group="console_scripts", name="metricjax")
    assert script.load() is commands.main
    said = subprocess.run([sys.executable, "-m", "metricjax", "--help"], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in said.stdout for name in commands.COMMANDS)
    with pytest.raises(SystemExit):
        commands.main(["--version"])
    assert capsys.readouterr().out == f"metricjax {mj.__version__}\n"


@pytest.mark.parametrize("given", [[], ["trane"]])
def test_what_is_no_command_is_refused(given, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(given)
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_of_each(command, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main([command, "--help"])
    said = capsys.readouterr().out
    assert not caught.value.code and said.startswith(f"usage: metricjax {command} ")
    assert f"\nmetricjax {command} " in said  # an example to copy


def test_a_missing_extra_is_named():
    done = run("train", before="sys.modules['optax'] = None")
    assert done.returncode == 1
    assert done.stderr.startswith("metricjax train: this part of metricjax needs 'optax'")
    assert "Traceback" not in done.stderr


def test_warnings_are_lines(tmp_path):
    (tmp_path / "Ann").mkdir()
    done = run("evaluate", str(tmp_path), "--checkpoint", str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("metricjax evaluate: ") and "Traceback" not in done.stderr
