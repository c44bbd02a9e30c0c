"""Lets MkDocs build the expanded pages: the only module that knows of MkDocs."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from website import writer  # noqa: E402


def on_config(config):
    """Write the pages, and list those of the folders that the navigation names."""
    docs = ROOT / "docs"
    config["docs_dir"] = str(writer.written(docs, ROOT / "build" / "docs"))
    config["nav"] = [_filled(entry, docs) for entry in config["nav"]]
    return config


def _filled(entry, docs: pathlib.Path):
    if isinstance(entry, str) and entry.endswith("/"):
        return [f"{entry}{name}" for name in writer.in_order(docs / entry)]
    if isinstance(entry, str) and not entry.endswith(".md"):
        return [f"losses/{name}.md" for name in writer.losses_of(entry.removeprefix("losses/"))]
    if isinstance(entry, dict):
        return {title: _filled(inside, docs) for title, inside in entry.items()}
    return [_filled(inside, docs) for inside in entry] if isinstance(entry, list) else entry
