"""What do value and gradient of each class-based loss cost, beside the three matrix products that most cannot avoid?

    python -m benchmarks.class_losses [--shape 512x10000x128] [--losses ...]

mm3 is the time of S = X Wᵀ, S W and Sᵀ X and nothing else, with S in memory. "default" takes blocks of classes,
"autodiff" is the dense form, differentiated by JAX. Losses that take several prototypes of a class get two: their
products are twice as large. `benchmarks.prototypes` has more shapes, and Partial FC.
"""

import argparse
from functools import partial

import jax

from benchmarks.losses import of_arrays
from benchmarks.prototypes import three_products
from benchmarks.report import bars, fastest, save, temporaries
from metricjax.losses.catalogue import CATALOGUE

LOSSES = [name for name, entry in CATALOGUE.items() if entry.kind == "classes"]
LINE = "{loss:22} mm3 {mm3_ms:6.1f} ms   default {default:5.2f}   autodiff {autodiff:5.2f}   {temporaries_MiB:6.1f} MiB"


def measured(name: str, n: int, c: int, d: int, rounds: int) -> dict[str, float]:
    """Times of value and gradient as multiples of mm3, and the temporaries of the default form."""
    keys, several = jax.random.split(jax.random.key(0), 3), CATALOGUE[name].several
    x, w = jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (c, 2, d) if several else (c, d))
    y, loss = jax.random.randint(keys[2], (n,), 0, c), of_arrays(name, c)
    gradient = lambda how: jax.jit(jax.value_and_grad(lambda x, w: loss(x, y, w, **how), (0, 1)))
    forms = {"default": gradient({}), "autodiff": gradient({"block_size": None})}
    runs = {"mm3": partial(three_products, x, w.reshape(-1, d))} | {form: partial(f, x, w) for form, f in forms.items()}
    seconds = fastest(runs, rounds)
    ratios = {form: seconds[form] / seconds["mm3"] for form in forms}
    return {"mm3_ms": 1e3 * seconds["mm3"], **ratios, "temporaries_MiB": temporaries(forms["default"], x, w) / 2**20}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="512x10000x128", help="batch x classes x features")
    parser.add_argument("--losses", nargs="+", default=LOSSES, choices=LOSSES)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for name in args.losses:
        rows.append(
            {"shape": args.shape, "loss": name, **measured(name, *map(int, args.shape.split("x")), args.rounds)}
        )
        print(LINE.format(**rows[-1]), flush=True)
    legend = {"default": "by default", "autodiff": "dense, differentiated by JAX"}
    save("class_losses", rows, bars(rows, "loss", legend, "value and gradient, multiples of three products"))


if __name__ == "__main__":
    main()
