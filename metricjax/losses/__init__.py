"""Metric-learning losses: `loss(embeddings, labels, *, ...) -> scalar`, or with prototypes after the labels.

Losses of two views take `(x, y)` instead, and regularisers `embeddings` alone.

A batch without rows, and references without any, give 0 with gradients of 0, and leave a state as it was. Temperatures,
scales, and other numbers that divide or enter a logarithm, must be positive: one that is not raises a ValueError that
names it; a traced one is not checked.

What changes for a user of PyTorch Metric Learning ("is a bug": its result on such input is not that of its formula).
`circle`, `intra_pair_variance`, `multi_similarity`, `threshold_consistent_margin`, `vicreg` and `zero_mean` have its
formulas and its defaults; of losses over classes `cosface`, `large_margin_softmax`, `normalized_softmax`,
`proxy_anchor`, `soft_triple`, `sphereface`, and `regular_face` and `merged_centers` (`SparseCentersRegularizer`).
`test_pytorch_metric_learning.py` and `test_pytorch_metric_learning_classes.py` in `tests/losses` have the settings that
make the others equal.

| loss | PyTorch Metric Learning 2.9.0 | metricjax | reason |
|---|---|---|---|
| all | angles in degrees | radians | one unit everywhere |
| all | `LpDistance`, `DotProductSimilarity` normalise | `distance`, `similarity`: each loss's own | its paper |
| all | `MeanReducer`, `AvgNonZeroReducer` | `average="valid"`, `"active"` | a setting of hinge losses |
| all | `indices_tuple` of a miner: pairs may come twice | `miner`: masks, each pair once | no lists of triplets |
| `circle` and others | `ClassWeightedReducer` has no effect | `weights=`: Σ w t / Σ w | is a bug: [n, 1] × [n] |
| `nt_xent` and others | one positive and one negative pair in all: 0 | they count | is a bug |
| `contrastive` | [d − m₊]₊ and [m − d]₊ | ½ of their squares; `squared=False` | the paper |
| `triplet` | all triplets, chord, m = 0.05 | batch-hard, squared chord, m = 0.2 | FaceNet |
| `triplet`, soft | log(1 + e^{d_ap − d_an + m}) | `margin=None`: m = 0 | the paper |
| `triplet`, `swap` | references: d_pn between rows of the batch | between references | is a bug |
| `margin` | a pair counts once in each triplet | once; or `triplets=mining.all_triplets` | mean over pairs |
| `n_pairs` | one pair of each class, normalised | all pairs, dot products | paper: `references=positives` |
| `nt_xent` | τ = 0.07; at most −log(tiny), 87 in float32 | τ = 0.1; no bound | is a bug: gradient 0 there |
| `supcon` | no negative in the batch: 0 | counts positives alone | the paper |
| `nca` | squared chord; softmax_scale = 1 | squared Euclidean; `temperature` is 1/scale | the paper |
| `nca` | drops rows whose softmax underflows | keeps them | is a bug: they are the hardest |
| `nca` | a miner weighs rows | a miner keeps pairs | as for all others |
| `multi_similarity` | with a miner: mean over all rows | over anchors with a pair left | mean over what counts |
| `lifted_structure` | chord; no negatives: ½d_ap² | Euclidean; does not count | the paper |
| `lifted_structure` | references: p taken for a row of the batch | p is a reference | is a bug |
| `generalized_lifted_structure` | chord; an anchor with one side counts | Euclidean; needs both | the paper has both |
| `angular` | negatives are not normalised; 40 degrees | all are; π/4 | is a bug; the paper |
| `tuplet_margin` | arccos: NaN where s > 1 | without arccos | is a bug: equal rows |
| `signal_to_noise` | normalises; ∞ where var(x) = 0 | does not; 0 | the paper; finite |
| `threshold_consistent_margin` | references: rows of the batch instead | references | is a bug |
| `ranked_list` | weights carry a gradient | they do not | weights of a mean |
| `ranked_list` | drops negatives at distance 0 | keeps them | is a bug: they are the hardest |
| `ranked_list` | 10⁻⁵ added for each column | nothing added | log-sum-exp |
| `histogram` | fails where s = 1; no references | last node; references | is a bug: index |
| `dynamic_soft_margin` | all triplets; 10 bins; object | batch-hard; any number; `state` | the paper's code |
| `dynamic_soft_margin` | its histogram carries a gradient, so no second step | it does not | is a bug |
| `dynamic_soft_margin` | a batch weighs as much as it has triplets | `momentum` | is a bug: not normalised |
| `dynamic_soft_margin` | fails in the last bin | counts | is a bug: index |
| `smooth_ap` | the anchor is a positive of its own; classes of one size, in order | neither | the paper |
| `pnp` | "O", α = 1; the anchor is a positive of its own | "Dq", α = 4; it is not | the paper's best |
| `embedding_norm` | `LpRegularizer`: ‖x‖ | ‖x‖²: its `power=2` | the paper |
| two views | `SelfSupervisedLoss(NTXentLoss())` | `nt_xent` of both, stacked | labels say it |
| two views | the same with `symmetric=False` | `info_nce` | |
| over classes | prototypes `W` [d, c], inside | `prototypes` [c, d], an argument | pure functions |
| over classes | several of a class: [d, c k], side by side | [c, k, d] | one axis for each meaning |
| over classes | a miner weighs rows: Σ w l / n | `weights=`: Σ w l / Σ w | no pairs; mean over what counts |
| over classes | fails at a label that is not a class | leaves the row out | padding, samples of classes |
| over classes | `weight_regularizer` | a term of its own: `+ regular_face(prototypes)` | sums are sums |
| `arcface`, `sub_center_arcface` | m = 28.6 degrees | 0.5, 28.65 degrees | the paper |
| `arcface`, `sub_center_arcface` | gradient NaN where cos θ_y = ±1 | finite | is a bug: arccos |
| `large_margin_softmax`, `sphereface` | a whole m; `scale` | any m; `annealing` | the authors' code |
| `proxy_anchor` | a miner adds w − 1 to exponents | takes no weights | terms are those of proxies |
| `proxy_nca_pp` | `ProxyNCALoss`: softmax_scale = 1 | `temperature` is 1/scale; 1/9 | the paper |
| `proxy_nca_pp` | drops rows whose softmax underflows; NaN if all do | keeps them | is a bug: they are the hardest |
| `proxy_nca` | `ProxyNCALoss`: own proxy in the denominator | not in it | the paper |
| `p2s_grad` | mean over classes too | ½ of the sum over classes | the paper's gradient |
| `p2s_grad` | gradient of `W` along `W`; NaN for a zero row | none; finite | is a bug: length not in the graph |
| `sub_center_outliers` | rows and prototypes [d, c] | a mask of rows, numbers of prototypes | static shapes |
| `sub_center_outliers` | a class without rows: memory as it was | its first prototype | is a bug: not initialised |

Miners: `AngularMiner` takes embeddings as they are, `mining.angular` the distances of the loss; `HDCMiner` breaks ties,
`mining.hard_fraction` keeps them; `TripletMarginMiner` and `AngularMiner` return triplets, ours the pairs in them.
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
