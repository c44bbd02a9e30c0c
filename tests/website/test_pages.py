"""Pages keep their word: their code runs, from top to bottom, and no number with a unit was typed by hand."""

import pathlib
import re

import jax
import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
MACRO = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.S)
MEASURED = re.compile(r"\d\s?(?:ms|µs|MiB|GiB)\b|\d times (?:as|faster|slower)")


def code(page: str) -> list[str]:
    blocks = BLOCK.findall((DOCS / page).read_text())
    return [
        "\n".join(line.removeprefix(indent) for line in text.split("\n"))
        for indent, kind, text in blocks
        if kind == "python"
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)])
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in code(page):
            exec(compile(block, page, "exec"), names)
    assert np.all(np.isfinite(names.get("value", 0)))


@pytest.mark.parametrize("page", PAGES)
def test_numbers_that_were_measured_come_from_json(page):
    prose = MACRO.sub("", BLOCK.sub("", (DOCS / page).read_text()))
    typed = [line for line in prose.split("\n") if MEASURED.search(line)]
    assert not typed, typed
