"""Exact evaluation of embeddings and of scores: which function answers which question.

- Are those of the same class nearest? `retrieval` (recall@k, precision@k, R-precision, MAP@R, mAP, MRR, nDCG@k); inside
  `jit`, over batches and devices `retrieval_means`. Of fewer features, bytes or bits: `compact_retrieval`.
- Of two towers, do rows find their partners? `both_ways` (recall@k and the median rank, from x to y and back).
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

from metricjax.metrics.bootstrap import Bands, Calibration, calibrated_pair_threshold, calibrated_threshold, roc_bands
from metricjax.metrics.clustering import (
    PrecisionRecall,
    ami,
    ari,
    bcubed,
    bcubed_f1,
    nmi,
    pairwise,
    pairwise_f1,
    v_measure,
)
from metricjax.metrics.compact import Rows, compact_retrieval
from metricjax.metrics.hardest import HardestPairs, hardest_pairs
from metricjax.metrics.health import embedding_health, health
from metricjax.metrics.identification import Searches, cmc, dir_at_fpir, fnir_at_fpir, identification, searches
from metricjax.metrics.pairs import group_pair_rates, pair_scores
from metricjax.metrics.retrieval import retrieval
from metricjax.metrics.streaming import retrieval_means
from metricjax.metrics.templates import Templates, identification_over_galleries, pair_similarities, templates
from metricjax.metrics.thresholds import (
    ErrorRates,
    ErrorVersusReject,
    decidability,
    error_rates,
    error_versus_reject,
    group_error_rates,
    hter,
)
from metricjax.metrics.towers import both_ways
from metricjax.metrics.verification import (
    PairScores,
    Roc,
    equal_error_rate,
    k_fold_accuracy,
    k_fold_tar,
    roc,
    roc_auc,
    tar_at_far,
)

__all__ = [
    "Bands",
    "Calibration",
    "ErrorRates",
    "ErrorVersusReject",
    "HardestPairs",
    "PairScores",
    "PrecisionRecall",
    "Roc",
    "Rows",
    "Searches",
    "Templates",
    "ami",
    "ari",
    "bcubed",
    "bcubed_f1",
    "both_ways",
    "calibrated_pair_threshold",
    "calibrated_threshold",
    "cmc",
    "compact_retrieval",
    "decidability",
    "dir_at_fpir",
    "embedding_health",
    "equal_error_rate",
    "error_rates",
    "error_versus_reject",
    "fnir_at_fpir",
    "group_error_rates",
    "group_pair_rates",
    "hardest_pairs",
    "health",
    "hter",
    "identification",
    "identification_over_galleries",
    "k_fold_accuracy",
    "k_fold_tar",
    "nmi",
    "pair_scores",
    "pair_similarities",
    "pairwise",
    "pairwise_f1",
    "retrieval",
    "retrieval_means",
    "roc",
    "roc_auc",
    "roc_bands",
    "searches",
    "tar_at_far",
    "templates",
    "v_measure",
]


def __dir__() -> list[str]:
    return __all__
