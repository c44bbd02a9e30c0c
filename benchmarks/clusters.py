"""What do clusters and the signs of collapse cost, next to computing the scores alone, and to a peer?

    python -m benchmarks.clusters [--means 50000x128x1000 ...] [--leaders 20000x128x4000 ...] [--pairs 20000x128 ...]
                                  [--steps 25] [--rounds 5]

Shapes are rows x features x classes. "product" is the time of X Cᵀ for k-means, of X Xᵀ for the others, a tile at a
time and nothing kept of it but the largest score: other times are multiples of it.

- k-means: as many clusters as classes, whose rows differ most in a few directions, so that it takes long. "ours" does
  `--steps` steps, "until it ends" as many as there are by default; the peer is `faiss.Kmeans`, spherical, of as many
  steps on two threads, which stops where the sum of similarities stays. Beside them the number of steps, the mean
  cosine with the centres, and the mutual information with the classes.
- leaders: `threshold_clusters` of tight classes; the peer is the definition as a scan, one row at a time.
- `embedding_health` and `connected_components` of the same rows.
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

TILE = 500
THREADS = 2
THRESHOLD = 0.6
KEY = jax.random.key(0)


def mixture(n: int, d: int, classes: int, noise: float, directions: int = 0):
    """Rows around as many means as there are classes, and which class each is of."""
    rng = np.random.default_rng(0)
    means, shared = (rng.standard_normal((rows, d)) / np.sqrt(d) for rows in (classes, directions))
    labels = rng.permutation(np.arange(n) % classes)
    x = means[labels] + rng.standard_normal((n, directions)) @ shared / max(1, directions) ** 0.5
    x += noise / np.sqrt(d) * rng.standard_normal((n, d))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32), labels


@jax.jit
def product(x, y):
    """The largest score of each row, of whole tiles of each."""
    tiles = lambda a: a[: len(a) - len(a) % min(TILE, len(a))].reshape(-1, min(TILE, len(a)), a.shape[1])
    scores = lambda a, b: jnp.max(jnp.matmul(b, a.T, precision=lax.Precision.HIGHEST), axis=0)
    return lax.map(lambda a: jnp.max(lax.map(partial(scores, a), tiles(y)), axis=0), tiles(x))


@jax.jit
def one_by_one(x, threshold):
    """The place of each row, by the definition of leader clustering."""

    def step(state, row):
        sums, centers, number = state
        cosines = jnp.matmul(centers, row, precision=lax.Precision.HIGHEST)
        cosines = jnp.where(jnp.arange(len(sums)) < number, cosines, -jnp.inf)
        best = jnp.argmax(cosines)
        place = jnp.where(cosines[best] >= threshold, best, number)
        sums = sums.at[place].add(row)
        center = sums[place] / jnp.linalg.norm(sums[place])
        return (sums, centers.at[place].set(center), jnp.maximum(number, place + 1)), place

    nothing = jnp.zeros_like(x)
    return lax.scan(step, (nothing, nothing, 0), x)[1]


def means(n: int, d: int, count: int, steps: int, rounds: int) -> dict:
    x, labels = mixture(n, d, count, noise=0.5, directions=8)
    run = lambda steps: mj.clusters.k_means(KEY, x, count, steps=steps)
    runs = {"ours": partial(run, steps), "until it ends": partial(run, 100)}
    row = {}
    for name, found in ((name, run()) for name, run in runs.items()):
        row |= quality(name, int(found.steps), found.similarity, found.labels, labels)
    if importlib.util.find_spec("faiss"):
        runs["peer"] = partial(faiss_means, x, count, steps)
        centers, taken = runs["peer"]()
        scores = x @ centers.T
        row |= quality("peer", taken, jnp.mean(jnp.max(scores, axis=1)), jnp.argmax(scores, axis=1), labels)
    return row | multiples(fastest({"product": lambda: product(x, x[:count]), **runs}, rounds))


def faiss_means(x, count: int, steps: int):
    """Its centres and how many steps it took."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    found = faiss.Kmeans(x.shape[1], count, niter=steps, spherical=True, seed=1, max_points_per_centroid=len(x))
    found.train(np.asarray(x))
    return jnp.asarray(found.centroids), len(found.obj)


def quality(name: str, steps: int, similarity, clusters, labels) -> dict:
    mutual = mj.metrics.nmi(labels, np.asarray(clusters))
    return {f"{name} steps": steps, f"{name} cosine": float(similarity), f"{name} nmi": mutual}


def leaders(n: int, d: int, classes: int, rounds: int) -> dict:
    x, labels = mixture(n, d, classes, noise=0.5)
    runs = {"ours": lambda: mj.clusters.threshold_clusters(x, THRESHOLD), "peer": lambda: one_by_one(x, THRESHOLD)}
    found, wanted = (run() for run in runs.values())
    row = {"clusters": int(jnp.max(wanted)) + 1, "differ": int(jnp.sum(found.labels != wanted))}
    row |= {"ours nmi": mj.metrics.nmi(labels, np.asarray(found.labels))}
    return row | multiples(fastest({"product": lambda: product(x, x), **runs}, rounds))


def pairs(n: int, d: int, rounds: int) -> list[dict]:
    x, labels = mixture(n, d, max(1, n // 5), noise=0.5)
    x = jax.block_until_ready(x)
    health = lambda: list(mj.metrics.embedding_health(x, labels, k=min(10, n - 1)).values())
    components = lambda: mj.clusters.connected_components(x, THRESHOLD)
    seconds = fastest({"product": lambda: product(x, x), "health": health, "components": components}, rounds)
    names = ("health", "components")
    return [{"name": f"{name} {n}x{d}"} | multiples({k: seconds[k] for k in ("product", name)}, name) for name in names]


def multiples(seconds: dict[str, float], ours: str = "ours") -> dict:
    unit = seconds["product"]
    rest = {"ours" if name == ours else name: time / unit for name, time in seconds.items() if name != "product"}
    return {"product_ms": 1e3 * unit, **rest}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--means", nargs="*", default=["50000x128x1000"])
    parser.add_argument("--leaders", nargs="*", default=["20000x128x4000"])
    parser.add_argument("--pairs", nargs="*", default=["20000x128"])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sizes = lambda shape: map(int, shape.split("x"))
    rows = [{"name": f"k-means {shape}"} | means(*sizes(shape), args.steps, args.rounds) for shape in args.means]
    rows += [{"name": f"leaders {shape}"} | leaders(*sizes(shape), args.rounds) for shape in args.leaders]
    rows += [row for shape in args.pairs for row in pairs(*sizes(shape), args.rounds)]
    names = ("ours", "until it ends", "peer")
    print(f"{'':28}{'product ms':>12}" + "".join(f"{name:>15}" for name in names))
    for row in rows:
        shown = "".join(f"{row[name]:15.2f}" if name in row else f"{'–':>15}" for name in names)
        print(f"{row['name']:28}{row['product_ms']:12.1f}{shown}")
        rest = {k: v for k, v in row.items() if k not in ("name", "product_ms", *names)}
        print(*(f"    {name}: {value:.4g}" for name, value in rest.items()), sep="\n", end="\n" if rest else "")
    packages = ["faiss-cpu"] if any("peer nmi" in row for row in rows) else []
    save("clusters", rows, bars(rows, "name", {name: name for name in names}, "time / that of the product"), packages)


if __name__ == "__main__":
    main()
