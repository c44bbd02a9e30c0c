"""Miners, which look at one row of distances at a time, without a gradient, and come in two kinds.

A *selection* is `(distances [n, m], positives, negatives) -> Triplets`: indices of static shape with a mask that says
which of them count. A *mask miner* is `(distances, positives, negatives) -> (positives, negatives)`: it keeps some of
the pairs. Both get the distances of n anchors to m columns (for a similarity s, 1 − s) and two masks [n, m].

Some have no settings and are used as they are; the others are made by a function that takes the settings. All are
callable pytrees, a `Miner` or a `Selection`, whose leaves are the numbers and keys, which may thus be traced. What they
can do besides they declare as data, and so may one's own: see `Miner` and `Selection`.
"""

from metricjax.engine.miners import Miner as Miner
from metricjax.engine.miners import Selection as Selection
from metricjax.engine.miners import Triplets as Triplets
from metricjax.mining.compound import angular as angular
from metricjax.mining.compound import chain as chain
from metricjax.mining.compound import hard_fraction as hard_fraction
from metricjax.mining.compound import switch as switch
from metricjax.mining.masks import batch_easy_hard as batch_easy_hard
from metricjax.mining.masks import multi_similarity as multi_similarity
from metricjax.mining.masks import pair_margin as pair_margin
from metricjax.mining.masks import rank_range as rank_range
from metricjax.mining.masks import triplet_margin as triplet_margin
from metricjax.mining.triplets import all_triplets as all_triplets
from metricjax.mining.triplets import batch_hard as batch_hard
from metricjax.mining.triplets import distance_weighted as distance_weighted
from metricjax.mining.triplets import easy_positive_hard_negative as easy_positive_hard_negative
from metricjax.mining.triplets import semi_hard as semi_hard
from metricjax.mining.triplets import semi_hard_of_hardest as semi_hard_of_hardest
from metricjax.mining.triplets import semi_hard_within as semi_hard_within
