"""Search: the references closest to each query, exactly, in memory linear in the queries."""

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
from metricjax.search.panels import Neighbours, Options, among, plain_zeros

__all__ = ["Neighbours", "top_k"]


def top_k(
    queries: Float[Array, "n d"],
    references: Float[Array, "m d"],
    k: int,
    *,
    similarity: Callable[[Array, Array], Array] | None = None,
    distance: Callable[[Array, Array], Array] | None = None,
    where: Bool[Array, " m"] | None = None,
    exclude_self: bool = False,
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

    Args:
      k: 1 to m, static; with `exclude_self` to m − 1.
      where: which references exist.
      exclude_self: query i is reference i, and not among its own neighbours (leave-one-out).
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
    check_rows("queries", queries)
    check_rows("references", references)
    if queries.shape[1] != references.shape[1]:
        raise ValueError(f"queries has {queries.shape[1]} features, references {references.shape[1]}; they must agree")
    check_per_row("where", where, len(references))
    if similarity is not None and distance is not None:
        raise TypeError("similarity and distance came both; wanted one: is a larger or a smaller value closer?")
    score = similarity if distance is None else distance
    score = similarities.cosine if score is None else score
    score = exactly(score, "similarity" if distance is None else "distance").at(precision)
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
    options = Options(score, distance is not None, k, exclude_self, block_size, memory_budget, axis_name)
    return _top_k(options, *lax.stop_gradient((queries, references)), where)


@jitted
def _top_k(options: Options, queries, references, where) -> Neighbours:
    n, m, axis_name = queries.shape[0], len(references), options.axis_name
    sound = finite_rows(queries)
    x = of_all(options.score.embed(existing(widen(queries), sound)), axis_name)
    depth = options.k + options.exclude_self  # one more, as the query itself may be left out
    best = among(options, min(depth, m), x, references, where)
    if axis_name is not None:
        best = _of_all_devices(best, depth, m, axis_name)
    if options.exclude_self:
        best = _without(best, row_ids(n, axis_name))
    scores, indices = (jnp.where(sound[:, None], a, nothing) for a, nothing in zip(best, (-jnp.inf, -1), strict=True))
    return Neighbours(plain_zeros(-scores) if options.is_distance else scores, indices)


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
