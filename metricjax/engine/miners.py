"""What a driver may know of a miner: each declares, as data, what it needs and what can be done with it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import jax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Int

from metricjax.ground.functions import by_content, check_settings, under_name
from metricjax.ground.one_line import one_line

__all__ = ["Masks", "Miner", "Selection", "Triplets", "as_miner", "as_partial", "as_selection", "prepared", "selection"]

Masks: TypeAlias = tuple[Bool[Array, "n m"], Bool[Array, "n m"]]


class Triplets(NamedTuple):
    """Rows (`anchor`) and columns (`positive`, `negative`) of each triplet; what is not `valid` means nothing."""

    anchor: Int[Array, "n ..."]
    positive: Int[Array, "n ..."]
    negative: Int[Array, "n ..."]
    valid: Bool[Array, "n ..."]

    def __repr__(self) -> str:
        return one_line(self)


@partial(jax.tree_util.register_dataclass, data_fields=["keep"], meta_fields=["reaches", "prepare"])
@dataclass(frozen=True)
class Miner:
    """A mask miner, `keep(distances, positives, negatives) -> (positives, negatives)`, and what it needs besides.

    A plain function, or a `jax.tree_util.Partial` that binds numbers and keys to one, is a miner that looks at one row
    at a time. What it does beyond that is declared here.

    Attributes:
      keep: the function, or a `Partial` of it.
      reaches: `keep` gets one more argument, `row_of(index [n]) -> distances [n, m]` of columns to all columns.
      prepare: for a miner that has to look at the whole batch first: `prepare(total, *values) -> Miner` gets the
        values bound to `keep` and returns a miner for one row at a time. `total(f)` is Σ f(distances, positives,
        negatives, row_of) over all rows, panels and devices, where `f` returns arrays of a fixed shape.

    >>> import jax.numpy as jnp
    >>> from jax.tree_util import Partial
    >>> def nearer_than(limit, distances, positives, negatives, row_of):
    ...     return positives, negatives & (distances < limit)
    >>> def below_average(total):
    ...     count = total(lambda d, p, n, row_of: jnp.sum(n))
    ...     mean = total(lambda d, p, n, row_of: jnp.sum(jnp.where(n, d, 0))) / count
    ...     return Miner(Partial(nearer_than, mean), reaches=True)
    >>> closer_half = Miner(lambda distances, positives, negatives: (positives, negatives), prepare=below_average)
    """

    keep: Any
    reaches: bool = False
    prepare: Callable[..., Any] | None = None

    role: ClassVar[str] = "miner"

    def __call__(self, distances: Any, positives: Any, negatives: Any, row_of: Any = None) -> Masks:
        reach = (row_of,) if self.reaches else ()
        return self.keep(distances, positives, negatives, *reach)


@partial(jax.tree_util.register_dataclass, data_fields=["select", "one"], meta_fields=["every", "extremes"])
@dataclass(frozen=True)
class Selection:
    """A selection of triplets, `select(distances, positives, negatives) -> Triplets`, and how else it can be run.

    A plain function, or a `jax.tree_util.Partial` that binds numbers and keys to one, is a selection of which nothing
    else is known. What is declared here saves memory.

    Attributes:
      select: the function, or a `Partial` of it.
      one: for a selection of one negative for each positive: `one(d_ap [n, 1], distances [n, m], negatives [n, m]) ->
        columns [n]` selects that of one positive of each row, so that positives can be taken one after the other; a
        column that is no negative says that there is none. Values bound to the selection are bound to it, too.
      every: it selects every triplet of a positive and a negative, which a loss may sum without listing them.
      extremes: it selects one triplet for each anchor, with the farthest or the closest positive and negative (in this
        order), the first of equal ones: a fused kernel then finds them.
    """

    select: Any
    one: Any = None
    every: bool = False
    extremes: tuple[Literal["farthest", "closest"], Literal["farthest", "closest"]] | None = None

    role: ClassVar[str] = "triplets"

    def __call__(self, distances: Any = None, positives: Any = None, negatives: Any = None) -> Triplets:
        check_settings(self, distances is not None)
        return self.select(distances, positives, negatives)


def selection(**declared: Any) -> Callable[[Callable[..., Triplets]], Selection]:
    """Make a `Selection` of a function, under its name and with its documentation."""

    def made(select: Callable[..., Triplets]) -> Selection:
        return under_name(as_selection(Selection(select, **declared)), select)

    return made


def as_miner(f: Any) -> Miner:
    """A mask miner of any form, as a pytree whose leaves are the values bound to it."""
    miner = _as_declared(f, Miner, "keep")
    return replace(miner, prepare=by_content(miner.prepare))


def as_selection(f: Any) -> Selection:
    """A selection of any form, as a pytree whose leaves are the values bound to it."""
    return _as_declared(f, Selection, "select", "one")


def _as_declared(f: Any, kind: Any, *names: str) -> Any:
    """`f` as a `kind`, whose functions of these names get what was bound to it."""
    if isinstance(f, kind):
        return replace(f, **{name: as_partial(getattr(f, name)) for name in names if getattr(f, name) is not None})
    if isinstance(f, functools.partial):
        inner = _as_declared(f.func, kind, *names)
        bind = lambda to: to and Partial(to.func, *to.args, *f.args, **{**to.keywords, **f.keywords})
        return replace(inner, **{name: bind(getattr(inner, name)) for name in names})
    return kind(as_partial(f))


def as_partial(f: Any) -> Partial:
    """A function as a pytree: without leaves, unless it is a `jax.tree_util.Partial` with numbers and keys bound."""
    return by_content(f) if isinstance(f, Partial) else Partial(by_content(f))


def prepared(miner: Miner, total: Callable[[Callable[..., Any]], Any]) -> Miner:
    """The same miner for one row at a time, where it has to look at the whole batch first: see `Miner.prepare`."""
    if miner.prepare is None:
        return miner
    keep = as_partial(miner.keep)
    return prepared(as_miner(miner.prepare(total, *keep.args, **keep.keywords)), total)
