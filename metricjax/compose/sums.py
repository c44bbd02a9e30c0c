"""A weighted sum of losses that compares embeddings once."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from metricjax.engine.anchors import Part, as_part
from metricjax.engine.pairs import Mean, Static, static_or_traced


def weighted_sum(
    *losses: Callable[..., Any], weights: Sequence[ArrayLike] | Float[Array, " k"] | None = None
) -> Callable[..., Any]:
    """The loss Σ_k w_k · losses_k(embeddings, labels, **options); all weights are 1 by default.

    Pair-based losses with the same similarity (or distance) share one matrix of it and one matrix product for each
    gradient, in panels too: several losses cost little more than one. Those that select triplets, or whose rows reach
    others, run by themselves, and so do class-based ones. Options are given to all, `reduction` to none.

    >>> import jax.numpy as jnp
    >>> import metricjax as mj
    >>> z, y = jnp.eye(4), jnp.arange(4) // 2
    >>> both = weighted_sum(mj.losses.supcon, mj.losses.circle, weights=(1.0, 0.5))
    >>> bool(jnp.isclose(both(z, y), mj.losses.supcon(z, y) + 0.5 * mj.losses.circle(z, y)))
    True
    """
    scales = scales_of(weights, len(losses), "losses")

    def loss(embeddings, labels, **options):
        if options.pop("reduction", as_part) is not as_part:
            raise TypeError("weighted_sum reduces each loss by its own mean; it takes no `reduction`")
        values = [each(embeddings, labels, reduction=as_part, **options) for each in losses]
        total, together = [], {}
        for weight, value in zip(scales, values, strict=True):
            if isinstance(value, Part):
                together.setdefault(value.shared(), []).append((weight, value))
            else:
                total.append(weight * one_number(value, "weighted_sum"))
        return sum(total + [_joined(parts) for parts in together.values()])

    return loss


def scales_of(weights: Sequence[ArrayLike] | Array | None, count: int, parts: str) -> list[Any]:
    """One weight for each part, of which there is one at least."""
    scales = [1.0] * count if weights is None else list(weights)
    if not count or len(scales) != count:
        raise ValueError(f"weights has {len(scales)} numbers for {count} {parts}; wanted one for each, at least one")
    return scales


def one_number(value: Any, name: str) -> Any:
    if not isinstance(value, Part) and getattr(value, "shape", None) != ():
        raise TypeError(f"{name} adds losses that return one number; a stateful loss has to be added by hand")
    return value


def _joined(parts: list[tuple[Any, Part]]) -> Any:
    """Σ w · loss of parts that share their scores."""
    (weight, first), *others = parts
    if not others:
        return weight * first.value()
    apart = all(part.problem.kind == "apart" for _, part in parts)
    each = tuple((part.problem.rows, part.problem.kind, len(part.hyper)) for _, part in parts)
    weights = static_or_traced(tuple(weight for weight, _ in parts), first.batch.embeddings)
    problem = dataclasses.replace(
        first.problem,
        rows=_joined_apart if apart else _joined_whole,
        kind="apart" if apart else "whole",
        mirrored=all(part.problem.mirrored for _, part in parts),
    )
    hyper = (Static(each), *weights, *(h for _, part in parts for h in part.hyper))
    return dataclasses.replace(first, problem=problem, hyper=hyper).value()


def _joined_apart(positive_scores, positives, negative_scores, negatives, each, *numbers) -> tuple[Mean, ...]:
    weights, hyper, means = numbers[: len(each)], iter(numbers[len(each) :]), []
    for weight, (rows, _, count) in zip(weights, each, strict=True):
        found = rows(positive_scores, positives, negative_scores, negatives, *islice(hyper, count))
        means += [Mean(weight * mean.total, mean.count) for mean in ((found,) if isinstance(found, Mean) else found)]
    return tuple(means)


def _joined_whole(scores, positives, negatives, each, *numbers) -> tuple[Mean, ...]:
    whole = lambda rows: lambda p, positives, n, negatives, *hyper: rows(p, positives, negatives, *hyper)
    each = tuple((rows if kind == "apart" else whole(rows), kind, count) for rows, kind, count in each)
    return _joined_apart(scores, positives, scores, negatives, each, *numbers)
