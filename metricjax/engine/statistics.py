"""Losses that know a row by a few numbers: log-sum-exps and sums of functions of its single scores.

Written this way, a loss is both a row function, for the dense form and for panels, and what two sweeps need to know.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from metricjax.engine.pairs import Mean, as_means
from metricjax.ground.functions import by_content, check_function
from metricjax.ground.numerics import logsumexp

__all__ = ["Declared", "Statistic", "declared", "together"]


@dataclass(frozen=True)
class Statistic:
    """One number of each row: over its positives or negatives, a log-sum-exp or a sum of `terms(scores, *hyper)`.

    terms: elementwise; of its hyper-parameters those that are arrays have no axes.
    given: names of log-sum-exps that it gets too, those of the row, before the hyper-parameters: for a sum only, as in
        Σ_p f(s_ap, log Σ_n e^{s_an}).
    """

    kind: Literal["logsumexp", "sum"]
    of: Literal["positives", "negatives"]
    terms: Callable[..., Array]
    given: tuple[str, ...] = ()

    def over(self, scores: Float[Array, "r m"], where: Bool[Array, "r m"], given: tuple, hyper: tuple):
        """The number of each row [r]; −∞ is the log-sum-exp of nothing."""
        terms = self.terms(scores, *(value[:, None] for value in given), *hyper)
        return logsumexp(terms, where) if self.kind == "logsumexp" else jnp.sum(jnp.where(where, terms, 0), axis=-1)


@dataclass(frozen=True)
class Declared:
    """A row function: `finish(row, *hyper) -> Mean`, or several, of a row's statistics and numbers of pairs."""

    statistics: tuple[tuple[str, Statistic], ...]
    finish: Callable[..., Any]

    def __call__(self, pairs: Any, *hyper: Any) -> Any:
        positive_scores, positives, negative_scores, negatives = pairs.apart
        sides = {"positives": (positive_scores, positives), "negatives": (negative_scores, negatives)}
        values: dict[str, Array] = {}
        for name, statistic in self.statistics:
            given = tuple(values[of] for of in statistic.given)
            values[name] = statistic.over(*sides[statistic.of], given, hyper)
        count = lambda where: jnp.sum(where, axis=-1).astype(negative_scores.dtype)
        return self.finished(values, count(positives), count(negatives), hyper)

    def finished(self, values: dict[str, Array], positives: Array, negatives: Array, hyper: tuple) -> Any:
        return self.finish(SimpleNamespace(**values, positives=positives, negatives=negatives), *hyper)


@dataclass(frozen=True)
class _Own:
    """A function of one of several losses, of whose hyper-parameters it gets its own; `known` arguments come before."""

    f: Callable[..., Any]
    known: int
    first: int
    count: int

    def __call__(self, *arguments: Any) -> Any:
        own = self.known + self.first
        return self.f(*arguments[: self.known], *arguments[own : own + self.count])


@dataclass(frozen=True)
class _Sum:
    """The finish of several losses, (loss, first of its hyper-parameters, how many): their Means, times weights."""

    parts: tuple[tuple[Declared, int, int], ...]

    def __call__(self, row: Any, *numbers: Any) -> tuple[Mean, ...]:
        means: list[Mean] = []
        for k, (loss, first, count) in enumerate(self.parts):
            values = {name: getattr(row, f"{name}_{k}") for name, _ in loss.statistics}
            found = loss.finished(values, row.positives, row.negatives, numbers[first : first + count])
            means += [Mean(numbers[k] * mean.total, mean.count) for mean in as_means(found)]
        return tuple(means)


def together(each: Sequence[tuple[Declared, int]]) -> Declared:
    """Several losses with so many hyper-parameters each as one, of their weights and then all of these."""
    statistics, parts, first = [], [], len(each)
    for k, (loss, count) in enumerate(each):
        for name, s in loss.statistics:
            terms = _Own(s.terms, 1 + len(s.given), first, count)
            statistics.append((f"{name}_{k}", replace(s, terms=terms, given=tuple(f"{of}_{k}" for of in s.given))))
        parts.append((loss, first, count))
        first += count
    return Declared(_in_order(statistics), _Sum(tuple(parts)))


def _in_order(statistics: list[tuple[str, Statistic]]) -> tuple[tuple[str, Statistic], ...]:
    """Each after those that it is given."""
    return tuple(sorted(statistics, key=lambda one: bool(one[1].given)))


def declared(statistics: dict[str, Statistic], finish: Callable[..., Any]) -> Declared:
    """The statistics in an order in which each comes after those that it is given, once they are known to fit."""
    check_function("finish", finish)
    for name, statistic in statistics.items():
        if not isinstance(statistic, Statistic):
            raise TypeError(f"statistics[{name!r}] is a {type(statistic).__name__}; wanted a mj.Statistic")
        for field, words in (("kind", ("logsumexp", "sum")), ("of", ("positives", "negatives"))):
            if getattr(statistic, field) not in words:
                raise ValueError(f"statistics[{name!r}].{field} is {getattr(statistic, field)!r}; wanted {words}")
        check_function(f"statistics[{name!r}].terms", statistic.terms)
        first = [other for other, found in statistics.items() if found.kind == "logsumexp" and not found.given]
        if not set(statistic.given) <= set(first) or (statistic.given and statistic.kind != "sum"):
            raise ValueError(f"statistics[{name!r}] is given {statistic.given}; a sum may be given some of {first}")
    if not statistics or {"positives", "negatives"} & set(statistics):
        raise ValueError(
            "statistics wants one name at least, and none of 'positives' and 'negatives': these are counts"
        )
    known = [(name, replace(s, terms=by_content(s.terms), given=tuple(s.given))) for name, s in statistics.items()]
    return Declared(_in_order(known), by_content(finish))
