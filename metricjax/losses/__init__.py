"""Metric-learning losses: `loss(embeddings, labels, *, ...) -> scalar`, or with prototypes after the labels."""

from metricjax.losses.centers import center as center
from metricjax.losses.centers import update_centers as update_centers
from metricjax.losses.exponential import circle as circle
from metricjax.losses.exponential import multi_similarity as multi_similarity
from metricjax.losses.exponential import nt_xent as nt_xent
from metricjax.losses.exponential import supcon as supcon
from metricjax.losses.margin_softmax import arcface as arcface
from metricjax.losses.margin_softmax import circle_class as circle_class
from metricjax.losses.margin_softmax import cosface as cosface
from metricjax.losses.margin_softmax import normalized_softmax as normalized_softmax
from metricjax.losses.margin_softmax import softmax as softmax
from metricjax.losses.pairs import contrastive as contrastive
from metricjax.losses.triplets import triplet as triplet
