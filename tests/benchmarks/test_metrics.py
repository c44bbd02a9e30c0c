"""The benchmark of evaluation runs, on sets too small to tell anything, and agrees with scikit-learn there."""

import pytest

from benchmarks import metrics
from tests.helpers.benchmark_runs import run_benchmark

pytest.importorskip("sklearn")


def test_benchmark_of_metrics_runs(monkeypatch, tmp_path, capsys):
    arguments = "--retrieval 40x8 --pairs 60x8 --bands 60x8 --searches 6x40x8 --labels 50 --rounds 1"
    saved = run_benchmark(metrics, arguments.split(), monkeypatch, tmp_path)
    assert "pair_scores 60x8" in capsys.readouterr().out
    rows = {row["name"]: row for row in saved["rows"]}
    assert rows["pair_scores 60x8"]["count"] == 1770
    assert rows["pair_scores 60x8"]["differ"] == pytest.approx(0, abs=1e-5)
    assert rows["retrieval 40x8"]["ratio"] > 0
    assert rows["ami 50"]["peer_ms"] > 0
    assert set(rows) >= {"retrieval 40x8", "roc_bands 60x8", "identification 6x40x8", "bcubed_f1 50"}
    assert saved["machine"]["scikit-learn"]
    assert (tmp_path / "runs/benchmarks/metrics.png").stat().st_size > 1000
