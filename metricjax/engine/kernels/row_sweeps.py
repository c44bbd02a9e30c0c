"""The sweeps of a kernel: each program owns some rows, and goes through the columns with them.

Nothing is added up by two programs, so that a tile serves its rows alone: three products of all rows with all rows.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from metricjax.engine.devices import varying
from metricjax.engine.order import Ordered, in_order
from metricjax.engine.pairs import PairLoss, unwrapped
from metricjax.engine.positives import Side
from metricjax.engine.sweeps import no_gradients
from metricjax.engine.tiles import End, Masks, Named, added_to, log_of, loss_of_pairs, nothing_found, with_slopes
from metricjax.ground.numerics import computing_dtype
from metricjax.ground.pairwise import Pairwise

__all__ = [
    "Backend",
    "Laid",
    "Operands",
    "RowSweeps",
    "Spans",
    "Sweep",
    "Tile",
    "Zeros",
    "extremes",
    "laid",
    "masks_of",
    "product",
    "spans",
    "store",
]

Operands: TypeAlias = Literal["bfloat16", "default", "tensorfloat32", "exact"]
"""Of products: bfloat16 numbers; as XLA rounds on the platform by default; TF32 or better; all of float32."""


class Tile(NamedTuple):
    """What a program knows of one tile.

    product: of its rows with its columns. own, others: numbers of its rows [t, 1] and of its columns [1, u].
    times: w [t, u] -> its product with the embeddings of the columns, in parts of their features.
    """

    product: Float[Array, "t u"]
    masks: Masks
    own: Any
    others: Any
    hyper: tuple
    times: Callable[[Array], tuple[Array, ...]]


class Zeros(NamedTuple):
    """To begin with: for a number of each row [t, 1], and for its embedding, in parts of its features [t, c]."""

    number: Float[Array, "t 1"]
    x: tuple[Float[Array, "t c"], ...]


class Sweep(NamedTuple):
    """What is to be done: `step(sums, tile) -> sums` for all tiles of some rows, beginning with `start(zeros)`.

    known: numbers [n] of rows. products: how many are taken of a tile.
    """

    step: Callable[[Any, Tile], Any]
    start: Callable[[Zeros], Any]
    rows: Ordered
    known: Any
    hyper: tuple
    products: int

    def begun(self, height: int, features: tuple[int, ...]) -> Any:
        """The sums of `height` rows before any tile, where embeddings have these parts."""
        zeros = lambda width: jnp.zeros((height, width), self.rows.x.dtype)
        return self.start(Zeros(zeros(1), tuple(map(zeros, features))))

    def hyper_of(self, scalars: Any) -> tuple:
        """Hyper-parameters, out of those of `Laid`."""
        leaves, structure = jax.tree.flatten(self.hyper)
        return jax.tree.unflatten(structure, [scalars[k] for k in range(len(leaves))])


@runtime_checkable
class Backend(Protocol):
    """How a platform runs a sweep; rows come in multiples of its `unit`."""

    @property
    def unit(self) -> int: ...

    def fits(self, d: int) -> bool:
        """Whether it takes embeddings of d features."""

    def exp(self, x: Array) -> Array: ...

    def swept(self, sweep: Sweep) -> Any:
        """The sums over all tiles, in shares [k, n, c] of k programs."""


@dataclass(frozen=True)
class RowSweeps:
    """The sweeps of one loss by a backend; without `of_hyper` the gradients of its hyper-parameters are left at 0."""

    backend: Backend
    loss: PairLoss
    of_hyper: bool

    def laid_out(self, columns: Float[Array, "r d"], column: Side) -> Ordered:
        return in_order(self.backend.unit, columns, column)

    def statistics(self, rows: Ordered, hyper: tuple, statistics: Sequence[Named]) -> dict[str, Array]:
        def step(found, tile):
            scores = self._of_product(tile.product)
            for name, s in tile.masks.seen(statistics):
                terms = s.terms(scores, *unwrapped(tile.hyper))
                found = found | {name: added_to(found[name], terms, tile.masks.of(s), 1, self.backend.exp)}
            return found

        start = lambda zeros: {name: nothing_found(s, zeros.number) for name, s in statistics}
        found = self.backend.swept(Sweep(step, start, rows, (), hyper, 1))
        return {name: log_of(_joined(*a)) if isinstance(a, tuple) else _summed(a) for name, a in found.items()}

    def given_others(self, rows: Ordered, hyper: tuple, values: dict[str, Array], statistics: Sequence[Named]):
        def step(found, tile):
            scores = self._of_product(tile.product)
            for name, s in tile.masks.seen(statistics):
                given = [tile.own[of] for of in s.given]
                more = with_slopes(s, scores, given, unwrapped(tile.hyper), tile.masks.of(s), 1)
                for of, part in zip(("", *s.given), more, strict=True):
                    found = found | {(name, of): found[name, of] + part}
            return found

        start = lambda zeros: {(name, of): zeros.number for name, s in statistics for of in ("", *s.given)}
        known = {of: values[of] for _, s in statistics for of in s.given}
        return {name: _summed(a) for name, a in self.backend.swept(Sweep(step, start, rows, known, hyper, 1)).items()}

    def gradients(self, rows: Ordered, hyper: tuple, statistics: Sequence[Named], end: End) -> tuple[Array, Any]:
        leaves, structure = jax.tree.flatten(hyper)

        def step(sums, tile):
            dx, dhyper = sums
            ends = [End(1, *tile.own), End(0, *tile.others)]

            def of_pairs(product, hyper):
                scores = self._of_product(product)
                return loss_of_pairs(statistics, scores, unwrapped(hyper), tile.masks, ends, self.backend.exp)

            given = (tile.product, tile.hyper) if self.of_hyper else (tile.product,)
            total, pull = jax.vjp(of_pairs if self.of_hyper else lambda p: of_pairs(p, tile.hyper), *given)
            of_product, *of_hyper = pull(jnp.ones_like(total))
            # Each pair is met twice, as (i, j) and as (j, i), with both its ends. Of a number, each row takes a share.
            spread = lambda a, b: a + jnp.full_like(a, 0.5 / a.size) * b
            dhyper = [spread(a, b) for a, b in zip(dhyper, jax.tree.leaves(of_hyper), strict=True)]
            return [a + b for a, b in zip(dx, tile.times(of_product), strict=True)], dhyper

        start = lambda zeros: (list(zeros.x), [zeros.number for _ in leaves if self.of_hyper])
        parts, of_hyper = self.backend.swept(Sweep(step, start, rows, end[1:], hyper, 2))
        dx = jnp.concatenate([jnp.sum(part, axis=0) for part in parts], axis=1)[:, : rows.x.shape[1]]
        if not self.of_hyper:
            return dx, no_gradients(hyper, dx.dtype)
        return dx, jax.tree.unflatten(structure, [jnp.sum(a) for a in of_hyper])

    def _of_product(self, product: Array) -> Array:
        return self.loss.score.of_product(product)  # type: ignore[misc]


def _summed(shares: Float[Array, "k n 1"]) -> Float[Array, " n"]:
    return jnp.sum(shares, axis=(0, 2))


def _joined(top: Float[Array, "k n 1"], total: Float[Array, "k n 1"]) -> tuple[Array, Array]:
    """The largest term and Σ e^{term − largest} of each row, from those of some of its pairs each."""
    highest = jnp.max(top, axis=0)
    finite = jnp.where(jnp.isfinite(highest), highest, 0)
    return highest[:, 0], jnp.sum(total * jnp.exp(top - finite[None]), axis=0)[:, 0]


# --- extremes -------------------------------------------------------------------------------------------------------

_NONE = jnp.iinfo(jnp.int32).max  # which is no row


def extremes(
    backend: Backend, score: Pairwise, which: tuple[str, str], columns: Float[Array, "n d"], column: Side
) -> tuple[Int[Array, " n"], Int[Array, " n"], Bool[Array, " n"]]:
    """The farthest or the closest positive and negative of each row, and whether it has both, in one sweep.

    Of equal ones it is the first.
    """
    rows = in_order(backend.unit, columns, column)
    signs = {side: 1 if kind == "farthest" else -1 for side, kind in zip(Masks._fields, which, strict=True)}
    ids = jnp.full(len(rows.x), _NONE, jnp.int32).at[rows.place].set(jnp.arange(len(columns), dtype=jnp.int32))

    def step(found, tile):
        distances = score.of_product(tile.product)  # type: ignore[misc]
        for side, where in zip(Masks._fields, tile.masks, strict=True):
            if where is not None or (side == "negatives" and tile.masks.positives is None):
                values = signs[side] * distances
                values = values if where is None else jnp.where(where, values, -jnp.inf)
                top = jnp.max(values, axis=1, keepdims=True)
                first = jnp.where((values == top) & (values > -jnp.inf), tile.others, jnp.int32(_NONE))
                found = found | {side: _farther(found[side], (top, jnp.min(first, axis=1, keepdims=True)))}
        return found

    start = lambda zeros: {
        side: (zeros.number - jnp.inf, jnp.full_like(zeros.number, _NONE, jnp.int32)) for side in signs
    }
    shares = backend.swept(Sweep(step, start, rows, ids, (), 1))
    at = [functools.reduce(_farther, zip(*shares[side], strict=True))[1][rows.place, 0] for side in signs]
    valid = (at[0] != _NONE) & (at[1] != _NONE)
    return jnp.where(valid, at[0], 0), jnp.where(valid, at[1], 0), valid


def _farther(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of two values and the ids that they belong to, the larger value; of equal values the smaller id."""
    is_b = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
    return jnp.where(is_b, b[0], a[0]), jnp.where(is_b, b[1], a[1])


# --- what backends have in common -----------------------------------------------------------------------------------


class Laid(NamedTuple):
    """The arrays of a sweep. own: the class of each row, −1 if it does not exist, and what is known of it, [n, 1].

    others: the same for columns, [1, n].
    """

    x: Float[Array, "n c"]
    scalars: Float[Array, " h"]
    own: Any
    others: Any


def laid(sweep: Sweep, operands: Operands, features: int) -> Laid:
    """Embeddings as the operands are, filled up to a multiple of `features`, and the numbers of a sweep."""
    rows = sweep.rows
    x = jnp.pad(rows.x, [(0, 0), (0, -rows.x.shape[1] % features)])
    numbers = (jnp.where(rows.exists, rows.number, -1), sweep.known)
    own, others = (jax.tree.map(lambda a, axis=axis: jnp.expand_dims(a, axis), numbers) for axis in (1, 0))
    scalars = [jnp.asarray(leaf, x.dtype) for leaf in jax.tree.leaves(sweep.hyper)]
    stacked = jnp.stack(scalars) if scalars else jnp.zeros(1, x.dtype)
    return varying(Laid(x.astype(jnp.bfloat16) if operands == "bfloat16" else x, stacked, own, others))


def product(a: Array, b: Array, over: tuple[int, int], precision: Any) -> Array:
    """Of two tiles, over these axes; of bfloat16 numbers the sums are of 32 bits."""
    numbers = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=computing_dtype(a.dtype))


def store(refs: Any, values: Any) -> None:
    """Write to references, each its array."""
    for ref, value in zip(jax.tree.leaves(refs), jax.tree.leaves(values), strict=True):
        ref[...] = value


class Spans(NamedTuple):
    """Tiles of a block of rows: from `first` to `end` classes meet; from `ragged` to `last` rows are missing.

    These need masks, the others hold negatives only. None is smaller than the one before.
    """

    first: Any
    end: Any
    ragged: Any
    last: Any


def spans(rows: Ordered, height: int, width: int) -> Spans:
    """Those of all blocks of `height` rows, among tiles of `width` columns."""
    number, exists = rows.number.reshape(-1, height), rows.exists.reshape(-1, height)
    columns = rows.number.reshape(-1, width)
    there = jnp.sum(rows.exists, dtype=jnp.int32)
    whole, last = there // width, (there + width - 1) // width
    place = lambda bound, values, side: jnp.searchsorted(values, bound, side=side).astype(jnp.int32)
    first, end = place(number[:, 0], columns[:, -1], "left"), place(number[:, -1], columns[:, 0], "right")
    some, every = jnp.any(exists, axis=1), jnp.all(exists, axis=1)
    usual = Spans(jnp.minimum(first, whole), jnp.minimum(end, whole), whole, last)
    ragged = Spans(jnp.zeros_like(last), last, last, last)  # of rows some of which are missing
    return jax.tree.map(lambda a, b: jnp.where(every, a, jnp.where(some, b, 0)), usual, ragged)


def masks_of(row: Any, column: Any, own: Int[Array, "t 1"], others: Int[Array, "1 u"]) -> Masks:
    """Of rows and columns from these on, of classes of these numbers; those of −1 do not exist."""
    shape = len(own), others.shape[1]
    rows, columns = (first + lax.broadcasted_iota(jnp.int32, shape, axis) for axis, first in enumerate((row, column)))
    pairs = (rows != columns) & (own >= 0) & (others >= 0)
    alike = own == others
    return Masks(alike & pairs, jnp.logical_not(alike) & pairs)
