"""What do value and gradient of each loss without classes cost, beside the three matrix products of most?

    python -m benchmarks.losses [--shapes 4096x128 4096x512] [--losses ... | further | all]

Losses of two views get the batch and the batch moved by one row, regularisers the batch alone, as embeddings or as
prototypes, two of each class where a class has several.

mm3 is the time of S = X Xᵀ, S X and Xᵀ S and nothing else. "default" is what runs without any option: two sweeps for
declared losses on a CPU, panels for others and elsewhere; "autodiff" is the dense form, differentiated by JAX; on GPUs
and TPUs "kernel" is the fused kernel of those that have one.
"""

import argparse
import pathlib
import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

import metricjax as mj
from benchmarks.report import bars, fastest, save, temporaries
from metricjax.losses.catalogue import CATALOGUE


def documented(name: str) -> Callable:
    """A function that the guide to own losses defines: what is measured is what stands there."""
    text = (pathlib.Path(__file__).parents[1] / "docs/guides/own_losses.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if f"def {name}(" in block)
    defined: dict = {}
    exec(code, defined)
    return defined[name]


LOSSES = {
    "nt_xent": mj.losses.nt_xent,
    "supcon": mj.losses.supcon,
    "contrastive": mj.losses.contrastive,
    "multi_similarity": mj.losses.multi_similarity,
    "circle": mj.losses.circle,
    "triplet, batch-hard": mj.losses.triplet,
    "triplet, semi-hard": partial(mj.losses.triplet, triplets=mj.mining.semi_hard),
    "triplet, all": partial(mj.losses.triplet, triplets=mj.mining.all_triplets),
    "triplet, all, soft": partial(mj.losses.triplet, triplets=mj.mining.all_triplets, margin=None),
    "mean_hinge": documented("mean_hinge"),
}


def of_arrays(name: str, classes: int = 1, over: Callable = lambda loss: loss, **known) -> Callable:
    """The loss of its arrays alone: with its first state and a key, or those `known`, and without the new state."""
    loss, entry = over(getattr(mj.losses, name)), CATALOGUE[name]
    first = {"state": lambda: entry.first("state", classes), "key": lambda: jax.random.key(0)}
    first |= {need: lambda value=value: value for need, value in known.items()}

    def value(*arrays, **options):
        result = loss(*arrays, *(first[need]() for need in entry.takes if need in first), **options)
        return result[0] if entry.state is not None else result

    return value


def from_catalogue(name: str) -> Callable:
    """The loss of rows and labels with its defaults."""
    loss, entry = getattr(mj.losses, name), CATALOGUE[name]
    if entry.kind == "views":
        return lambda z, y: loss(z, jnp.roll(z, 1, axis=0))
    if entry.kind in ("rows", "prototypes"):
        return lambda z, y: loss(z.reshape(-1, 2, z.shape[1]) if entry.several else z)
    return of_arrays(name) if "state" in entry.takes else loss


OF_PAIRS = {name: from_catalogue(name) for name, entry in CATALOGUE.items() if entry.kind == "pairs"}
OTHERS = {name: from_catalogue(name) for name, entry in CATALOGUE.items() if entry.kind not in ("pairs", "classes")}
FURTHER = {name: loss for name, loss in OF_PAIRS.items() if loss not in LOSSES.values()} | OTHERS
FURTHER["three in one sum"] = mj.weighted_sum(mj.losses.supcon, mj.losses.multi_similarity, mj.losses.circle)
GROUPS = {"further": list(FURTHER), "all": [*LOSSES, *FURTHER]}
LINE = "{shape}  {loss:20} mm3 {mm3_ms:6.1f} ms   {ratios}   temporaries {temporaries_MiB:6.1f} MiB"


def forms() -> dict[str, dict]:
    """The forms of each loss, by their options."""
    found = {"default": {}, "panels": {"implementation": "panels"}, "autodiff": {"block_size": None}}
    return found if jax.default_backend() == "cpu" else found | {"kernel": {"implementation": "kernel"}}


@jax.jit
def three_products(x):
    s = x @ x.T
    return s @ x, x.T @ s


def batch(n: int, d: int, per_class: int, seed=0):
    """Embeddings that scatter widely around a point for each class, and their labels."""
    y = jnp.arange(n) // per_class
    middle = jax.random.normal(jax.random.key(seed + 1), (n // per_class + 1, d))
    return middle[y] + 2 * jax.random.normal(jax.random.key(seed), (n, d)), y


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x128", "4096x512"])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=[*LOSSES, *FURTHER, *GROUPS])
    parser.add_argument("--per-class", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for shape in args.shapes:
        z, y = batch(*map(int, shape.split("x")), args.per_class)
        for name in [name for chosen in args.losses for name in GROUPS.get(chosen, [chosen])]:
            loss = (LOSSES | FURTHER)[name]
            of = {"default": {}} if loss in OTHERS.values() else forms()
            rows.append({"shape": shape, "loss": name, **measured(loss, z, y, args.rounds, of)})
            ratios = "   ".join(f"{form} {rows[-1][form]:5.2f}" for form in forms() if form in rows[-1])
            print(LINE.format(**rows[-1], ratios=ratios), flush=True)
    drawn = [{**row, "name": f"{row['loss']}, {row['shape']}"} for row in rows]
    legend = {"default": "by default", "panels": "in panels", "autodiff": "dense, differentiated by JAX"}
    legend |= {form: f"in a {form}" for form in forms() if form not in legend}
    save("losses", rows, bars(drawn, "name", legend, "value and gradient, multiples of three products", log=True))


def measured(loss, z, y, rounds: int, forms: dict[str, dict]) -> dict[str, float]:
    """Times of value and gradient in each form, as multiples of mm3, and the temporaries of the default one."""
    gradient = lambda how: jax.jit(jax.value_and_grad(lambda z: loss(z, y, **how)))
    made = {form: gradient(how) for form, how in forms.items()}
    seconds = fastest({"mm3": partial(three_products, z)} | {form: partial(f, z) for form, f in made.items()}, rounds)
    ratios = {form: seconds[form] / seconds["mm3"] for form in made}
    return {"mm3_ms": 1e3 * seconds["mm3"], **ratios, "temporaries_MiB": temporaries(made["default"], z) / 2**20}


if __name__ == "__main__":
    main()
