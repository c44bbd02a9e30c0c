"""A miner: which pairs of a small batch it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import metricjax as mj
from metricjax.engine.miners import as_miner, prepared

MADE = {  # those whose settings have to be given, or keep all of one side of this batch by default
    "distance_weighted": ("key", 8),
    "hard_fraction": (0.25,),
    "pair_margin": (1.0, 1.3),
    "rank_range": ((2, 5),),
}
ANCHORS, COLUMNS = 8, 18


def miner(name: str) -> Figure:
    """Each anchor's positives and, below them, negatives by distance: filled if kept, joined if of one triplet."""
    labels = jnp.arange(COLUMNS) % 3
    centres = jax.random.normal(jax.random.key(3), (3, 8))
    z = centres[labels] + 0.9 * jax.random.normal(jax.random.key(4), (COLUMNS, 8))
    distances = mj.distances.chord(z, z)
    same = labels[:, None] == labels[None]
    masks = distances, same & ~jnp.eye(COLUMNS, dtype=bool), ~same
    mined, title = getattr(mj.mining, name), f"mj.mining.{name}"
    if not isinstance(mined, mj.mining.Selection):
        settings = MADE.get(name, ())
        mined = mined(*(jax.random.key(0) if setting == "key" else setting for setting in settings))
        title += f"({', '.join(map(str, settings))})"
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.subplots()
    places = lambda kind, anchor: anchor + (0.15, -0.15)[kind]
    if isinstance(mined, mj.mining.Selection):
        triplets = jax.tree.map(lambda leaf: np.array(leaf).ravel(), mined(*masks))
        kept = np.zeros((2, COLUMNS, COLUMNS), bool)
        for a, p, n, valid in zip(*triplets, strict=True):
            kept[0, a, p] |= valid
            kept[1, a, n] |= valid
            if valid and a < ANCHORS:
                ends = places(0, a), places(1, a)
                axes.plot(np.array(distances)[a, [p, n]], ends, color="gray", lw=0.6, zorder=0)
    else:
        whole = prepared(as_miner(mined), lambda f: f(*masks, lambda index: distances[index]))
        kept = np.array(whole(*masks, lambda index: distances[index]))
    for kind, (there, colour) in enumerate(((masks[1], "tab:blue"), (masks[2], "tab:orange"))):
        for filled in (False, True):
            anchor, column = np.nonzero((np.array(there) & (kept[kind] == filled))[:ANCHORS])
            face = colour if filled else "none"
            label = f"{('positive', 'negative')[kind]}, {'kept' if filled else 'left out'}"
            axes.scatter(
                np.array(distances)[anchor, column], places(kind, anchor), s=22, marker="os"[kind], fc=face, ec=colour,
                lw=0.8, label=label,
            )  # fmt: skip
    axes.set(title=title, xlabel="distance (chord)", ylabel="anchor", yticks=range(ANCHORS))
    figure.legend(loc="outside right center", fontsize=7)
    return figure
