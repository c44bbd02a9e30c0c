"""One of two processes that compute losses of one batch together: `python -m tests.two_processes PORT ID`."""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import metricjax as mj
from tests.cases import PAIRS

NAMES = ("supcon", "contrastive", "triplet-semi-hard", "triplet-all")
ROWS = 32


def batch():
    """Embeddings, labels, and which rows exist: the second process holds few that do."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, 4)).astype(np.float32), rng.integers(0, 5, ROWS), np.arange(ROWS) < 21


def main():
    """Print the name, the value and the gradient of each loss in a line."""
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


if __name__ == "__main__":
    main()
