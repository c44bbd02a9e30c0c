"""Scores of a set of embeddings with itself or with another, a panel of rows at a time; and what sets have to be."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metricjax import similarities
from metricjax.ground.checks import check_fits, check_labels, check_rows
from metricjax.ground.functions import by_content, check_function, jitted

__all__ = ["check_finite", "check_flat_labels", "check_set", "on_device", "panels", "positive_ints"]


def check_set(
    embeddings, labels, name: str = "embeddings", labels_name: str = "labels"
) -> tuple[jax.Array, np.ndarray]:
    """The arguments as arrays, once there is one label for each row and the rows hold finite numbers only."""
    embeddings, labels = jnp.asarray(embeddings), np.asarray(labels)
    check_rows(name, embeddings)
    check_flat_labels(labels_name, labels, len(embeddings))
    check_finite(name, embeddings)
    return embeddings, labels


def check_flat_labels(name: str, labels: np.ndarray, rows: int) -> None:
    """`labels` holds one label per row, of any kind but floats."""
    check_labels(name, labels, rows)
    if labels.ndim != 1:
        raise ValueError(f"{name} has shape {labels.shape}; wanted one label for each of the {rows} rows")


def check_finite(name: str, embeddings: jax.Array) -> None:
    if not bool(jnp.all(jnp.isfinite(embeddings))):
        raise ValueError(f"{name} holds NaN or infinity; an evaluation of it would mean nothing")


def positive_ints(name: str, numbers: Sequence[int]) -> tuple[int, ...]:
    """The numbers as ints, which may be static; there has to be at least one."""
    some = hasattr(numbers, "__len__") and len(numbers) > 0
    if not some or not all(isinstance(number, int | np.integer) and number > 0 for number in numbers):
        raise ValueError(f"{name} is {numbers!r}; wanted positive ints")
    return tuple(map(int, numbers))


def on_device(name: str, labels: Any) -> jax.Array:
    """`labels` on the device, where JAX would cut large ones to 32 bits without a word, and two people might be one."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind not in "biufV":
        raise TypeError(f"{name} has dtype {labels.dtype}; wanted numbers, as numpy.unique's return_inverse gives them")
    check_fits(name, labels)
    return jnp.asarray(labels)


@jitted
def _scores(similarity, rows, columns):
    scores = similarity(rows, columns)
    return scores, jnp.any(jnp.isnan(scores))


def panels(
    embeddings: jax.Array,
    similarity: Callable = similarities.cosine,
    height: int = 1024,
    columns: jax.Array | None = None,
) -> Iterator[tuple[int, jax.Array]]:
    """(first row, scores [rows, n]) for panels of at most `height` rows; the columns are the rows unless given."""
    check_function("similarity", similarity)
    similarity, columns = by_content(similarity), embeddings if columns is None else columns
    for start in range(0, len(embeddings), height):
        scores, broken = _scores(similarity, embeddings[start : start + height], columns)
        if broken:
            raise ValueError("similarity gives NaN for finite rows; nothing can be ranked by it")
        yield start, scores
