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
        y = jnp.arange(n) // args.per_class
        middle = 2 * jax.random.normal(jax.random.key(1), (n // args.per_class + 1, d))
        z = middle[y] + jax.random.normal(jax.random.key(0), (n, d))
        for name in args.losses:
            rows.append({"shape": shape, "loss": name, **measured(LOSSES[name], z, y, args.rounds)})
            print(
                "{shape}  {loss:22} mm3 {mm3_ms:6.1f} ms   blocked {blocked:5.2f}   autodiff {autodiff:5.2f}   "
                "temporaries {temporaries_MiB:6.1f} MiB".format(**rows[-1]),
                flush=True,
            )
    print(write("losses", rows))


def measured(loss, z, y, rounds: int) -> dict[str, float]:
    """Times of value and gradient as multiples of mm3, and the temporaries of the blocked form."""
    gradient = lambda size: jax.jit(jax.value_and_grad(lambda z: loss(z, y, block_size=size)))
    blocked, dense = gradient("auto"), gradient(None)
    runs = {"mm3": partial(three_products, z), "blocked": partial(blocked, z), "autodiff": partial(dense, z)}
    seconds = fastest(runs, rounds)
    memory = blocked.lower(z).compile().memory_analysis().temp_size_in_bytes / 2**20
    ratios = {form: seconds[form] / seconds["mm3"] for form in ("blocked", "autodiff")}
    return {"mm3_ms": 1e3 * seconds["mm3"], **ratios, "temporaries_MiB": memory}


if __name__ == "__main__":
    main()
