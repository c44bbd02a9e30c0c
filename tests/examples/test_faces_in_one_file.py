"""The example in one file, for a few steps: what it finds, and what it leaves for the commands."""

import importlib

import numpy as np
import pytest

import metricjax as mj

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]


def test_a_few_steps(tmp_path, capsys):
    example = importlib.import_module("faces_in_one_file")
    found = example.main(["--steps", "3", "--out", str(tmp_path)])
    assert set(found) == {"EER", "TAR@FAR=0.01", "recall@1", "map@r"}
    assert all(0 <= value <= 1 for value in found.values())
    assert (tmp_path / "scores.png").stat().st_size > 1000
    encoder = mj.load(tmp_path / "faces.npz")
    assert (encoder.name, encoder.photograph, encoder.embedding_size) == ("small_resnet", (112, 92), 128)
    faces = mj.data.orl()
    scores = mj.metrics.pair_scores(encoder(faces.images[200:]), faces.labels[200:] - faces.labels[200])
    np.testing.assert_allclose(scores.roc.equal_error_rate(), found["EER"], atol=1e-4)
    assert "EER" in capsys.readouterr().out
