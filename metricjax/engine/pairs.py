"""A loss as a problem, static functions and pytrees, and what it comes to for one block of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Shaped

from metricjax.engine.positives import Side, listed_positives, summed_over_positives
from metricjax.engine.sizes import LIST
from metricjax.ground.functions import by_content, check_closed, own_functions
from metricjax.ground.numerics import computing_dtype
from metricjax.ground.pairwise import Pairwise
from metricjax.mining.compound import mined
from metricjax.mining.triplets import Triplets


class Mean(NamedTuple):
    """A quotient in the making. Means add over blocks and devices; divide once, at the end."""

    total: Float[Array, "..."]
    count: Shaped[Array, "..."]  # type: ignore[assignment]  # hides tuple.count


@partial(
    jax.tree_util.register_dataclass,
    meta_fields=["rows", "score", "is_similarity", "kind", "mirrored", "swap", "negative_of"],
    data_fields=["same", "miner", "select", "given"],
)
@dataclass(frozen=True)
class Problem:
    """One loss. Its functions are static; those that may hold arrays (a miner's limits, a key) are pytrees.

    kind: what the row function gets besides hyper-parameters: "whole" (scores, positives, negatives), "apart"
        (positives and negatives as two arrays of scores, each with its mask), "reaching" ("whole", and `Reach`) or
        "triplets" (distances d_ap and d_an [r, t] of selected triplets, and which are valid).
    mirrored: score, terms and cotangent of the pair (i, j) are those of (j, i).
    swap: of triplets, d_an is min(d_an, d_pn).
    negative_of: selects the negative for one positive of each row.
    given: `(row labels, column labels) -> anything`, which the row function gets before its hyper-parameters.
    """

    rows: Callable[..., Any]
    score: Pairwise
    is_similarity: bool
    kind: Literal["whole", "apart", "reaching", "triplets"] = "whole"
    mirrored: bool = False
    swap: bool = False
    negative_of: Callable[[Array, Array, Array], Array] | None = None
    same: Partial | None = None
    miner: Partial | None = None
    select: Partial | None = None
    given: Partial | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of lists of positives to choose from: finer steps where each positive needs a row of its own."""
        return (4, 16, LIST) if self.kind == "reaching" else (LIST,)


class Reach(NamedTuple):
    """How a row function reaches the rows of its columns.

    positive, there: the columns [r, p] of each row's positives, and which of them count.
    pick: the entries [r, p] at the positives, of an array [r, m] or [m].
    row_of: scores, positives and negatives [r, m] of one column for each row, given their indices [r], against all
        columns.
    """

    positive: Int[Array, "r p"]
    there: Bool[Array, "r p"]
    pick: Callable[[Array], Array]
    row_of: Callable[[Array], tuple[Array, Array, Array]]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A hyper-parameter that is not an array: part of the tree's structure instead of a leaf."""

    value: Any


def unwrapped(hyper: tuple) -> tuple:
    return tuple(h.value if isinstance(h, Static) else h for h in hyper)


def static_or_traced(values: tuple, embeddings: Array) -> tuple:
    """Numbers and arrays as arrays of the computing dtype, anything else wrapped as `Static`."""
    dtype = computing_dtype(embeddings.dtype)
    is_static = lambda v: v is None or isinstance(v, bool | str) or callable(v)
    # A number goes to the device with the call: by itself it would take as long as everything else.
    as_array = lambda v: np.asarray(v, dtype) if isinstance(v, int | float) else jnp.asarray(v, dtype=dtype)
    return tuple(Static(by_content(v)) if is_static(v) else as_array(v) for v in values)


# --- one block of rows ----------------------------------------------------------------------------------------------


def scores_and_masks(problem: Problem, x, columns, row: Side, column: Side):
    """Scores of some rows against all columns, and the masks of their positives and negatives."""
    scores = problem.score.compare(x, columns)
    same = problem.same or (lambda a, b: jnp.all(a == b))
    related = jax.vmap(lambda a: jax.vmap(lambda b: same(a, b))(column.labels))(row.labels)
    _check_pairs("same", related if isinstance(related, tuple) else (related,), scores, "one boolean, or two")
    match, differ = related if isinstance(related, tuple) else (related, ~related)
    exist = row.where[:, None] & column.where[None]
    other = exist & (row.ids[:, None] != column.ids[None])
    positives, negatives = match & other, differ & (exist if problem.same is None else other)
    if problem.miner is not None:
        row_of = partial(distances_of, problem, columns)
        distances = as_distances(problem, scores)
        masks = mined(keyed(problem.miner, row), distances, positives, negatives, row_of)
        _check_pairs("miner", masks, scores, "the masks (positives, negatives); what selects goes to `triplets`")
        positives, negatives = masks
    return scores, positives, negatives


def _check_pairs(name: str, found: Any, scores: Float[Array, "r m"], wanted: str) -> None:
    """`found` are booleans of all pairs, one array or two."""
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


def as_distances(problem: Problem, scores: Float[Array, "r m"]) -> Float[Array, "r m"]:
    """What miners get: distances, without a gradient."""
    return lax.stop_gradient(1 - scores if problem.is_similarity else scores)


def distances_of(problem: Problem, columns, index: Int[Array, " r"]) -> Float[Array, "r m"]:
    """The rows of distances of some columns to all columns."""
    return as_distances(problem, problem.score.compare(columns[index], columns))


def keyed(f: Partial, row: Side) -> Partial:
    """`f` with each random key among its leaves replaced by one for each row, the same wherever the row is computed."""
    is_key = lambda a: jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.vmap(jax.random.fold_in, (None, 0))(a, row.ids) if is_key(a) else a, f)


def means_of(problem: Problem, x, columns, hyper, row: Side, column: Side) -> tuple[Mean, ...]:
    """The Means of some anchors: [r] arrays."""
    hyper = given_of(problem, row, column) + unwrapped(hyper)
    scores, positives, negatives = scores_and_masks(problem, x, columns, row, column)
    if problem.kind == "triplets":
        means = _means_of_triplets(problem, scores, positives, negatives, columns, hyper, row)
    elif problem.kind == "whole":
        means = problem.rows(scores, positives, negatives, *hyper)
    else:
        index, listed, pick = _listed(problem, positives, row, column)
        if problem.kind == "reaching":
            reach = Reach(index, listed, pick, partial(_row_of, problem, columns, column))
            means = problem.rows(scores, positives, negatives, reach, *hyper)
        else:
            means = problem.rows(pick(scores), listed, scores, negatives, *hyper)
    return tuple(counted(mean, x) for mean in as_means(means))


def as_means(found: Any) -> tuple[Mean, ...]:
    """What a row function returned, once it is known to be Means of arrays."""
    means = (found,) if isinstance(found, Mean) else found
    one = lambda mean: isinstance(mean, Mean) and all(hasattr(a, "dtype") for a in mean)
    if not (isinstance(means, tuple | list) and means and all(map(one, means))):
        wanted = "Mean(total, count), arrays of one entry a row, or a tuple of such"
        raise TypeError(f"the row function returned {shown(found)}; wanted {wanted}")
    return tuple(means)


def check_own_functions(problem: Problem, x, columns, hyper, row: Side, column: Side, plain: bool) -> None:
    """Users' functions use no traced value but their arguments, and Means have one entry a row: at any size, alike.

    They are traced once more, for a number of rows that nothing else has. If `plain`, an entry is a number.
    """
    own = {"the row function": (problem.rows, unwrapped(hyper)), "similarity or distance": problem.score.compare}
    own |= {"same": problem.same, "miner": problem.miner, "triplets": problem.select, "given": problem.given}
    if not own_functions(tuple(own.values())):
        return
    r = len(columns) + 1

    def of_some(problem, x, columns, hyper, row, column):
        x, row = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], (r, *a.shape[1:])), (x, row))
        return means_of(problem, x, columns, hyper, row, column)

    for mean in check_closed(own, of_some, problem, x, columns, hyper, row, column):
        for name, a in zip(mean._fields, mean, strict=True):
            if a.shape[:1] != (r,) or (plain and a.ndim > 1):
                wanted = f"one entry for each of the {r} rows, [{r}]"
                raise ValueError(f"the row function returned a Mean whose {name} has shape {a.shape}; wanted {wanted}")


def given_of(problem: Problem, row: Side, column: Side) -> tuple:
    return () if problem.given is None else (problem.given(row.labels, column.labels),)


def _listed(problem: Problem, positives, row: Side, column: Side):
    """Columns [r, p] of each row's positives, which count, and how to pick there: a short list, or all columns."""
    if column.slots is None:
        index = jnp.broadcast_to(jnp.arange(positives.shape[1], dtype=jnp.int32), positives.shape)
        return index, positives, lambda a: jnp.broadcast_to(a, positives.shape)
    index, listed = listed_positives(row, column, column.slots)
    pick = lambda a: a[index] if a.ndim == 1 else jnp.take_along_axis(a, index, axis=1)
    return index, listed if problem.miner is None else listed & pick(positives), pick


def _row_of(problem: Problem, columns, column: Side, index: Int[Array, " r"]):
    row = Side(column.labels[index], column.where[index], column.ids[index])
    return scores_and_masks(problem, columns[index], columns, row, column)


def counted(mean: Mean, x: Array) -> Mean:
    return Mean(mean.total, lax.stop_gradient(mean.count).astype(x.dtype))


def mean_of_ends(problem: Problem, x, ends, hyper, valid) -> Mean:
    """The Mean of triplets whose ends [r, t, d] were gathered."""
    pair = jax.vmap(lambda a, b: problem.score.compare(a[None], b)[0])
    d_ap, d_an = pair(x, ends[0]), pair(x, ends[1])
    if problem.swap:
        d_an = jnp.minimum(d_an, jax.vmap(lambda a, b: pair(a, b[:, None])[:, 0])(*ends))
    (mean,) = as_means(problem.rows(d_ap, d_an, valid, *hyper))
    return counted(mean, x)


def _means_of_triplets(problem: Problem, scores, positives, negatives, columns, hyper, row: Side) -> Mean:
    """The Mean of triplets whose distances are picked out of the scores."""
    positive, negative, valid = chosen_triplets(problem, lax.stop_gradient(scores), positives, negatives, row)
    d_ap, d_an = (jnp.take_along_axis(scores, index, axis=1) for index in (positive, negative))
    if not problem.swap:
        return problem.rows(d_ap, d_an, valid, *hyper)

    def one(there, d_ap, d_an, positive, negative):
        d_pn = jax.vmap(lambda a, b: problem.score.compare(a[None], b[None])[0, 0])(
            columns[positive], columns[negative]
        )
        return problem.rows(d_ap[:, None], jnp.minimum(d_an, d_pn)[:, None], there[:, None], *hyper)

    return summed_over_positives(one, valid, d_ap, d_an, positive, negative)


def chosen_triplets(problem: Problem, scores, positives, negatives, row: Side):
    """Columns of the positive and the negative, and validity, each [r, t]."""
    assert problem.select is not None
    chosen = as_triplets(keyed(problem.select, row)(scores, positives, negatives))
    return jax.tree.map(lambda a: a.reshape(len(scores), -1), (chosen.positive, chosen.negative, chosen.valid))


def as_triplets(found: Any) -> Triplets:
    """What a selection returned, once it is known to be triplets."""
    if not isinstance(found, Triplets):
        wanted = "mj.mining.Triplets(anchor, positive, negative, valid); what keeps pairs goes to `miner`"
        raise TypeError(f"triplets returned {shown(found)}; wanted {wanted}")
    return found
