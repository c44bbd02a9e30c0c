"""Results in one line, as they are printed: arrays by dtype and shape, what is long by its length."""

import dataclasses
import pathlib
from collections.abc import Callable, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["one_line"]

_LONGEST = 40  # characters of a text


def one_line(result: Any, words: Callable[[], str] | None = None) -> str:
    """A NamedTuple or a dataclass in one line: its name and its fields.

    With `words`, these are the line where all fields are lists of numbers in NumPy, which can be counted, and not what
    JAX puts in their place: tracers, shapes, axes.

    >>> from typing import NamedTuple
    >>> class Found(NamedTuple):
    ...     scores: np.ndarray
    ...     people: list
    ...     steps: int
    >>> one_line(Found(np.zeros((200, 5), np.float32), ["Ann", "Bo"], 3))
    'Found(scores=float32[200, 5], people=list[2], steps=3)'
    """
    leaves = [] if words is None else jax.tree.leaves(result)
    if words is not None and all(isinstance(leaf, np.ndarray) and leaf.ndim == 1 and leaf.size for leaf in leaves):
        return words()
    names = getattr(result, "_fields", None) or [field.name for field in dataclasses.fields(result)]
    fields = (f"{name}={_shown(getattr(result, name))}" for name in names)
    return f"{type(result).__name__}({', '.join(fields)})"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str | pathlib.Path):
        text = str(value)
        return repr(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return str(value) if _is_known_number(value) else f"{value.dtype}{list(value.shape)}"
    return f"{type(value).__name__}[{len(value)}]" if isinstance(value, Sized) else type(value).__name__


def _is_known_number(value: Any) -> bool:
    if value.shape != () or isinstance(value, jax.core.Tracer) or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return False
    if isinstance(value, jax.Array):  # which may lie on other hosts, or have been given away to another program
        return value.is_fully_addressable and not value.is_deleted()
    return isinstance(value, np.ndarray | np.generic)
