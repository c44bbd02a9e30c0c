"""Scores of a set of embeddings with itself or with another, a panel of rows at a time; and checks of sets."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metricjax import similarities
from metricjax.engine import sizes
from metricjax.ground.checks import check_fits, check_labels, check_rows
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import widen
from metricjax.ground.pairwise import Pairwise, exactly

__all__ = ["check_finite", "check_flat_labels", "check_set", "numbered", "on_device", "panels", "positive_ints"]


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
        raise ValueError(f"{name} holds NaN or infinity; wanted finite numbers")


def positive_ints(name: str, numbers: Sequence[int]) -> tuple[int, ...]:
    """The numbers as ints, which may be static; ValueError unless there is at least one and all are positive."""
    some = hasattr(numbers, "__len__") and len(numbers) > 0
    if not some or not all(isinstance(number, int | np.integer) and number > 0 for number in numbers):
        raise ValueError(f"{name} is {numbers!r}; wanted positive ints")
    return tuple(map(int, numbers))


def on_device(name: str, labels: Any) -> jax.Array:
    """`labels` on the device; large ones are an error: JAX would silently cut them to 32 bits, and join two people."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind not in "biufV":
        raise TypeError(f"{name} has dtype {labels.dtype}; wanted numbers, as numpy.unique's return_inverse gives them")
    check_fits(name, labels)
    return jnp.asarray(labels)


def numbered(query_labels: np.ndarray, gallery_labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """People by number, from 0: those of the queries, and of the gallery; there the last number is everybody else."""
    if np.issubdtype(np.result_type(query_labels, gallery_labels), np.inexact):  # int64 beside uint64
        query_labels, gallery_labels = query_labels.astype(object), gallery_labels.astype(object)
    people, queries = np.unique(query_labels, return_inverse=True)
    place = np.minimum(np.searchsorted(people, gallery_labels), len(people) - 1)
    return queries, np.where(people[place] == gallery_labels, place, len(people))


@jitted
def _scores(score: Pairwise, rows, columns):
    scores = score.compare(*(score.embed(widen(a)) for a in (rows, columns)))
    return scores, jnp.any(jnp.isnan(scores))


def panels(embeddings: jax.Array, similarity: Callable = similarities.cosine) -> Iterator[tuple[int, jax.Array]]:
    """(first row, scores [rows, n]) with all rows, for one panel of rows after the other."""
    score, height = exactly(similarity, "similarity"), sizes.rows_in_table(len(embeddings))
    for start in range(0, len(embeddings), height):
        scores, broken = _scores(score, embeddings[start : start + height], embeddings)
        if broken:
            raise ValueError("similarity gives NaN for finite rows; nothing can be ranked by it")
        yield start, scores
