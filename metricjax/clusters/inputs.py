"""What clusters are made of: rows that are checked and exist, in at least float32."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from metricjax.ground.checks import check_per_row, check_rows
from metricjax.ground.numerics import existing, finite_rows, widen

__all__ = ["check_input", "check_threshold", "real_rows"]


def check_input(embeddings, where, **integers: int) -> None:
    check_rows("embeddings", embeddings)
    check_per_row("where", where, len(embeddings))
    for name, number in integers.items():
        if not isinstance(number, int):
            raise TypeError(f"{name} is {number!r}; wanted an int, which is static")


def check_threshold(threshold: ArrayLike) -> None:
    if jnp.ndim(threshold):
        raise ValueError(f"threshold has shape {jnp.shape(threshold)}; wanted one number")


def real_rows(embeddings, where):
    """All rows, with 0 in place of those that do not exist or hold NaN or infinity; and which rows are left."""
    real = finite_rows(embeddings) if where is None else finite_rows(embeddings) & where
    return existing(widen(embeddings), real), real
