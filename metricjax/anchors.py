"""The anchor driver: runs a loss that is written for one block of rows over a whole batch.

A pair-based loss is a sum over anchors, and an anchor needs only its own row: its scores against the columns, and which
columns are its positives and its negatives. A *row function* does that arithmetic, on one record,

    rows(pairs, *hyper) -> Mean (or several, whose quotients are added)

and everything else is here: labels to masks, padding, self-exclusion, reference sets, mining, dense or blocked
evaluation, devices, reduction. `pairs.scores`, `pairs.positives` and `pairs.negatives` are [r, m]; for the rest see
`Pairs`. Row functions get hyper-parameters as arguments: numbers and arrays are traced (and have gradients),
anything else (strings, functions, None) is static. They use no other traced value, which panels could not
differentiate, and return totals and counts of one entry a row: both are checked when a call is traced, at any size.
"""

from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack, cast

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Shaped

from metricjax.engine.anchors import Batch, DeferredLoss, over_all_anchors, run_or_defer
from metricjax.engine.implementations import Settings, sweeps_towers
from metricjax.engine.miners import Triplets, as_miner, as_partial, as_selection
from metricjax.engine.pairs import Mean, PairLoss, Pairs, WholeRows, static_or_traced, unwrapped
from metricjax.engine.reductions import Loss, as_reduction
from metricjax.engine.statistics import Statistic, declared
from metricjax.ground.checks import check_batch, check_budget, check_fits, check_options
from metricjax.ground.functions import by_content, check_function, jitted
from metricjax.ground.pairwise import Pairwise, as_pairwise
from metricjax.ground.precision import Precision

__all__ = [
    "AnchorOptions",
    "Mean",
    "Pairs",
    "Statistic",
    "over_anchors",
    "over_pairs",
    "over_statistics",
    "over_towers",
    "over_triplets",
]


def __dir__() -> list[str]:
    return __all__


# Options that say how a loss is run, not on what.
HOW = ("block_size", "memory_budget", "precision", "axis_name", "implementation")
IMPLEMENTATIONS = ("auto", "dense", "panels", "sweeps", "kernel")


class AnchorOptions(TypedDict, total=False):
    """Options of every pair-based loss.

    where: [n] bool, rows that exist; a padded batch gives exactly the value and gradient of the unpadded one. A row
        that exists and holds NaN or infinity makes the loss and its gradient NaN.
    weights: [n], multiplies each anchor's total and count.
    references, reference_labels, reference_where: the columns [m, d], [m], [m], where they are not the batch itself.
    reference_ids: [m] ints, which row of the batch each reference is, −1 for none; rows are counted over all devices. A
        row is never compared with itself: without references its own column is left out, and of references those that
        are it. By default none is. `mj.memory` makes all four of a batch and a memory bank.
    same: `same(a, b)` says whether two labels match; default equality. It returns a boolean, or two: whether the pair
        is a positive one and whether a negative one (a pair that is neither is left out). With it, labels may have any
        dtype and trailing shape; `mj.relations` has multi-hot labels, hierarchies, cameras and ignored labels.
    miner: `(distances, positives, negatives) -> (positives, negatives)`, masks in, masks out, one row at a time,
        without a gradient; for a similarity s it gets 1 − s. A `jax.tree_util.Partial`, and those of `mj.mining`,
        may hold traced numbers and random keys; each row then gets a key of its own. One that needs more (other rows,
        a look at the whole batch) is a `mj.mining.Miner`. No function given here may close over a traced value.
    reduction: function of the `Mean` of [n] totals and counts; default Σ total / Σ count. `mj.with_count` gives the
        count beside the loss. Any other costs a further matrix product in panels, unless it declares by `mj.of_sums`
        that sums are enough.
    block_size: anchors per panel; "auto" (dense while n × m is small, by the shapes alone), an int, or None (always
        dense: derivatives of any kind. In panels, reverse mode over reverse mode may need memory of order n × m, or,
        for semi-hard triplets, be refused; forward over reverse is linear).
    memory_budget: bytes that a panel of "auto" may take on GPUs and TPUs, default 3 · 2³⁰; on CPUs it fits the cache.
    precision: of the products that scores are, and of those of their gradients: "exact" (float32 on every platform), a
        name of JAX ("default", "high", "highest", "BF16_BF16_F32_X3" …), a `jax.lax.Precision` or a
        `jax.lax.DotAlgorithmPreset`. None is JAX's default for similarities, which is fast on GPUs and TPUs, and
        "exact" for distances, which are differences of products.
    implementation: "auto", "dense", "panels", "sweeps" or "kernel". A loss of declared statistics (`over_statistics`)
        takes its gradient in two sweeps over the pairs of rows, where labels are compared by equality, without
        references, miner and devices, and with a default reduction; "auto" does so on CPUs. On NVIDIA GPUs and TPUs
        "kernel" does it in fused kernels, for similarities and distances that are functions of x·y, of at most 128
        features (512 with `precision="bfloat16"`, or if embeddings come in bfloat16, whose products are then of
        bfloat16 numbers; TPUs take 512), and finds the pairs of batch-hard triplets; elsewhere it is "auto". What
        cannot be swept runs in panels.
    axis_name: mesh axis (or axes) inside `jax.shard_map`, over which embeddings, labels, masks, weights and references
        are split by rows; the value and gradient are those of one device. `mj.over_mesh` writes the `shard_map`.
    """

    where: Bool[Array, " n"] | None
    weights: Float[Array, " n"] | None
    references: Float[Array, "m d"] | None
    reference_labels: Shaped[Array, "m ..."] | None
    reference_where: Bool[Array, " m"] | None
    reference_ids: Integer[Array, " m"] | None
    same: Callable[[Array, Array], Array | tuple[Array, Array]] | None
    miner: Callable[[Array, Array, Array], tuple[Array, Array]] | None
    reduction: Callable[[Mean], Any]
    block_size: int | Literal["auto"] | None
    memory_budget: int
    precision: Precision
    implementation: Literal["auto", "dense", "panels", "sweeps", "kernel"]
    axis_name: str | tuple[str, ...] | None


def over_pairs(
    rows: Callable[..., Mean | tuple[Mean, ...]],
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *hyper: Any,
    similarity: Callable[[Array, Array], Array] | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
    by_pair: bool = False,
    heavy: bool = False,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """The loss of `rows(pairs, *hyper)` over a batch, or whatever `reduction` makes of its Means.

    Give one of `similarity` and `distance`; options: `AnchorOptions`. `pairs` is a record, `Pairs`, of what is known
    of some anchors; only what is asked of it is computed. Where positives and negatives are looked at apart, ask for
    `pairs.apart`: the positives are then a short list if no class has more than 64 rows, and what is computed for them
    costs next to nothing.

    `by_pair` promises that each total is a sum of terms that depend on one score each, in the same way for all anchors:
    then panels need one matrix product fewer. `heavy` says that it holds more arrays of scores at a time than a
    log-sum-exp does, as it sorts, counts or reaches other rows: on GPUs and TPUs panels are then a third as high.

    >>> import jax.numpy as jnp, metricjax as mj
    >>> def pull(pairs):
    ...     scores, positives, _, _ = pairs.apart
    ...     return mj.Mean(jnp.sum(jnp.where(positives, 1 - scores, 0), axis=-1), jnp.sum(positives, axis=-1))
    >>> z, y = jnp.eye(4), jnp.arange(4) // 2
    >>> float(mj.over_pairs(pull, z, y, similarity=mj.similarities.cosine))
    1.0
    """
    check_function("rows", rows)
    batch, relations, how = _sorted_out(embeddings, labels, options)
    score, is_similarity = _score(similarity, distance, options)
    mirrored = by_pair and _is_symmetric(score, relations, how, batch)
    loss = PairLoss(by_content(rows), score, is_similarity, mirrored, heavy=heavy, **relations)
    return run_or_defer(DeferredLoss(loss, how, batch, static_or_traced(hyper, embeddings, bound=True)))


def over_anchors(
    rows: Callable[..., Mean | tuple[Mean, ...]],
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *hyper: Any,
    similarity: Callable[[Array, Array], Array] | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
    by_pair: bool = False,
    heavy: bool = False,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """`over_pairs` for a row function of three arrays, `rows(scores, positives, negatives, *hyper)`, [r, m] each.

    >>> import jax.numpy as jnp, metricjax as mj
    >>> def pull(scores, positives, negatives):
    ...     return mj.Mean(jnp.sum(jnp.where(positives, 1 - scores, 0), axis=-1), jnp.sum(positives, axis=-1))
    >>> z, y = jnp.eye(4), jnp.arange(4) // 2
    >>> float(mj.over_anchors(pull, z, y, similarity=mj.similarities.cosine))
    1.0
    """
    check_function("rows", rows)
    of_pairs = WholeRows(by_content(rows))
    how: dict[str, Any] = {"similarity": similarity, "distance": distance, "by_pair": by_pair, "heavy": heavy}
    return over_pairs(of_pairs, embeddings, labels, *hyper, **how, **options)


def over_statistics(
    statistics: dict[str, Statistic],
    finish: Callable[..., Mean | tuple[Mean, ...]],
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *hyper: Any,
    similarity: Callable[[Array, Array], Array] | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
    by_pair: bool = False,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """`over_pairs` for a loss of a few numbers of each row: log-sum-exps and sums of functions of single scores.

    `finish(row, *hyper)` makes a Mean (or several) of a record with the number of each name, [r], and with how many
    `positives` and `negatives` the row has. What is declared so has its derivatives taken by the driver in two sweeps
    over the pairs of a batch, each pair once: two matrix products in all, where panels take three.

    >>> import jax.numpy as jnp, metricjax as mj
    >>> closest = mj.Statistic("logsumexp", "negatives", lambda scores, scale: scale * scores)
    >>> pull = mj.Statistic("sum", "positives", lambda scores, scale: 1 - scores)
    >>> finish = lambda row, scale: mj.Mean(row.pull + jnp.where(row.negatives > 0, row.push, 0) / scale, row.positives)
    >>> z, y = jnp.eye(4), jnp.arange(4) // 2
    >>> float(over_statistics({"push": closest, "pull": pull}, finish, z, y, 1.0, similarity=mj.similarities.cosine))
    1.6931
    """
    rows = declared(statistics, finish)
    how: dict[str, Any] = {"similarity": similarity, "distance": distance, "by_pair": by_pair}
    return over_pairs(rows, embeddings, labels, *hyper, **how, **options)


def over_towers(
    statistics: dict[str, Statistic],
    finish: Callable[..., Mean],
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *hyper: Any,
    similarity: Callable[[Array, Array], Array],
    otherwise: Callable[..., Loss],
    **options: Any,
) -> Loss:
    """`over_statistics` of the rows of two towers, each compared with those of the other, of which row i matches.

    That is the mean of both directions, in four products. `otherwise(x, y, *hyper, similarity=..., **options)` has to
    be the same, and is run where the options or the platform do not allow for it.
    """
    score, _ = _score(similarity, None, cast(AnchorOptions, options))
    if not sweeps_towers(score, len(x), options) or x.dtype != y.dtype:
        return otherwise(x, y, *hyper, similarity=similarity, **options)
    how = tuple((name, options[name]) for name in HOW if name in options and name != "precision")  # which score has
    arrays = {name: options[name] for name in ("where", "weights") if options.get(name) is not None}
    traced = static_or_traced(hyper, x, bound=True)
    return _of_towers((declared(statistics, finish), score, otherwise, how), x, y, traced, arrays)


@jitted
def _of_towers(static, x, y, hyper, arrays):
    rows, score, otherwise, how = static

    def at_once(x, y):
        number = jnp.arange(2 * len(x), dtype=jnp.int32)
        labels = jnp.stack([number % len(x), number // len(x)], axis=1)
        given = {**dict(how), **{name: jnp.tile(a, 2) for name, a in arrays.items()}, "same": _across}
        batch, relations, settings = _sorted_out(jnp.concatenate([x, y]), labels, given)
        return over_all_anchors(settings, PairLoss(rows, score, True, towers=True, **relations), batch, hyper)

    each = lambda x, y: otherwise(x, y, *unwrapped(hyper), similarity=score, **dict(how), **arrays)
    return lax.platform_dependent(x, y, cpu=at_once, default=each)


def _across(a: Array, b: Array) -> tuple[Array, Array]:
    """A relation of [number, tower]."""
    return (a[0] == b[0]) & (a[1] != b[1]), (a[0] != b[0]) & (a[1] != b[1])


def over_triplets(
    terms: Callable[..., Mean],
    select: Callable[[Array, Array, Array], Triplets],
    embeddings: Float[Array, "n d"],
    labels: Shaped[Array, "n ..."],
    *hyper: Any,
    distance: Callable[[Array, Array], Array],
    swap: bool = False,
    every: Callable[..., Mean] | None = None,
    **options: Unpack[AnchorOptions],
) -> Loss:
    """The loss of `terms(chosen, *hyper) -> Mean` of [n] arrays over selected triplets.

    `chosen` has the distances `d_ap` and `d_an` [n, t], which of them are `valid` [n, t], and the `labels` of the rows.
    In panels, selection runs without a gradient. Where it takes a few triplets a row, only the chosen pairs are then
    gathered and differentiated, so that no matrix product but that of the distances is needed. With `swap`, d_an is
    min(d_an, d_pn). For a selection of every triplet, the row function `every(pairs, *hyper)` takes the place of
    `terms`, and need not list them. Options as for `over_pairs`.
    """
    check_function("terms", terms)
    check_function("triplets", select)
    chosen = as_selection(select)
    if chosen.every and every is not None:
        return over_pairs(every, embeddings, labels, *hyper, distance=distance, heavy=True, **options)
    batch, relations, how = _sorted_out(embeddings, labels, options)
    score, is_similarity = _score(None, distance, options)
    loss = PairLoss(by_content(terms), score, is_similarity, swap=swap, select=chosen, **relations)
    return over_all_anchors(how, loss, batch, static_or_traced(hyper, embeddings, bound=True))


def _sorted_out(embeddings: Array, labels: Array, options: AnchorOptions) -> tuple[Batch, dict[str, Any], Settings]:
    """Options split into arrays, relations between labels, and settings, once they are known to fit together."""
    check_options("a pair-based loss", options, AnchorOptions)
    rest = dict[str, Any](options)
    batch = Batch(embeddings, labels, **{name: rest.pop(name) for name in Batch._fields if name in rest})
    rest.pop("precision", None)
    relations = {name: rest.pop(name, None) for name in ("same", "miner")}
    for name, made in (("same", as_partial), ("miner", as_miner)):
        if relations[name] is not None:
            check_function(name, relations[name])
            relations[name] = made(relations[name])
    if "reduction" in rest:
        rest["reduction"] = as_reduction(rest["reduction"])
    how = Settings(**rest)
    if how.implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {how.implementation!r}; wanted one of {IMPLEMENTATIONS}")
    check_batch(**batch._asdict(), same=relations["same"], block_size=how.block_size)
    check_budget(how.memory_budget)
    check_fits("labels", batch.labels)
    check_fits("reference_labels", batch.reference_labels)
    return batch, relations, how


def _score(similarity, distance, options: AnchorOptions) -> tuple[Pairwise, bool]:
    """The function that compares rows, at the precision asked for, and whether it is a similarity."""
    if (similarity is None) == (distance is None):
        raise TypeError("give exactly one of `similarity` (larger is closer) and `distance` (smaller is closer)")
    score = as_pairwise(distance, "distance") if similarity is None else as_pairwise(similarity, "similarity")
    return score.at(options.get("precision")), distance is None


def _is_symmetric(score: Pairwise, relations: dict[str, Any], how: Settings, batch: Batch) -> bool:
    """Whether score, masks and cotangents of (i, j) are those of (j, i)."""
    plain = not any(relations.values()) and how.reduction.of_numbers
    return score.symmetric and plain and batch.references is None and batch.weights is None
