"""A benchmark as its command runs it."""

import json

import jax


def run_benchmark(benchmark, arguments, monkeypatch, folder) -> dict:
    """What its `main` saves with these arguments; its files are then in `folder`."""
    name = benchmark.__name__.rpartition(".")[2]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        benchmark.main()
    return json.loads((folder / f"runs/benchmarks/{name}.json").read_text())
