"""Search among references: nearest neighbours, exactly, and galleries of people."""

from metricjax.search.gallery import Gallery, Matches
from metricjax.search.neighbours import Neighbours, top_k

__all__ = ["Gallery", "Matches", "Neighbours", "top_k"]


def __dir__() -> list[str]:
    return __all__
