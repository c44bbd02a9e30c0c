"""metricjax: deep metric learning for JAX. The README names everything; `docs` explains it."""

import importlib
from typing import TYPE_CHECKING

from metricjax import (
    anchors,
    clusters,
    distances,
    losses,
    memory,
    metrics,
    mining,
    prototypes,
    relations,
    samplers,
    search,
    similarities,
    sphere,
)
from metricjax.anchors import Mean, Statistic, over_anchors, over_pairs, over_statistics, over_triplets
from metricjax.compose import cached, matryoshka, over_mesh, weighted_sum
from metricjax.engine.reductions import of_sums, with_count
from metricjax.ground.pairwise import pairwise
from metricjax.prototypes import over_prototypes

__version__ = "0.1.0"

__all__ = [
    "Mean",
    "Statistic",
    "__version__",
    "anchors",
    "cached",
    "clusters",
    "distances",
    "losses",
    "matryoshka",
    "memory",
    "metrics",
    "mining",
    "of_sums",
    "over_anchors",
    "over_mesh",
    "over_pairs",
    "over_prototypes",
    "over_statistics",
    "over_triplets",
    "pairwise",
    "prototypes",
    "relations",
    "samplers",
    "search",
    "similarities",
    "sphere",
    "weighted_sum",
    "with_count",
]

# Public, too, but each needs an extra: imported on first use, and not by `from metricjax import *`.
_WITH_EXTRAS = ("data", "encoders", "plots", "trained", "training", "transforms", "variants")
_OF_TRAINED = ("Encoder", "export", "load")

if TYPE_CHECKING:
    from metricjax import data as data
    from metricjax import encoders as encoders
    from metricjax import plots as plots
    from metricjax import trained as trained
    from metricjax import training as training
    from metricjax import transforms as transforms
    from metricjax import variants as variants
    from metricjax.trained import Encoder as Encoder
    from metricjax.trained import export as export
    from metricjax.trained import load as load
else:  # where type checkers see it, they take any name for one of metricjax

    def __getattr__(name):
        if name not in _WITH_EXTRAS + _OF_TRAINED:
            raise AttributeError(f"module 'metricjax' has no attribute {name!r}")
        try:
            if name in _OF_TRAINED:
                return getattr(importlib.import_module("metricjax.trained"), name)
            return importlib.import_module(f"metricjax.{name}")
        except ImportError as error:  # so that `hasattr` is False; it says which extra to install
            raise AttributeError(str(error)) from error


def __dir__() -> list[str]:
    return [*__all__, *_WITH_EXTRAS, *_OF_TRAINED]
