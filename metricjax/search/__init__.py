"""Search among references: nearest neighbours, exactly, and galleries of people."""

from metricjax.search.gallery import Gallery as Gallery
from metricjax.search.gallery import Matches as Matches
from metricjax.search.neighbours import Neighbours as Neighbours
from metricjax.search.neighbours import top_k as top_k
