"""Every page of a loss, a miner, a distance or a metric says what it costs."""

import pathlib
import re

import pytest

from metricjax.losses.catalogue import CATALOGUE
from website import costs

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = [
    str(path.relative_to(DOCS))
    for folder in ("distances", "metrics", "miners")
    for path in sorted((DOCS / folder).glob("*.md"))
    if path.stem not in ("index", "own")
]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_documents_was_measured(page):
    (arguments,) = re.findall(r"\{\{ documented\((.*)\) \}\}", (DOCS / page).read_text())
    room, *names = re.findall(r'(?<!=)"(\w+)"', arguments)
    heading, says, table = costs.beside(room, names)
    assert heading == "## Cost" and says and table.count("\n| ") >= 1 and "Measured by `python -m" in table


def test_losses_were_measured():
    missing = [name for name in CATALOGUE if costs.of_loss(name) == "Not measured."]
    assert not missing, missing
