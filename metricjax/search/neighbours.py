"""Search: the references closest to each query, exactly or among candidates, in memory linear in the queries."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from metricjax import similarities
from metricjax.engine import devices
from metricjax.engine.devices import of_all, row_ids
from metricjax.engine.sizes import BUDGET
from metricjax.ground.checks import check_budget, check_per_row, check_rows
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import existing, finite_rows, widen
from metricjax.ground.pairwise import exactly
from metricjax.ground.precision import Precision
from metricjax.search.codes import Codes, cosine_of_signs, signs, words
from metricjax.search.panels import Neighbours, Options, among, plain_zeros, rescored

__all__ = ["Neighbours", "top_k"]


def top_k(
    queries: Float[Array, "n d"] | Codes,
    references: Float[Array, "m d"] | Codes,
    k: int,
    *,
    similarity: Callable[[Array, Array], Array] | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
    where: Bool[Array, " m"] | None = None,
    exclude_self: bool = False,
    coarse: Codes | int | None = None,
    rescore_multiplier: int = 4,
    block_size: int | Literal["auto"] = "auto",
    memory_budget: int = BUDGET,
    precision: Precision = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Neighbours:
    """The k references closest to each query, as a stable sort of all scores gives them: ties to the lower index.

    Give `similarity` (larger is closer; default `similarities.cosine`) or `distance` (smaller is closer): any function
    of two sets of rows that is not NaN for finite ones. `scores` are its values. A row with NaN or infinity in it has
    no neighbours and is not one of others; neither is a reference that scores −∞. Where fewer than k are found, the
    rest has index −1 and score −∞ (∞ for a distance).

    References may be `Codes`, of `search.compact`: scores are those of the rows that they stand for, which are made a
    block at a time, with the queries as they are. The codes take a quarter or a thirty-second of the memory, the search
    about as much time. Binary codes of queries among binary codes are compared by exclusive or and a count of bits:
    their score, the cosine of ±1, is 1 − 2 · Hamming distance / d. That is several times faster than a product.

    With `coarse`, a first pass finds k · `rescore_multiplier` candidates of each query by something cheaper, and only
    these get the scores above. The result is then as exact as the candidates are good: `mj.metrics.compact_retrieval`
    tells what is lost.

    Args:
      k: 1 to m, static; with `exclude_self` to m − 1.
      where: which references exist.
      exclude_self: query i is reference i, and not among its own neighbours (leave-one-out).
      coarse: what the first pass compares. An int: the first so many features, for embeddings trained by
        `mj.matryoshka` (adaptive retrieval of Kusupati et al. 2022, arXiv:2205.13147). `Codes` of the references, row
        by row, or of their first features: int8 ones by the score asked for, binary ones by their Hamming distance to
        the signs of the query, whatever the score is. Binary codes for both `references` and `coarse` are the search of
        Yamada et al. 2021 (arXiv:2106.00882): no floats are kept. Over devices, each finds candidates of its own.
      rescore_multiplier: candidates for each neighbour. The default is 4.
      block_size: references at a time. Besides queries and results, memory is that of one panel of scores and of what
        is computed from a block of references: on CPUs 13 to 35 MiB in all.
      memory_budget: bytes that both may take together on GPUs and TPUs under "auto", default 3 · 2³⁰.
      precision: of the products that scores are, as JAX names it; None is exact to float32 on every platform.
      axis_name: mesh axis (or axes) inside `jax.shard_map`, over which queries, references and `where` are split by
        rows. Each device gets the neighbours of its own queries among the references of all, numbered over all devices.
        Queries travel, references stay where they are.

    No gradient: differentiate scores of `references[indices]`. Sums in another order may round scores differently, so
    that near-ties may swap with another block size. The k closest references are in the k groups with the largest
    maxima: nothing but those is sorted.

    It exports with a free number of queries (`jax.export.symbolic_shape`), which then come 128 at a time.

    On GPUs and TPUs, many queries with `similarities.cosine` or `dot` (or one's own, by `mj.pairwise(product=True)`)
    get 2k + 16 candidates of each block by products of rows in bfloat16. Those are scored in float32, and a bound on
    the error proves that none of the others is closer. Where it does not, as among many near-duplicates, all scores of
    the panel are computed in float32: the result is exact there too.

    >>> import jax.numpy as jnp
    >>> top_k(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [2.0, 0.0], [3.0, 4.0]]), 2).indices.tolist()
    [[1, 2]]
    """
    _check_sets(queries, references)
    check_per_row("where", where, len(references))
    if similarity is not None and distance is not None:
        raise TypeError("similarity and distance came both; wanted one: is a larger or a smaller value closer?")
    if isinstance(queries, Codes):
        if not (similarity is distance is coarse is None):
            raise TypeError("queries are binary codes, compared by their Hamming distance; wanted no other score")
        score = cosine_of_signs(queries.features)
    else:
        given = (similarity or similarities.cosine) if distance is None else distance
        score = exactly(given, "similarity" if distance is None else "distance").at(precision)
    if not (block_size == "auto" or (isinstance(block_size, int) and block_size > 0)):
        raise ValueError(f"block_size is {block_size!r}; wanted 'auto' or a positive int")
    check_budget(memory_budget)
    if exclude_self and queries.shape[0] != len(references):
        came = f"{queries.shape[0]} queries and {len(references)} references"
        raise ValueError(f"exclude_self is True for {came}; wanted queries that are the references")
    most = devices.count(axis_name) * len(references) - exclude_self
    if not isinstance(k, int):
        raise TypeError(f"k is {k!r}; wanted an int, which is static")
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}; wanted 1 to {most}, the number of references")
    _check_coarse(coarse, references, rescore_multiplier)
    features = None if isinstance(queries, Codes) else references.shape[1]
    options = Options(score, features, distance is not None, k, exclude_self, block_size, memory_budget, axis_name)
    first = None if coarse is None else (coarse if isinstance(coarse, int) else None, rescore_multiplier)
    rows = lax.stop_gradient((queries, references))
    return _top_k((options, first), *rows, where, coarse if isinstance(coarse, Codes) else None)


def _check_sets(queries, references) -> None:
    for name, rows in (("queries", queries), ("references", references)):
        if not isinstance(rows, Codes):
            check_rows(name, rows)
    if queries.shape[1] != references.shape[1]:
        raise ValueError(f"queries has {queries.shape[1]} features, references {references.shape[1]}; they must agree")
    if isinstance(queries, Codes):
        kinds = tuple(of.precision if isinstance(of, Codes) else str(of.dtype) for of in (queries, references))
        if kinds != ("binary", "binary"):
            raise TypeError(
                f"queries are {kinds[0]} codes and references {kinds[1]}; wanted binary ones, or float queries"
            )


def _check_coarse(coarse, references, multiplier) -> None:
    m, d = references.shape
    if not isinstance(multiplier, int) or multiplier < 1:
        raise ValueError(f"rescore_multiplier is {multiplier!r}; wanted a positive int")
    if isinstance(coarse, Codes):
        if len(coarse) != m or coarse.features > d:
            came = f"{len(coarse)} rows of {coarse.features} features"
            raise ValueError(
                f"coarse has {came}; wanted codes of the {m} references, or of their first features of {d}"
            )
    elif coarse is not None and not (isinstance(coarse, int) and 1 <= coarse <= d):
        raise ValueError(f"coarse is {coarse!r}; wanted Codes of the references, or a number of features from 1 to {d}")


@jitted
def _top_k(how: tuple[Options, tuple | None], queries, references, where, coarse) -> Neighbours:
    options, first = how
    n, m, axis_name = queries.shape[0], len(references), options.axis_name
    for codes in (references, coarse):
        where = _both(where, codes.exists) if isinstance(codes, Codes) else where
    sound = queries.exists if isinstance(queries, Codes) else finite_rows(queries)
    rows = queries if isinstance(queries, Codes) else existing(widen(queries), sound)
    x = of_all(words(rows.codes) if isinstance(rows, Codes) else options.score.embed(rows), axis_name)
    depth = options.k + options.exclude_self  # one more, as the query itself may be left out
    if first is None:
        best = among(options, min(depth, m), x, references, where)
    else:
        features, multiplier = first
        cheap, few = _first_pass(options, features, coarse, rows)
        searched = references if coarse is None else coarse
        found = among(cheap, min(depth * multiplier, m), of_all(few, axis_name), searched, where)
        best = rescored(options, min(depth, m), x, references, found.indices)
    if axis_name is not None:
        best = _of_all_devices(best, depth, m, axis_name)
    if options.exclude_self:
        best = _without(best, row_ids(n, axis_name))
    scores, indices = (jnp.where(sound[:, None], a, nothing) for a, nothing in zip(best, (-jnp.inf, -1), strict=True))
    return Neighbours(plain_zeros(-scores) if options.is_distance else scores, indices)


def _both(where, exists):
    return exists if where is None else where & exists


def _first_pass(options: Options, features: int | None, coarse: Codes | None, queries):
    """Its options, and the queries as it compares them: their first features, or signs in packed words."""
    if coarse is not None and coarse.precision == "binary":
        score = cosine_of_signs(coarse.features)
        return options._replace(score=score, features=None, is_distance=False), words(
            signs(queries[:, : coarse.features])
        )
    features = features if coarse is None else coarse.features
    return options._replace(features=features), options.score.embed(queries[:, :features])


def _of_all_devices(best: Neighbours, k: int, m: int, axis_name) -> Neighbours:
    """The k best of each own query, out of what every device found for it among its m references."""
    found = best._replace(indices=jnp.where(best.indices < 0, -1, best.indices + devices.index(axis_name) * m))

    def own(a):
        a = devices.for_mine(a, axis_name)
        return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)

    scores, indices = jax.tree.map(own, found)
    scores, places = lax.top_k(scores, k)  # equal scores of one device stand in order, and so do the devices
    return Neighbours(scores, jnp.take_along_axis(indices, places, axis=1))


def _without(best: Neighbours, own: Int[Array, " n"]) -> Neighbours:
    """All but the query itself, or all but the last where it is not there."""
    is_own = best.indices == own[:, None]
    before = jnp.cumsum(is_own, axis=1, dtype=jnp.int32)[:, :-1]
    rest = jnp.arange(before.shape[1], dtype=jnp.int32)[None] + before
    return jax.tree.map(lambda a: jnp.take_along_axis(a, rest, axis=1), best)
