"""The prototype driver: runs a softmax over class prototypes in which the target logit is special.

A class-based loss is written as one elementwise function of the scores of some embeddings against some prototypes,

    logits(scores [n, c], target [n, 1], is_target [n, c], *hyper) -> [n, c]

where `target` is each row's score against its own class. The driver turns labels into targets, leaves out what does
not exist, and takes the softmax cross-entropy in log-sum-exp form.
"""

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.anchors import Mean, existing, static_or_traced
from metricjax.checks import check_labels, check_per_row, check_rows
from metricjax.numerics import logsumexp, widen
from metricjax.pairwise import Pairwise
from metricjax.problems import unwrapped
from metricjax.reductions import quotient, reduced


class PrototypeOptions(TypedDict, total=False):
    """Options of every class-based loss.

    where: [n] bool, rows that exist; a padded batch gives exactly the value and gradient of the unpadded one. A row
        whose label is no class (−1, say) counts as not existing.
    weights: [n], multiplies each row's total and count.
    reduction: function of the `Mean` of [n] totals and counts; default Σ total / Σ count.
    """

    where: Bool[Array, " n"] | None
    weights: Float[Array, " n"] | None
    reduction: Callable[[Mean], Array]


def over_prototypes(
    logits: Callable[..., Array],
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    prototypes: Float[Array, "c d"],
    *hyper: Any,
    similarity: Pairwise,
    where: Bool[Array, " n"] | None = None,
    weights: Float[Array, " n"] | None = None,
    reduction: Callable[[Mean], Array] = quotient,
) -> Float[Array, ""]:
    """Softmax cross-entropy of `logits` over all prototypes, with all of `PrototypeOptions`."""
    check_class_batch(embeddings, labels, prototypes, where, weights)
    arrays = (embeddings, labels, prototypes, where, weights)
    return _over_prototypes(logits, similarity, reduction, arrays, static_or_traced(hyper, embeddings))


def check_class_batch(embeddings, labels, prototypes, where, weights, name: str = "prototypes") -> None:
    """The arguments of a class-based loss fit together."""
    check_rows("embeddings", embeddings)
    check_rows(name, prototypes, embeddings.shape[1])
    check_labels("labels", labels, len(embeddings))
    if labels.ndim != 1:
        raise ValueError(f"labels has shape {labels.shape}; wanted one class index for each row")
    check_per_row("where", where, len(embeddings))
    check_per_row("weights", weights, len(embeddings), jnp.floating)


def targets(labels: Int[Array, " n"], classes: int, where: Bool[Array, " n"] | None):
    """Each row's class, 0 where it has none, and whether the row exists and has one."""
    known = (labels >= 0) & (labels < classes)
    index = jnp.where(known, labels, 0).astype(jnp.int32)
    return index, known if where is None else known & where


@jax.jit(static_argnums=(0, 1, 2), inline=True)
def _over_prototypes(logits, similarity, reduction, arrays, hyper):
    embeddings, labels, prototypes, where, weights = arrays
    x = existing(widen(embeddings), where)
    scores = similarity.compare(similarity.embed(x), similarity.embed(prototypes.astype(x.dtype)))
    index, exists = targets(labels, len(prototypes), where)
    is_target = jnp.arange(len(prototypes), dtype=jnp.int32)[None] == index[:, None]
    target = jnp.take_along_axis(scores, index[:, None], axis=1)
    z = logits(scores, target, is_target, *unwrapped(hyper))
    losses = logsumexp(z, jnp.ones_like(is_target)) - jnp.sum(jnp.where(is_target, z, 0), axis=-1)
    mean = Mean(jnp.where(exists, losses, 0), exists.astype(x.dtype))
    return reduced((mean,), None if weights is None else weights.astype(x.dtype), reduction)
