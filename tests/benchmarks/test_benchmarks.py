"""The benchmarks run, on batches too small to tell anything, and leave their table and plot."""

import importlib

import pytest

from tests.helpers.benchmark_runs import run_benchmark

RUNS = {
    "losses": [
        "--shapes",
        "64x8",
        "--rounds",
        "1",
        "--losses",
        "supcon",
        "triplet, all",
        "mean_hinge",
        "clip",
        "koleo",
        "merged_centers",
    ],
    "class_losses": ["--shape", "16x20x8", "--losses", "arcface", "adaface", "soft_triple", "--rounds", "1"],
    "exactness": ["--rows", "64", "--features", "16", "--losses", "supcon", "triplet", "cosface", "clip", "koleo"],
    "miners": ["--shape", "32x8", "--rounds", "1", "--only", "semi_hard", "hard_fraction", "lp", "dot"],
    "memory": ["--batches", "64", "128"],
    "scale": ["--batch", "256", "--dimension", "8"],
    "collectives": ["--batch", "64", "--dimension", "8"],
    "peers": ["--rounds", "1"],
    "compact": ["--steps", "1", "--shapes", "5x3000x32x2", "--rounds", "1"],
    "search": ["--shapes", "5x3000x8x2", "--rounds", "1"],
    "variants": [
        "--steps",
        "2",
        "--seeds",
        "1",
        "--margins",
        "0.2",
        "--usual",
        "1",
        "--at-once",
        "1",
        "--devices",
        "2",
    ],
    "chord_or_geodesic": [
        "--steps",
        "1",
        "--seeds",
        "2",
        "--strengths",
        "0.5",
        "--mining",
        "batch-hard",
        "--at-once",
        "1",
        "--devices",
        "2",
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_benchmark_runs(name, monkeypatch, tmp_path, capsys):
    benchmark = importlib.import_module(f"benchmarks.{name}")
    if name == "peers":
        monkeypatch.setattr(benchmark, "PEERS", {"optax": benchmark.optax_contestants})
    if name == "compact":
        monkeypatch.setattr(benchmark, "PREFIXES", (8, 64))
    if name == "variants":
        monkeypatch.setattr(benchmark, "LOSSES", dict(list(benchmark.LOSSES.items())[:1]))
    saved = run_benchmark(benchmark, RUNS[name], monkeypatch, tmp_path)
    assert name in capsys.readouterr().out
    assert saved["rows"]
    assert saved["machine"]["jax"]
    assert (tmp_path / f"runs/benchmarks/{name}.png").stat().st_size > 1000
    if name == "collectives":
        supcon = next(row for row in saved["rows"] if row["loss"] == "supcon")
        assert supcon["reduce-scatter"] == supcon["embeddings"] == 64 * 8 * 4
        assert supcon["all-gather"] == supcon["embeddings"] + 64 * 4
    if name == "exactness":
        assert {row["way"] for row in saved["rows"]} == {"default", "dense", "panels", "devices"}
        assert max(row["gradient"] for row in saved["rows"]) < 1e-4
    if name == "peers":
        row = saved["rows"][0]
        assert row["ours"] == pytest.approx(row["theirs"], rel=1e-5)
        assert row["gradients_differ"] < 1e-4
