"""What does a miner cost in a loss, and what a distance, beside the three matrix products of most losses?

    python -m benchmarks.miners [--shape 4096x128] [--only semi_hard lp ...] [--rounds 7]

Value and gradient: selections of triplets are in `mj.losses.triplet`, masks and distances in `mj.losses.contrastive`,
similarities in `mj.losses.supcon`. mm3 is the time of S = X Xᵀ, S X and Xᵀ S and nothing else.
"""

import argparse
from functools import partial

import jax

import metricjax as mj
from benchmarks.losses import batch, measured
from benchmarks.report import bars, save

LINE = "{loss:12} {option:10} {name:28} {default:7.2f} mm3   temporaries {temporaries_MiB:6.1f} MiB"
MASKS = {
    "none": None,
    "multi_similarity": mj.mining.multi_similarity(),
    "pair_margin": mj.mining.pair_margin(),
    "triplet_margin": mj.mining.triplet_margin(),
    "angular": mj.mining.angular(),
    "batch_easy_hard": mj.mining.batch_easy_hard(),
    "hard_fraction": mj.mining.hard_fraction(),
    "rank_range": mj.mining.rank_range((2, 50)),
    "chain": mj.mining.chain(mj.mining.pair_margin(), mj.mining.multi_similarity()),
    "switch": mj.mining.switch(0, [mj.mining.pair_margin(), mj.mining.multi_similarity()]),
}
SELECTIONS = {
    "batch_hard": mj.mining.batch_hard,
    "semi_hard": mj.mining.semi_hard,
    "semi_hard_within": mj.mining.semi_hard_within(),
    "semi_hard_of_hardest": mj.mining.semi_hard_of_hardest,
    "easy_positive_hard_negative": mj.mining.easy_positive_hard_negative,
    "distance_weighted": mj.mining.distance_weighted(jax.random.key(0), 128),
    "all_triplets": mj.mining.all_triplets,
}
MADE = {"lp": mj.distances.lp(1), "poincare": mj.distances.poincare(1)}  # the others are distances by themselves
DISTANCES = {name: MADE.get(name, getattr(mj.distances, name)) for name in mj.distances.__all__}
SIMILARITIES = {name: getattr(mj.similarities, name) for name in mj.similarities.__all__}
CONTESTANTS = {  # what each is an option of, and all of them
    "triplets": ("triplet", SELECTIONS),
    "miner": ("contrastive", MASKS),
    "distance": ("contrastive", DISTANCES),
    "similarity": ("supcon", SIMILARITIES),
}


def main():
    names = sorted({name for _, some in CONTESTANTS.values() for name in some})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4096x128")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    z, y = batch(*map(int, args.shape.split("x")), per_class=4)
    rows = []
    for option, (loss, some) in CONTESTANTS.items():
        for name in [name for name in some if name in args.only]:
            with_it = partial(getattr(mj.losses, loss), **{option: some[name]})
            found = measured(with_it, z, y, args.rounds, {"default": {}})
            rows.append({"shape": args.shape, "loss": loss, "option": option, "name": name, **found})
            print(LINE.format(**rows[-1]), flush=True)
    drawn = [{**row, "label": f"{row['option']}: {row['name']}"} for row in rows]
    title = "value and gradient, multiples of three products"
    save("miners", rows, bars(drawn, "label", {"default": "by default"}, title, log=True))


if __name__ == "__main__":
    main()
