"""How sure results over seeds are: intervals, paired tests, p-values corrected for their number, and their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

__all__ = [
    "Difference",
    "OverSeeds",
    "Summary",
    "Test",
    "holm",
    "mean_and_half_width",
    "paired_t",
    "summarised",
    "wilcoxon",
    "wilson",
]

Test = Literal["t", "wilcoxon"]


# --- one number at a time ---------------------------------------------------------------------------------------------


def mean_and_half_width(values: ArrayLike) -> tuple[float, float]:
    """The mean, and half its 95 % confidence interval by Student's t; NaN of fewer than two values.

    >>> mean_and_half_width([1.0, 2.0, 3.0])
    (2.0, 2.484)
    """
    found = _numbers("values", values)
    few = len(found) < 2
    mean = float(np.mean(found)) if len(found) else np.nan
    return mean, np.nan if few else float(_standard_error(found) * special.stdtrit(len(found) - 1, 0.975))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share: Wilson's (1927), which is not empty where all hit or none.

    >>> wilson(0, 10)
    (0.0, 0.278)
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"hits is {hits} and count {count}; wanted 0 ≤ hits ≤ count, and a count of at least 1")
    share, z = hits / count, special.ndtri(0.975)
    middle, width = share + z**2 / (2 * count), z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = (middle + np.array([-width, width])) / (1 + z**2 / count)
    return (0.0 if hits == 0 else float(low)), (1.0 if hits == count else float(high))


def paired_t(differences: ArrayLike) -> float:
    """p of Student's test that paired differences have mean 0, two-sided; NaN of fewer than two.

    >>> paired_t([0.1, 0.2, 0.3])
    0.074
    """
    found = _numbers("differences", differences)
    if len(found) < 2:
        return np.nan
    mean, error = float(np.mean(found)), _standard_error(found)
    if error == 0:  # all differ by the same: what comes of t = 0, or of an infinite one
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(len(found) - 1, -abs(mean) / error))


def wilcoxon(differences: ArrayLike) -> float:
    """p of Wilcoxon's signed-rank test that paired differences have median 0, two-sided; NaN of fewer than two.

    Few pairs cannot tell: the p of n pairs is at least 2^(1 - n), 0.0625 of five.

    >>> wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5])
    0.0625
    """
    from scipy import stats  # takes half a second, which `metricjax.variants` would take without it

    found = _numbers("differences", differences)
    if len(found) < 2:
        return np.nan
    return float(stats.wilcoxon(found).pvalue) if np.any(found) else 1.0


def holm(p: ArrayLike) -> list[float]:
    """p-values adjusted for their number: the k-th smallest of m times m + 1 - k, at most 1, in the order of p.

    Rejecting those at most 0.05 is wrong anywhere with a probability of 5 % at most, however they depend on each other
    (Holm 1979, "A simple sequentially rejective multiple test procedure"). NaN is of no test: it stays, and does not
    count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.array(p, float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    values[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return values.tolist()


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    found = np.asarray(values, float)
    if found.ndim != 1:
        raise ValueError(f"{name} has shape {found.shape}; wanted [n]")
    return found


def _standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if np.ptp(values) else 0.0


# --- a table of variants ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A variant less the baseline, seed by seed.

    mean, half_width: of the differences; half their 95 % interval.
    pairs: how many seeds both have, and neither lost.
    p: of the test that there is no difference.
    p_corrected: after Holm, for all variants that the metric compares with the baseline.
    """

    mean: float | None
    half_width: float | None
    pairs: int
    p: float | None
    p_corrected: float | None


@dataclass(frozen=True)
class OverSeeds:
    """A metric of one variant.

    values: of each seed; None where it was lost.
    mean, half_width: of those that were not; half the mean's 95 % interval by Student's t.
    seeds, lost: how many trainings there are, and how many of them were lost.
    difference: from the baseline; None if there is none, and of the baseline itself.
    """

    values: list[float | None]
    mean: float | None
    half_width: float | None
    seeds: int
    lost: int
    difference: Difference | None


@dataclass(frozen=True, repr=False)
class Summary:
    """For each metric, for each variant, what its seeds say. Prints as a table; `dataclasses.asdict` is JSON.

    What cannot be known is None: an interval of one seed, a p of one pair.
    """

    baseline: str | None
    test: Test
    metrics: dict[str, dict[str, OverSeeds]]

    def __repr__(self) -> str:
        return "\n\n".join(_table(self, metric) for metric in self.metrics)


def summarised(values: Mapping[str, Mapping[str, Mapping[int, float]]], baseline: str | None, test: Test) -> Summary:
    """`values[metric][variant][seed]`, not finite where a training was lost."""
    if test not in ("t", "wilcoxon"):
        raise ValueError(f"test is {test!r}; wanted 't' or 'wilcoxon'")
    metrics = {}
    for metric, of_variant in values.items():
        if baseline is not None and baseline not in of_variant:
            raise ValueError(f"baseline is {baseline!r}; wanted one of the variants {', '.join(map(repr, of_variant))}")
        others = [] if baseline is None else [name for name in of_variant if name != baseline]
        found = [_difference(of_variant[name], of_variant[baseline or ""], test) for name in others]
        corrected = holm([np.nan if d.p is None else d.p for d in found])
        differences = {
            name: replace(d, p_corrected=_known(p)) for name, d, p in zip(others, found, corrected, strict=True)
        }
        metrics[metric] = {name: _over_seeds(seeds, differences.get(name)) for name, seeds in of_variant.items()}
    return Summary(baseline, test, metrics)


def _over_seeds(values: Mapping[int, float], difference: Difference | None) -> OverSeeds:
    kept = [value for value in values.values() if np.isfinite(value)]
    mean, half = map(_known, mean_and_half_width(kept))
    shown = [_known(value) for value in values.values()]
    return OverSeeds(shown, mean, half, len(values), len(values) - len(kept), difference)


def _difference(one: Mapping[int, float], other: Mapping[int, float], test: Test) -> Difference:
    gaps = np.array([one[seed] - other[seed] for seed in one if seed in other and np.isfinite(one[seed] - other[seed])])
    mean, half = map(_known, mean_and_half_width(gaps))
    return Difference(mean, half, len(gaps), _known(paired_t(gaps) if test == "t" else wilcoxon(gaps)), None)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _table(summary: Summary, metric: str) -> str:
    rows = summary.metrics[metric]
    largest = max((abs(row.mean) for row in rows.values() if row.mean is not None), default=0.0)
    digits = 4 if largest < 10 else 2
    number = lambda value, sign="": f"{value:{sign}.{digits}f}" if value is not None else "–"
    around = lambda mean, half, sign="": number(mean, sign) + (f" ± {number(half)}" if half is not None else "")
    p = lambda value: f"{value:.2g}" if value is not None else "–"
    cells = [[metric, "mean ± 95 %", "seeds", "lost"]]
    cells[0] += [f"less {summary.baseline} ± 95 %", "pairs", "p", "p, Holm"] if summary.baseline is not None else []
    for name, row in rows.items():
        line, d = [name, around(row.mean, row.half_width), str(row.seeds), str(row.lost or "")], row.difference
        line += [around(d.mean, d.half_width, "+"), str(d.pairs), p(d.p), p(d.p_corrected)] if d is not None else []
        cells.append(line + [""] * (len(cells[0]) - len(line)))
    return "\n".join(_aligned(cells))


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    line = lambda row: f"{row[0]:{first}}" + "".join(f"   {c:>{w}}" for c, w in zip(row[1:], others, strict=True))
    return [line(row).rstrip() for row in cells]
