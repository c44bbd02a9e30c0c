"""Lifted structured losses."""

from collections.abc import Callable
from typing import Any, Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from metricjax import distances
from metricjax.anchors import HOW, AnchorOptions, Mean, Statistic, over_pairs, over_statistics
from metricjax.engine.reductions import Loss
from metricjax.ground.numerics import a_row_for_none, logsumexp
from metricjax.losses.pairs import hinge_mean

__all__ = ["generalized_lifted_structure", "lifted_structure"]


def _values(mean: Mean) -> Float[Array, " m"]:
    """A reduction: each anchor's own value, −∞ where it has none."""
    return jnp.where(mean.count > 0, mean.total, -jnp.inf)


def _near_rows(pairs, margin):
    _, _, d_negative, negatives = pairs.apart
    some = jnp.any(negatives, axis=-1)
    return Mean(jnp.where(some, logsumexp(margin - d_negative, negatives), 0), some)


def _lifted_rows(pairs, margin, near):
    own = logsumexp(margin - pairs.scores, pairs.negatives)[:, None]
    theirs = pairs.pick(near)
    top = lax.stop_gradient(jnp.maximum(own, theirs))
    where = pairs.listed & (top > -jnp.inf)
    top = jnp.where(where, top, 0)
    both = jnp.exp(own - top) + jnp.exp(theirs - top)
    lifted = jnp.log(jnp.where(where, both, 1)) + top + pairs.pick(pairs.scores)
    return hinge_mean(jnp.square(jnp.maximum(lifted, 0)) / 2, where, "valid")


def lifted_structure(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 1.0,
    distance: Callable[[Array, Array], Array] = distances.euclidean,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Lifted structured loss: mean over positive pairs of ½[log(Σ_n e^{m − d_an} + Σ_n' e^{m − d_pn'}) + d_ap]₊².

    n runs over the negatives of the anchor and n' over those of the positive, among the same columns. A pair without
    any negative does not count. Options: `AnchorOptions`.

    Song et al. 2016, arXiv:1511.06452 (m = 1).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[0.0], [0.0], [1.0]])
    >>> float(lifted_structure(z, jnp.array([0, 0, 1])))  # ½ (log 2)²
    0.2402
    """
    # First Σ_n' of each column, with the columns as anchors among themselves.
    columns: tuple[Any, ...] = (embeddings, labels)
    where = options.get("where")
    if options.get("references") is not None:
        columns = options.get("references"), options.get("reference_labels")
        where = options.get("reference_where")
    shared = ("same", "miner", *HOW)
    how: dict[str, Any] = {name: value for name, value in options.items() if name in shared} | {"where": where}
    near = over_pairs(_near_rows, *columns, margin, distance=distance, reduction=_values, heavy=True, **how)
    near = a_row_for_none(near)  # as the driver does for columns
    return over_pairs(_lifted_rows, embeddings, labels, margin, near, distance=distance, heavy=True, **options)


_GENERALIZED = {
    "pull": Statistic("logsumexp", "positives", lambda distances, margin: distances),
    "push": Statistic("logsumexp", "negatives", lambda distances, margin: margin - distances),
}


def _generalized(row, margin):
    both = (row.positives > 0) & (row.negatives > 0)
    return Mean(jnp.maximum(jnp.where(both, row.pull + row.push, 0), 0), both)


def generalized_lifted_structure(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 1.0,
    distance: Callable[[Array, Array], Array] = distances.euclidean,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """Generalised lifted structured loss: mean over anchors of [log Σ_p e^{d_ap} + log Σ_n e^{m − d_an}]₊.

    The mean is over anchors that have both a positive and a negative (the paper sums). Options: `AnchorOptions`.

    Hermans, Beyer, Leibe 2017, arXiv:1703.07737.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[0.0], [0.0], [0.5]])
    >>> float(generalized_lifted_structure(z, jnp.array([0, 0, 1])))  # 0 + 1 − 0.5
    0.5
    """
    return over_statistics(_GENERALIZED, _generalized, embeddings, labels, margin, distance=distance, **options)
