"""How much memory do value and gradient of each pair-based loss take besides inputs and outputs? Compiled, not run.

    python -m benchmarks.memory [--batches 4096 16384 65536]

"dense" is the same loss with `block_size=None`, "panels" with `implementation="panels"`, and on GPUs and TPUs "kernel"
with `implementation="kernel"`. `optax.ntxent` is added where Optax is installed.
"""

import argparse
import importlib.util

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from benchmarks.losses import LOSSES
from benchmarks.report import save, temporaries

D = 128
OTHERS = ("supcon, dense", "optax.ntxent", "supcon, panels", "supcon, kernel")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", type=int, default=[4096, 16384, 65536])
    args = parser.parse_args()
    forms = {name: lambda z, y, loss=loss: loss(z, y) for name, loss in LOSSES.items()}
    forms[OTHERS[0]] = lambda z, y: LOSSES["supcon"](z, y, block_size=None)
    forms[OTHERS[2]] = lambda z, y: LOSSES["supcon"](z, y, implementation="panels")
    if jax.default_backend() != "cpu":
        forms[OTHERS[3]] = lambda z, y: LOSSES["supcon"](z, y, implementation="kernel")
    packages = []
    if importlib.util.find_spec("optax"):
        from optax.losses import ntxent

        forms[OTHERS[1]] = ntxent
        packages.append("optax")
    rows = []
    print(f"{'MiB of temporaries, d = 128':28}" + "".join(f"{n:>12}" for n in args.batches))
    for name, form in forms.items():
        used = {str(n): measured(form, n) for n in args.batches}
        rows.append({"loss": name, **used})
        print(f"{name:28}" + "".join(f"{mebibytes:12.1f}" for mebibytes in used.values()), flush=True)
    save("memory", rows, plot(rows), packages)


def measured(form, n: int) -> float:
    z, y = jax.ShapeDtypeStruct((n, D), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    return temporaries(jax.value_and_grad(form), z, y) / 2**20


def plot(rows: list[dict]) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    batches = [int(n) for n in rows[0] if n != "loss"]
    for name, *used in (row.values() for row in rows):
        axes.plot(batches, used, "s--" if name in OTHERS else "o-", label=name, markersize=3)
    axes.plot(batches, [n * D * 4 / 2**20 for n in batches], "k:", label="the embeddings")
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="MiB of temporaries")
    axes.set_xticks(batches, [f"{n:,}" for n in batches])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(fontsize=7, loc="outside right upper")
    return figure


if __name__ == "__main__":
    main()
