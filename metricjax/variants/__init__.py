"""Train many variants of one training at once; what their seeds say: means, intervals, paired tests."""

from metricjax.metrics.seeds import (
    Difference,
    OverSeeds,
    Summary,
    holm,
    mean_and_half_width,
    paired_t,
    wilcoxon,
    wilson,
)
from metricjax.variants.summary import names, summary
from metricjax.variants.training import Numbers, Task, Trained, Variant, product, train

__all__ = [
    "Difference",
    "Numbers",
    "OverSeeds",
    "Summary",
    "Task",
    "Trained",
    "Variant",
    "holm",
    "mean_and_half_width",
    "names",
    "paired_t",
    "product",
    "summary",
    "train",
    "wilcoxon",
    "wilson",
]


def __dir__() -> list[str]:
    return __all__
