"""Pictures: one of each kind is drawn, and none is missing where pages are built with blank ones."""

import inspect
import pathlib

import matplotlib.image
import numpy as np
import pytest

from website import pictures
from website.pictures import distances, losses, metrics, mining

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked")
EXAMPLES = {
    "triplet": losses.loss,
    "arcface": losses.loss,
    "batch_hard": mining.miner,
    "chord": distances.distance,
    "roc": metrics.metric,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_drawn_once(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    monkeypatch.setattr(pictures, "digest", lambda module: "digest")
    path = pictures.drawn(EXAMPLES[name], name)
    assert len(np.unique(matplotlib.image.imread(path)[..., :3].reshape(-1, 3), axis=0)) > 10
    drawn_at = path.stat().st_mtime_ns
    assert pictures.drawn(EXAMPLES[name], name) == path and path.stat().st_mtime_ns == drawn_at


def test_every_page_of_a_metric_has_a_picture():
    pages = pathlib.Path(__file__).parents[2] / "docs" / "metrics"
    assert {path.stem for path in pages.glob("*.md")} - {"index"} == set(metrics.DRAWN)


def test_the_digest_follows_the_module_that_draws(tmp_path):
    module = pathlib.Path(inspect.getfile(mining.miner))
    changed = tmp_path / "mining.py"
    changed.write_text(module.read_text() + "\n# changed")
    assert pictures.digest(module) != pictures.digest(changed)
