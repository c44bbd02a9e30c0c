"""Times as ratios: every contestant is run in turn, round after round, in one process, and the fastest run counts."""

import json
import pathlib
import platform
import time
from collections.abc import Callable, Mapping

import jax


def fastest(contestants: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Seconds of the fastest of `rounds` runs of each, interleaved; compilation is left out."""
    for run in contestants.values():
        jax.block_until_ready(run())
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def machine() -> dict[str, str | int]:
    """What the numbers were taken on."""
    device = jax.devices()[0]
    return {"jax": jax.__version__, "device": device.device_kind, "python": platform.python_version()}


def write(name: str, rows: list[dict]) -> pathlib.Path:
    """Save rows as JSON in runs/benchmarks, beside what they were taken on."""
    path = pathlib.Path("runs/benchmarks") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    return path
