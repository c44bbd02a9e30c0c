"""A pair-based loss, and what it gets of one block of rows: `Pairs`, the record that a row function takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Shaped

from metricjax.engine.miners import Miner, Selection, Triplets
from metricjax.engine.positives import Side, listed_positives
from metricjax.engine.sizes import LIST, LISTS_OF_ROWS
from metricjax.ground.functions import by_content, check_closed, own_functions
from metricjax.ground.numerics import computing_dtype
from metricjax.ground.one_line import one_line
from metricjax.ground.pairwise import Pairwise, all_pairs, positive_and_negative

__all__ = [
    "Apart",
    "ChosenTriplets",
    "Mean",
    "PairLoss",
    "Pairs",
    "Static",
    "WholeRows",
    "as_distances",
    "as_means",
    "as_triplets",
    "check_own_functions",
    "chosen_triplets",
    "distances_of",
    "mean_of_gathered_triplets",
    "means_of",
    "probed",
    "scores_and_masks",
    "shown",
    "static_or_traced",
    "unwrapped",
    "with_fixed_count",
    "with_key_per_row",
]


class Mean(NamedTuple):
    """A quotient in the making. Means add over blocks and devices; divide once, at the end."""

    total: Float[Array, "..."]
    count: Shaped[Array, "..."]  # type: ignore[assignment]  # hides tuple.count

    def __repr__(self) -> str:
        return one_line(self)


@partial(
    jax.tree_util.register_dataclass,
    meta_fields=["rows", "score", "is_similarity", "mirrored", "heavy", "towers", "swap", "reaches"],
    data_fields=["same", "miner", "select"],
)
@dataclass(frozen=True)
class PairLoss:
    """One loss. Its functions are static; those that may hold arrays (a miner's limits, a key) are pytrees.

    rows: the row function, or with `select` the function of the terms of selected triplets.
    mirrored: score, terms and cotangent of the pair (i, j) are those of (j, i).
    heavy: it holds many arrays as large as the scores.
    towers: the rows are those of one tower, then as many of another; `same` leaves out all pairs but those between.
    swap: of triplets, d_an is min(d_an, d_pn).
    reaches: the row function takes rows of its columns (found out by the driver).
    """

    rows: Callable[..., Any]
    score: Pairwise
    is_similarity: bool
    mirrored: bool = False
    heavy: bool = False
    towers: bool = False
    swap: bool = False
    reaches: bool = False
    same: Partial | None = None
    miner: Miner | None = None
    select: Selection | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of lists of positives to choose from: finer steps where each positive needs a row of its own."""
        return LISTS_OF_ROWS if self.reaches else (LIST,)


@dataclass(frozen=True)
class WholeRows:
    """A row function made of one written as `rows(scores, positives, negatives, *hyper)`."""

    rows: Callable[..., Any]

    def __call__(self, pairs: "Pairs", *hyper: Any) -> Any:
        return self.rows(pairs.scores, pairs.positives, pairs.negatives, *hyper)


# --- hyper-parameters -----------------------------------------------------------------------------------------------


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A hyper-parameter that is not an array: part of the tree's structure instead of a leaf."""

    value: Any


def static_or_traced(values: tuple, embeddings: Array, bound: bool = False) -> tuple:
    """Numbers and arrays as arrays of the computing dtype, anything else wrapped as `Static`.

    With `bound`, a `Partial` stays a pytree, whose values may be traced.
    """
    dtype = computing_dtype(embeddings.dtype)

    def wrapped(v):
        if bound and isinstance(v, Partial):
            return by_content(v)
        if v is None or isinstance(v, bool | str) or callable(v):
            return Static(by_content(v))
        # A number goes to the device with the call: by itself it would take as long as everything else.
        return np.asarray(v, dtype) if isinstance(v, int | float) else jnp.asarray(v, dtype=dtype)

    return tuple(map(wrapped, values))


def unwrapped(hyper: tuple) -> tuple:
    return tuple(h.value if isinstance(h, Static) else h for h in hyper)


# --- one block of rows ----------------------------------------------------------------------------------------------


class Apart(NamedTuple):
    """Scores and mask of the positives [r, p], in any order, and of the negatives [r, m]."""

    positive_scores: Float[Array, "r p"]
    positives: Bool[Array, "r p"]
    negative_scores: Float[Array, "r m"]
    negatives: Bool[Array, "r m"]


class Pairs:
    """What a row function gets of a block of r rows against m columns. What is not asked for is not computed.

    scores: [r, m], similarities or distances.
    positives, negatives: [r, m], masks; what is neither is left out.
    apart: the positives and the negatives, each with its scores. Where no class is large the positives are a short
        list, and what is computed for them costs next to nothing.
    positive_columns, listed: [r, p], the columns of that list, or all columns as [1, m]; and which of them count.
    labels, column_labels: [r, ...] and [m, ...].
    """

    def __init__(self, loss: PairLoss, x: Array, columns: Array, row: Side, column: Side):
        self.touched: set[str] = set()  # what has to be asked of the driver
        self._loss, self._columns, self._column = loss, columns, column
        self.labels, self.column_labels = row.labels, column.labels
        self.scores, self.positives, self.negatives = scores_and_masks(loss, x, columns, row, column)
        self._index, self._listed = jnp.arange(len(columns), dtype=jnp.int32)[None], self.positives
        if column.slots is not None:
            self._index, self._listed = listed_positives(row, column, column.slots)
            if loss.miner is not None:
                self._listed &= self._at_list(self.positives)
        self._apart = Apart(self._at_list(self.scores), self._listed, self.scores, self.negatives)

    def _at_list(self, a: Shaped[Array, "..."]) -> Shaped[Array, "r p"]:
        if self._column.slots is None:
            return jnp.broadcast_to(a, self.scores.shape)
        return a[self._index] if a.ndim == 1 else jnp.take_along_axis(a, self._index, axis=1)

    @property
    def apart(self) -> Apart:
        self.touched.add("list")
        return self._apart

    @property
    def positive_columns(self) -> Int[Array, "#r p"]:
        self.touched.add("list")
        return self._index

    @property
    def listed(self) -> Bool[Array, "r p"]:
        self.touched.add("list")
        return self._listed

    def pick(self, a: Shaped[Array, "..."]) -> Shaped[Array, "r p"]:
        """The entries of an array [r, m], or [m], at `positive_columns`."""
        self.touched.add("list")
        return self._at_list(a)

    def row_of(self, index: Int[Array, " r"]) -> tuple[Array, Array, Array]:
        """Scores, positives and negatives [r, m] of one column for each row, against all columns."""
        self.touched.add("rows")
        column = self._column
        row = Side(column.labels[index], column.where[index], column.ids[index])
        return scores_and_masks(self._loss, self._columns[index], self._columns, row, column)


class ChosenTriplets(NamedTuple):
    """What a function of terms gets of selected triplets: distances [r, t], which are valid, and the rows' labels."""

    d_ap: Float[Array, "r t"]
    d_an: Float[Array, "r t"]
    valid: Bool[Array, "r t"]
    labels: Shaped[Array, "r ..."]


def scores_and_masks(loss: PairLoss, x, columns, row: Side, column: Side):
    """Scores of some rows against all columns, and the masks of their positives and negatives."""
    scores = loss.score.compare(x, columns)
    same = loss.same or (lambda a, b: jnp.all(a == b))
    related = all_pairs(same, row.labels, column.labels)
    _check_pairs("same", related if isinstance(related, tuple) else (related,), scores, "one boolean, or two")
    match, differ = positive_and_negative(related)
    exist = row.where[:, None] & column.where[None]
    other = exist & (row.ids[:, None] != column.ids[None])
    positives, negatives = match & other, differ & (exist if loss.same is None else other)
    if loss.miner is not None:
        row_of = partial(distances_of, loss, columns)
        masks = with_key_per_row(loss.miner, row)(as_distances(loss, scores), positives, negatives, row_of)
        _check_pairs("miner", masks, scores, "the masks (positives, negatives); what selects goes to `triplets`")
        positives, negatives = masks
    return scores, positives, negatives


def _check_pairs(name: str, found: Any, scores: Float[Array, "r m"], wanted: str) -> None:
    """Check that `found` are booleans of all pairs, one array or two."""
    arrays = list(found) if type(found) in (tuple, list) else [found]
    alike = all(getattr(a, "shape", None) == scores.shape and a.dtype == jnp.bool_ for a in arrays)
    if not alike or len(arrays) > 2 or (name == "miner" and len(arrays) != 2):
        returned = shown(found if len(arrays) > 1 else arrays[0])
        raise TypeError(f"{name} returned {returned} for pairs {list(scores.shape)}; wanted booleans: {wanted}")


def shown(value: Any) -> str:
    """What a function returned, in words."""
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(shown, value))})"
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else repr(value)


def as_distances(loss: PairLoss, scores: Float[Array, "r m"]) -> Float[Array, "r m"]:
    """What miners get: distances, without a gradient."""
    return lax.stop_gradient(1 - scores if loss.is_similarity else scores)


def distances_of(loss: PairLoss, columns, index: Int[Array, " r"]) -> Float[Array, "r m"]:
    """The rows of distances of some columns to all columns."""
    return as_distances(loss, loss.score.compare(columns[index], columns))


def with_key_per_row(f: Any, row: Side) -> Any:
    """`f` with each random key among its leaves replaced by one for each row, the same wherever the row is computed."""
    is_key = lambda a: jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.vmap(jax.random.fold_in, (None, 0))(a, row.ids) if is_key(a) else a, f)


# --- Means ----------------------------------------------------------------------------------------------------------


def means_of(loss: PairLoss, x, columns, hyper, row: Side, column: Side) -> tuple[Mean, ...]:
    """The Means of some anchors: [r] arrays."""
    if loss.select is not None:
        found = _means_of_triplets(loss, x, columns, unwrapped(hyper), row, column)
    else:
        found = loss.rows(Pairs(loss, x, columns, row, column), *unwrapped(hyper))
    return tuple(with_fixed_count(mean, x) for mean in as_means(found))


def probed(loss: PairLoss, x, columns, hyper, row: Side, column: Side) -> tuple[tuple[Mean, ...], set[str]]:
    """The Means of one anchor, as shapes, and what was asked for: a "list" of positives, "rows" of columns.

    The row function is traced once more for that, with one row.
    """
    x, row = jax.tree.map(lambda a: a[:1], (x, row))
    touched: set[str] = set()

    def recorded(x, columns, hyper, row, column):
        pairs = Pairs(loss, x, columns, row, column)
        means = tuple(with_fixed_count(mean, x) for mean in as_means(loss.rows(pairs, *unwrapped(hyper))))
        touched.update(pairs.touched)
        return means

    return jax.eval_shape(recorded, x, columns, hyper, row, column), touched


def as_means(found: Any) -> tuple[Mean, ...]:
    """What a row function returned, once it is known to be Means of arrays."""
    means = (found,) if isinstance(found, Mean) else found
    one = lambda mean: isinstance(mean, Mean) and all(hasattr(a, "dtype") for a in mean)
    if not (isinstance(means, tuple | list) and means and all(map(one, means))):
        wanted = "Mean(total, count), arrays of one entry a row, or a tuple of them"
        raise TypeError(f"the row function returned {shown(found)}; wanted {wanted}")
    return tuple(means)


def check_own_functions(loss: PairLoss, x, columns, hyper, row: Side, column: Side, numbers: bool) -> None:
    """Check that users' functions use no traced value but their arguments, and Means have one entry a row, at any size.

    They are traced once more, for a number of rows that nothing else has. With `numbers`, an entry is a number.
    """
    own = {"the row function": (loss.rows, unwrapped(hyper)), "similarity or distance": loss.score.compare}
    own |= {"same": loss.same, "miner": loss.miner, "triplets": loss.select}
    if not own_functions(tuple(own.values())):
        return
    r = len(columns) + 1

    def of_some(loss, x, columns, hyper, row, column):
        x, row = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], (r, *a.shape[1:])), (x, row))
        return means_of(loss, x, columns, hyper, row, column)

    for mean in check_closed(own, of_some, loss, x, columns, hyper, row, column):
        for name, a in zip(mean._fields, mean, strict=True):
            if a.shape[:1] != (r,) or (numbers and a.ndim > 1):
                wanted = f"one entry for each of the {r} rows, [{r}]"
                raise ValueError(f"the row function returned a Mean whose {name} has shape {a.shape}; wanted {wanted}")


def with_fixed_count(mean: Mean, x: Array) -> Mean:
    return Mean(mean.total, lax.stop_gradient(mean.count).astype(x.dtype))


# --- selected triplets ----------------------------------------------------------------------------------------------


def chosen_triplets(loss: PairLoss, scores, positives, negatives, row: Side):
    """Columns of the positive and the negative, and validity, each [r, t]."""
    found = as_triplets(with_key_per_row(loss.select, row)(scores, positives, negatives), len(scores))
    return jax.tree.map(lambda a: a.reshape(len(scores), -1), (found.positive, found.negative, found.valid))


def as_triplets(found: Any, rows: int) -> Triplets:
    """What a selection returned, once it is known to be triplets, as many of each of the rows."""
    if not isinstance(found, Triplets):
        wanted = "mj.mining.Triplets(anchor, positive, negative, valid); what keeps pairs goes to `miner`"
        raise TypeError(f"triplets returned {shown(found)}; wanted {wanted}")
    _, *shapes = (jnp.shape(a) for a in found)
    if shapes[0][:1] != (rows,) or shapes != shapes[:1] * 3:
        wanted = f"arrays of one shape [{rows}, ...], a row for each anchor, with `valid` False where it has fewer"
        raise ValueError(f"triplets returned {shown(found[1:])} for {rows} rows; wanted {wanted}")
    return found


def mean_of_gathered_triplets(loss: PairLoss, x, ends, hyper, valid, row: Side) -> Mean:
    """The Mean of triplets whose ends [r, t, d] were gathered."""
    pair = jax.vmap(lambda a, b: loss.score.compare(a[None], b)[0])
    d_ap, d_an = pair(x, ends[0]), pair(x, ends[1])
    if loss.swap:
        d_an = jnp.minimum(d_an, jax.vmap(lambda a, b: pair(a, b[:, None])[:, 0])(*ends))
    (mean,) = as_means(loss.rows(ChosenTriplets(d_ap, d_an, valid, row.labels), *hyper))
    return with_fixed_count(mean, x)


def _means_of_triplets(loss: PairLoss, x, columns, hyper, row: Side, column: Side) -> Mean:
    """The Mean of triplets whose distances are picked out of the scores."""
    scores, positives, negatives = scores_and_masks(loss, x, columns, row, column)
    positive, negative, valid = chosen_triplets(loss, lax.stop_gradient(scores), positives, negatives, row)
    if loss.swap:  # triplets that count come first, so that few steps have something to do
        order = jnp.argsort(~valid, axis=1)
        positive, negative, valid = (jnp.take_along_axis(a, order, axis=1) for a in (positive, negative, valid))
    d_ap, d_an = (jnp.take_along_axis(scores, index, axis=1) for index in (positive, negative))
    if loss.swap:
        d_an = jnp.minimum(d_an, _distances_apart(loss, columns, positive, negative, valid))
    return loss.rows(ChosenTriplets(d_ap, d_an, valid, row.labels), *hyper)


def _distances_apart(loss: PairLoss, columns, positive, negative, valid) -> Float[Array, "r t"]:
    """d_pn of triplets, one of each row after the other, and again for the gradient: memory is that of one."""
    compare = jax.vmap(lambda a, b: loss.score.compare(a[None], b[None])[0, 0])

    @partial(jax.checkpoint, prevent_cse=False)
    def one(ends):
        positive, negative, valid = ends
        here = lambda: compare(columns[positive], columns[negative])
        return lax.cond(jnp.any(valid), here, lambda: jnp.zeros_like(here()))

    return lax.map(one, (positive.T, negative.T, valid.T)).T
