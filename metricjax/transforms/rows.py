"""Updates of a few rows of the parameters, the state of the optimiser included: public as `transforms.on_rows`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from metricjax.ground.extras import extra

with extra("optax"):
    import optax

__all__ = ["apply_to_rows", "on_rows"]


def on_rows(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Run `inner` on a few rows of the parameters, its state included: for prototypes of sampled classes.

    `init` takes all parameters, leaves [c, ...], and returns the state of `inner`. In
    `update(updates, state, params, rows=rows)`, `updates` and `params` are the gradient and what it was taken with
    respect to, the rows `rows` [r] of the parameters: leaves [r, ...]. So are the updates that come back, which
    `apply_to_rows` adds. What `inner` keeps for each parameter (momentum, Adam's moments) is read and written at `rows`
    only; the other rows stay as they are, bit for bit. What it keeps once (Adam's count) goes on as in any step.

    This equals a step of `inner` on a gradient that is 0 in all other rows, after which those rows and their state are
    put back. A norm over everything (`optax.clip_by_global_norm`) agrees with that; what looks at all parameters at
    once (the norms of `optax.lamb`) sees the rows `rows` alone. With `optax.MultiSteps`, keep `rows` while it gathers.

    No row may come twice. An index ≥ c is padding: it reads zeros and writes nothing; its gradient should be 0.
    `optax.partition` hands `rows` to all its parts, and those without `on_rows` ignore it. An `inner` that does not
    keep a row for each row of a parameter (`optax.adafactor`) is a ValueError in `init`.

    An et al. 2022, arXiv:2203.15565 (Partial FC); their code too gives AdamW the moments of the sampled rows and the
    number of all steps.

    >>> import jax.numpy as jnp
    >>> optimizer, p, rows = on_rows(optax.sgd(1.0, momentum=0.5)), jnp.zeros((3, 1)), jnp.array([0, 2])
    >>> updates, state = optimizer.update(jnp.ones((2, 1)), optimizer.init(p), p[rows], rows=rows)
    >>> apply_to_rows(p, updates, rows).tolist()
    [[-1.0], [0.0], [-1.0]]
    >>> state[0].trace.tolist()
    [[1.0], [0.0], [1.0]]
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        state = inner.init(params)
        masked = lambda s: isinstance(s, optax.MaskedNode)

        def check(kept, leaf):
            if not masked(kept) and (jnp.ndim(leaf) == 0 or kept.shape[:1] != leaf.shape[:1]):
                shapes = f"{kept.shape} for a parameter of shape {jnp.shape(leaf)}"
                raise ValueError(f"on_rows: inner keeps an array of shape {shapes}; wanted a row for each of its rows")

        optax.tree.map_params(inner, check, state, params, is_leaf=masked)
        return state

    def update(updates, state, params=None, *, rows, **extra_args):
        _check_rows_given("updates", updates, rows)
        _check_rows_given("params", params, rows)
        by_row = optax.tree.map_params(inner, lambda _: True, state, transform_non_params=lambda _: False)
        read = lambda of_rows, s: _rows_of(s, rows) if of_rows else s
        write = lambda of_rows, s, new: _with_rows(s, new, rows) if of_rows else new
        updates, new = inner.update(updates, jax.tree.map(read, by_row, state), params, **extra_args)
        return updates, jax.tree.map(write, by_row, state, new)

    return optax.GradientTransformationExtraArgs(init, update)


def apply_to_rows(params: Any, updates: Any, rows: Int[Array, " r"]) -> Any:
    """`optax.apply_updates` for the rows `rows` of the parameters: leaves [c, ...], with updates [r, ...].

    The result has the dtype of the parameters. No row may come twice; an index ≥ c is padding, and its update is
    dropped. When parameters and state are donated to the enclosing `jax.jit`, they are changed in place (in bfloat16
    not by a CPU, for which XLA widens them).

    >>> import jax.numpy as jnp
    >>> apply_to_rows(jnp.zeros((3, 1)), jnp.array([[1.0], [2.0]]), jnp.array([2, 0])).tolist()
    [[2.0], [0.0], [1.0]]
    """
    _check_rows_given("updates", updates, rows)
    moved = lambda p, u: _with_rows(p, optax.apply_updates(_rows_of(p, rows), u), rows)
    return jax.tree.map(moved, params, updates)


def _rows_of(x, rows):
    return jnp.asarray(x).at[rows].get(mode="fill", fill_value=0)


def _with_rows(x, new, rows):
    return jnp.asarray(x).at[rows].set(new.astype(x.dtype), mode="drop")


def _check_rows_given(name: str, tree: Any, rows: Any) -> None:
    """`rows` are indices, and each leaf has one row for each of them."""
    if not (hasattr(rows, "dtype") and rows.ndim == 1 and jnp.issubdtype(rows.dtype, jnp.integer)):
        raise TypeError(f"rows is {rows!r}; wanted an array [r] of integers, the indices of rows")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.shape(leaf)[:1] != rows.shape:
            which = name + jax.tree_util.keystr(path)
            raise ValueError(f"{which} has shape {jnp.shape(leaf)}; wanted a row for each of the {len(rows)} `rows`")
