"""metricjax: deep metric learning for JAX. See the README for the catalogue."""

import importlib

from metricjax import anchors as anchors
from metricjax import clusters as clusters
from metricjax import distances as distances
from metricjax import losses as losses
from metricjax import metrics as metrics
from metricjax import mining as mining
from metricjax import prototypes as prototypes
from metricjax import relations as relations
from metricjax import samplers as samplers
from metricjax import search as search
from metricjax import similarities as similarities
from metricjax import sphere as sphere
from metricjax.anchors import Mean as Mean
from metricjax.anchors import over_anchors as over_anchors
from metricjax.anchors import over_pairs as over_pairs
from metricjax.anchors import over_triplets as over_triplets
from metricjax.compose import cached as cached
from metricjax.compose import matryoshka as matryoshka
from metricjax.compose import over_mesh as over_mesh
from metricjax.compose import weighted_sum as weighted_sum
from metricjax.engine.reductions import of_sums as of_sums
from metricjax.engine.reductions import with_count as with_count
from metricjax.prototypes import over_prototypes as over_prototypes

_WITH_EXTRAS = ("data", "encoders", "plots", "transforms", "variants")  # imported on first use, each needs an extra


def __getattr__(name: str):
    if name in _WITH_EXTRAS:
        return importlib.import_module(f"metricjax.{name}")
    raise AttributeError(f"module 'metricjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WITH_EXTRAS])
