"""Clusters of embeddings by their directions: in a given number, or as many as a threshold gives."""

from metricjax.clusters.components import connected_components
from metricjax.clusters.leaders import LeaderClusters, threshold_clusters
from metricjax.clusters.means import Clusters, k_means

__all__ = ["Clusters", "LeaderClusters", "connected_components", "k_means", "threshold_clusters"]


def __dir__() -> list[str]:
    return __all__
