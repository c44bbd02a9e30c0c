"""Metric-learning losses: `loss(embeddings, labels, *, ...) -> scalar`, or with prototypes after the labels.

Losses of two views take `(x, y)` instead, and regularisers `embeddings` alone.
"""

from metricjax.losses.centers import center as center
from metricjax.losses.centers import update_centers as update_centers
from metricjax.losses.centroids import centroid_triplet as centroid_triplet
from metricjax.losses.distributions import dynamic_soft_margin as dynamic_soft_margin
from metricjax.losses.distributions import histogram as histogram
from metricjax.losses.distributions import intra_pair_variance as intra_pair_variance
from metricjax.losses.exponential import circle as circle
from metricjax.losses.exponential import decoupled_contrastive as decoupled_contrastive
from metricjax.losses.exponential import multi_similarity as multi_similarity
from metricjax.losses.exponential import n_pairs as n_pairs
from metricjax.losses.exponential import nca as nca
from metricjax.losses.exponential import nt_xent as nt_xent
from metricjax.losses.exponential import supcon as supcon
from metricjax.losses.exponential import tuplet_margin as tuplet_margin
from metricjax.losses.exponential import unified_pair as unified_pair
from metricjax.losses.margin_softmax import arcface as arcface
from metricjax.losses.margin_softmax import circle_class as circle_class
from metricjax.losses.margin_softmax import cosface as cosface
from metricjax.losses.margin_softmax import normalized_softmax as normalized_softmax
from metricjax.losses.margin_softmax import softmax as softmax
from metricjax.losses.pairs import contrastive as contrastive
from metricjax.losses.pairs import log_ratio as log_ratio
from metricjax.losses.pairs import margin as margin
from metricjax.losses.pairs import ranked_list as ranked_list
from metricjax.losses.pairs import signal_to_noise as signal_to_noise
from metricjax.losses.pairs import threshold_consistent_margin as threshold_consistent_margin
from metricjax.losses.ranking import fast_ap as fast_ap
from metricjax.losses.ranking import pnp as pnp
from metricjax.losses.ranking import recall_at_k as recall_at_k
from metricjax.losses.ranking import roadmap as roadmap
from metricjax.losses.ranking import smooth_ap as smooth_ap
from metricjax.losses.regularizers import embedding_norm as embedding_norm
from metricjax.losses.regularizers import koleo as koleo
from metricjax.losses.regularizers import spread_out as spread_out
from metricjax.losses.regularizers import zero_mean as zero_mean
from metricjax.losses.structured import angular as angular
from metricjax.losses.structured import generalized_lifted_structure as generalized_lifted_structure
from metricjax.losses.structured import lifted_structure as lifted_structure
from metricjax.losses.structured import quadruplet as quadruplet
from metricjax.losses.triplets import triplet as triplet
from metricjax.losses.views import alignment_uniformity as alignment_uniformity
from metricjax.losses.views import barlow_twins as barlow_twins
from metricjax.losses.views import clip as clip
from metricjax.losses.views import info_nce as info_nce
from metricjax.losses.views import siglip as siglip
from metricjax.losses.views import vicreg as vicreg
