"""Exact evaluation of embeddings and of scores: which function answers which question.

- Are those of the same class nearest? `retrieval` (recall@k, precision@k, R-precision, MAP@R, mAP, MRR, nDCG@k); inside
  `jit`, over batches and devices `retrieval_means`.
- Are two of the same person? Of all pairs of a set `pair_scores`, of a list of scores `roc`; either gives a `Roc`: AUC,
  EER, TAR at a FAR, thresholds. How sure is it? `roc_bands`. By LFW's folds: `k_fold_accuracy`, `k_fold_tar`.
- Which threshold, and what does it cost? `calibrated_pair_threshold`, of a list `calibrated_threshold`; on other pairs
  `error_rates`, `hter`; group by group `group_pair_rates`, `group_error_rates`; by quality `error_versus_reject`.
- Who is it, if anybody? Of embeddings `identification`, of scores `searches`; either gives `Searches`: CMC, and FNIR
  and DIR at an FPIR. Of several images each (IJB): `templates`, `pair_similarities`, `identification_over_galleries`.
- Do clusters group the rows as their labels do? `nmi`, `ami`, `ari`, `v_measure`, `pairwise_f1`, `bcubed_f1`.
- Have embeddings collapsed? `embedding_health` of a set, `health` of a batch inside `jit`; `decidability` of scores.
- What goes wrong? `hardest_pairs`; and `mj.plots` draws all of it, `mj.plots.report` on one page.

Most take arrays of NumPy or JAX, compute on the device and return Python numbers. Labels are compared as they are:
integers of any size, or strings (device functions, `retrieval_means` and `health`, and template ids: integers).
"""

from metricjax.metrics.bootstrap import Bands as Bands
from metricjax.metrics.bootstrap import Calibration as Calibration
from metricjax.metrics.bootstrap import calibrated_pair_threshold as calibrated_pair_threshold
from metricjax.metrics.bootstrap import calibrated_threshold as calibrated_threshold
from metricjax.metrics.bootstrap import roc_bands as roc_bands
from metricjax.metrics.clustering import PrecisionRecall as PrecisionRecall
from metricjax.metrics.clustering import ami as ami
from metricjax.metrics.clustering import ari as ari
from metricjax.metrics.clustering import bcubed as bcubed
from metricjax.metrics.clustering import bcubed_f1 as bcubed_f1
from metricjax.metrics.clustering import nmi as nmi
from metricjax.metrics.clustering import pairwise as pairwise
from metricjax.metrics.clustering import pairwise_f1 as pairwise_f1
from metricjax.metrics.clustering import v_measure as v_measure
from metricjax.metrics.hardest import HardestPairs as HardestPairs
from metricjax.metrics.hardest import hardest_pairs as hardest_pairs
from metricjax.metrics.health import embedding_health as embedding_health
from metricjax.metrics.health import health as health
from metricjax.metrics.identification import Searches as Searches
from metricjax.metrics.identification import cmc as cmc
from metricjax.metrics.identification import dir_at_fpir as dir_at_fpir
from metricjax.metrics.identification import fnir_at_fpir as fnir_at_fpir
from metricjax.metrics.identification import identification as identification
from metricjax.metrics.identification import searches as searches
from metricjax.metrics.pairs import group_pair_rates as group_pair_rates
from metricjax.metrics.pairs import pair_scores as pair_scores
from metricjax.metrics.retrieval import retrieval as retrieval
from metricjax.metrics.streaming import retrieval_means as retrieval_means
from metricjax.metrics.templates import Templates as Templates
from metricjax.metrics.templates import identification_over_galleries as identification_over_galleries
from metricjax.metrics.templates import pair_similarities as pair_similarities
from metricjax.metrics.templates import templates as templates
from metricjax.metrics.thresholds import ErrorRates as ErrorRates
from metricjax.metrics.thresholds import ErrorVersusReject as ErrorVersusReject
from metricjax.metrics.thresholds import decidability as decidability
from metricjax.metrics.thresholds import error_rates as error_rates
from metricjax.metrics.thresholds import error_versus_reject as error_versus_reject
from metricjax.metrics.thresholds import group_error_rates as group_error_rates
from metricjax.metrics.thresholds import hter as hter
from metricjax.metrics.verification import PairScores as PairScores
from metricjax.metrics.verification import Roc as Roc
from metricjax.metrics.verification import equal_error_rate as equal_error_rate
from metricjax.metrics.verification import k_fold_accuracy as k_fold_accuracy
from metricjax.metrics.verification import k_fold_tar as k_fold_tar
from metricjax.metrics.verification import roc as roc
from metricjax.metrics.verification import roc_auc as roc_auc
from metricjax.metrics.verification import tar_at_far as tar_at_far
