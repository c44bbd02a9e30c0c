"""SIGTERM and SIGINT, reported to a training between two steps, so that it can write a checkpoint before it ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["SIGNALS", "Interruption", "noticed"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAID = b"\n%s: the step is finished and a checkpoint written; a second signal ends at once\n"


class Interruption:
    """The first signal that has come; 0 before any."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, _frame) -> None:
        self.signal = number
        os.write(2, SAID % signal.Signals(number).name.encode())
        for each in SIGNALS:
            if signal.getsignal(each) is self:  # one that was ignored stays so
                signal.signal(each, signal.SIG_DFL)

    def agreed(self, now: bool) -> int:
        """The signal that came to any process. Several ask each other only `now`, at steps they have in common."""
        if jax.process_count() == 1:
            return self.signal
        return int(np.max(multihost_utils.process_allgather(np.int32(self.signal)))) if now else 0


@contextlib.contextmanager
def noticed() -> Iterator[Interruption]:
    """Notice signals instead of ending by them; not in a thread, for Python has handlers in the main thread only."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    before = {number: signal.signal(number, interruption) for number in heard}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python
