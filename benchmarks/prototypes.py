"""What do value and gradient of a class-based loss cost, for a thousand to a million classes?

    python -m benchmarks.prototypes [--shapes 512x50000x128 ...] [--loss cosface] [--rounds 5]

Shapes are batch x classes x features. mm3 is the time of S = X Wᵀ, S W and Sᵀ X and nothing else, with S in memory.
"dense" holds all logits (left out above 100 million of them), "blocks" some classes at a time, "sampled" is Partial FC
with a tenth of the classes: sampling, gathering and the loss. Throughput is rows a second; temporaries come from the
compiled programs, and show what memory a step takes besides its inputs and outputs.
"""

import argparse
from functools import partial

import jax
from matplotlib.figure import Figure

import metricjax as mj
from benchmarks.report import fastest, save

SHAPES = (
    "512x1000x128", "512x10000x128", "512x50000x128", "512x50000x512", "512x100000x128", "512x300000x128",
    "256x1000000x128",
)  # fmt: skip
FORMS = ("dense", "blocks", "sampled")
MOST_DENSE = 10**8  # logits


@jax.jit
def three_products(x, w):
    s = x @ w.T
    return s @ w, (x.T @ s).T


def step(loss, form: str, classes: int, count: int, key, x, y, w):
    """Value, and the gradients of embeddings and of the prototypes that took part."""
    if form != "sampled":
        f = lambda x, w: loss(x, y, w, block_size=None if form == "dense" else min(len(w), 2**20 // len(x)))
        return jax.value_and_grad(f, (0, 1))(x, w)
    ids = mj.prototypes.sample(key, y, classes, count)
    return jax.value_and_grad(lambda x, w: loss(x, y, w, classes=ids), (0, 1))(x, w[ids])


def measured(loss, n: int, c: int, d: int, rounds: int) -> dict[str, float]:
    """Times as multiples of mm3, rows a second, and MiB of temporaries."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, w = jax.random.normal(keys[0], (n, d)), jax.random.normal(keys[1], (c, d))
    y = jax.random.randint(keys[2], (n,), 0, c)
    count, runs, row = min(c, max(n, c // 10)), {"mm3": partial(three_products, x, w)}, {}
    for form in FORMS:
        f = jax.jit(partial(step, loss, form, c, count)).lower(keys[3], x, y, w).compile()
        row[f"{form}_MiB"] = f.memory_analysis().temp_size_in_bytes / 2**20
        if form != "dense" or n * c <= MOST_DENSE:
            runs[form] = partial(f, keys[3], x, y, w)
    seconds = fastest(runs, rounds)
    row["mm3_ms"] = 1e3 * seconds.pop("mm3")
    for form, time in seconds.items():
        row |= {form: 1e3 * time / row["mm3_ms"], f"{form}_rows_per_s": n / time}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--loss", default="cosface", help="one without a state or a key")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = []
    print(f"{'':18}{'mm3':>9}   " + "".join(f"{form:>30}" for form in FORMS))
    print(f"{'':18}{'ms':>9}   " + f"{'× mm3':>9}{'rows/s':>9}{'MiB':>12}" * len(FORMS))
    for shape in args.shapes:
        n, c, d = map(int, shape.split("x"))
        row = measured(getattr(mj.losses, args.loss), n, c, d, args.rounds)
        rows.append({"shape": shape, "batch": n, "classes": c, "features": d, "loss": args.loss, **row})
        cells = ((row.get(form), row.get(f"{form}_rows_per_s"), row[f"{form}_MiB"]) for form in FORMS)
        shown = (f"{a:9.2f}{b:9.0f}{m:12.1f}" if a else f"{'–':>9}{'–':>9}{m:12.1f}" for a, b, m in cells)
        print(f"{shape:18}{row['mm3_ms']:9.1f}   " + "".join(shown), flush=True)
    save("prototypes", rows, plot(rows))


def plot(rows: list[dict]) -> Figure:
    """Memory against the number of classes, for the number of features that most shapes have."""
    features = max((row["features"] for row in rows), key=[row["features"] for row in rows].count)
    rows = sorted((row for row in rows if row["features"] == features), key=lambda row: row["classes"])
    classes = [row["classes"] for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for form in FORMS:
        axes.plot(classes, [row[f"{form}_MiB"] for row in rows], "o-", label=form, markersize=4)
    logits = [2 * row["batch"] * row["classes"] * 4 / 2**20 for row in rows]
    axes.plot(classes, logits, "k--", label="logits and their gradient")
    axes.plot(classes, [c * features * 4 / 2**20 for c in classes], "k:", label="the prototypes")
    axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="MiB of temporaries, value and gradient")
    axes.set_title(f"{rows[0]['loss']}, {features} features, batch {' to '.join(batches(rows))}", fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    return figure


def batches(rows: list[dict]) -> list[str]:
    return [str(n) for n in sorted({row["batch"] for row in rows})]


if __name__ == "__main__":
    main()
