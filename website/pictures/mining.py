"""A miner: which pairs of a small batch it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import metricjax as mj
from metricjax.engine.miners import as_miner, prepared

MADE = {  # those that are made of settings, and the rows drawn
    "distance_weighted": lambda: mj.mining.distance_weighted(jax.random.key(0), 8),
    "rank_range": lambda: mj.mining.rank_range(negatives=(2, 5)),
}
ANCHORS, COLUMNS = 8, 18


def miner(name: str) -> Figure:
    """Each anchor's positives and negatives by distance: filled those that are kept, joined those of a triplet."""
    labels = jnp.arange(COLUMNS) % 3
    centres = jax.random.normal(jax.random.key(3), (3, 8))
    z = centres[labels] + 0.9 * jax.random.normal(jax.random.key(4), (COLUMNS, 8))
    distances = mj.distances.chord(z, z)
    same = labels[:, None] == labels[None]
    masks = distances, same & ~jnp.eye(COLUMNS, dtype=bool), ~same
    public = getattr(mj.mining, name)
    mined = MADE[name]() if name in MADE else public if isinstance(public, mj.mining.Selection) else public()
    figure = Figure(figsize=(8.4, 2.7), layout="constrained")
    axes = figure.subplots()
    if isinstance(mined, mj.mining.Selection):
        triplets = jax.tree.map(lambda leaf: np.array(leaf).ravel(), mined(*masks))
        kept = np.zeros((2, COLUMNS, COLUMNS), bool)
        for a, p, n, valid in zip(*triplets, strict=True):
            kept[0, a, p] |= valid
            kept[1, a, n] |= valid
            if valid and a < ANCHORS:
                axes.plot(np.array(distances)[a, [p, n]], [a, a], color="gray", lw=0.8, zorder=0)
    else:
        whole = prepared(as_miner(mined), lambda f: f(*masks, lambda index: distances[index]))
        kept = np.array(whole(*masks, lambda index: distances[index]))
    for kind, (there, colour) in enumerate(((masks[1], "tab:blue"), (masks[2], "tab:orange"))):
        for filled in (False, True):
            anchor, column = np.nonzero((np.array(there) & (kept[kind] == filled))[:ANCHORS])
            face = colour if filled else "none"
            label = f"{('positive', 'negative')[kind]}, {'kept' if filled else 'left out'}"
            axes.scatter(
                np.array(distances)[anchor, column], anchor, s=28, marker="os"[kind], fc=face, ec=colour, label=label
            )
    axes.set(xlabel="distance (chord)", ylabel="anchor", yticks=range(ANCHORS))
    figure.legend(loc="outside right center", fontsize=7)
    return figure
