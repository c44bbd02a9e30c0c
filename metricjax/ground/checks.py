"""Errors about arguments, raised while tracing and from static facts only: what came, and what was wanted.

Arguments are `Any` here, since the first thing to check is whether they are arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "check_array",
    "check_batch",
    "check_budget",
    "check_class_batch",
    "check_class_labels",
    "check_fits",
    "check_labels",
    "check_options",
    "check_order",
    "check_per_row",
    "check_positive",
    "check_rows",
    "refuse_options",
]

_CONVERTED = {
    "torch": "jnp.asarray({}.detach().cpu().numpy())",
    "tensorflow": "jnp.asarray({}.numpy())",
    "pandas": "jnp.asarray({}.to_numpy())",
}


def check_positive(**numbers: Any) -> None:
    """Numbers that divide, or scale an exponent, are positive; traced ones are not checked."""
    for name, value in numbers.items():
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        if not (value > 0 if isinstance(value, int | float) else np.all(np.asarray(value) > 0)):
            raise ValueError(f"{name} is {value}; wanted a positive number")


def check_budget(memory_budget: Any) -> None:
    """It is a number of bytes, which is static."""
    if not isinstance(memory_budget, int) or isinstance(memory_budget, bool) or memory_budget < 1:
        raise ValueError(f"memory_budget is {memory_budget!r}; wanted a positive int, a number of bytes")


def check_options(what: str, options: Any, *taken: type) -> None:
    """The options are those of a TypedDict, or of several."""
    known = {name for one in taken for name in one.__annotations__}
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"unknown options {unknown}; besides its own, {what} takes {sorted(known)}")


def refuse_options(reason: str, options: Any, *names: str) -> None:
    """Options that a loss cannot have, though others like it do, were not given."""
    for name in names:
        if options.get(name) is not None:
            raise TypeError(f"{name} is given; {reason}")


def check_array(name: str, x: Any, wanted: str) -> None:
    """`x` is an array of JAX or NumPy."""
    if isinstance(x, list | tuple):
        how = f"np.asarray({name})" + f", or np.unique({name}, return_inverse=True)[1] of names" * ("label" in name)
        raise TypeError(f"{name} is a {type(x).__name__}; wanted {wanted}: write {how}")
    module = type(x).__module__.partition(".")[0]
    if module in _CONVERTED:
        how = _CONVERTED[module].format(name)
        raise TypeError(f"{name} is a {type(x).__name__} of {module}; wanted an array of JAX: write {how}")
    if not hasattr(x, "dtype"):
        raise TypeError(f"{name} is a {type(x).__name__}; wanted {wanted}")


def check_order(labels: Any, **rows: Any) -> None:
    """Labels did not come in the place of rows."""
    for name, x in rows.items():
        if getattr(x, "ndim", 0) == 1 and getattr(labels, "ndim", 0) == 2:
            check_array(name, x, "an array [rows, features]")
            check_array("labels", labels, "an array with one label per row")
            if jnp.issubdtype(labels.dtype, jnp.floating):
                shapes, wanted = f"{name} has shape {x.shape} and labels {labels.shape}", "wanted the other way round"
                raise ValueError(f"{shapes}; {wanted}, rows of features and then one label for each")


def check_rows(name: str, x: Any, features: int | None = None) -> None:
    """`x` is [rows, features] of floats."""
    check_array(name, x, "an array [rows, features]")
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {x.shape}; wanted [rows, features]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {x.dtype}; wanted a floating-point dtype")
    if features is not None and x.shape[1] != features:
        raise ValueError(f"{name} has {x.shape[1]} features, the embeddings have {features}; they must agree")


def check_labels(name: str, labels: Any, rows: Any, any_kind: bool = False) -> None:
    """`labels` holds one integer for each of the rows, whose number an export may leave open."""
    check_array(name, labels, "an array with one label per row")
    if labels.ndim < 1 or labels.shape[0] != rows:
        raise ValueError(f"{name} has shape {labels.shape}; wanted one label for each of the {rows} rows")
    if not any_kind and jnp.issubdtype(labels.dtype, jnp.inexact):
        raise TypeError(f"{name} has dtype {labels.dtype}; wanted integers, which compare exactly")


def check_fits(name: str, labels: Any) -> None:
    """A NumPy array holds numbers, and integers fit into what JAX makes of them; it would silently cut others."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "USOT":
        how = f"np.unique({name}, return_inverse=True)[1]"
        raise TypeError(f"{name} has dtype {labels.dtype}; wanted numbers: write {how} for names")
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.size:
        taken = jax.dtypes.canonicalize_dtype(labels.dtype)
        limits = np.iinfo(taken)
        if not limits.min <= labels.min() <= labels.max() <= limits.max:
            raise ValueError(f"{name} does not fit into {taken}; wanted labels that are numbered from 0")


def check_per_row(name: str, a: Any, rows: int, kind: type = jnp.bool_) -> None:
    """`a` is None or holds one value of the wanted kind per row."""
    if a is None:
        return
    check_array(name, a, "an array with one value per row")
    wanted = {jnp.bool_: "booleans", jnp.integer: "integers"}.get(kind, "floats")
    if a.shape != (rows,):
        raise ValueError(f"{name} has shape {a.shape}; wanted ({rows},), one value per row")
    if not jnp.issubdtype(a.dtype, kind):
        raise TypeError(f"{name} has dtype {a.dtype}; wanted {wanted}")


def check_batch(
    embeddings: Any,
    labels: Any,
    where: Any,
    weights: Any,
    references: Any,
    reference_labels: Any,
    reference_where: Any,
    same: Callable | None,
    block_size: int | str | None,
) -> None:
    """The arguments of a pair-based loss fit together."""
    check_order(labels, embeddings=embeddings)
    check_rows("embeddings", embeddings)
    n, d = embeddings.shape
    check_labels("labels", labels, n, any_kind=same is not None)
    check_per_row("where", where, n)
    check_per_row("weights", weights, n, jnp.floating)
    if references is None:
        if reference_labels is not None or reference_where is not None:
            raise TypeError("reference_labels and reference_where describe references; wanted references with them")
    else:
        check_rows("references", references, d)
        if reference_labels is None:
            raise TypeError("references came without reference_labels; wanted both")
        check_labels("reference_labels", reference_labels, len(references), any_kind=same is not None)
        if reference_labels.shape[1:] != labels.shape[1:] and same is None:
            raise ValueError(f"reference_labels has shape {reference_labels.shape}, labels {labels.shape}; they differ")
        check_per_row("reference_where", reference_where, len(references))
    if not (block_size is None or block_size == "auto" or (isinstance(block_size, int) and block_size > 0)):
        raise ValueError(f"block_size is {block_size!r}; wanted 'auto', None or a positive int")


def check_class_labels(labels: Any, rows: int) -> None:
    """`labels` holds one class index per row."""
    check_labels("labels", labels, rows)
    if labels.ndim != 1:
        raise ValueError(f"labels has shape {labels.shape}; wanted one class index for each row")


def check_class_batch(
    embeddings: Any,
    labels: Any,
    prototypes: Any,
    where: Any,
    weights: Any,
    classes: Any = None,
    several: bool = False,
    name: str = "prototypes",
) -> None:
    """The arguments of a class-based loss fit together; with `several` prototypes [c, k, d] of each class."""
    check_order(labels, embeddings=embeddings, **{name: prototypes})
    check_rows("embeddings", embeddings)
    n, d = embeddings.shape
    if not several:
        check_rows(name, prototypes, d)
    elif getattr(prototypes, "ndim", 0) != 3 or prototypes.shape[2] != d:
        raise ValueError(f"{name} has shape {jnp.shape(prototypes)}; wanted [classes, prototypes of each, {d}]")
    if len(prototypes) == 0:
        raise ValueError(f"{name} has shape {prototypes.shape}; wanted at least one class")
    check_class_labels(labels, n)
    check_fits("labels", labels)
    check_per_row("where", where, n)
    check_per_row("weights", weights, n, jnp.floating)
    if classes is not None:
        check_array("classes", classes, "an array with one id per prototype")
    if classes is not None and (classes.shape != (len(prototypes),) or not jnp.issubdtype(classes.dtype, jnp.integer)):
        got = f"{classes.dtype}{list(classes.shape)}"
        raise ValueError(f"classes is {got}; wanted one integer id for each of the {len(prototypes)} {name} given")
