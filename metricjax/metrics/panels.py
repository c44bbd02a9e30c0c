"""Scores of a set of embeddings with itself, a panel of rows at a time."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from metricjax import similarities
from metricjax.checks import check_labels, check_rows


def check_set(embeddings, labels) -> tuple[jax.Array, np.ndarray]:
    """The arguments as arrays, once they fit together and hold finite numbers only."""
    embeddings, labels = jnp.asarray(embeddings), np.asarray(labels)
    check_rows("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    if not bool(jnp.all(jnp.isfinite(embeddings))):
        raise ValueError("embeddings holds NaN or infinity; an evaluation of it would mean nothing")
    return embeddings, labels


@jax.jit(static_argnums=0)
def _scores(similarity, rows, columns):
    return similarity(rows, columns)


def panels(
    embeddings: jax.Array, similarity: Callable = similarities.cosine, height: int = 1024
) -> Iterator[tuple[int, jax.Array]]:
    """(first row, scores [rows, n]) for panels of at most `height` rows."""
    for start in range(0, len(embeddings), height):
        yield start, _scores(similarity, embeddings[start : start + height], embeddings)
