"""All triplets of a batch without listing them: how much faster and smaller than the B × B × B form?

    python -m benchmarks.all_triplets

Value and gradient of the triplet loss. The listed form differentiates [d_ap − d_an + m]₊ of all triplets by JAX.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp

import metricjax as mj
from benchmarks.losses import batch
from benchmarks.report import bars, fastest, save, temporaries

LINE = (
    "{name:34} {ms:8.1f} ms  {giga:6.3f} G triplets/s  listed: {times_faster:5.0f} x the time, "
    "{times_smaller:5.0f} x the temporaries; values differ by {difference:.0e}"
)


def listed(z, y, margin):
    d = mj.distances.squared_chord(z, z)
    same = y[:, None] == y[None]
    valid = (same & ~jnp.eye(len(z), dtype=bool))[:, :, None] & ~same[:, None, :]
    gaps = d[:, :, None] - d[:, None, :]
    terms = jnp.where(valid, jax.nn.softplus(gaps) if margin is None else jnp.maximum(gaps + margin, 0), 0)
    return jnp.sum(terms) / jnp.maximum(jnp.sum(valid if margin is None else terms > 0), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for n, per_class, margin in ((512, 4, 0.2), (512, 64, 0.2), (512, 4, None), (2048, 256, 0.2), (2048, 256, None)):
        rows.append(measured(n, per_class, margin, args.rounds))
        print((LINE if rows[-1]["times_faster"] else LINE.split("  listed")[0]).format(**rows[-1]), flush=True)
    drawn = {"times_faster": "times faster than listed", "times_smaller": "times smaller"}
    save("all_triplets", rows, bars(rows, "name", drawn, "all triplets, listed over not listed", log=True))


def measured(n: int, per_class: int, margin: float | None, rounds: int) -> dict:
    z, y = batch(n, 128, per_class)
    ours = partial(mj.losses.triplet, margin=margin, triplets=mj.mining.all_triplets)
    forms = {"ours": lambda z: ours(z, y)}
    if n <= 512:
        forms["listed"] = lambda z: listed(z, y, margin)
    forms = {name: jax.jit(jax.value_and_grad(f)) for name, f in forms.items()}
    seconds = fastest({name: partial(f, z) for name, f in forms.items()}, rounds)
    count = n * (per_class - 1) * (n - per_class)
    row = {
        "name": f"{n} rows, {per_class} per class, {'soft' if margin is None else 'hinge'}",
        "ms": 1e3 * seconds["ours"],
        "giga": count / seconds["ours"] / 1e9,
    }
    if "listed" not in forms:
        return {**row, "times_faster": None, "times_smaller": None, "difference": None}
    space = {name: temporaries(f, z) for name, f in forms.items()}
    values = [float(f(z)[0]) for f in forms.values()]
    return {
        **row,
        "times_faster": seconds["listed"] / seconds["ours"],
        "times_smaller": space["listed"] / space["ours"],
        "difference": abs(values[0] - values[1]) / values[1],
    }


if __name__ == "__main__":
    main()
