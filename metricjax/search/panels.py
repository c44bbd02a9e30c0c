"""Search in panels: some queries at a time against a block of references, in one of two forms.

On a CPU a panel stays in the cache, and whatever can no longer be among the best is out of the race. GPUs and TPUs take
panels that fill the chip, read each twice, and sort little: groups of groups, so that no row that is sorted is long.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from metricjax.engine import sizes
from metricjax.engine.devices import varying
from metricjax.ground.numerics import existing, finite_rows
from metricjax.ground.one_line import one_line
from metricjax.ground.pairwise import Pairwise
from metricjax.ground.precision import EXACT
from metricjax.search.codes import block as block_of
from metricjax.search.codes import rows_at
from metricjax.search.rounding import Rounded, error_of, rounded

__all__ = ["Neighbours", "Options", "among", "by_platform", "plain_zeros", "rescored"]


class Neighbours(NamedTuple):
    """The k references closest to each query, closest first: their scores, and which rows they are."""

    scores: Float[Array, "n k"]
    indices: Int[Array, "n k"]

    def __repr__(self) -> str:
        return one_line(self)


class Options(NamedTuple):
    """What is static in one call.

    features: the first so many are compared; None for signs, which come as packed words.
    """

    score: Pairwise
    features: int | None
    is_distance: bool
    k: int
    exclude_self: bool
    block_size: int | str
    memory_budget: int
    axis_name: str | tuple[str, ...] | None

    def closeness(self, x, y):
        s = self.score.compare(x, y)
        return -s if self.is_distance else s


def among(options: Options, k: int, x, references, where) -> Neighbours:
    """The k best of the references here, a panel of queries and a block of references at a time."""
    return by_platform(partial(_among, options, k, x, references, where))


def by_platform(f: Callable[[bool], Any]) -> Any:
    """`f(on_cpu)` for the platform that the program is lowered for."""
    return lax.platform_dependent(cpu=lambda: f(True), default=lambda: f(False))


def _among(options: Options, k: int, x, references, where, on_cpu: bool) -> Neighbours:
    n, m, d = x.shape[0], len(references), options.features or x.shape[1]
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    of_platform = lambda size: size.cpu if on_cpu else size.accelerator
    budget = sizes.in_float32(options.memory_budget, dtype)
    budget //= 1 if options.score.product else 2  # other scores may hold copies of their own
    wanted = min(k, options.k + options.exclude_self)  # candidates of a first pass do not make blocks larger
    size = options.block_size
    rows = n if isinstance(n, int) else sizes.QUERIES_IF_UNKNOWN
    size = min(m, of_platform(sizes.references_in_block(rows, m, d, wanted, budget)) if size == "auto" else int(size))
    x = _in_panels(x, of_platform(sizes.queries_in_panel(rows, size, d, k, budget)))
    existence = jnp.ones(m, bool) if where is None else where
    nothing = jnp.full((*x.shape[:2], k), -jnp.inf, dtype), jnp.full((*x.shape[:2], k), -1, jnp.int32)

    def block(best, start, size):
        """The best of those so far and of the references from `start` on."""
        these = block_of(references, start, size, options.features, dtype)
        exist = lax.dynamic_slice_in_dim(existence, start, size)
        step = (_in_cache if on_cpu else _on_chip)(options, rows, k, these, exist, start)
        return lax.map(lambda panel: step(*panel), (x, best))

    best = Neighbours(*varying(nothing, (x, references)))
    count, rest = divmod(m, size)
    if count == 1:
        best = block(best, 0, size)
    else:
        best = lax.fori_loop(0, count, lambda i, best: block(best, i * size, size), best)
    best = block(best, count * size, rest) if rest else best
    return jax.tree.map(lambda a: a.reshape(-1, k)[:n], best)


def _in_panels(x, height: int):
    """Rows in panels of one size, the last filled up with zeros."""
    n, d = x.shape
    count = -(-n // max(1, height))
    return jnp.pad(x, [(0, count * height - n), (0, 0)]).reshape(count, height, d)


def _embedded(options: Options, rows, real):
    """References as they are compared. In a product, one that does not exist spoils its own scores only: no copy."""
    as_they_are = options.score.product or options.features is None
    return options.score.embed(rows if as_they_are else existing(rows, real))


def _finite(options: Options, rows) -> Bool[Array, " b"]:
    """Which references hold neither NaN nor infinity; packed words cannot."""
    return jnp.ones(len(rows), bool) if options.features is None else finite_rows(rows)


def rescored(options: Options, k: int, x, references, candidates: Int[Array, "n c"]) -> Neighbours:
    """The k best of the candidates of each query, by their own scores; of equal ones the lower index first."""
    return by_platform(partial(_rescored, options, k, x, references, candidates))


def _rescored(options: Options, k: int, x, references, candidates, on_cpu: bool) -> Neighbours:
    n, d = x.shape[0], references.shape[1]
    height = sizes.queries_rescored_at_once(
        n if isinstance(n, int) else sizes.QUERIES_IF_UNKNOWN, candidates.shape[1], d
    )
    in_panels = lambda a: _in_panels(a, height.cpu if on_cpu else height.accelerator)

    def best(panel):
        x, indices = panel
        indices = jnp.sort(indices, axis=1)
        rows, real = rows_at(references, indices, x.dtype)
        rows = options.score.embed(jnp.where(real[..., None], rows, 0).reshape(-1, d)).reshape(*indices.shape, -1)
        scores = jax.vmap(lambda x, rows: options.closeness(x[None], rows)[0])(x, rows)
        scores, places = lax.top_k(_known(scores, real), k)
        found = jnp.take_along_axis(indices, places, axis=1)
        return Neighbours(scores, jnp.where(scores == -jnp.inf, -1, found))

    found = lax.map(best, (in_panels(x), in_panels(candidates)))
    return jax.tree.map(lambda a: a.reshape(-1, k)[:n], found)


# --- on a CPU -------------------------------------------------------------------------------------------------------


def _in_cache(options: Options, n: int, k: int, rows, exist, first) -> Callable[..., Neighbours]:
    """A function of a panel of queries and of their best so far: the k best of those and of these references.

    References are numbered from `first` on; `exist` tells which of them there are.
    """
    is_product = options.score.product
    real = lambda: _finite(options, rows) & exist
    known = exist if is_product else real()
    y = _embedded(options, rows, known)

    def step(x, best):
        scores = options.closeness(x, y)
        # Overflow shows as NaN in most scores of a row: to look for it in all of them takes too long. In a product, so
        # do NaN and infinity in a reference, as any number times infinity is not finite.
        spoilt = ~jnp.isfinite(scores[:1]) if is_product else jnp.isnan(scores[:1])
        sound = jnp.all(known) & ~jnp.any(spoilt) & ~jnp.any(jnp.isnan(scores[:, :1]))
        cleaned = lambda: _known(scores, real()[None] if is_product else known[None])
        return lax.cond(sound, lambda: _merged(best, scores, first), lambda: _merged(best, cleaned(), first))

    return step


def _merged(best: Neighbours, scores: Float[Array, "n b"], first) -> Neighbours:
    """The k best of those so far, which come first, and of a panel whose columns are numbered from `first` on."""
    k, width = best.scores.shape[1], scores.shape[1]
    size = sizes.columns_in_group(width, k).cpu
    if size == 1:
        return _chosen(best, scores, jnp.full_like(best.indices, first), width)
    groups = _in_groups(scores, size, -jnp.inf)
    tops = jnp.max(groups, axis=2)
    # On a CPU top_k is the faster, the more groups are out of the race.
    tops = jnp.where(tops > best.scores[:, -1:], plain_zeros(tops), -jnp.inf)
    tops, chosen = lax.top_k(tops, k)
    least = jnp.maximum(best.scores[:, -1:], jnp.min(tops, axis=1, keepdims=True))  # a slice would undo top_k
    # In order of their columns, so that among equal scores the lower index stays first.
    chosen = jnp.sort(chosen)
    candidates = _taken(groups, chosen)
    return _chosen(best, jnp.where(candidates >= least, candidates, -jnp.inf), first + chosen * size, size)


def _chosen(best: Neighbours, candidates: Float[Array, "n c"], firsts: Int[Array, "n k"], size: int) -> Neighbours:
    """The k best of those so far and of candidates, `size` of them in a row from each column in `firsts` on."""
    k = best.scores.shape[1]
    scores, places = lax.top_k(plain_zeros(jnp.concatenate([best.scores, candidates], axis=1)), k)
    new = jnp.maximum(places - k, 0)
    columns = jnp.take_along_axis(firsts, new // size, axis=1) + new % size
    before = jnp.take_along_axis(best.indices, jnp.minimum(places, k - 1), axis=1)
    return Neighbours(scores, jnp.where(places < k, before, columns))


# --- on GPUs and TPUs -----------------------------------------------------------------------------------------------


def _on_chip(options: Options, n: int, k: int, rows, exist, first) -> Callable[..., Neighbours]:
    """What `_in_cache` makes, with nothing that the host has to decide unless a proof fails."""
    real = _finite(options, rows) & exist
    exact = lambda y: lambda x, best: _exactly(options, y, real, first, x, best)
    embedded = lambda: _embedded(options, rows, real)
    exact_product = options.score.product and options.score.precision == EXACT and rows.dtype == jnp.float32
    many = sizes.candidates(n, len(rows), k) if exact_product else 0
    if not many:
        return exact(embedded())
    low = rounded(embedded(), real)
    return lambda x, best: _proven(options, many, rows, low, real, first, x, best, lambda: exact(embedded())(x, best))


def _exactly(options: Options, y, real, first, x, best: Neighbours) -> Neighbours:
    """The k best of those so far and of all references of a block."""
    scores, columns = _largest(options.closeness(x, y), min(best.scores.shape[1], len(y)), real[None])
    return _with(best, scores, first + columns)


def _with(best: Neighbours, scores: Float[Array, "n c"], indices: Int[Array, "n c"]) -> Neighbours:
    """The k best of those so far and of a few more, which stand in the order of their indices."""
    scores, places = lax.top_k(jnp.concatenate([best.scores, scores], axis=1), best.scores.shape[1])
    return Neighbours(scores, jnp.take_along_axis(jnp.concatenate([best.indices, indices], axis=1), places, axis=1))


def _largest(scores: Float[Array, "n m"], k: int, real: Bool[Array, "1 m"] | None = None):
    """The k largest of each row and their columns, in the order of columns; of equal ones those that come first.

    They are in the k groups with the largest maxima, which are found in the same way. What `real` excludes is excluded
    while maxima are taken, and again in those groups: long rows are read once, and never copied.
    """
    width = scores.shape[1]
    size = sizes.columns_in_group(width, k).accelerator
    if size == 1:
        scores = _known(scores, real)
        columns = jnp.sort(lax.top_k(scores, k)[1])
        return jnp.take_along_axis(scores, columns, axis=1), columns
    exist = jnp.ones((1, width), bool) if real is None else real
    tops = jnp.max(_known(_in_groups(scores, size, 0), _in_groups(exist, size, False)), axis=2)
    firsts = _largest(tops, k)[1] * size
    starts = jnp.minimum(firsts, width - size)  # of the last group, which may be shorter, and begins with others then
    windows = lambda row, starts: jax.vmap(lambda start: lax.dynamic_slice_in_dim(row, start, size))(starts)
    own = starts[:, :, None] + jnp.arange(size, dtype=jnp.int32)[None, None] >= firsts[:, :, None]
    candidates = _known(jax.vmap(windows)(scores, starts), own & jax.vmap(windows, (None, 0))(exist[0], starts))
    values, places = _largest(candidates.reshape(len(scores), -1), k)
    return values, jnp.take_along_axis(starts, places // size, axis=1) + places % size


def _proven(options: Options, many: int, rows, y: Rounded, real, first, x, best: Neighbours, otherwise) -> Neighbours:
    """What `_exactly` does, with exact scores of those references only that score high with rounded operands.

    Every other one scores less than the k-th exact score, even if rounding took as much from it as it can. Where that
    is not so for each query of the panel, the result is that of `otherwise()`.
    """
    low = rounded(x)
    product = partial(lax.dot_general, precision=lax.Precision.DEFAULT, preferred_element_type=x.dtype)
    scores = product(low.rows, y.rows, (((1,), (1,)), ((), ())))
    scores, columns = _largest(scores, many, real[None])
    candidates = options.score.embed(rows[columns])
    found = _with(best, _known(jnp.sum(x[:, None] * candidates, axis=2), real[columns]), first + columns)

    error, least = error_of(low, y), jnp.min(scores, axis=1)
    # All of a query of zeros score 0, and if the last candidate does not exist, none was left out.
    safe = (least + error < found.scores[:, -1]) | (least == -jnp.inf) | ~jnp.any(x != 0, axis=1)
    return lax.cond(jnp.all(safe & jnp.isfinite(error)), lambda: found, otherwise)


# --- both -----------------------------------------------------------------------------------------------------------


def _in_groups(a, size: int, filling):
    """Columns in groups of one size, the last filled up."""
    a = jnp.pad(a, [(0, 0), (0, -a.shape[1] % size)], constant_values=filling)
    return a.reshape(len(a), -1, size)


def _taken(groups, chosen: Int[Array, "n k"]):
    """The entries of some groups of each row, in a row."""
    return jax.vmap(lambda groups, chosen: groups[chosen])(groups, chosen).reshape(len(groups), -1)


def _known(scores, real):
    """Scores of references that exist and are known; −∞ elsewhere, and −0 as 0."""
    return scores if real is None else jnp.where(real & ~jnp.isnan(scores), plain_zeros(scores), -jnp.inf)


def plain_zeros(x):
    """−0 as 0, which `top_k` puts before it."""
    return jnp.where(x == 0, 0, x)
