"""The benchmark of evaluation runs, on sets too small to tell anything, and agrees with scikit-learn there."""

import pytest

from benchmarks import metrics
from tests.helpers.benchmark_runs import run_benchmark

pytest.importorskip("sklearn")


def small(size: str) -> str:
    """A size of as many numbers: of rows or queries, of a gallery, of features."""
    return {1: "1000", 2: "60x40", 3: "6x40x8"}[len(size.split("x"))]


def test_benchmark_of_metrics_runs(monkeypatch, tmp_path, capsys):
    cases = [f"{name}:{small(sizes[0])}" for name, sizes in metrics.SIZES.items()]
    saved = run_benchmark(metrics, [*cases, "--rounds", "1"], monkeypatch, tmp_path)
    assert "pair_scores 60x40" in capsys.readouterr().out
    rows = {row["name"]: row for row in saved["rows"]}
    assert set(rows) == {case.replace(":", " ") for case in cases}
    assert rows["pair_scores 60x40"]["count"] == 1770
    assert rows["pair_scores 60x40"]["differ"] == pytest.approx(0, abs=1e-5)
    assert rows["retrieval 60x40"]["ratio"] > 0
    assert all(rows[f"{name} 1000"]["peer_ms"] > 0 for name in ("roc", "nmi", "ami", "ari", "v_measure"))
    assert saved["machine"]["scikit-learn"]
    assert (tmp_path / "runs/benchmarks/metrics.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "case, says",
    [
        ("nni:10", "no such metric: 'nni'; there are retrieval, "),
        ("nmi:10x8", "the size of nmi is '10x8'; wanted one such as 10000"),
    ],
)
def test_a_case_that_cannot_be_is_refused(case, says, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_benchmark(metrics, [case], monkeypatch, tmp_path)
    assert says in capsys.readouterr().err
