"""What do prefixes, bytes and bits of embeddings cost in accuracy, and what do they save in memory and time?

    python -m benchmarks.compact [--steps 200] [--shapes 64x1000000x128x10 ...] [--rounds 5]

First a small encoder is trained on half of the ORL faces (see benchmarks/faces.py) by `mj.matryoshka` of a loss, and
those of people never seen are searched for by prefixes, at each precision, and with candidates rescored by whole
embeddings (`mj.metrics.compact_retrieval`).

Then rows of classes of ten, around random centres, with cosines of 2/3 within a class, are searched by other rows of
these classes: shapes are queries x references x features x k. Times are multiples of that of `top_k` among float32
rows, by inner products; "found" is the share of its neighbours that come out.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metricjax as mj
from benchmarks import faces
from benchmarks.report import bars, fastest, save
from metricjax import variants

SHAPES = ("64x1000000x128x10", "4096x1000000x128x10")
PREFIXES = (8, 16, 32, 64)
DOT = mj.similarities.dot


def embeddings(steps: int) -> tuple[jax.Array, np.ndarray]:
    """Of faces of people never seen, with useful prefixes, and who they are."""
    seen, unseen = faces.load()
    nested = mj.matryoshka(partial(mj.losses.supcon, temperature=0.1), PREFIXES)
    losses = {"matryoshka": lambda z, labels, numbers: nested(z, labels)}
    task = faces.task(seen, losses, lambda numbers: optax.adam(1e-3), 1, steps)
    trained = variants.train(task, variants.product(losses, [0]), steps, at_once=1)
    params = jax.tree.map(lambda a: a[0], trained.params)
    return mj.sphere.project(faces.features(params, unseen.images)), unseen.labels


def contestants(x, y, k: int) -> dict:
    """Name: the search, and bytes of a reference that it reads first and of all that it keeps."""
    d = y.shape[1]
    bytes_, bits = mj.search.compact(y), mj.search.compact(y, "binary")
    top_k = partial(mj.search.top_k, k=k, similarity=DOT)
    signs = jax.jit(lambda x: mj.search.top_k(mj.search.compact(x, "binary"), bits, k))
    return {
        "float32": (lambda: top_k(x, y), 4 * d),
        "int8": (lambda: top_k(x, bytes_), d),
        "binary": (lambda: top_k(x, bits), bits.bytes_per_row),
        "Hamming": (lambda: signs(x), bits.bytes_per_row),
        "Hamming, then binary": (lambda: top_k(x, bits, coarse=bits), bits.bytes_per_row),
        "Hamming, then int8": (lambda: top_k(x, bytes_, coarse=bits), bits.bytes_per_row + d),
        "Hamming, then float32": (lambda: top_k(x, y, coarse=bits), bits.bytes_per_row + 4 * d),
        f"{d // 4} features, then float32": (lambda: top_k(x, y, coarse=d // 4), 4 * d),
    }


def measured(q: int, m: int, d: int, k: int, rounds: int) -> list[dict]:
    keys = jax.random.split(jax.random.key(0), 4)
    classes = -(-m // 10)
    centers = jax.random.normal(keys[0], (classes, d))
    rows_of = lambda key, label: centers[label] + jax.random.normal(key, (len(label), d)) / 2**0.5
    x = rows_of(keys[1], jax.random.randint(keys[2], (q,), 0, classes))
    y = mj.sphere.project(rows_of(keys[3], jnp.arange(m) // 10))
    runs = contestants(x, y, k)
    seconds = fastest({name: run for name, (run, _) in runs.items()}, rounds)
    exact = np.asarray(runs["float32"][0]().indices)
    rows = []
    for name, (run, size) in runs.items():
        same = np.asarray(run().indices)[:, :, None] == exact[:, None]
        time = seconds[name] / seconds["float32"]
        rows.append({"search": name, "bytes": size, "time": time, "found": float(np.mean(np.any(same, axis=1)))})
        rows[-1] |= {"shape": f"{q}x{m}x{d}x{k}", "ms": 1e3 * seconds[name]}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    z, labels = embeddings(args.steps)
    table = mj.metrics.compact_retrieval(z, labels, prefixes=PREFIXES, rescore_multiplier=10)
    print(f"{len(labels)} faces of people never seen\n\n{table}\n")
    rows = []
    for shape in args.shapes:
        print(f"{shape:32}{'bytes a row':>12}{'time':>8}{'ms':>10}{'found':>8}")
        for row in measured(*map(int, shape.split("x")), args.rounds):
            print(
                f"{row['search']:32}{row['bytes']:12,}{row['time']:8.2f}{row['ms']:10.1f}{row['found']:8.3f}",
                flush=True,
            )
            rows.append(row | {"name": f"{row['search']}, {shape}"})
    drawn = bars(rows, "name", {"time": "time", "found": "found"}, "time / that of float32, and share found")
    save("compact", [*map(dict, table), *rows], drawn)


if __name__ == "__main__":
    main()
