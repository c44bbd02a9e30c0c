"""The benchmark of evaluation runs, on sets too small to tell anything, and agrees with scikit-learn there."""

import json

import jax
import pytest

from benchmarks import metrics

pytest.importorskip("sklearn")


def test_benchmark_of_metrics_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = "--retrieval 40x8 --pairs 60x8 --bands 60x8 --searches 6x40x8 --labels 50 --rounds 1"
    monkeypatch.setattr("sys.argv", ["metrics", *arguments.split()])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        metrics.main()
    assert "pairs 60x8" in capsys.readouterr().out
    saved = json.loads((tmp_path / "runs/benchmarks/metrics.json").read_text())
    rows = {row["name"]: row for row in saved["rows"]}
    assert rows["pairs 60x8"]["count"] == 1770
    assert rows["pairs 60x8"]["differ"] == pytest.approx(0, abs=1e-5)
    assert rows["retrieval 40x8"]["ratio"] > 0
    assert rows["ami 50"]["peer_ms"] > 0
    assert set(rows) >= {"retrieval 40x8", "bands 60x8", "identification 6x40x8", "bcubed_f1 50"}
    assert saved["machine"]["scikit-learn"]
    assert (tmp_path / "runs/benchmarks/metrics.png").stat().st_size > 1000
