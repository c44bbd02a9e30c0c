"""A weighted sum of losses that compares embeddings once."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from metricjax.engine.anchors import DeferredLoss, deferring
from metricjax.engine.pairs import Mean, Pairs, Static, as_means, static_or_traced
from metricjax.engine.statistics import Declared, together
from metricjax.ground.checks import refuse_options

__all__ = ["one_number", "scales_of", "weighted_sum"]


def weighted_sum(
    *losses: Callable[..., Any], weights: Sequence[ArrayLike] | Float[Array, " k"] | None = None
) -> Callable[..., Any]:
    """The loss Σ_k w_k · losses_k(embeddings, labels, **options); all weights are 1 by default.

    Pair-based losses with the same similarity (or distance) share one matrix of it and one matrix product for each
    gradient, in panels too: several losses cost little more than one. Those that select triplets run by themselves, and
    so do class-based ones and those with a reduction of their own. Options are given to all, `reduction` to none.

    >>> import jax.numpy as jnp
    >>> import metricjax as mj
    >>> z, y = jnp.eye(4), jnp.arange(4) // 2
    >>> both = weighted_sum(mj.losses.supcon, mj.losses.circle, weights=(1.0, 0.5))
    >>> bool(jnp.isclose(both(z, y), mj.losses.supcon(z, y) + 0.5 * mj.losses.circle(z, y)))
    True
    """
    scales = scales_of(weights, len(losses), "losses")

    def loss(embeddings, labels, **options):
        refuse_options("weighted_sum reduces each loss by its own mean", options, "reduction")
        values = [_deferred_or_number(each, embeddings, labels, options) for each in losses]
        total, together = [], {}
        for weight, value in zip(scales, values, strict=True):
            if isinstance(value, DeferredLoss):
                together.setdefault(value.shared(), []).append((weight, value))
            else:
                total.append(weight * one_number(value, "weighted_sum"))
        return sum(total + [_joined(parts) for parts in together.values()])

    return loss


def scales_of(weights: Sequence[ArrayLike] | Array | None, count: int, parts: str) -> list[Any]:
    """One weight for each part, of which there is at least one."""
    scales = [1.0] * count if weights is None else list(weights)
    if not count or len(scales) != count:
        raise ValueError(f"weights has {len(scales)} numbers for {count} {parts}; wanted one for each, at least one")
    return scales


def one_number(value: Any, name: str) -> Any:
    """The value of a loss, which is one number."""
    if getattr(value, "shape", None) != ():
        raise TypeError(f"{name} adds losses that return one number; a stateful loss has to be added by hand")
    return value


def _deferred_or_number(loss: Callable[..., Any], embeddings: Array, labels: Array, options: dict[str, Any]) -> Any:
    """A loss that can share its scores as a `DeferredLoss`. One that works only with a number is run by itself."""
    with suppress(Exception), deferring():
        return loss(embeddings, labels, **options)
    with deferring(False):
        return loss(embeddings, labels, **options)


def _joined(parts: list[tuple[Any, DeferredLoss]]) -> Any:
    """Σ w · loss of parts that share their scores."""
    (weight, first), *others = parts
    if not others:
        return weight * first.value()
    each = tuple((part.loss.rows, len(part.hyper)) for _, part in parts)
    declared = [(rows, count) for rows, count in each if isinstance(rows, Declared)]
    rows, how = (together(declared), ()) if len(declared) == len(each) else (_joined_rows, (Static(each),))
    weights = static_or_traced(tuple(weight for weight, _ in parts), first.batch.embeddings)
    mirrored, heavy = all(part.loss.mirrored for _, part in parts), any(part.loss.heavy for _, part in parts)
    loss = replace(first.loss, rows=rows, mirrored=mirrored, heavy=heavy)
    hyper = (*how, *weights, *(h for _, part in parts for h in part.hyper))
    return replace(first, loss=loss, hyper=hyper).value()


def _joined_rows(pairs: Pairs, each: tuple, *numbers: Any) -> tuple[Mean, ...]:
    """The Means of several row functions, each with its own hyper-parameters, times their weights."""
    weights, hyper, means = numbers[: len(each)], iter(numbers[len(each) :]), []
    for weight, (rows, count) in zip(weights, each, strict=True):
        means += [Mean(weight * mean.total, mean.count) for mean in as_means(rows(pairs, *islice(hyper, count)))]
    return tuple(means)
