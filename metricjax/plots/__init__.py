"""What to look at after training and evaluation. Each function returns a Matplotlib figure; `report` writes a page."""

from metricjax.ground.extras import extra

with extra("plots"):
    from metricjax.plots.curves import cmc_curves as cmc_curves
    from metricjax.plots.curves import det_curves as det_curves
    from metricjax.plots.curves import recall_curves as recall_curves
    from metricjax.plots.curves import roc_curves as roc_curves
    from metricjax.plots.curves import score_histograms as score_histograms
    from metricjax.plots.maps import embedding_map as embedding_map
    from metricjax.plots.maps import similarity_matrix as similarity_matrix
    from metricjax.plots.report import report as report
    from metricjax.plots.sheets import hardest_pairs as hardest_pairs
    from metricjax.plots.sheets import neighbour_sheet as neighbour_sheet
    from metricjax.plots.sheets import pair_sheet as pair_sheet
    from metricjax.plots.training import training_curves as training_curves
