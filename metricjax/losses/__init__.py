"""Metric-learning losses: `loss(embeddings, labels, *, ...) -> scalar`, or with prototypes after the labels.

Losses of two views take `(x, y)` instead, and regularisers `embeddings` alone.

A batch without rows, and references without any, give 0 with gradients of 0, and a state as it was. Temperatures and
scales, and what else divides or has a logarithm taken, are positive: a number that is not is a ValueError that names
it; a traced one is not checked.

What changes for a user of PyTorch Metric Learning ("is a bug": its result on such input is not that of its formula).
`circle`, `intra_pair_variance`, `multi_similarity`, `threshold_consistent_margin`, `vicreg` and `zero_mean` have its
formulas and its defaults; of losses over classes `cosface`, `large_margin_softmax`, `normalized_softmax`,
`proxy_anchor`, `soft_triple`, `sphereface`, and `regular_face` and `merged_centers` (`SparseCentersRegularizer`).
`tests/test_pytorch_metric_learning.py` and `test_pytorch_metric_learning_classes.py` have the settings that make the
others equal.

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
| `embedding_norm` | `LpRegularizer`: ‖x‖ | ‖x‖²: its `power=2` | the paper |
| two views | `SelfSupervisedLoss(NTXentLoss())` | `nt_xent` of both, stacked | labels say it |
| two views | the same with `symmetric=False` | `info_nce` | |
| over classes | prototypes `W` [d, c], inside | `prototypes` [c, d], an argument | pure functions |
| over classes | several of a class: [d, c k], side by side | [c, k, d] | one axis for each meaning |
| over classes | a miner weighs rows: Σ w l / n | `weights=`: Σ w l / Σ w | no pairs; mean over what counts |
| over classes | fails at a label that is no class | leaves the row out | padding, samples of classes |
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

from metricjax.losses.adaptive_margins import adacos as adacos
from metricjax.losses.adaptive_margins import adacos_scale as adacos_scale
from metricjax.losses.adaptive_margins import adaface as adaface
from metricjax.losses.adaptive_margins import curricularface as curricularface
from metricjax.losses.adaptive_margins import elasticface as elasticface
from metricjax.losses.adaptive_margins import magface as magface
from metricjax.losses.centers import center as center
from metricjax.losses.centers import update_centers as update_centers
from metricjax.losses.centroids import centroid_triplet as centroid_triplet
from metricjax.losses.distributions import dynamic_soft_margin as dynamic_soft_margin
from metricjax.losses.distributions import histogram as histogram
from metricjax.losses.distributions import intra_pair_variance as intra_pair_variance
from metricjax.losses.lifted_structure import generalized_lifted_structure as generalized_lifted_structure
from metricjax.losses.lifted_structure import lifted_structure as lifted_structure
from metricjax.losses.margin_softmax import arcface as arcface
from metricjax.losses.margin_softmax import circle_class as circle_class
from metricjax.losses.margin_softmax import combined_margin as combined_margin
from metricjax.losses.margin_softmax import cosface as cosface
from metricjax.losses.margin_softmax import normalized_softmax as normalized_softmax
from metricjax.losses.margin_softmax import softmax as softmax
from metricjax.losses.margin_softmax import sub_center_arcface as sub_center_arcface
from metricjax.losses.margin_softmax import sub_center_outliers as sub_center_outliers
from metricjax.losses.multiplied_margins import large_margin_softmax as large_margin_softmax
from metricjax.losses.multiplied_margins import sphereface as sphereface
from metricjax.losses.multiplied_margins import sphereface2 as sphereface2
from metricjax.losses.multiplied_margins import sphereface2_bias as sphereface2_bias
from metricjax.losses.multiplied_margins import sphereface_annealing as sphereface_annealing
from metricjax.losses.multiplied_margins import sphereface_r as sphereface_r
from metricjax.losses.pair_softmax import decoupled_contrastive as decoupled_contrastive
from metricjax.losses.pair_softmax import n_pairs as n_pairs
from metricjax.losses.pair_softmax import nca as nca
from metricjax.losses.pair_softmax import nt_xent as nt_xent
from metricjax.losses.pair_softmax import supcon as supcon
from metricjax.losses.pair_softmax import tuplet_margin as tuplet_margin
from metricjax.losses.pair_weighting import circle as circle
from metricjax.losses.pair_weighting import multi_similarity as multi_similarity
from metricjax.losses.pair_weighting import unified_pair as unified_pair
from metricjax.losses.pairs import contrastive as contrastive
from metricjax.losses.pairs import log_ratio as log_ratio
from metricjax.losses.pairs import margin as margin
from metricjax.losses.pairs import ranked_list as ranked_list
from metricjax.losses.pairs import signal_to_noise as signal_to_noise
from metricjax.losses.pairs import threshold_consistent_margin as threshold_consistent_margin
from metricjax.losses.proxies import p2s_grad as p2s_grad
from metricjax.losses.proxies import proxy_anchor as proxy_anchor
from metricjax.losses.proxies import proxy_nca as proxy_nca
from metricjax.losses.proxies import proxy_nca_pp as proxy_nca_pp
from metricjax.losses.proxies import soft_triple as soft_triple
from metricjax.losses.proxies import uniface as uniface
from metricjax.losses.ranking import fast_ap as fast_ap
from metricjax.losses.ranking import pnp as pnp
from metricjax.losses.ranking import recall_at_k as recall_at_k
from metricjax.losses.ranking import roadmap as roadmap
from metricjax.losses.ranking import smooth_ap as smooth_ap
from metricjax.losses.regularizers import embedding_norm as embedding_norm
from metricjax.losses.regularizers import hyperspherical_energy as hyperspherical_energy
from metricjax.losses.regularizers import koleo as koleo
from metricjax.losses.regularizers import merged_centers as merged_centers
from metricjax.losses.regularizers import regular_face as regular_face
from metricjax.losses.regularizers import spread_out as spread_out
from metricjax.losses.regularizers import zero_mean as zero_mean
from metricjax.losses.triplets import angular as angular
from metricjax.losses.triplets import quadruplet as quadruplet
from metricjax.losses.triplets import triplet as triplet
from metricjax.losses.views import alignment_uniformity as alignment_uniformity
from metricjax.losses.views import barlow_twins as barlow_twins
from metricjax.losses.views import clip as clip
from metricjax.losses.views import info_nce as info_nce
from metricjax.losses.views import siglip as siglip
from metricjax.losses.views import vicreg as vicreg
