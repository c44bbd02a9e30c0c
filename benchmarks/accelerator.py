"""What does all of this cost on a GPU or a TPU? One command for whoever has one.

    python -m benchmarks.accelerator [--rounds 5] [--budget 150] [--jobs supcon top_k]

Programs are compiled in threads, for at most half of the budget (seconds). Meanwhile losses are compared with float64;
then one job after the other is measured, its forms in turn, and told in one table: milliseconds (medians), multiples of
the job's unit (the line that says 1.00), and MiB of temporaries. "default" is what users get who set nothing; beside it
stands the best of the sizes that were set by hand, and the default's time as a multiple of its time. torch (with TF32)
and PyTorch Metric Learning take part where they are installed and find the same device.

A form that fails, or needs more than 60 % of the device's memory, becomes a line that says so. What there was no time
for is named in the end: `--jobs` runs those whose names contain one of the words, and with JAX_COMPILATION_CACHE_DIR
set, a second run need not compile again. On a CPU everything is small.
"""

import argparse
import concurrent.futures
import contextlib
import gc
import os
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import jax

from benchmarks import accelerator_jobs, accelerator_training, torch_peers
from benchmarks.accelerator_jobs import DEFAULT, SEED, Job
from benchmarks.report import bars, machine, medians, save

SHARE = 0.6  # of the device's memory, for one form
COMPILING = 0.5  # of the budget
GRACE = 60  # seconds after which a job is given up that has used up the budget
PATIENCE = 20  # seconds for what a job can do without
MOST_SECONDS = 6  # of one job's rounds


def all_jobs(small: bool, folder: pathlib.Path) -> list[Job]:
    sizes = accelerator_jobs.SMALL if small else accelerator_jobs.LARGE
    size = accelerator_training.SMALL if small else accelerator_training.LARGE
    trained = [accelerator_training.face_training(size, folder), accelerator_training.many_variants(size)]
    return accelerator_jobs.jobs(sizes, trained)


# --- ahead ----------------------------------------------------------------------------------------------------------


def compiled(make: Callable, form: Callable | None):
    """The program that makes the arrays of a job, or one of its forms."""
    if form is None:
        return jax.jit(make).lower(SEED).compile()
    return jax.jit(form).lower(*jax.eval_shape(make, SEED)).compile()


class Ahead:
    """What is done in threads before its job is measured, once each."""

    def __init__(self, threads: int):
        self.compiling = concurrent.futures.ThreadPoolExecutor(threads)
        self.few = threads <= 2  # then all goes in the order in which it is measured
        self.for_torch = self.compiling if self.few else concurrent.futures.ThreadPoolExecutor(1)
        self.futures: dict[Hashable, concurrent.futures.Future] = {}

    def start(self, job: Job) -> None:
        tasks = {(job.make, form): partial(compiled, job.make, form) for form in (None, *job.forms.values())}
        for key, task in [*tasks.items(), (job.prepare, job.prepare)]:
            if key not in self.futures or self.futures[key].cancelled():
                torchs = task is job.prepare and not job.first_to_compile  # which is not made for threads
                self.futures[key] = (self.for_torch if torchs else self.compiling).submit(task)

    def of(self, job: Job) -> list[concurrent.futures.Future]:
        """Its programs, and last what is prepared for it."""
        return [self.futures[key] for key in (*((job.make, form) for form in (None, *job.forms.values())), job.prepare)]

    def ready(self, job: Job) -> bool:
        return all(future.done() and not future.cancelled() for future in self.of(job))

    def finish(self, jobs: list[Job], seconds: float) -> None:
        """Wait for what these need; what has not begun by then is dropped."""
        self.drop_after({future for job in jobs for future in self.of(job)}, seconds)

    def finish_one(self, job: Job, seconds: float) -> None:
        """The same, where time is short: without what is prepared a job has still the forms that JAX compiles."""
        *programs, prepared = self.of(job)
        self.drop_after({*programs, prepared} if job.by_itself else {*programs}, seconds)
        self.drop_after({prepared}, min(seconds, PATIENCE))

    @staticmethod
    def drop_after(futures: set[concurrent.futures.Future], seconds: float) -> None:
        concurrent.futures.wait(futures, timeout=max(0.0, seconds))
        for future in futures:
            future.cancel()

    def result(self, key: Hashable) -> Any:
        future = self.futures[key]
        if future.cancelled() or not future.done():
            raise TimeoutError("not compiled in time")
        return future.result()

    def close(self) -> None:
        for pool in (self.compiling, self.for_torch):
            pool.shutdown(wait=False, cancel_futures=True)


# --- one job --------------------------------------------------------------------------------------------------------


def short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TimeoutError | MemoryError) else f"{type(error).__name__}: {text}"[:150]


class Measured:
    """The lines of a job: {"job", "form", "ms", "times", "rate", "MiB", "best", "over_best", "seen", "note"}."""

    def __init__(self, job: Job, ahead: Ahead, most_memory: float):
        self.job, self.ahead, self.most_memory = job, ahead, most_memory
        self.lines = {form: {"job": job.name, "form": form} for form in job.forms}

    def line(self, form: str) -> dict[str, Any]:
        return self.lines.setdefault(form, {"job": self.job.name, "form": form})

    @contextlib.contextmanager
    def noted(self, form: str) -> Iterator[None]:
        """An error becomes a note beside the form, and the run goes on."""
        try:
            yield
        except Exception as error:
            self.line(form)["note"] = short(error)

    def program(self, form: str):
        program = self.ahead.result((self.job.make, self.job.forms[form]))
        with contextlib.suppress(AttributeError, NotImplementedError):  # not all platforms tell
            memory = program.memory_analysis()
            self.line(form)["MiB"] = memory.temp_size_in_bytes / 2**20
            of_all = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
            if of_all > self.most_memory:
                raise MemoryError(f"left out: it needs {of_all / 2**30:.1f} GiB, of {self.most_memory / 2**30:.1f}")
        return program

    def run(self, rounds: int, seconds: float, unit: dict[str, float]) -> list[dict[str, Any]]:
        job, times = self.job, {}
        if job.by_itself is not None:
            with self.noted("all"):
                times = job.by_itself(self.ahead.result(job.prepare))
        else:
            try:
                data = jax.block_until_ready(self.ahead.result((job.make, None))(SEED))
            except Exception as error:
                return [{"job": job.name, "form": "", "note": short(error)}]
            times = self.timed(data, rounds, seconds)
        self.judge(times, unit)
        return list(self.lines.values())

    def timed(self, data, rounds: int, seconds: float) -> dict[str, float]:
        job, programs, runs, kept, times = self.job, {}, {}, {}, {}
        for form in job.forms:
            with self.noted(form):
                programs[form] = self.program(form)
                runs[form] = (partial(programs[form], *data), 1)
        with contextlib.ExitStack() as stack:
            prepared = None
            with self.noted("prepared"):
                prepared = self.ahead.result(job.prepare)
            with self.noted("others"):
                runs |= stack.enter_context(job.others(prepared, data, programs))
            for form, (run, _) in list(runs.items()):
                with self.noted(form):
                    kept[form] = job.kept(jax.block_until_ready(run()))
                if form not in kept:
                    del runs[form]
            with self.noted("seen"):
                for form, numbers in job.seen(data, kept).items():
                    self.line(form)["seen"] = {name: float(number) for name, number in numbers.items()}
            if job.timed:
                times, failed = medians(runs, rounds, seconds)
                for form, error in failed.items():
                    self.line(form)["note"] = short(error)
        return times

    def judge(self, times: dict[str, float], unit: dict[str, float]) -> None:
        """Times beside the unit, and the default's beside the best; `unit` has the times of one of what jobs share."""
        job, (measure, amount) = self.job, self.job.amount
        base = times.get(job.base or "")
        if base is not None and measure:
            unit[measure] = base / amount
        elif base is None and measure in unit:
            base = self.line(job.base or "")["scaled"] = unit[measure] * amount
        best = min((form for form in job.fixed if form in times), key=lambda form: times[form], default=None)
        for form, time_of_one in times.items():
            line = self.line(form)
            line["ms"] = 1e3 * time_of_one
            if base:
                line["times"] = time_of_one / base
            if job.work:
                line["rate"], line["rate_of"] = job.work[0] / time_of_one, job.work[1]
            if form == DEFAULT and best:
                line |= {"best": best, "over_best": time_of_one / times[best]}


# --- the table ------------------------------------------------------------------------------------------------------

HEAD = f"{'':44}{'form':24}{'ms':>11}{'× unit':>8}{'':>24}{'MiB':>9}{'best by hand':>15}{'/ best':>8}"


def show(line: dict[str, Any], first: bool) -> None:
    number = lambda name, form: format(line[name], form) if line.get(name) is not None else ""
    rate = f"{line['rate']:,.4g} {line['rate_of']}" if "rate" in line else ""
    numbers = [f"{name} {value:.2g}" for name, value in line.get("seen", {}).items()]
    scaled = [f"1.00 is {1e3 * line['scaled']:.3g} ms, from fewer"] if "scaled" in line else []
    words = [*numbers, *scaled, line.get("note", "")]
    print(
        f"{line['job'] if first else '':44}{line['form']:24}{number('ms', '.3f'):>11}{number('times', '.2f'):>8}"
        f"{rate:>24}{number('MiB', ',.0f'):>9}{line.get('best', ''):>15}{number('over_best', '.2f'):>8}",
        *words,
        sep="  ",
        flush=True,
    )


def installed() -> list[str]:
    found = {package.name for package in metadata.distributions()}
    return [name for name in ("jaxlib", "torch", "pytorch-metric-learning") if name in found]


def describe(device, most_memory: float) -> None:
    try:
        where = torch_peers.device() or "left out: it is not installed, or does not find this device"
    except Exception as error:
        where = f"left out: {short(error)}"
    small = "; on a CPU everything is small" if device.platform == "cpu" else ""
    told = machine(installed()) | {
        "devices": f"{len(jax.devices())} × {device.platform}, of which one is used{small}",
        "platform": " ".join(device.client.platform_version.split()),
        "precision": jax.config.jax_default_matmul_precision or "not set: TF32 on GPUs, one pass of bfloat16 on TPUs",
        "a form may take": f"{most_memory / 2**30:.1f} GiB",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "not set"),
        "torch computes on": where,
    }
    for name, value in told.items():
        print(f"{name:24}{value}", flush=True)


def plot(lines: list[dict[str, Any]]):
    """What has a unit and a default, as multiples of the unit."""
    times: dict[str, dict[str, float]] = {}
    best = {line["job"]: line["best"] for line in lines if "best" in line}
    for line in lines:
        if "times" in line:
            times.setdefault(line["job"], {})[line["form"]] = line["times"]
    rows = []
    for job, of_form in ((job, of_form) for job, of_form in times.items() if DEFAULT in of_form):
        torchs = [of_form[form] for form in ("torch", "torch.compile", "torch.topk") if form in of_form]
        plain = of_form.get(best.get(job, "lax.top_k"))
        row = {"default": of_form[DEFAULT], "plain": plain, "torch": min(torchs, default=None)}
        rows.append({"job": job, **row, "peer": of_form.get("PyTorch Metric Learning")})
    legend = {"default": "default", "plain": "best by hand, or lax.top_k", "torch": "torch", "peer": "PyTorch ML"}
    legend = {form: text for form, text in legend.items() if form == "default" or any(row[form] for row in rows)}
    return bars(rows, "job", legend, "multiples of the bare products", log=bool(rows))


# --- all of them ----------------------------------------------------------------------------------------------------


def statistics_of(device) -> dict[str, int]:
    """Bytes in use and the like, where the platform tells."""
    with contextlib.suppress(Exception):
        return device.memory_stats() or {}
    return {}


def memory_of(device) -> float:
    """Bytes that one form may take."""
    total = statistics_of(device).get("bytes_limit")
    if total is None:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.platform == "cpu" else 8 * 2**30
    return SHARE * total


class Run:
    """Measures jobs while there is time; `lines` has what was found."""

    def __init__(self, budget: float, rounds: int, most_memory: float):
        self.budget, self.rounds, self.most_memory = budget, rounds, most_memory
        self.began, self.ahead = time.perf_counter(), Ahead(max(2, min(16, (os.cpu_count() or 2) - 1)))
        self.device_thread = concurrent.futures.ThreadPoolExecutor(1)  # which can be given up
        self.lines: list[dict[str, Any]] = []
        self.unit: dict[str, float] = {}
        self.left_out: list[str] = []

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def left(self) -> float:
        return self.budget - self.seconds()

    def all(self, jobs: list[Job]) -> None:
        """Those first that need no quiet, then those that were compiled in good time, then the others."""
        checked, timed = ([job for job in jobs if job.timed is wanted] for wanted in (False, True))
        long = [job for job in timed if job.first_to_compile and not self.ahead.few]
        for job in [*checked, *long, *timed]:
            self.ahead.start(job)
        print(HEAD)
        compiling = lambda: COMPILING * self.budget - self.seconds()
        for job in checked:
            self.ahead.finish([job], compiling())
            self.one(job)
        self.ahead.finish(timed, compiling())
        ready = [job for job in timed if self.ahead.ready(job)]
        print(f"-- {self.seconds():.0f} s: {len(ready)} of {len(timed)} jobs are compiled", flush=True)
        for job in ready:
            self.one(job)
        for job in (job for job in timed if job not in ready):
            self.ahead.start(job)
            self.ahead.finish_one(job, self.left())
            self.one(job)

    def one(self, job: Job) -> None:
        if self.left() <= 0 or self.device_thread is None:
            self.left_out.append(job.name)
            return
        measured = Measured(job, self.ahead, self.most_memory)
        seconds = min(MOST_SECONDS, max(1.0, self.left() / 4))
        future = self.device_thread.submit(measured.run, self.rounds, seconds, self.unit)
        try:
            found = future.result(timeout=self.left() + GRACE)
        except concurrent.futures.TimeoutError:
            self.device_thread = None
            found = [{"job": job.name, "form": "", "note": "given up: it does not end, and nothing runs after it"}]
        except Exception as error:
            found = [{"job": job.name, "form": "", "note": short(error)}]
        gc.collect()  # errors hold frames, and those arrays
        for line in found:
            show(line, line is found[0])
        self.lines += found

    def close(self) -> None:
        print(f"-- {self.seconds():.0f} s; left out for lack of time: {'; '.join(self.left_out) or 'nothing'}")
        if peak := statistics_of(jax.devices()[0]).get("peak_bytes_in_use"):
            print(f"-- {peak / 2**30:.1f} GiB in use at most")
        self.ahead.close()
        if self.device_thread is not None:
            self.device_thread.shutdown(wait=False)


def prepare_jax(folder: str) -> None:
    """Before JAX takes a device: float64 needs the CPU too, torch some of the memory, and variants kept programs."""
    if jax.config.jax_platforms and "cpu" not in jax.config.jax_platforms:
        jax.config.update("jax_platforms", f"{jax.config.jax_platforms},cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else it forks, which JAX's threads do not survive
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=150, help="seconds")
    parser.add_argument("--jobs", nargs="*", default=[""], metavar="WORD", help="those whose names contain a word")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name)
        prepare_jax(str(folder / "programs"))
        device = jax.devices()[0]
        run = Run(args.budget, args.rounds, memory_of(device))
        describe(device, run.most_memory)
        jobs = all_jobs(device.platform == "cpu", folder)
        try:
            run.all([job for job in jobs if any(word in job.name for word in args.jobs)])
        finally:
            run.close()
            save("accelerator", run.lines, plot(run.lines), installed())


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # without waiting for what was given up
