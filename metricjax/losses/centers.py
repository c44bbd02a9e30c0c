"""Center loss: embeddings drawn to the running centre of their class."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from metricjax.anchors import Mean, existing
from metricjax.numerics import widen
from metricjax.prototypes import PrototypeOptions, check_class_batch, targets
from metricjax.reductions import quotient, reduced


def center(
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    centers: Float[Array, "c d"],
    **options: Unpack[PrototypeOptions],
) -> Float[Array, ""]:
    """Center loss: mean over rows of ½‖x − c_y‖².

    It is meant to be added to a classification loss with a small weight (0.003 in the paper) while `update_centers`,
    not the gradient, moves the centres. Options: `PrototypeOptions`.

    Wen et al. 2016, "A discriminative feature learning approach for deep face recognition" (the paper sums over the
    batch where this averages).

    >>> import jax.numpy as jnp
    >>> float(center(jnp.array([[3.0, 4.0]]), jnp.array([0]), jnp.zeros((1, 2))))
    12.5
    """
    where, weights = options.get("where"), options.get("weights")
    check_class_batch(embeddings, labels, centers, where, weights, name="centers")
    return _center(options.get("reduction", quotient), embeddings, labels, centers, where, weights)


@jax.jit(static_argnums=0, inline=True)
def _center(reduction, embeddings, labels, centers, where, weights):
    x = existing(widen(embeddings), where)
    index, exists = targets(labels, len(centers), where)
    squares = jnp.sum(jnp.square(x - centers[index].astype(x.dtype)), axis=-1)
    mean = Mean(jnp.where(exists, squares / 2, 0), exists.astype(x.dtype))
    return reduced((mean,), None if weights is None else weights.astype(x.dtype), reduction)


@jax.jit(inline=True)
def update_centers(
    centers: Float[Array, "c d"],
    embeddings: Float[Array, "n d"],
    labels: Int[Array, " n"],
    *,
    rate: ArrayLike = 0.5,
    where: Bool[Array, " n"] | None = None,
) -> Float[Array, "c d"]:
    """The centres after one batch: c_j − α Δc_j with Δc_j = Σ_{y_i=j} (c_j − x_i) / (1 + n_j).

    α is `rate` (0.5 in the paper) and n_j how many rows have class j; a class without rows stays where it is.

    Wen et al. 2016, "A discriminative feature learning approach for deep face recognition".

    >>> import jax.numpy as jnp
    >>> update_centers(jnp.zeros((2, 1)), jnp.array([[3.0], [3.0]]), jnp.array([0, 0]), rate=0.5).tolist()
    [[1.0], [0.0]]
    """
    check_class_batch(embeddings, labels, centers, where, None, name="centers")
    c, x = widen(centers), existing(widen(embeddings), where)
    index, exists = targets(labels, len(centers), where)
    counted = exists.astype(c.dtype)
    count = jnp.zeros(len(c), c.dtype).at[index].add(counted)
    pull = jnp.zeros_like(c).at[index].add(counted[:, None] * (c[index] - x.astype(c.dtype)))
    return (c - jnp.asarray(rate, c.dtype) * pull / (1 + count)[:, None]).astype(centers.dtype)
