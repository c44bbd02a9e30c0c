"""One of two processes that compute losses of one batch together: `python -m tests.helpers.two_processes PORT ID`."""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import metricjax as mj
from tests.helpers.cases import CLASSES, PAIRS

NAMES = ("supcon", "contrastive", "triplet-semi-hard", "triplet-all")
OVER_CLASSES = ("cosface", "adaface")
ROWS, COUNT = 32, 7  # rows, and classes, to which one of padding comes


def batch():
    """Embeddings, labels, and which rows exist: the second process holds few that do."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, 4)).astype(np.float32), rng.integers(0, 5, ROWS), np.arange(ROWS) < 21


def prototypes():
    return np.random.default_rng(1).standard_normal((COUNT + 1, 4)).astype(np.float32)


def main():
    """Print the name, the value and the gradients of each loss in a line."""
    port, process = map(int, sys.argv[1:])
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axis)) for axis in (("data",), ()))
    own = slice(process * ROWS // 2, (process + 1) * ROWS // 2)
    z, y, where = (jax.make_array_from_process_local_data(split, a[own]) for a in batch())
    for name in NAMES:
        loss = mj.over_mesh(PAIRS[name], "data", mesh)
        f = jax.value_and_grad(lambda z, y, where, loss=loss: loss(z, y, where=where, block_size=5))
        value, gradient = jax.jit(f, out_shardings=whole)(z, y, where)
        print(name, float(value), *np.asarray(gradient).ravel(), flush=True)
    half = slice(process * (COUNT + 1) // 2, (process + 1) * (COUNT + 1) // 2)
    w = jax.make_array_from_process_local_data(split, prototypes()[half])
    for name in OVER_CLASSES:
        loss = mj.over_mesh(CLASSES[name], "data", mesh)
        how = {"num_classes": COUNT, "block_size": 1}
        f = jax.value_and_grad(lambda z, w, y, where, loss=loss, how=how: loss(z, y, w, where=where, **how), (0, 1))
        value, gradients = jax.jit(f, out_shardings=whole)(z, w, y, where)
        print(name, float(value), *(number for a in gradients for number in np.asarray(a).ravel()), flush=True)


if __name__ == "__main__":
    main()
