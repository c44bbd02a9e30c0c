"""The benchmark of clusters runs, on sets too small to tell anything, and leaders are those of the definition."""

from benchmarks import clusters
from tests.helpers.benchmark_runs import run_benchmark


def test_benchmark_of_clusters_runs(monkeypatch, tmp_path, capsys):
    arguments = "--means 300x8x20 --leaders 120x16x12 --pairs 60x8 --steps 3 --rounds 1"
    saved = run_benchmark(clusters, arguments.split(), monkeypatch, tmp_path)
    assert "leaders 120x16x12" in capsys.readouterr().out
    rows = {row["name"]: row for row in saved["rows"]}
    assert list(rows) == ["k-means 300x8x20", "leaders 120x16x12", "health 60x8", "components 60x8"]
    assert rows["k-means 300x8x20"]["ours steps"] == 3 < rows["k-means 300x8x20"]["until it ends steps"]
    assert rows["leaders 120x16x12"]["clusters"] > 1 and rows["leaders 120x16x12"]["differ"] == 0
    assert rows["leaders 120x16x12"]["ours nmi"] > 0.9
    assert all(row["ours"] > 0 and row["product_ms"] > 0 for row in rows.values())
    assert (tmp_path / "runs/benchmarks/clusters.png").stat().st_size > 1000
