"""Center loss: embeddings drawn to the running centre of their class."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from metricjax.engine.devices import of_all
from metricjax.engine.prototypes import known_labels, targets
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_class_batch
from metricjax.ground.numerics import existing, widen
from metricjax.ground.pairwise import pairwise
from metricjax.losses.row_values import own_score
from metricjax.prototypes import PrototypeOptions, over_prototypes

__all__ = ["center", "update_centers"]


@pairwise()
def _half_squares(x, y):
    """½‖x − y‖² of differences, which does not cancel."""
    return jnp.sum(jnp.square(x[:, None] - y[None]), axis=-1) / 2


def center(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    centers: Float[Array, "c d"],
    **options: Unpack[PrototypeOptions],
) -> Loss:
    """Center loss: mean over rows of ½‖x − c_y‖².

    It is meant to be added to a classification loss with a small weight (0.003 in the paper) while `update_centers`,
    not the gradient, moves the centres. Options: `PrototypeOptions`.

    Wen et al. 2016, "A discriminative feature learning approach for deep face recognition" (the paper sums over the
    batch where this averages).

    >>> import jax.numpy as jnp
    >>> float(center(jnp.array([[3.0, 4.0]]), jnp.array([0]), jnp.zeros((1, 2))))
    12.5
    """
    check_class_batch(embeddings, labels, centers, None, None, name="centers")
    return over_prototypes(own_score, None, embeddings, labels, centers, similarity=_half_squares, **options)


def update_centers(
    centers: Float[Array, "c d"],
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    *,
    rate: ArrayLike = 0.5,
    where: Bool[Array, " n"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "c d"]:
    """The centres after one batch: c_j − α Δc_j with Δc_j = Σ_{y_i=j} (c_j − x_i) / (1 + n_j).

    α is `rate` (0.5 in the paper) and n_j how many rows have class j; a class without rows stays where it is. With
    `axis_name`, rows and centres are split over devices as in `PrototypeOptions`.

    Wen et al. 2016, "A discriminative feature learning approach for deep face recognition".

    >>> import jax.numpy as jnp
    >>> update_centers(jnp.zeros((2, 1)), jnp.array([[3.0], [3.0]]), jnp.array([0, 0]), rate=0.5).tolist()
    [[1.0], [0.0]]
    """
    check_class_batch(embeddings, labels, centers, where, None, name="centers")
    return _update_centers(axis_name, centers, embeddings, labels, rate, where)


@jax.jit(static_argnums=0, inline=True)
def _update_centers(axis_name, centers, embeddings, labels, rate, where):
    c, x = widen(centers), existing(widen(embeddings), where)
    x, labels = of_all((x, known_labels(labels, where)), axis_name)
    own = targets(labels, len(centers), axis=axis_name).own
    index, counted = jnp.maximum(own, 0), (own >= 0).astype(c.dtype)
    count = jnp.zeros(len(c), c.dtype).at[index].add(counted)
    pull = jnp.zeros_like(c).at[index].add(counted[:, None] * (c[index] - x.astype(c.dtype)))
    return (c - jnp.asarray(rate, c.dtype) * pull / (1 + count)[:, None]).astype(centers.dtype)
