"""A loss over prefixes of embeddings."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from metricjax.compose.sums import one_number, scales_of
from metricjax.losses.catalogue import ARGUMENTS

__all__ = ["matryoshka"]


def matryoshka(
    loss: Callable[..., Any], sizes: Sequence[int], weights: Sequence[ArrayLike] | Float[Array, " k"] | None = None
) -> Callable[..., Any]:
    """The loss Σ_k w_k · loss over the first `sizes[k]` features of embeddings; all weights are 1 by default.

    Prefixes of an embedding trained this way can be used by themselves. Whatever else has the same features
    (references, prototypes, the other view) is cut too. `loss` may be any of `mj.losses`, or a `functools.partial` of
    one.

    Kusupati et al. 2022, "Matryoshka representation learning", arXiv:2205.13147 (weights 1).

    >>> import jax.numpy as jnp
    >>> import metricjax as mj
    >>> nested = matryoshka(mj.losses.supcon, sizes=(2, 4))
    >>> z, y = jnp.eye(4), jnp.arange(4) // 2
    >>> bool(jnp.isclose(nested(z, y), mj.losses.supcon(z[:, :2], y) + mj.losses.supcon(z, y)))
    True
    """
    scales = scales_of(weights, len(sizes), "sizes")
    whole = loss if isinstance(loss, functools.partial) else functools.partial(loss)

    @functools.wraps(loss)
    def nested(*arguments, **options):
        bound = inspect.signature(whole.func).bind(*whole.args, *arguments, **{**whole.keywords, **options})
        features, first = jnp.shape(bound.args[0])[-1], next(iter(bound.arguments))
        if any(not 0 < size <= features for size in sizes):
            raise ValueError(f"sizes are {tuple(sizes)}; wanted numbers from 1 to the {features} features")

        def cut(size: int):
            has_features = lambda name: name == first or (name in ARGUMENTS and ARGUMENTS[name].features)
            part = lambda name, a: a[..., :size] if has_features(name) and a is not None else a
            named = {name: part(name, a) for name, a in bound.arguments.items() if name != "options"}
            return {**named, **{name: part(name, a) for name, a in bound.arguments.get("options", {}).items()}}

        values = (one_number(whole.func(**cut(size)), "matryoshka") for size in sizes)
        return sum(weight * value for weight, value in zip(scales, values, strict=True))

    return nested
