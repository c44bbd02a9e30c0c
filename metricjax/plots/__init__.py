"""What to look at after training and evaluation. Each function returns a Matplotlib figure; `report` writes a page."""

from metricjax.ground.extras import extra

with extra("plots"):
    from metricjax.plots.curves import cmc_curves, det_curves, recall_curves, roc_curves, score_histograms
    from metricjax.plots.maps import embedding_map, similarity_matrix
    from metricjax.plots.report import report
    from metricjax.plots.seeds import variants
    from metricjax.plots.sheets import hardest_pairs, neighbour_sheet, pair_sheet
    from metricjax.plots.training import training_curves

__all__ = [
    "cmc_curves",
    "det_curves",
    "embedding_map",
    "hardest_pairs",
    "neighbour_sheet",
    "pair_sheet",
    "recall_curves",
    "report",
    "roc_curves",
    "score_histograms",
    "similarity_matrix",
    "training_curves",
    "variants",
]


def __dir__() -> list[str]:
    return __all__
