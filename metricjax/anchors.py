"""The anchor driver: runs a loss that is written for one block of rows over a whole batch.

A pair-based loss is a sum over anchors, and an anchor needs only its own row: its scores against the columns, and which
columns are its positives and its negatives. A *row function* does that arithmetic,

    rows(scores [r, m], positives [r, m], negatives [r, m], *hyper) -> Mean (or several, whose quotients are added)

and everything else is here: labels to masks, padding, self-exclusion, reference sets, mining, dense or blocked
evaluation, devices, reduction. Row functions get hyper-parameters as arguments: numbers and arrays are traced (and have
gradients), anything else (strings, functions, None) is static. They use no other traced value, which panels could not
differentiate, and return totals and counts of one entry a row: both are checked when a call is traced, at any size.
"""

from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack

from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Shaped

from metricjax.engine.anchors import Batch, Part, Settings, as_part, over_all_anchors, over_all_triplets
from metricjax.engine.pairs import Mean as Mean
from metricjax.engine.pairs import Problem, static_or_traced
from metricjax.engine.reductions import PLAIN, check_reduction, quotient
from metricjax.ground.checks import check_batch, check_fits
from metricjax.ground.functions import by_content, check_function
from metricjax.ground.pairwise import Pairwise, as_pairwise
from metricjax.mining import Triplets


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
    return part if how.reduction is as_part else over_all_anchors(how, problem, batch, part.hyper)


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
    return over_all_triplets(how, problem, batch, static_or_traced(hyper, embeddings))


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


def _is_symmetric(score: Pairwise, relations: dict[str, Any], how: Settings, batch: Batch) -> bool:
    """Whether score, masks and cotangents of (i, j) are those of (j, i)."""
    plain = not any(relations.values()) and how.reduction in (*PLAIN, as_part)
    return score.symmetric and plain and batch.references is None and batch.weights is None
