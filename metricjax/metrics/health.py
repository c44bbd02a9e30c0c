"""What tells learning from collapse, cheap enough for every training step."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax import distances, losses, mining
from metricjax.reductions import with_count


def health(embeddings: Float[Array, "n d"], labels: Int[Array, " n"]) -> dict[str, Float[Array, ""]]:
    """Signs of learning and of collapse in one batch; a function for use inside `jit`.

    - `active triplets`: share of all triplets with d_ap + 0.2 > d_an, d the squared chord;
    - `distance/positive`, `distance/negative`: mean chord of the pairs of each kind;
    - `spread`: √ of the summed variances of the normalised embeddings: 1 if they are spread evenly, 0 if they are one
      point.

    >>> import jax.numpy as jnp
    >>> float(health(jnp.ones((4, 2)), jnp.array([0, 0, 1, 1]))["spread"])
    0.0
    """
    d = distances.chord(embeddings, embeddings)
    same = labels[:, None] == labels[None]
    positives, negatives = same & ~jnp.eye(len(labels), dtype=bool), ~same
    mean = lambda where: jnp.sum(jnp.where(where, d, 0)) / jnp.maximum(jnp.sum(where, dtype=d.dtype), 1)
    active = losses.triplet(embeddings, labels, triplets=mining.all_triplets, reduction=with_count)[1]
    number = lambda mask: jnp.sum(mask, axis=1, dtype=d.dtype)
    unit = distances.chord.embed(embeddings)
    return {
        "active triplets": active / jnp.maximum(jnp.sum(number(positives) * number(negatives)), 1),
        "distance/positive": mean(positives),
        "distance/negative": mean(negatives),
        "spread": jnp.sqrt(jnp.sum(jnp.var(unit, axis=0))),
    }
