"""The benchmark for GPUs and TPUs: all of it lowers for them, runs on a CPU in small, and lives with what fails."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator
from benchmarks.accelerator_jobs import SEED, Job
from benchmarks.report import medians
from tests.helpers.lowering import lowered

ROOT = pathlib.Path(__file__).parents[2]
LARGE = accelerator.all_jobs(False, pathlib.Path())
OF_A_KIND = {job.name.split(" ")[0].strip(","): job for job in reversed(LARGE)}  # the first of each
WORDS = ["--rounds", "1", "--budget", "400"]


@pytest.mark.parametrize("job", OF_A_KIND.values(), ids=lambda job: job.name)
def test_every_kind_of_program_lowers_for_gpus_and_tpus(job, standard_promotion):
    shapes = jax.eval_shape(job.make, SEED)
    for platform in ("cuda", "tpu"):
        lowered(platform, job.make, SEED)
        for form in job.forms.values():
            lowered(platform, form, *shapes)


def test_all_of_it_runs_in_small(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", *WORDS]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "left out for lack of time: nothing" in done.stdout
    assert (tmp_path / "runs/benchmarks/accelerator.png").stat().st_size > 1000
    lines = json.loads((tmp_path / "runs/benchmarks/accelerator.json").read_text())["rows"]
    assert {line["job"] for line in lines} == {job.name for job in accelerator.all_jobs(True, pathlib.Path())}
    notes = {line["form"] for line in lines if "note" in line}
    assert notes == {"TF32_TF32_F32_X3"}  # which JAX refuses on a CPU
    for line in (line for line in lines if "note" not in line):
        seen = line.get("seen", {})
        assert line["job"].startswith("errors of") or line["ms"] > 0
        assert seen.get("value", 0) < 1e-6
        assert seen.get("gradient", 0) < 1e-5
        assert seen.get("differs", 0) < 1e-5
        assert seen.get("right", 1) > 0.999
        assert seen.get("error", 0) < (1e-2 if line["form"] == "bfloat16" else 1e-6)
        assert line["form"] != "default" or "MiB" in line
    supcon = {line["form"]: line for line in lines if line["job"].startswith("supcon")}
    assert supcon["three products"]["times"] == 1
    best = supcon[supcon["default"]["best"]]
    assert supcon["default"]["over_best"] == pytest.approx(supcon["default"]["ms"] / best["ms"])
    fed = [line for line in lines if line["form"] == "step fed by it"]
    assert fed[0]["rate_of"] == "images/s"


# --- what goes wrong ------------------------------------------------------------------------------------------------


def refused(x):
    raise ValueError("this form is refused")


def numbers(seed):
    return (jnp.arange(4, dtype=jnp.float32) + jnp.asarray(seed, jnp.float32),)


def run_of(jobs, budget=60.0, most_memory=2.0**20):
    run = accelerator.Run(budget, 1, most_memory)
    try:
        run.all(jobs)
    finally:
        run.close()
    return run, {(line["job"], line["form"]): line for line in run.lines}


@contextlib.contextmanager
def without_torch(prepared, data, programs):
    raise ImportError("torch is broken")
    yield


def test_a_form_that_fails_is_a_line_that_says_so():
    forms = {
        "good": lambda x: x + 1,
        "refused": refused,
        "large": lambda x: jnp.broadcast_to(x, (2**18, 4)),
        "default": lambda x: x * 2,
    }
    job = Job("mixed", numbers, forms, base="good", fixed=("good", "large"), others=without_torch)
    broken = Job("broken", refused, {"a form": lambda x: x})
    _, lines = run_of([job, broken, Job("after", numbers, {"good": lambda x: x + 1})])
    assert lines["mixed", "good"]["times"] == 1
    assert lines["mixed", "default"]["best"] == "good"
    assert lines["mixed", "refused"]["note"] == "ValueError: this form is refused"
    assert lines["mixed", "large"]["note"].startswith("left out: it needs 0.0 GiB")
    assert "ms" not in lines["mixed", "large"]
    assert lines["mixed", "others"]["note"] == "ImportError: torch is broken"
    assert "refused" in lines["broken", ""]["note"]
    assert lines["after", "good"]["ms"] > 0


def test_a_unit_that_does_not_fit_is_scaled_from_another():
    large = lambda x: jnp.sum(jnp.broadcast_to(x, (2**18, 4)) ** 2, axis=1)
    small = Job("small", numbers, {"unit": lambda x: x + 1}, base="unit", amount=("rows", 4.0))
    jobs = [small, Job("large", numbers, {"unit": large, "default": lambda x: x}, base="unit", amount=("rows", 40.0))]
    _, lines = run_of(jobs)
    assert "left out" in lines["large", "unit"]["note"]
    assert lines["large", "unit"]["scaled"] == pytest.approx(10 * lines["small", "unit"]["ms"] / 1e3)
    assert lines["large", "default"]["times"] > 0


def test_what_there_is_no_time_for_is_named(capsys):
    _, lines = run_of(
        [Job("first", numbers, {"a": lambda x: x}), Job("second", numbers, {"b": lambda x: x})], budget=0.0
    )
    assert not lines
    assert "left out for lack of time: first; second" in capsys.readouterr().out


def test_a_job_that_does_not_end_is_given_up(monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "GRACE", -59.0)
    ended = threading.Event()
    endless = Job("endless", by_itself=lambda prepared: {"waits": float(ended.wait(30))})
    run, lines = run_of([endless, Job("after", numbers, {"a": lambda x: x})])
    ended.set()
    assert "given up" in lines["endless", ""]["note"]
    assert run.left_out == ["after"]
    accelerator.plot(run.lines)  # of nothing


def test_medians_leave_out_what_fails():
    runs = iter(range(100))

    def fails_later():
        if next(runs) > 2:
            raise MemoryError("no more")

    found, failed = medians({"good": (lambda: 1, 2), "bad": (fails_later, 1)}, rounds=3, seconds=60)
    assert found.keys() == {"good"}
    assert str(failed["bad"]) == "no more"
