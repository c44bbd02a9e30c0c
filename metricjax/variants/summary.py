"""What trainings of many variants and seeds say together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metricjax.metrics.seeds import Summary, Test, summarised
from metricjax.variants.training import Variant

__all__ = ["names", "summary"]


def summary(
    results: Mapping[str, Any],
    grid: Sequence[Variant] | None = None,
    *,
    baseline: str | None = None,
    test: Test = "t",
) -> Summary:
    """For each metric and variant the mean over seeds and its 95 % interval; against a baseline, paired differences.

    results: with `grid` {metric: [n]}, the numbers of its n trainings; without, {metric: {variant: one for each seed}},
        where the k-th of all variants are of one seed.
    grid: what was trained; trainings that differ in the seed only are one variant, called as by `names`.
    baseline: the variant that others are compared with, seed by seed. Seeds that only one of the two has, or that one
        of them lost, take no part. p is Student's paired test's, two-sided, or with `test="wilcoxon"` the signed-rank
        test's; within a metric they are corrected for the number of variants compared (Holm 1979), not for the number
        of metrics.

    What is not finite, or None, is a lost training: counted, and left out of the means. Those that collapsed are the
    caller's to mark: `np.where(spread < 0.05, np.nan, recall)`.

    >>> summary({"recall@1": {"triplet": [0.80, 0.82, 0.81], "supcon": [0.84, 0.85, None]}}, baseline="triplet")
    recall@1       mean ± 95 %   seeds   lost   less triplet ± 95 %   pairs      p   p, Holm
    triplet    0.8100 ± 0.0248       3
    supcon     0.8450 ± 0.0635       3      1      +0.0350 ± 0.0635       2   0.09      0.09
    """
    if not results:
        raise ValueError("results is empty; wanted at least one metric")
    of_grid = None if grid is None else _places(grid)
    found = {}
    for metric, values in results.items():
        if of_grid is None:
            found[metric] = _of_mapping(metric, values, baseline)
            continue
        numbers = np.asarray(values, float)
        if numbers.shape != (len(grid or ()),):
            raise ValueError(f"results[{metric!r}] has shape {numbers.shape}; grid has {len(grid or ())} variants")
        found[metric] = {name: {seed: numbers[i] for seed, i in at.items()} for name, at in of_grid.items()}
    return summarised(found, baseline, test)


def names(grid: Sequence[Variant]) -> list[str]:
    """What each variant of a grid is called, whatever its seed: its loss, and the numbers that its loss has several of.

    >>> from metricjax.variants.training import product
    >>> names(product(["supcon"], [0], temperature=[0.1, 0.2], rate=[0.01]))
    ['supcon, temperature 0.1', 'supcon, temperature 0.2']
    """
    several: dict[str, dict[str, set[float]]] = {}
    for variant in grid:
        for name, value in variant.numbers.items():
            several.setdefault(variant.loss, {}).setdefault(name, set()).add(float(value))
    chosen = lambda v: [f"{name} {float(x):g}" for name, x in v.numbers.items() if len(several[v.loss][name]) > 1]
    return [", ".join([variant.loss, *chosen(variant)]) for variant in grid]


def _places(grid: Sequence[Variant]) -> dict[str, dict[int, int]]:
    """For each variant, where in the grid each of its seeds stands."""
    found: dict[str, dict[int, int]] = {}
    for i, (name, variant) in enumerate(zip(names(grid), grid, strict=True)):
        seeds = found.setdefault(name, {})
        if int(variant.seed) in seeds:
            raise ValueError(f"grid has {name!r} with seed {variant.seed} more than once")
        seeds[int(variant.seed)] = i
    return found


def _of_mapping(metric: str, values: Any, baseline: str | None) -> dict[str, dict[int, float]]:
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"results[{metric!r}] is {values!r}; wanted {{variant: numbers}}, or a grid beside it")
    found = {str(name): np.asarray(numbers, float) for name, numbers in values.items()}
    for name, numbers in found.items():
        if numbers.ndim != 1:
            raise ValueError(
                f"results[{metric!r}][{name!r}] has shape {numbers.shape}; wanted one number for each seed"
            )
        if baseline in found and len(numbers) != len(found[baseline]):
            raise ValueError(
                f"results[{metric!r}][{name!r}] has {len(numbers)} seeds, and the baseline {len(found[baseline])};"
                " wanted as many, NaN where one was lost"
            )
    return {name: dict(enumerate(numbers.tolist())) for name, numbers in found.items()}
