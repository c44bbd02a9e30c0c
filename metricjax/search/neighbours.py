"""Search: the references closest to each query, exactly, in memory linear in the queries."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from metricjax import similarities
from metricjax.engine import devices, sizes
from metricjax.engine.devices import of_all, row_ids, varying
from metricjax.ground.checks import check_per_row, check_rows
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import existing, finite_rows, widen
from metricjax.ground.pairwise import Pairwise, as_pairwise

__all__ = ["Neighbours", "top_k"]


class Neighbours(NamedTuple):
    """The k references closest to each query, closest first: their scores, and which rows they are."""

    scores: Float[Array, "n k"]
    indices: Int[Array, "n k"]


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
      block_size: references at a time. Besides queries and results, memory is that of one panel of scores.
      axis_name: mesh axis (or axes) inside `jax.shard_map`, over which queries, references and `where` are split by
        rows. Each device gets the neighbours of its own queries among the references of all, numbered over all devices.
        Queries travel, references stay where they are.

    No gradient: differentiate scores of `references[indices]`. Sums in another order may round scores differently, so
    that near-ties may swap with another block size. The k closest references are in the k groups with the largest
    maxima: nothing but those is sorted.

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
    score = as_pairwise(score, "similarity" if distance is None else "distance")
    if not (block_size == "auto" or (isinstance(block_size, int) and block_size > 0)):
        raise ValueError(f"block_size is {block_size!r}; wanted 'auto' or a positive int")
    if exclude_self and len(queries) != len(references):
        came = f"{len(queries)} queries and {len(references)} references"
        raise ValueError(f"exclude_self is True for {came}; wanted queries that are the references")
    most = devices.count(axis_name) * len(references) - exclude_self
    if not isinstance(k, int):
        raise TypeError(f"k is {k!r}; wanted an int, which is static")
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}; wanted 1 to {most}, the number of references")
    options = _Options(score, distance is not None, k, exclude_self, block_size, axis_name)
    return _top_k(options, *lax.stop_gradient((queries, references)), where)


class _Options(NamedTuple):
    """What is static in one call."""

    score: Pairwise
    is_distance: bool
    k: int
    exclude_self: bool
    block_size: int | str
    axis_name: str | tuple[str, ...] | None

    def closeness(self, x, y):
        s = self.score.compare(x, y)
        return -s if self.is_distance else s


@jitted
def _top_k(options: _Options, queries, references, where) -> Neighbours:
    n, m, axis_name = len(queries), len(references), options.axis_name
    sound = finite_rows(queries)
    x = of_all(options.score.embed(existing(widen(queries), sound)), axis_name)
    depth = options.k + options.exclude_self  # one more, as the query itself may be left out
    best = _among(options, min(depth, m), x, references, where)
    if axis_name is not None:
        best = _of_all_devices(best, depth, m, axis_name)
    if options.exclude_self:
        best = _without(best, row_ids(n, axis_name))
    scores, indices = (jnp.where(sound[:, None], a, nothing) for a, nothing in zip(best, (-jnp.inf, -1), strict=True))
    return Neighbours(_plain_zeros(-scores) if options.is_distance else scores, indices)


def _among(options: _Options, k: int, x, references, where) -> Neighbours:
    """The k best of the references here, a panel of queries and a block of references at a time."""
    n, m = len(x), len(references)
    size = min(m, sizes.references_in_block(k) if options.block_size == "auto" else int(options.block_size))
    x = _in_panels(x, sizes.queries_in_panel(n, size))
    nothing = jnp.full((*x.shape[:2], k), -jnp.inf, x.dtype), jnp.full((*x.shape[:2], k), -1, jnp.int32)

    def block(best, start, size):
        """The best of those so far and of the references from `start` on."""
        part = lambda a: lax.dynamic_slice_in_dim(a, start, size)
        rows = part(references)
        real = finite_rows(rows) if where is None else finite_rows(rows) & part(where)
        y = options.score.embed(existing(rows.astype(x.dtype), real))
        return lax.map(lambda panel: _with_block(options, *panel, y, real, start), (x, best))

    best = Neighbours(*varying(nothing, (x, references)))
    count, rest = divmod(m, size)
    best = lax.fori_loop(0, count, lambda i, best: block(best, i * size, size), best)
    best = block(best, count * size, rest) if rest else best
    return jax.tree.map(lambda a: a.reshape(-1, k)[:n], best)


def _in_panels(x, height: int):
    """Rows in panels of one size, the last filled up with zeros."""
    count = math.ceil(len(x) / max(1, height))
    return jnp.pad(x, [(0, count * height - len(x)), (0, 0)]).reshape(count, height, x.shape[1])


def _with_block(options: _Options, x, best: Neighbours, y, real, first) -> Neighbours:
    """The k best of those so far and of a block of references, numbered from `first` on; `real` tells which exist."""
    scores = options.closeness(x, y)
    # Overflow shows as NaN in most scores of a row: to look for it in all of them takes too long.
    sound = jnp.all(real) & ~jnp.any(jnp.isnan(scores[:1])) & ~jnp.any(jnp.isnan(scores[:, :1]))
    known = lambda: jnp.where(real[None] & ~jnp.isnan(scores), scores, -jnp.inf)
    return lax.cond(sound, lambda: _merged(best, scores, first), lambda: _merged(best, known(), first))


def _merged(best: Neighbours, scores: Float[Array, "n b"], first) -> Neighbours:
    """The k best of those so far, which come first, and of a panel whose columns are numbered from `first` on."""
    k, width = best.scores.shape[1], scores.shape[1]
    size = sizes.columns_in_group(width, k)
    if size == 1:
        return _chosen(best, scores, jnp.full_like(best.indices, first), width)
    scores = jnp.pad(scores, [(0, 0), (0, -width % size)], constant_values=-jnp.inf)
    groups = scores.reshape(len(scores), -1, size)
    tops = jnp.max(groups, axis=2)
    # On a CPU top_k is the faster, the more groups are out of the race.
    tops = jnp.where(tops > best.scores[:, -1:], _plain_zeros(tops), -jnp.inf)
    # In order of their columns, so that among equal scores the lower index stays first.
    chosen = jnp.sort(lax.top_k(tops, k)[1])
    candidates = jax.vmap(lambda groups, chosen: groups[chosen])(groups, chosen)
    return _chosen(best, candidates.reshape(len(scores), k * size), first + chosen * size, size)


def _chosen(best: Neighbours, candidates: Float[Array, "n c"], firsts: Int[Array, "n k"], size: int) -> Neighbours:
    """The k best of those so far and of candidates, `size` of them in a row from each column in `firsts` on."""
    k = best.scores.shape[1]
    scores, places = lax.top_k(_plain_zeros(jnp.concatenate([best.scores, candidates], axis=1)), k)
    new = jnp.maximum(places - k, 0)
    columns = jnp.take_along_axis(firsts, new // size, axis=1) + new % size
    before = jnp.take_along_axis(best.indices, jnp.minimum(places, k - 1), axis=1)
    return Neighbours(scores, jnp.where(places < k, before, columns))


def _plain_zeros(x):
    """−0 as 0, which `top_k` puts before it."""
    return jnp.where(x == 0, 0, x)


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
