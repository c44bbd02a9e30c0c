"""Numbers of each row, of all devices, that class-based losses need before they begin."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from metricjax.engine import devices
from metricjax.engine.devices import summed
from metricjax.engine.pairs import Mean
from metricjax.engine.prototypes import known_labels
from metricjax.engine.reductions import as_mean
from metricjax.ground.checks import check_array
from metricjax.ground.numerics import existing, norm, widen
from metricjax.ground.pairwise import Pairwise
from metricjax.prototypes import over_prototypes

__all__ = ["class_count", "own_score", "row_lengths", "values_of_all"]


def values_of_all(
    values: Callable[..., Array],
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c *k d"],
    options: Any,
    *rows: Float[Array, " n"],
    similarity: Pairwise,
) -> Mean:
    """`values(own, *rows)` of the rows of all devices, and which of them count, whatever their weights."""
    shared = ("where", "axis_name", "num_classes", "classes", "precision", "memory_budget")
    scope: Any = {name: options[name] for name in shared if name in options}
    arrays = (embeddings, labels, prototypes)
    return over_prototypes(values, None, *arrays, rows=rows, similarity=similarity, reduction=as_mean, **scope)


def own_score(own: Float[Array, " n"], *rows: Array) -> Float[Array, " n"]:
    """A target that is the score itself."""
    return own


def row_lengths(embeddings: Float[Array, "n d"], options: Any) -> Float[Array, " n"]:
    check_array("embeddings", embeddings, "an array [rows, features]")
    return norm(existing(widen(embeddings), options.get("where")))[:, 0]


def class_count(prototypes: Float[Array, "c *k d"], options: Any) -> ArrayLike:
    """How many classes take part."""
    check_array("prototypes", prototypes, "an array [classes, features]")
    axis, number, classes = (options.get(name) for name in ("axis_name", "num_classes", "classes"))
    if classes is not None:
        return summed(jnp.sum(known_labels(classes, num_classes=number) >= 0), axis)
    given = len(prototypes) * devices.count(axis)
    return given if number is None else number
