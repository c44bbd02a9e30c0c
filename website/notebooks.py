"""Notebooks: run from the first cell to the last, cleaned to be committed, and made pages of.

python -m website.notebooks          # runs all of docs/notebooks, a few minutes each, and saves what they show
python -m website.notebooks faces    # one of them
"""

import argparse
import base64
import hashlib
import io
import os
import pathlib
import re
import tempfile
from typing import Any

import nbclient
import nbformat
from nbconvert import MarkdownExporter
from PIL import Image
from tqdm import tqdm

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
COLOURS = 128  # of a figure that is kept
TO_NOTEBOOK = re.compile(r"\]\((\w+)\.ipynb\)")


def executed(path: pathlib.Path, parameters: dict[str, Any] | None = None, **options: Any) -> nbformat.NotebookNode:
    """The notebook after a run in an empty folder, with other parameters than those of its cell tagged so, if given.

    options: of `nbclient.NotebookClient`. A cell that fails raises its error.
    """
    notebook = read(path)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path} has {len(cells)} cells tagged parameters; wanted one")
    (cell,) = cells
    written = cell.source
    for name in parameters or {}:
        if not re.search(rf"^(\w+, )*{name}\b.* = ", written, re.M):
            raise ValueError(f"{path} has no parameter {name}")
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in (parameters or {}).items())
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        client = nbclient.NotebookClient(notebook, kernel_name="python3", resources=place, **options)
        client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})  # the package of this checkout
    cell.source = written
    return notebook


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """What is committed: no progress and no warnings, no times, figures of few colours; and which code was run."""
    named = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook.metadata = nbformat.from_dict({**named, "language_info": {"name": "python"}, "ran": sources(notebook)})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({name: cell.metadata[name] for name in ("tags",) if name in cell.metadata})
        if cell.cell_type == "code":
            cell.outputs = _joined([_small(output) for output in cell.outputs if output.get("name") != "stderr"])
    return notebook


def sources(notebook: nbformat.NotebookNode) -> str:
    """A digest of all code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What was printed at several times is one output."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def _small(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Of a figure the PNG alone, in few colours."""
    data = output.get("data", {})
    if "image/png" in data:
        held, image = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        image.convert("RGB").quantize(COLOURS).save(held, "PNG", optimize=True)
        output.data = nbformat.from_dict({"image/png": base64.b64encode(held.getvalue()).decode() + "\n"})
        output.metadata = nbformat.from_dict({})
    return output


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def page(path: pathlib.Path) -> str:
    """The notebook as Markdown; its figures are written to a folder beside it."""
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = TO_NOTEBOOK.sub(r"](\1.md)", cell.source)
    beside = {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources=beside)
    for name, content in resources["outputs"].items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(content)
    title, rest = text.strip().split("\n", 1)
    text = f"{title}\n\n[The notebook itself]({path.name}){{ download }}\n{rest}\n"
    return text.replace("![png](", "![What the cell above draws](")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in FOLDER.glob("*.ipynb")))
    for name in parser.parse_args(argv).names:
        path = FOLDER / f"{name}.ipynb"
        with tqdm(desc=name, total=len(read(path).cells), unit=" cells") as bar:
            ran = executed(path, on_cell_complete=lambda cell, cell_index, bar=bar: bar.update(cell_index + 1 - bar.n))
        nbformat.write(cleaned(ran), path)


if __name__ == "__main__":
    main()
