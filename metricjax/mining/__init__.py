"""Miners, which look at one row of distances at a time, without a gradient, and come in two kinds.

A *selection* is `(distances [n, m], positives, negatives) -> Triplets`: indices of static shape with a mask that says
which of them count. A *mask miner* is `(distances, positives, negatives) -> (positives, negatives)`: it keeps some of
the pairs. Both get the distances of n anchors to m columns (for a similarity s, 1 − s) and two masks [n, m].

Some have no settings and are used as they are; the others are made by a function that takes the settings. All are
callable pytrees, a `Miner` or a `Selection`, whose leaves are the numbers and keys, which may thus be traced. They
declare as data what else they can do, and so may your own: see `Miner` and `Selection`.

`hard_negatives` mines a whole corpus beforehand.
"""

from metricjax.engine.miners import Miner, Selection, Triplets
from metricjax.mining.compound import angular, chain, hard_fraction, switch
from metricjax.mining.corpus import HardNegatives, hard_negatives
from metricjax.mining.masks import batch_easy_hard, multi_similarity, pair_margin, rank_range, triplet_margin
from metricjax.mining.triplets import (
    all_triplets,
    batch_hard,
    distance_weighted,
    easy_positive_hard_negative,
    semi_hard,
    semi_hard_of_hardest,
    semi_hard_within,
)

__all__ = [
    "HardNegatives",
    "Miner",
    "Selection",
    "Triplets",
    "all_triplets",
    "angular",
    "batch_easy_hard",
    "batch_hard",
    "chain",
    "distance_weighted",
    "easy_positive_hard_negative",
    "hard_fraction",
    "hard_negatives",
    "multi_similarity",
    "pair_margin",
    "rank_range",
    "semi_hard",
    "semi_hard_of_hardest",
    "semi_hard_within",
    "switch",
    "triplet_margin",
]


def __dir__() -> list[str]:
    return __all__
