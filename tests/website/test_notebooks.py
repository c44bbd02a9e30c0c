"""Notebooks run from the first cell to the last, and what is committed of them is what such a run shows."""

import getpass
import pathlib
import re

import pytest

notebooks = pytest.importorskip("website.notebooks", exc_type=ImportError)

SMALL = {
    "comparing_losses": {"STEPS": 4, "CHOOSING": 1, "TESTING": 3},
    "faces": {"STEPS": 3},
    "own_loss": {"STEPS": 4, "SEEDS": 2},
    "products": {"STEPS": 3, "CLASSES": 12, "PHOTOGRAPHS": 3},
}
PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))
MOST = 300_000  # bytes
PLACES = re.compile(r"(?<![\w.:/])/\w+/\w+|[A-Z]:\\|~/")


def kinds(notebook):
    """Of each cell the kinds of its outputs, without progress and warnings."""
    return [
        [sorted(output.get("data", {output.get("name"): ""})) for output in cell.get("outputs", [])]
        for cell in notebooks.cleaned(notebook).cells
    ]


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(
        [str(output.get("text", "")) + str(output.get("data", {}).get("text/plain")) for output in outputs]
    )


def test_each_has_small_settings():
    assert [path.stem for path in PATHS] == sorted(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_run_shows_what_is_committed(name, monkeypatch):
    monkeypatch.delenv("MPLBACKEND")  # figures where the notebook shows them
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # as many devices as the notebook asks for
    path = notebooks.FOLDER / f"{name}.ipynb"
    assert kinds(notebooks.executed(path, SMALL[name], timeout=600)) == kinds(notebooks.read(path))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_is_committed(path):
    notebook = notebooks.read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata["ran"] == notebooks.sources(notebook), "changed since: python -m website.notebooks runs it"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(
        output.output_type == "error" or output.get("name") == "stderr" for cell in code for output in cell.outputs
    )
    assert path.stat().st_size < MOST
    shown = printed(notebook)
    assert not PLACES.findall(shown) and str(pathlib.Path.home()) not in shown
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", shown)
    assert {name for cell in notebook.cells for name in cell.metadata} <= {"tags"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_page(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    text = notebooks.page(copy)
    assert text.startswith("# ") and f"({path.name})" in text
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert figures and all((tmp_path / figure).read_bytes().startswith(b"\x89PNG") for figure in figures)
    assert not [target for target in re.findall(r"\]\((\w+)\.ipynb\)", text) if target != path.stem]


def test_what_is_cleaned(tmp_path):
    path = tmp_path / "small.ipynb"
    cells = [
        notebooks.nbformat.v4.new_code_cell("STEPS, MORE = 3, 4", metadata={"tags": ["parameters"]}),
        notebooks.nbformat.v4.new_code_cell("import sys\nprint(STEPS, MORE)\nprint('progress', file=sys.stderr)"),
    ]
    notebooks.nbformat.write(notebooks.nbformat.v4.new_notebook(cells=cells), path)
    ran = notebooks.cleaned(notebooks.executed(path, {"MORE": 7}))
    assert [output.text for output in ran.cells[1].outputs] == ["3 7\n"]
    assert ran.cells[0].source == "STEPS, MORE = 3, 4"
    assert set(ran.metadata) == {"kernelspec", "language_info", "ran"}
    with pytest.raises(ValueError, match="no parameter STEP"):
        notebooks.executed(path, {"STEP": 1})
