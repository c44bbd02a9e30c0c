"""The benchmark of the input pipeline runs, on batches too small to tell anything, and leaves its table and plot."""

import functools

from benchmarks import input_pipeline
from metricjax import encoders
from tests.helpers.benchmark_runs import run_benchmark


def test_every_stage_is_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(input_pipeline, "SIZE", (16, 16))
    monkeypatch.setattr(encoders, "SmallResNet", functools.partial(encoders.SmallResNet, widths=(4,)))
    arguments = ["--batch", "8", "--threads", "0", "2", "--workers", "--rounds", "1"]
    rows = run_benchmark(input_pipeline, arguments, monkeypatch, tmp_path)["rows"]
    stages = {row["stage"]: row for row in rows}
    assert {"read", "read, decode", "align", "batches, 0 threads", "batches, 2 threads"} < stages.keys()
    assert all(row["images_per_second"] > 0 for row in rows)
    assert stages["encoder, gradient"]["encoders_fed"] == 1
    assert (tmp_path / "runs/benchmarks/input_pipeline.png").stat().st_size > 1000
    assert "encoders fed" in capsys.readouterr().out
