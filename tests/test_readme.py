"""The README keeps its word: its code runs, it names everything, its links lead somewhere, and it stays short."""

import pathlib
import re

import jax
import numpy as np
import pytest

import metricjax as mj
from metricjax.losses.catalogue import CATALOGUE

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("index", range(len(CODE)))
def test_code_runs(index):
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(CODE[index], names)
    assert np.isfinite(names["value"])


def test_names_everything_that_is_chosen_by_name():
    rooms = (mj.mining, mj.distances, mj.similarities, mj.relations, mj.samplers, mj.clusters)
    chosen = {*CATALOGUE, *(name for room in rooms for name in room.__all__ if name[0].islower())}
    assert chosen - set(re.findall(r"`(\w+)`", README)) == set()


def test_is_short_and_its_links_lead_somewhere():
    assert len(README.encode()) <= 8 * 1024
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []
