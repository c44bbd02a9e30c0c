"""What distances and similarities have in common: an all-pairs function that keeps its two parts."""

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from metricjax.numerics import widen


class Pairwise:
    """`f(x, y) = compare(embed(x), embed(y))`, jitted, in at least float32.

    `embed` maps rows one by one (for a cosine: normalises them), so that a driver which compares panels of rows with
    all columns embeds each row once. `symmetric` says that f(x, y) = f(y, x)ᵀ.
    """

    def __init__(self, embed: Callable[[Array], Array], compare: Callable[[Array, Array], Array], symmetric: bool):
        functools.update_wrapper(self, compare)
        self.name = getattr(compare, "__name__", repr(compare))
        self.embed, self.compare, self.symmetric = embed, compare, symmetric
        self._all_pairs = jax.jit(lambda x, y: compare(embed(widen(x)), embed(widen(y))), inline=True)

    def __call__(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        for name, a in (("x", x), ("y", y)):
            if a.ndim != 2:
                raise ValueError(f"{self.name}: {name} has shape {a.shape}; wanted [rows, features]")
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"{self.name}: x has {x.shape[1]} features, y has {y.shape[1]}; they must agree")
        return self._all_pairs(x, y)

    def __repr__(self) -> str:
        return f"<{self.__module__}.{self.name}>"


def pairwise(
    embed: Callable[[Array], Array] = lambda x: x, symmetric: bool = True
) -> Callable[[Callable[[Array, Array], Array]], Pairwise]:
    """Make an all-pairs function of a `compare(x, y)` that gets rows already passed through `embed`."""
    return lambda compare: Pairwise(embed, compare, symmetric)


@functools.lru_cache(maxsize=1024)
def as_pairwise(f: Callable[[Array, Array], Array]) -> Pairwise:
    """A user's own all-pairs function as a `Pairwise`; the same one again for the same function."""
    return f if isinstance(f, Pairwise) else Pairwise(lambda x: x, f, symmetric=False)
