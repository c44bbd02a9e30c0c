"""Exact evaluation of embeddings and of scores."""

from metricjax.metrics.health import health as health
from metricjax.metrics.retrieval import retrieval as retrieval
from metricjax.metrics.verification import PairScores as PairScores
from metricjax.metrics.verification import Roc as Roc
from metricjax.metrics.verification import equal_error_rate as equal_error_rate
from metricjax.metrics.verification import k_fold_accuracy as k_fold_accuracy
from metricjax.metrics.verification import pair_scores as pair_scores
from metricjax.metrics.verification import roc as roc
from metricjax.metrics.verification import roc_auc as roc_auc
from metricjax.metrics.verification import tar_at_far as tar_at_far
