"""Scores of a set of embeddings with itself or with another, a panel of rows at a time."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from metricjax import similarities
from metricjax.checks import check_labels, check_rows


def check_set(
    embeddings, labels, name: str = "embeddings", labels_name: str = "labels"
) -> tuple[jax.Array, np.ndarray]:
    """The arguments as arrays, once they fit together and hold finite numbers only."""
    embeddings, labels = jnp.asarray(embeddings), np.asarray(labels)
    check_rows(name, embeddings)
    check_labels(labels_name, labels, len(embeddings))
    check_finite(name, embeddings)
    return embeddings, labels


def check_finite(name: str, embeddings: jax.Array) -> None:
    if not bool(jnp.all(jnp.isfinite(embeddings))):
        raise ValueError(f"{name} holds NaN or infinity; an evaluation of it would mean nothing")


@jax.jit(static_argnums=0)
def _scores(similarity, rows, columns):
    return similarity(rows, columns)


def panels(
    embeddings: jax.Array,
    similarity: Callable = similarities.cosine,
    height: int = 1024,
    columns: jax.Array | None = None,
) -> Iterator[tuple[int, jax.Array]]:
    """(first row, scores [rows, n]) for panels of at most `height` rows; the columns are the rows unless given."""
    columns = embeddings if columns is None else columns
    for start in range(0, len(embeddings), height):
        yield start, _scores(similarity, embeddings[start : start + height], columns)
