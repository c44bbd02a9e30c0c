"""The anchor driver: runs a loss that is written for one block of rows over a whole batch.

A pair-based loss is a sum over anchors, and an anchor needs only its own row: its scores against the columns, and which
columns are its positives and its negatives. A *row function* does that arithmetic,

    rows(scores [r, m], positives [r, m], negatives [r, m], *hyper) -> Mean (or several, whose quotients are added)

and everything else is here: labels to masks, padding, self-exclusion, reference sets, mining, dense or blocked
evaluation, devices, reduction. Row functions get hyper-parameters as arguments: numbers and arrays are traced (and have
gradients), anything else (strings, functions, None) is static. They use no other traced value, which panels could not
differentiate, and return totals and counts of one entry a row: both are checked when a call is traced, at any size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Shaped

from metricjax.checks import check_batch, check_fits
from metricjax.functions import by_content, check_function, jitted
from metricjax.mining import Triplets
from metricjax.numerics import computing_dtype, spoiling, spoilt, widen
from metricjax.pairwise import Pairwise, as_pairwise
from metricjax.panels import added_panels, panels, prepared, summed_panels, summed_triplets, varying
from metricjax.problems import Mean as Mean
from metricjax.problems import Problem, Static, as_triplets, check_own_functions, means_of
from metricjax.reductions import PLAIN, check_reduction, is_of_sums, of_all, quotient, reduced
from metricjax.sides import LIST, Side, in_order_of_class, with_lists_if_short

_DENSE = 2**16  # scores in the whole matrix up to which "auto" stays dense, which compiles faster
_PANEL = 2**20  # scores in one panel above that


class AnchorOptions(TypedDict, total=False):
    """Options of every pair-based loss.

    where: [n] bool, rows that exist; a padded batch gives exactly the value and gradient of the unpadded one. One that
        exists and holds NaN or infinity makes the loss and its gradient NaN.
    weights: [n], multiplies each anchor's total and count.
    references, reference_labels, reference_where: the columns [m, d], [m], [m], where they are not the batch itself.
        An anchor's own column is left out only without them.
    same: `same(a, b)` says whether two labels match; default equality. It returns a boolean, or two: whether the pair
        is a positive one and whether a negative one (a pair that is neither is left out). With it, labels may have any
        dtype and trailing shape; `mj.relations` has multi-hot labels, hierarchies, cameras and ignored labels.
    miner: `(distances, positives, negatives) -> (positives, negatives)`, masks in, masks out, one row at a time,
        without a gradient; for a similarity s it gets 1 − s. A `jax.tree_util.Partial`, as those of `mj.mining` are,
        may hold traced numbers and random keys; each row then gets a key of its own. No function given here may
        close over a traced value.
    reduction: function of the `Mean` of [n] totals and counts; default Σ total / Σ count. `mj.with_count` gives the
        count beside the loss. Any other costs a further matrix product in panels.
    block_size: anchors per panel; "auto" (dense while n × m is small, by the shapes alone), an int, or None (always
        dense: derivatives of any kind. In panels, reverse mode over reverse mode may need memory of order n × m, or,
        for semi-hard triplets, be refused; forward over reverse is linear).
    axis_name: mesh axis (or axes) inside `jax.shard_map`, over which embeddings, labels, masks, weights and references
        are split by rows; the value and gradient are those of one device. `mj.over_mesh` writes the `shard_map`.
    """

    where: Bool[Array, " n"] | None
    weights: Float[Array, " n"] | None
    references: Float[Array, "m d"] | None
    reference_labels: Shaped[Array, "m ..."] | None
    reference_where: Bool[Array, " m"] | None
    same: Callable[[Array, Array], Array | tuple[Array, Array]] | None
    miner: Callable[[Array, Array, Array], tuple[Array, Array]] | None
    reduction: Callable[[Mean], Any]
    block_size: int | Literal["auto"] | None
    axis_name: str | tuple[str, ...] | None


def over_anchors(
    rows: Callable[..., Mean | tuple[Mean, ...]],
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *hyper: Any,
    similarity: Callable[[Array, Array], Array] | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
    apart: bool = False,
    reaching: bool = False,
    by_pair: bool = False,
    given: Callable[[Array, Array], Any] | None = None,
    **options: Unpack[AnchorOptions],
) -> Any:
    """The loss of `rows` over a batch, or what else `reduction` makes of its Means.

    Give one of `similarity` and `distance`; options: `AnchorOptions`.

    With `apart` the row function is `rows(positive_scores, positives, negative_scores, negatives, *hyper)`: scores
    [r, p] and mask of the positives, in any order, and of the negatives. Where no class is large the positives come
    as a short list, and what is computed for them costs next to nothing.

    With `reaching` it is `rows(scores, positives, negatives, reach, *hyper)`, and `problems.Reach` says where the
    positives stand and gives the rows of columns: for terms in which a positive meets the anchor's negatives.

    `by_pair` promises that each total is a sum of terms that depend on one score each, in the same way for all anchors:
    then panels need one matrix product less.

    `given(row_labels [r, ...], column_labels [m, ...])` is handed to the row function before the hyper-parameters: for
    what depends on labels in another way than by the masks.
    """
    check_function("rows", rows)
    batch, relations, how = _sorted_out(embeddings, labels, options)
    score, is_similarity = _score(similarity, distance)
    kind: Literal["whole", "apart", "reaching"] = "apart" if apart else "reaching" if reaching else "whole"
    mirrored = by_pair and _is_symmetric(score, relations, how, batch)
    problem = Problem(by_content(rows), score, is_similarity, kind, mirrored, given=as_partial(given), **relations)
    part = Part(problem, how, batch, static_or_traced(hyper, embeddings))
    return part if how.reduction is as_part else _over_anchors(how, problem, batch, part.hyper)


def over_triplets(
    terms: Callable[..., Mean],
    select: Callable[[Array, Array, Array], Triplets],
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *hyper: Any,
    distance: Callable[[Array, Array], Array],
    swap: bool = False,
    negative_of: Callable[[Array, Array, Array], Array] | None = None,
    given: Callable[[Array, Array], Any] | None = None,
    **options: Unpack[AnchorOptions],
) -> Any:
    """The loss `terms(d_ap [n, t], d_an [n, t], valid [n, t], *hyper) -> Mean` of [n] arrays over selected triplets.

    In panels, selection runs without a gradient; only the chosen pairs are then gathered and differentiated, so that
    no matrix product but that of the distances is needed. A selection of one negative for every positive is better run
    for one positive after the other: `negative_of(d_ap [r, 1], distances [r, m], negatives [r, m]) -> column [r]`.
    With `swap`, d_an is min(d_an, d_pn). `given` and options as for `over_anchors`.
    """
    check_function("terms", terms)
    check_function("triplets", select)
    batch, relations, how = _sorted_out(embeddings, labels, options)
    score, is_similarity = _score(None, distance)
    functions = {"select": as_partial(select), "given": as_partial(given), **relations}
    how = how._replace(reduction=quotient) if how.reduction is as_part else how
    static = {"swap": swap, "negative_of": by_content(negative_of)}
    problem = Problem(by_content(terms), score, is_similarity, "triplets", **static, **functions)
    return _over_triplets(how, problem, batch, static_or_traced(hyper, embeddings))


class Batch(NamedTuple):
    """The arrays of one call, as they came."""

    embeddings: Array
    labels: Array
    where: Array | None = None
    weights: Array | None = None
    references: Array | None = None
    reference_labels: Array | None = None
    reference_where: Array | None = None


class Settings(NamedTuple):
    """The options of one call that are neither arrays nor relations between labels."""

    reduction: Callable[[Mean], Any] = quotient
    block_size: int | str | None = "auto"
    axis_name: str | tuple[str, ...] | None = None


@dataclass(frozen=True)
class Part:
    """A pair-based loss that was not run yet, so that it can share the scores with others; in sums, its value."""

    problem: Problem
    how: Settings
    batch: Batch
    hyper: tuple

    def value(self) -> Any:
        """The loss by itself."""
        return _over_anchors(self.how._replace(reduction=quotient), self.problem, self.batch, self.hyper)

    def __add__(self, other: Any) -> Any:
        return self.value() + other

    def __mul__(self, other: Any) -> Any:
        return self.value() * other

    __radd__, __rmul__ = __add__, __mul__

    def shared(self) -> tuple:
        """What two parts have to have in common to be run as one; of those that cannot be, no two have this."""
        problem, arrays = self.problem, (self.batch, self.problem.same, self.problem.miner)
        leaves, structure = jax.tree.flatten(arrays)
        alone = id(self) if problem.kind not in ("whole", "apart") or problem.given is not None else None
        return alone, problem.score, problem.is_similarity, self.how, structure, tuple(map(id, leaves))


def as_part(mean: Mean) -> Float[Array, ""]:
    """The reduction that asks `over_anchors` for a `Part`; elsewhere it is the default one."""
    return quotient(mean)


@jitted
def _over_anchors(how, problem, batch, hyper):
    n, batch = len(batch.embeddings), _with_a_row(batch)
    x, columns, row, column, weights = _sides(problem.score, batch, how.axis_name)
    x, columns, reduce = _seeing_nan(x, columns, batch, how)
    x, columns, weights, hyper = varying((x, columns, weights, hyper))
    size, rows = _panel_height(batch, how), None if _rows_are_columns(batch, how) else x
    check_own_functions(problem, x, columns, hyper, row, column, plain=how.reduction in PLAIN)
    problem = prepared(problem, len(x) if size is None else size, rows, columns, row, column, how.axis_name)
    if problem.kind in ("apart", "reaching") and problem.same is None and len(columns) > LIST:
        row, column = in_order_of_class(row, column)
    of_rows = lambda means: reduce(*_first(n, (means, weights)))
    if size is None:
        return of_rows(with_lists_if_short(partial(means_of, problem, x, columns, hyper), row, column, problem.lengths))
    if not is_of_sums(how.reduction):
        return of_rows(panels(size, problem, rows, columns, hyper, row, column))
    if how.reduction not in PLAIN:
        means = added_panels(size, problem, rows, columns, hyper, weights, row, column)
        return reduce(means, None)
    if len(jax.eval_shape(lambda *a: means_of(problem, *a), x, columns, hyper, row, column)) == 1:
        mean = summed_panels(size, problem, rows, columns, hyper, (weights,), row, column)
        return reduce((mean,), None)
    # Each total is divided by its own count, so that counts have to be known before totals are added.
    fixed = lax.stop_gradient((rows, columns, hyper))
    own = [jnp.sum(mean.count * weights) for mean in panels(size, problem, *fixed, row, column)]
    counts = own if how.axis_name is None else lax.psum(own, how.axis_name)
    shares = tuple(weights / jnp.where(count > 0, count, 1) for count in counts)
    total = summed_panels(size, problem, rows, columns, hyper, shares, row, column).total
    return reduce((Mean(total * sum(counts), sum(own)),), None)


@jitted
def _over_triplets(how, problem, batch, hyper):
    size = _panel_height(_with_a_row(batch), how)
    gathers = problem.negative_of is not None or not _selects_many(problem.select)
    if size is None or how.reduction not in PLAIN or not gathers:
        return _over_anchors(how, problem, batch, hyper)
    batch = _with_a_row(batch)
    x, columns, row, column, weights = _sides(problem.score, batch, how.axis_name)
    x, columns, reduce = _seeing_nan(x, columns, batch, how)
    x, columns, weights, hyper = varying((x, columns, weights, hyper))
    rows = None if _rows_are_columns(batch, how) else x
    check_own_functions(problem, x, columns, hyper, row, column, plain=True)
    problem = prepared(problem, size, rows, columns, row, column, how.axis_name)
    if problem.negative_of is not None and problem.same is None and len(columns) > LIST:
        row, column = in_order_of_class(row, column)
    mean = summed_triplets(size, problem, rows, columns, hyper, weights, row, column)
    return reduce((mean,), None)


def _selects_many(select: Callable[[Array, Array, Array], Triplets], m: int = 64) -> bool:
    """Whether each row selects as many triplets as it has columns: then picking beats gathering embeddings."""
    scores, mask = jax.ShapeDtypeStruct((1, m), jnp.float32), jax.ShapeDtypeStruct((1, m), jnp.bool_)
    return math.prod(as_triplets(jax.eval_shape(select, scores, mask, mask)).valid.shape) >= m


# --- from the caller's arrays to rows and columns -------------------------------------------------------------------


def _sorted_out(embeddings: Array, labels: Array, options: AnchorOptions) -> tuple[Batch, dict[str, Any], Settings]:
    """Options split into arrays, relations between labels, and settings, once they fit together."""
    known, rest = AnchorOptions.__annotations__, dict[str, Any](options)
    if unknown := sorted(rest.keys() - known):
        raise TypeError(f"unknown options {unknown}; besides its own, a loss takes {sorted(known)}")
    batch = Batch(embeddings, labels, **{name: rest.pop(name) for name in Batch._fields if name in rest})
    relations = {name: rest.pop(name, None) for name in ("same", "miner")}
    for name, f in relations.items():
        if f is not None:
            check_function(name, f)
            relations[name] = as_partial(f)
    how = Settings(**rest)
    if how.reduction is not quotient:
        how = how._replace(reduction=check_reduction(how.reduction))
    check_batch(**batch._asdict(), same=relations["same"], block_size=how.block_size)
    check_fits("labels", batch.labels)
    check_fits("reference_labels", batch.reference_labels)
    return batch, relations, how


def as_partial(f: Callable | None) -> Partial | None:
    """A function as a pytree: without leaves, unless it is a `jax.tree_util.Partial` with numbers and keys bound."""
    return None if f is None else by_content(f) if isinstance(f, Partial) else Partial(by_content(f))


def _score(similarity, distance) -> tuple[Pairwise, bool]:
    if (similarity is None) == (distance is None):
        raise TypeError("give exactly one of `similarity` (larger is closer) and `distance` (smaller is closer)")
    if similarity is None:
        return as_pairwise(distance, "distance"), False
    return as_pairwise(similarity, "similarity"), True


def static_or_traced(values: tuple, embeddings: Array) -> tuple:
    """Numbers and arrays as arrays of the computing dtype, anything else wrapped as `Static`."""
    dtype = computing_dtype(embeddings.dtype)
    is_static = lambda v: v is None or isinstance(v, bool | str) or callable(v)
    # A number goes to the device with the call: by itself it would take as long as everything else.
    as_array = lambda v: np.asarray(v, dtype) if isinstance(v, int | float) else jnp.asarray(v, dtype=dtype)
    return tuple(Static(by_content(v)) if is_static(v) else as_array(v) for v in values)


def _with_a_row(batch: Batch) -> Batch:
    """The batch, whose empty sides get a row that does not exist: no arithmetic has to know of sides without rows."""
    rows, columns = ("embeddings", "labels", "weights"), ("references", "reference_labels")
    arrays = batch._asdict()
    for names, where in ((rows, "where"), (columns, "reference_where")):
        if arrays[names[0]] is not None and not len(arrays[names[0]]):
            arrays |= {name: a_row_for_none(arrays[name]) for name in names} | {where: jnp.zeros(1, bool)}
    return Batch(**arrays)


def a_row_for_none(a: Any) -> Any:
    """The array, or one row of zeros where it has none."""
    return a if a is None or len(a) else jnp.zeros((1, *a.shape[1:]), a.dtype)


def _first(n: int, tree: Any) -> Any:
    """The rows that came, where one was added to none."""
    return tree if n else jax.tree.map(lambda a: a[:0], tree)


def _sides(score: Pairwise, batch: Batch, axis_name):
    """Rows, columns, what is known of each, and the anchors' weights; columns come from every device of the axis."""
    n = len(batch.embeddings)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    gathered = partial(of_all, axis_name=axis_name)
    present = lambda where, n: jnp.ones(n * devices, bool) if where is None else gathered(where)
    ids = jnp.arange(n * devices, dtype=jnp.int32)
    own = ids if axis_name is None else lax.dynamic_slice_in_dim(ids, lax.axis_index(axis_name) * n, n)
    x = score.embed(existing(widen(batch.embeddings), batch.where))
    row = Side(batch.labels, jnp.ones(n, bool) if batch.where is None else batch.where, own)
    weights = jnp.ones(n, x.dtype) if batch.weights is None else batch.weights.astype(x.dtype)
    if batch.references is None:
        return x, gathered(x), row, Side(gathered(batch.labels), present(batch.where, n), ids), weights
    columns = gathered(score.embed(existing(batch.references.astype(x.dtype), batch.reference_where)))
    labels, where = gathered(jnp.asarray(batch.reference_labels)), present(batch.reference_where, len(batch.references))
    return x, columns, row, Side(labels, where, -1 - jnp.arange(len(columns), dtype=jnp.int32)), weights


def existing(x: Float[Array, "n ..."], where: Bool[Array, " n"] | None) -> Float[Array, "n ..."]:
    """Rows that do not exist become 0: whatever stood there, NaN included, reaches neither value nor gradient."""
    return x if where is None else jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def _seeing_nan(x, columns, batch: Batch, how: Settings) -> tuple[Array, Array, Callable[..., Any]]:
    """Rows and columns whose gradients, and `reduced` of Means whose totals, are NaN if a row that exists holds NaN.

    So it shows whatever was selected and compared.
    """
    spoil = lax.stop_gradient(spoilt(columns) if batch.references is None else spoilt(columns) + spoilt(x))
    seen = lambda mean: mean._replace(total=mean.total + spoil)
    reduce = lambda means, weights: reduced(tuple(map(seen, means)), weights, how.reduction, how.axis_name)
    return spoiling(x, spoil), spoiling(columns, spoil), reduce


def _panel_height(batch: Batch, how: Settings) -> int | None:
    """Anchors per panel, None for the dense form."""
    n, m = len(batch.embeddings), len(batch.embeddings if batch.references is None else batch.references)
    if how.axis_name is not None:
        m *= lax.axis_size(how.axis_name)
    if isinstance(how.block_size, int):
        return min(how.block_size, n)
    if how.block_size is None or n * m <= _DENSE:
        return None
    return min(n, max(8, min(512, _PANEL // m // 8 * 8)))


def _rows_are_columns(batch: Batch, how: Settings) -> bool:
    """Then panels take their rows out of the columns, and need no array of rows besides."""
    return batch.references is None and how.axis_name is None


def _is_symmetric(score: Pairwise, relations: dict[str, Any], how: Settings, batch: Batch) -> bool:
    """Whether score, masks and cotangents of (i, j) are those of (j, i)."""
    plain = not any(relations.values()) and how.reduction in (*PLAIN, as_part)
    return score.symmetric and plain and batch.references is None and batch.weights is None
