"""What PyTorch does beside us on the same device: the textbook's SupCon, eager and compiled, PyTorch Metric Learning,
and `torch.topk`. Every run waits for the device. A package that is not installed is left out."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.peers import of_pytorch_metric_learning

TORCH, PEER = "torch", "pytorch_metric_learning"
MOST_MEMORY = 0.4  # of the device's: JAX holds the rest


def device() -> str | None:
    """Where torch computes on the device that JAX has taken; None if it is not installed or cannot."""
    backend = jax.default_backend()
    if importlib.util.find_spec(TORCH) is None or backend not in ("cpu", "gpu"):
        return None
    import torch

    if backend == "gpu":
        if not torch.cuda.is_available():
            return None
        torch.cuda.set_per_process_memory_fraction(MOST_MEMORY)
    torch.set_float32_matmul_precision("high")  # TF32, as is JAX's default
    return "cuda" if backend == "gpu" else "cpu"


def textbook(z, y, temperature: float = 0.1):
    """SupCon as it is mostly written: the whole matrix of scores."""
    import torch

    x = torch.nn.functional.normalize(z)
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    s = (x @ x.T / temperature).masked_fill(own, float("-inf"))
    positives = (y[:, None] == y[None]) & ~own
    counts = positives.sum(1)
    of_row = torch.logsumexp(s, dim=1) - s.masked_fill(~positives, 0).sum(1) / counts.clamp(min=1)
    return of_row.masked_fill(counts == 0, 0).sum() / (counts > 0).sum()


def step(loss: Callable, z, y) -> Callable[[], tuple]:
    """Value and gradient of a loss, when they are there."""
    import torch

    z = z.detach().requires_grad_()

    def run():
        value = loss(z, y)
        found = value.detach(), torch.autograd.grad(value, z)[0]
        synchronize()
        return found

    return run


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def prepared(name: str, n: int, d: int) -> Callable | None:
    """The textbook's loss as compiled for n rows of d features."""
    if name != "supcon" or device() is None:
        return None
    import torch

    compiled = torch.compile(textbook, dynamic=False)
    step(compiled, torch.randn(n, d, device=device()), torch.arange(n, device=device()) // 4)()
    return compiled


@contextlib.contextmanager
def on_device(*arrays) -> Iterator[list]:
    """JAX's arrays as torch's, and the memory given back in the end."""
    import torch

    try:
        yield [torch.tensor(np.asarray(a), device=device()) for a in arrays]
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def pairs(name: str, compiled: Any, data, programs) -> Iterator[dict]:
    if device() is None:
        yield {}
        return
    losses: dict[str, Callable] = {"torch": textbook} if name == "supcon" else {}
    if compiled is not None:
        losses["torch.compile"] = compiled
    if importlib.util.find_spec(PEER):
        losses["PyTorch Metric Learning"] = of_pytorch_metric_learning()[name]
    with on_device(*data) as (z, y):
        yield {form: (step(loss, z, y), 1) for form, loss in losses.items()}


@contextlib.contextmanager
def search(prepared: Any, data, programs, *, k: int, height: int) -> Iterator[dict]:
    if device() is None:
        yield {}
        return
    import torch

    with on_device(*data) as (x, y):

        def run():
            parts = [torch.topk(part @ y.T, k) for part in x.split(height)]
            found = tuple(torch.cat([part[i] for part in parts]).cpu() for i in range(2))
            synchronize()
            return found

        yield {"torch.topk": (run, 1)}
