"""What does the exact search of nearest neighbours cost, next to computing the scores alone?

    python -m benchmarks.search [--shapes 4096x100000x128x10 ...] [--rounds 5]

Shapes are queries x references x features x k; scores are inner products. "product" is the time of Q Gᵀ, some queries
at a time against all references, each part in memory and nothing more, at JAX's default precision, which on GPUs and
TPUs is lower; "lax.top_k" adds that to each part, exact to float32 as ours is; "faiss" is `IndexFlatIP` of faiss-cpu on
two threads, left out where it is not installed. Before anything is timed, all have to find the same scores; "agree" is
the smallest share of neighbours that another one has, below 1 by rounding only. "hard_negatives" is that miner, k
negatives for each query, which has one positive.
"""

import argparse
import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import metricjax as mj
from benchmarks.report import bars, fastest, save

SHAPES = ("4096x100000x128x1", "4096x100000x128x10", "1024x100000x128x100", "64x100000x128x10", "1024x1000000x128x10")
PART = 2**26  # scores of the parts that "product" and "lax.top_k" work on
THREADS = 2


@jax.jit
def product(x, y):
    return x @ y.T


@partial(jax.jit, static_argnames="k")
def dense(x, y, k):
    return mj.search.Neighbours(*lax.top_k(jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST), k))


def in_parts(f, x, y):
    """`f` of some queries and all references at a time, each finished before the next."""
    height = max(1, PART // len(y))
    for start in range(0, len(x), height):
        yield jax.block_until_ready(f(x[start : start + height], y))


def materialised(x, y):
    for _ in in_parts(product, x, y):
        pass
    return ()


def contestants(x, y, k: int) -> dict:
    """Name and search: each gives scores and indices, best first."""
    ours = jax.jit(lambda x, y: mj.search.top_k(x, y, k, similarity=mj.similarities.dot)).lower(x, y).compile()
    parts = lambda: in_parts(partial(dense, k=k), x, y)
    runs = {"ours": partial(ours, x, y), "lax.top_k": lambda: jax.tree.map(lambda *a: np.concatenate(a), *parts())}
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(THREADS)
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(np.asarray(y))
        runs["faiss"] = lambda: mj.search.Neighbours(*index.search(np.asarray(x), k))
    return runs


def mined(x, y, k: int):
    f = partial(mj.mining.hard_negatives, num_negatives=k, similarity=mj.similarities.dot)
    return jax.jit(f).lower(x, y, jnp.arange(len(x))).compile()


def agreement(runs: dict) -> float:
    """The smallest share of the neighbours found by the first that another one finds too; scores have to be equal."""
    first, *others = (run() for run in runs.values())
    shares = []
    for other in others:
        np.testing.assert_allclose(other.scores, first.scores, rtol=1e-5, atol=1e-5)
        same = np.asarray(first.indices)[:, :, None] == np.asarray(other.indices)[:, None]
        shares.append(float(np.mean(np.any(same, axis=2))))
    return min(shares)


def measured(q: int, n: int, d: int, k: int, rounds: int) -> dict[str, float]:
    """Times as multiples of that of the product, and MiB of temporaries of ours and of the miner."""
    keys = jax.random.split(jax.random.key(0))
    x, y = jax.random.normal(keys[0], (q, d)), jax.random.normal(keys[1], (n, d))
    runs = contestants(x, y, k)
    row = {"agree": agreement(runs)}
    miner = mined(x, y, k)
    runs |= {"hard_negatives": partial(miner, x, y, jnp.arange(q))}
    seconds = fastest({"product": partial(materialised, x, y), **runs}, rounds)
    row["product_ms"] = 1e3 * seconds.pop("product")
    MiB = lambda compiled: compiled.memory_analysis().temp_size_in_bytes / 2**20
    memory = {"MiB": MiB(runs["ours"].func), "hard_negatives_MiB": MiB(miner)}
    return {**row, **{name: 1e3 * time / row["product_ms"] for name, time in seconds.items()}, **memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    names = ("ours", "lax.top_k", "faiss", "hard_negatives")
    print(f"{'':24}{'product':>10}" + "".join(f"{name:>15}" for name in names) + f"{'agree':>11}{'MiB':>9}")
    print(f"{'':24}{'ms':>10}" + f"{'× product':>15}" * len(names))
    rows = []
    for shape in args.shapes:
        q, n, d, k = map(int, shape.split("x"))
        rows.append({"shape": shape, "queries": q, "references": n, "features": d, "k": k})
        rows[-1] |= (row := measured(q, n, d, k, args.rounds))
        shown = "".join(f"{row[name]:15.2f}" if name in row else f"{'–':>15}" for name in names)
        print(f"{shape:24}{row['product_ms']:10.1f}{shown}{row['agree']:11.5f}{row['MiB']:9.1f}", flush=True)
    packages = ["faiss-cpu"] if "faiss" in rows[0] else []
    save("search", rows, bars(rows, "shape", {name: name for name in names}, "time / that of the product"), packages)


if __name__ == "__main__":
    main()
