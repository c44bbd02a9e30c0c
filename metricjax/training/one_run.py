"""One run at a time in a folder, even where hosts share it; and acts of process 0 for all processes."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["by_first", "only"]

FILE = "run.lock"
DEAD_AFTER, TOUCHED_EVERY = 60.0, 5.0  # seconds


def by_first(act: Callable[[], None]) -> None:
    """Act in process 0 while the others wait; all of them end where that fails."""
    problem = ""
    if jax.process_index() == 0:
        try:
            act()
        except (ValueError, OSError) as error:
            problem = str(error)
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(bool(problem))):
        problem = problem or "process 0 has ended, and says why"
    if problem:
        raise ValueError(problem)


@contextlib.contextmanager
def only(folder: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Hold the folder's lock, a file that names host and process, until the end; give what checks that it still holds.

    The lock of a process that died on this host is taken at once. Of other hosts only the file can be seen: a
    process that lives touches it every 5 seconds, so that others are refused within that time, and a file that was not
    touched for 60 seconds is taken.
    """
    lock = filelock.SoftFileLease(folder / FILE, lease_duration=DEAD_AFTER, heartbeat_interval=TOUCHED_EVERY)
    by_first(lambda: _take(lock, folder))

    def check() -> None:
        if lock.compromise is not None:
            raise ValueError(f"{folder}: its lock was lost ({lock.compromise.reason}); another run may write there")

    try:
        yield check
    finally:
        if jax.process_index() == 0:
            lock.release()


def _take(lock: filelock.SoftFileLease, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seen = _touched(folder)
    try:
        lock.acquire(timeout=DEAD_AFTER + TOUCHED_EVERY, cancel_check=lambda: _touched(folder) not in (None, seen))
    except filelock.Timeout:
        who = "another run" if lock.owner is None else f"the run of process {lock.owner.pid} on {lock.owner.hostname}"
        raise ValueError(f"{folder} is in use by {who}; wait for its end, or give another --out") from None


def _touched(folder: pathlib.Path) -> int | None:
    try:
        return (folder / FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return None
