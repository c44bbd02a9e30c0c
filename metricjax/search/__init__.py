"""Search among references: nearest neighbours, exactly or of compact embeddings, and galleries of people."""

from metricjax.search.codes import Codes, compact, ranges
from metricjax.search.compact_gallery import CompactGallery, Matches
from metricjax.search.gallery import Gallery
from metricjax.search.indices import to_faiss, to_usearch
from metricjax.search.neighbours import Neighbours, top_k

__all__ = [
    "Codes",
    "CompactGallery",
    "Gallery",
    "Matches",
    "Neighbours",
    "compact",
    "ranges",
    "to_faiss",
    "to_usearch",
    "top_k",
]


def __dir__() -> list[str]:
    return __all__
