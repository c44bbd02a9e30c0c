"""What do value and gradient of each pair-based loss cost, beside the three matrix products that most cannot avoid?

    python -m benchmarks.losses [--shapes 4096x128 4096x512]

mm3 is the time of S = X Xᵀ, S X and Xᵀ S and nothing else. "autodiff" is the dense form, differentiated by JAX.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp

import metricjax as mj
from benchmarks.timing import fastest, write

LOSSES = {
    "nt_xent": mj.losses.nt_xent,
    "supcon": mj.losses.supcon,
    "contrastive": mj.losses.contrastive,
    "multi_similarity": mj.losses.multi_similarity,
    "circle": mj.losses.circle,
    "triplet, batch-hard": mj.losses.triplet,
    "triplet, semi-hard": partial(mj.losses.triplet, triplets=mj.mining.semi_hard),
    "triplet, all": partial(mj.losses.triplet, triplets=mj.mining.all_triplets),
}


@jax.jit
def three_products(x):
    s = x @ x.T
    return s @ x, x.T @ s


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x128", "4096x512"])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for shape in args.shapes:
        n, d = map(int, shape.split("x"))
        z = jax.random.normal(jax.random.key(0), (n, d))
        y = jnp.arange(n) // args.per_class
        z = z + 2 * jax.random.normal(jax.random.key(1), (n // args.per_class + 1, d))[y]
        for name in args.losses:
            blocked, dense = (
                jax.jit(jax.value_and_grad(lambda z, f=LOSSES[name], size=size: f(z, y, block_size=size)))
                for size in ("auto", None)
            )
            runs = {"mm3": lambda: three_products(z), "blocked": lambda: blocked(z), "dense": lambda: dense(z)}
            seconds = fastest(runs, args.rounds)
            memory = blocked.lower(z).compile().memory_analysis().temp_size_in_bytes / 2**20
            row = {"shape": shape, "loss": name, "mm3_ms": 1e3 * seconds["mm3"], "temporaries_MiB": memory}
            row |= {form: seconds[form] / seconds["mm3"] for form in ("blocked", "dense")}
            rows.append(row)
            print(
                f"{shape}  {name:22} mm3 {row['mm3_ms']:6.1f} ms   blocked {row['blocked']:5.2f}   "
                f"autodiff {row['dense']:5.2f}   temporaries {memory:6.1f} MiB",
                flush=True,
            )
    print(write("losses", rows))


if __name__ == "__main__":
    main()
