"""The losses that CONTRIBUTING.md adds, in the way it says, go through the invariants of every loss."""

import importlib
import inspect
import itertools
import pathlib
import re
from collections.abc import Callable

import pytest

from metricjax.losses import catalogue
from tests.helpers.cases import ClassCase, PairCase, class_case, pair_case
from tests.losses import test_every_loss
from tests.losses.test_catalogue import check_entry

PAGE = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
CODE: dict[str, str] = {}  # by file
for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
    for file, lines in re.findall(r"^# (\S+\.py)\n(.*?)(?=^# \S+\.py\n|\Z)", block, re.S | re.M):
        CODE[file] = CODE.get(file, "") + lines


def module_with(file: str) -> dict:
    """The names of a module with what the page adds to it."""
    names = dict(vars(importlib.import_module(file.removesuffix(".py").replace("/", "."))))
    exec(CODE[file], names)
    return names


def added(case: Callable, name: str, losses: str, oracles: str):
    loss, expected = (
        module_with(f"metricjax/losses/{losses}.py")[name],
        module_with(f"tests/helpers/{oracles}.py")[name],
    )
    return case(loss, expected, ENTRIES[name])


ENTRIES = eval(f"{{{CODE['metricjax/losses/catalogue.py']}}}", dict(vars(catalogue)))
TOY = added(pair_case, "toy", "pair_softmax", "oracle_pairs")
TOY_CLASS = added(class_case, "toy_class", "margin_softmax", "oracle_classes")


def invariants(kind):
    """The tests that every case of a kind goes through, with each of their other parameters."""
    for name, test in vars(test_every_loss).items():
        marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
        others = {mark.args[0]: mark.args[1] for mark in marks}
        if any(isinstance(case.values[0], kind) for case in others.pop("case", ())):
            for values in itertools.product(*others.values()):
                given = [pair for names, value in zip(others, values, strict=True) for pair in named(names, value)]
                marks = () if "oracle" in name else pytest.mark.slow
                yield pytest.param(test, dict(given), id=name.removeprefix("test_"), marks=marks)


def named(names, value):
    """Parameters that `pytest.mark.parametrize` gives one by one, or several together."""
    return zip(names.split(", "), value, strict=True) if ", " in names else [(names, value)]


def run(test, case, given, request):
    fixtures = set(inspect.signature(test).parameters) & {"x64", "debug_nans", "young_objects"}
    test(case, **given, **{name: request.getfixturevalue(name) for name in fixtures})


@pytest.mark.parametrize("test, given", list(invariants(PairCase)))
def test_the_loss_over_pairs(test, given, request, monkeypatch):
    monkeypatch.setitem(test_every_loss.PAIRS, "toy", TOY)
    run(test, TOY, given, request)


@pytest.mark.parametrize("test, given", list(invariants(ClassCase)))
def test_the_loss_over_classes(test, given, request, monkeypatch):
    monkeypatch.setitem(test_every_loss.CLASSES, "toy_class", TOY_CLASS)
    run(test, TOY_CLASS, given, request)


def test_the_page_is_one_page_and_its_entries_are_right():
    assert len(PAGE.splitlines()) <= 90
    for case in (TOY, TOY_CLASS):
        check_entry(case.loss, ENTRIES[case.loss.__name__])
    assert len(list(invariants(PairCase))) > 20 and len(list(invariants(ClassCase))) > 10
