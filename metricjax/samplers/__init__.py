"""Which images go into which batch, which classes into which part: host-side, seeded, pure functions of the epoch."""

from metricjax.samplers.classes import hierarchical_batches, pk_batches
from metricjax.samplers.images import uniform_batches, weighted_batches
from metricjax.samplers.splits import class_folds, class_split

__all__ = [
    "class_folds",
    "class_split",
    "hierarchical_batches",
    "pk_batches",
    "uniform_batches",
    "weighted_batches",
]


def __dir__() -> list[str]:
    return __all__
