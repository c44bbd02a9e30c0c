"""What distances and similarities have in common: an all-pairs function that keeps its two parts."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from metricjax.ground.functions import by_content, check_function, jitted
from metricjax.ground.numerics import widen
from metricjax.ground.precision import EXACT, Precision, as_precision, asked, at_precision

__all__ = ["Kind", "Pairwise", "all_pairs", "as_pairwise", "exactly", "pairwise", "positive_and_negative"]

Kind = Literal["distance", "similarity"]


class Pairwise:
    """`f(x, y) = compare(embed(x), embed(y))`, jitted, in at least float32, and what a driver may know of it.

    embed: maps rows one by one (for a cosine: normalises them), so that a driver which compares panels of rows with all
        columns embeds each row once.
    symmetric: f(x, y) = f(y, x)ᵀ.
    role: "distance" (smaller is closer) or "similarity" (larger is closer); absent where nothing is known of it.
    scaled: None, or the same as `compare(x, embed(y))` for an embedded x, made faster where y has many rows that are
        compared once, in reverse mode alone: say, by scaling the columns of a product.
    precision: at which its products are taken (see `at`); None leaves it to whoever calls.
    product: `compare` is the plain product of embedded rows, x yᵀ, so that a search may round them and knows how far
        off that is.
    of_product: None, or `compare(x, y)` is this function of each entry of x yᵀ: a gradient is then made of products.

    Called directly it is exact: products in float32 on every platform, unless another `precision` is asked for, of it
    or of the measure that calls it. Two made of the same parts are equal.
    """

    role: Kind

    def __init__(
        self,
        embed: Callable[[Array], Array],
        compare: Callable[[Array, Array], Array],
        symmetric: bool,
        kind: Kind | None = None,
        scaled: Callable[[Array, Array], Array] | None = None,
        precision: str | None = None,
        product: bool = False,
        of_product: Callable[[Array], Array] | None = None,
    ):
        functools.update_wrapper(self, compare)
        self.name = getattr(compare, "__name__", repr(compare))
        self.symmetric, self.precision, self.product = symmetric, precision, product
        self.of_product = _as_it_is if product else by_content(of_product)
        self._functions = tuple(map(by_content, (embed, compare, scaled)))
        self.embed, self.compare = (at_precision(f, precision) for f in self._functions[:2])
        self.scaled = None if scaled is None else at_precision(self._functions[2], precision)
        if kind is not None:
            self.role = kind

    def at(self, precision: Precision) -> "Pairwise":
        """The same at another precision; None leaves it as it is."""
        name = as_precision(precision)
        if name in (None, self.precision):
            return self
        embed, compare, scaled = self._functions
        role = getattr(self, "role", None)
        return Pairwise(embed, compare, self.symmetric, role, scaled, name, self.product, self.of_product)

    def __call__(
        self,
        x: Float[Array, "n d"] | None = None,
        y: Float[Array, "m d"] | None = None,
        *,
        precision: Precision = None,
    ) -> Float[Array, "n m"]:
        if x is None or y is None:
            raise TypeError(f"{self.name} has no settings; give it as it stands, or two sets of rows to compare")
        for name, a in (("x", x), ("y", y)):
            if a.ndim != 2:
                raise ValueError(f"{self.name}: {name} has shape {a.shape}; wanted [rows, features]")
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"{self.name}: x has {x.shape[1]} features, y has {y.shape[1]}; they must agree")
        return _compared(self.at(as_precision(precision) or asked() or self.precision or EXACT), x, y)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self).__call__.__get__(self))

    @property
    def _parts(self) -> tuple:
        return *self._functions, self.of_product, self.symmetric, self.precision, self.product

    def __hash__(self) -> int:
        return hash(self._parts)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Pairwise) and self._parts == other._parts

    def __repr__(self) -> str:
        at = "" if self.precision in (None, EXACT) else f" at {self.precision}"
        return f"<{self.__module__}.{self.name}{at}>"


@jitted
def _compared(score: Pairwise, x, y):
    return score.compare(score.embed(widen(x)), score.embed(widen(y)))


def _as_it_is(x: Any) -> Any:
    return x


def pairwise(
    embed: Callable[[Array], Array] = _as_it_is,
    symmetric: bool = True,
    kind: Kind | None = None,
    scaled: Callable[[Array, Array], Array] | None = None,
    exact: bool = False,
    product: bool = False,
    of_product: Callable[[Array], Array] | None = None,
) -> Callable[[Callable[[Array, Array], Array]], Pairwise]:
    """Make an all-pairs function of a `compare(x, y)`, and declare what a driver may know of it.

    Args:
      embed: maps rows before they are compared, one by one: it is then done once for each row, not once for each panel.
      symmetric: f(x, y) = f(y, x)ᵀ.
      kind: "distance" or "similarity"; one of the other kind is then refused by name.
      scaled: a faster way of `compare(x, embed(y))` where y has many rows, as class prototypes have; see `Pairwise`.
      exact: a loss takes its products in float32 on every platform, unless another `precision` is asked of it: for what
        subtracts products from each other. Without it a loss takes JAX's default, which is faster on GPUs and TPUs.
      product: `compare(x, y)` is x yᵀ and nothing else, of rows as `embed` leaves them: GPUs and TPUs search it faster.
      of_product: `compare(x, y)` is this function of each entry of x yᵀ: some losses then have faster gradients.

    >>> import jax.numpy as jnp, metricjax as mj
    >>> @mj.pairwise(embed=jnp.sign, kind="similarity")
    ... def agreement(x, y):
    ...     return jnp.matmul(x, y.T) / x.shape[1]
    >>> agreement(jnp.array([[1.0, -3.0]]), jnp.array([[2.0, -1.0], [2.0, 1.0]])).tolist()
    [[1.0, 0.0]]
    """

    def made(compare: Callable[[Array, Array], Array]) -> Pairwise:
        return Pairwise(embed, compare, symmetric, kind, scaled, EXACT if exact else None, product, of_product)

    return made


def as_pairwise(f: Callable[[Array, Array], Array], kind: Kind | None = None) -> Pairwise:
    """An all-pairs function as a `Pairwise`: a public one of the other `kind` is refused, one's own is taken."""
    if kind is not None:
        check_function(kind, f)
    if isinstance(f, functools.partial) and not f.args and not f.keywords:
        return as_pairwise(f.func)
    return f if isinstance(f, Pairwise) else Pairwise(_as_it_is, f, symmetric=False)


def exactly(f: Callable[[Array, Array], Array], kind: Kind | None = None) -> Pairwise:
    """`as_pairwise` for those who rank and count: exact, unless `f` has a precision of its own by `Pairwise.at`."""
    score = as_pairwise(f, kind)
    return score.at(score.precision or EXACT)


def all_pairs(relation: Callable[[Array, Array], Any], rows: Array, columns: Array) -> Any:
    """`relation(a, b)` of each row with each column: [n, m] for each of its results."""
    return jax.vmap(lambda a: jax.vmap(lambda b: relation(a, b))(columns))(rows)


def positive_and_negative(related: Any) -> tuple[Array, Array]:
    """Both answers of a relation between labels, which may give one: then the other is its opposite."""
    return related if isinstance(related, tuple) else (related, ~related)
