"""Expands the pages of a folder: each is a template of Jinja's, in which a name that nobody knows is an error."""

import pathlib
import shutil

import jinja2

from metricjax.losses.catalogue import CATALOGUE
from website import about, docstrings, measured, notebooks


def written(pages: pathlib.Path, expanded: pathlib.Path) -> pathlib.Path:
    """Write all of `pages` to the folder `expanded`, in place of what was there, and return it."""
    shutil.rmtree(expanded, ignore_errors=True)
    shutil.copytree(pages, expanded)
    for path in sorted(expanded.rglob("*.md")):
        page = path.relative_to(expanded)
        path.write_text(markdown(path.read_text(), page, expanded))
    for path in sorted(expanded.rglob("*.ipynb")):
        path.with_suffix(".md").write_text(docstrings.linked(notebooks.page(path)))
    return expanded


def in_order(folder: pathlib.Path) -> list[str]:
    """The pages of a folder, its index first; a notebook becomes one."""
    pages = (path.with_suffix(".md").name for path in folder.iterdir() if path.suffix in (".md", ".ipynb"))
    return sorted(pages, key=lambda name: (name != "index.md", name))


def losses_of(kind: str) -> list[str]:
    """Their names, as the catalogue has them."""
    return [name for name, entry in CATALOGUE.items() if entry.kind == kind]


def markdown(source: str, page: pathlib.Path, expanded: pathlib.Path) -> str:
    """The text of a page, whose pictures go into the folder `expanded`."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, comment_start_string="{##", comment_end_string="##}"
    )
    environment.globals.update(measured.functions(), **about.functions(page, expanded))
    try:
        return docstrings.linked(environment.from_string(source).render())
    except Exception as error:
        error.add_note(f"in docs/{page}")
        raise
