"""Losses that sum a term for each pair."""

from collections.abc import Callable
from typing import Literal, Unpack

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from metricjax import distances
from metricjax.anchors import AnchorOptions, Mean, over_anchors


def check_average(average: str) -> None:
    """`average` is one of the two words."""
    if average not in ("active", "valid"):
        raise ValueError(f"average is {average!r}; wanted 'active' (over non-zero terms) or 'valid' (over all terms)")


def hinge_mean(terms: Float[Array, "n m"], where: Bool[Array, "n m"], average: str) -> Mean:
    """Each row's sum of the marked non-negative terms, and how many count: the non-zero ones or all marked ones."""
    check_average(average)
    counted = where & (terms > 0) if average == "active" else where
    return Mean(jnp.sum(jnp.where(where, terms, 0), axis=-1), jnp.sum(counted, axis=-1))


def _contrastive_rows(d_positive, positives, d_negative, negatives, margin, positive_margin, squared, average):
    far = jnp.maximum(d_positive - positive_margin, 0)
    near = jnp.maximum(margin - d_negative, 0)
    if squared:
        far, near = jnp.square(far) / 2, jnp.square(near) / 2
    return hinge_mean(far, positives, average), hinge_mean(near, negatives, average)


def contrastive(
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *,
    margin: ArrayLike = 1.0,
    positive_margin: ArrayLike = 0.0,
    squared: bool = True,
    distance: Callable[[Array, Array], Array] = distances.chord,
    average: Literal["active", "valid"] = "active",
    **options: Unpack[AnchorOptions],
) -> Float[Array, ""]:
    """Contrastive loss: mean over positive pairs of ½[d − m₊]₊², plus mean over negative pairs of ½[m − d]₊².

    With `squared=False`, [d − m₊]₊ and [m − d]₊. Each mean is over its non-zero terms, or over all of its pairs with
    `average="valid"`. `distance` is the chord unless another is given; options: `AnchorOptions`.

    Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping" (m₊ = 0).

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> float(contrastive(z, jnp.array([0, 0, 1])))  # no positive is far, no negative nearer than 1
    0.0
    """
    hyper = (margin, positive_margin, squared, average)
    return over_anchors(
        _contrastive_rows, embeddings, labels, *hyper, distance=distance, apart=True, by_pair=True, **options
    )
