"""Losses made of losses, and losses of batches that are too large for one pass or one device."""

from metricjax.compose.caching import cached
from metricjax.compose.mesh import over_mesh
from metricjax.compose.prefixes import matryoshka
from metricjax.compose.sums import weighted_sum

__all__ = ["cached", "matryoshka", "over_mesh", "weighted_sum"]


def __dir__() -> list[str]:
    return __all__
