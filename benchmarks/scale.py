"""SupCon over a batch that no matrix of pairs would fit for: seconds, and the peak of resident memory.

    python -m benchmarks.scale [--batch 65536] [--dimension 128]

Resident memory is that of the whole process, JAX included.
"""

import argparse
import resource
import time

import jax

import metricjax as mj
from benchmarks.losses import batch
from benchmarks.report import bars, save


def resident() -> float:
    """Peak resident memory of this process in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=65536)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--per-class", type=int, default=4)
    args = parser.parse_args()
    z, y = jax.block_until_ready(batch(args.batch, args.dimension, args.per_class))
    before = resident()
    step = jax.jit(jax.value_and_grad(lambda z: mj.losses.supcon(z, y))).lower(z).compile()
    seconds = time.perf_counter()
    value, gradient = jax.block_until_ready(step(z))
    seconds = time.perf_counter() - seconds
    row = {
        "name": f"supcon, {args.batch} x {args.dimension}",
        "seconds": seconds,
        "resident_MiB": resident(),
        "resident_before_MiB": before,
        "temporaries_MiB": step.memory_analysis().temp_size_in_bytes / 2**20,
        "one_matrix_of_pairs_MiB": 4 * args.batch**2 / 2**20,
        "value": float(value),
        "gradient_norm": float(jax.numpy.linalg.norm(gradient)),
    }
    for name, number in row.items():
        print(f"{name:26}", number if isinstance(number, str) else f"{number:,.3f}")
    drawn = {
        "temporaries_MiB": "temporaries",
        "resident_MiB": "resident, all in all",
        "one_matrix_of_pairs_MiB": "one matrix of pairs",
    }
    save("scale", [row], bars([row], "name", drawn, "MiB", log=True))


if __name__ == "__main__":
    main()
