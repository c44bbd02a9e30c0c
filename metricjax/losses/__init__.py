"""Metric-learning losses: `loss(embeddings, labels, *, ...) -> scalar`, or with prototypes after the labels.

Losses of two views take `(x, y)` instead, and regularisers `embeddings` alone.

A batch without rows, and references without any, give 0 with gradients of 0, and leave a state as it was. Temperatures,
scales, and other numbers that divide or enter a logarithm, must be positive: one that is not raises a ValueError that
names it; a traced one is not checked.

Formulas and defaults are those of the papers that each docstring names. Where PyTorch Metric Learning has others,
`docs/start/from_pytorch_metric_learning.md` says which.
"""

from metricjax.losses.adaptive_margins import adacos, adacos_scale, adaface, curricularface, elasticface, magface
from metricjax.losses.centers import center, update_centers
from metricjax.losses.centroids import centroid_triplet
from metricjax.losses.distributions import dynamic_soft_margin, histogram, intra_pair_variance
from metricjax.losses.lifted_structure import generalized_lifted_structure, lifted_structure
from metricjax.losses.margin_softmax import (
    arcface,
    circle_class,
    combined_margin,
    cosface,
    normalized_softmax,
    softmax,
    sub_center_arcface,
    sub_center_outliers,
)
from metricjax.losses.multiplied_margins import (
    large_margin_softmax,
    sphereface,
    sphereface2,
    sphereface2_bias,
    sphereface_annealing,
    sphereface_r,
)
from metricjax.losses.pair_softmax import decoupled_contrastive, n_pairs, nca, nt_xent, supcon, tuplet_margin
from metricjax.losses.pair_weighting import circle, multi_similarity, unified_pair
from metricjax.losses.pairs import (
    contrastive,
    log_ratio,
    margin,
    ranked_list,
    signal_to_noise,
    threshold_consistent_margin,
)
from metricjax.losses.proxies import p2s_grad, proxy_anchor, proxy_nca, proxy_nca_pp, soft_triple, uniface
from metricjax.losses.ranking import fast_ap, pnp, recall_at_k, roadmap, smooth_ap
from metricjax.losses.regularizers import (
    embedding_norm,
    hyperspherical_energy,
    koleo,
    merged_centers,
    regular_face,
    spread_out,
    zero_mean,
)
from metricjax.losses.triplets import angular, quadruplet, triplet
from metricjax.losses.views import alignment_uniformity, barlow_twins, clip, info_nce, siglip, vicreg

__all__ = [
    "adacos",
    "adacos_scale",
    "adaface",
    "alignment_uniformity",
    "angular",
    "arcface",
    "barlow_twins",
    "center",
    "centroid_triplet",
    "circle",
    "circle_class",
    "clip",
    "combined_margin",
    "contrastive",
    "cosface",
    "curricularface",
    "decoupled_contrastive",
    "dynamic_soft_margin",
    "elasticface",
    "embedding_norm",
    "fast_ap",
    "generalized_lifted_structure",
    "histogram",
    "hyperspherical_energy",
    "info_nce",
    "intra_pair_variance",
    "koleo",
    "large_margin_softmax",
    "lifted_structure",
    "log_ratio",
    "magface",
    "margin",
    "merged_centers",
    "multi_similarity",
    "n_pairs",
    "nca",
    "normalized_softmax",
    "nt_xent",
    "p2s_grad",
    "pnp",
    "proxy_anchor",
    "proxy_nca",
    "proxy_nca_pp",
    "quadruplet",
    "ranked_list",
    "recall_at_k",
    "regular_face",
    "roadmap",
    "siglip",
    "signal_to_noise",
    "smooth_ap",
    "soft_triple",
    "softmax",
    "sphereface",
    "sphereface2",
    "sphereface2_bias",
    "sphereface_annealing",
    "sphereface_r",
    "spread_out",
    "sub_center_arcface",
    "sub_center_outliers",
    "supcon",
    "threshold_consistent_margin",
    "triplet",
    "tuplet_margin",
    "uniface",
    "unified_pair",
    "update_centers",
    "vicreg",
    "zero_mean",
]


def __dir__() -> list[str]:
    return __all__
