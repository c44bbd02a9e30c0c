"""Clusters of embeddings by their directions: in a given number, or as many as a threshold gives."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from metricjax import similarities
from metricjax.engine import sizes
from metricjax.engine.panels import sweep
from metricjax.engine.selecting import first_largest_down
from metricjax.ground.checks import check_per_row, check_rows
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import existing, finite_rows, normalize, widen
from metricjax.ground.pairwise import as_pairwise

__all__ = ["Clusters", "LeaderClusters", "connected_components", "k_means", "threshold_clusters"]


def __dir__() -> list[str]:
    return __all__


def _check(embeddings, where, **integers: int) -> None:
    check_rows("embeddings", embeddings)
    check_per_row("where", where, len(embeddings))
    for name, number in integers.items():
        if not isinstance(number, int):
            raise TypeError(f"{name} is {number!r}; wanted an int, which is static")


def _check_threshold(threshold: ArrayLike) -> None:
    if jnp.ndim(threshold):
        raise ValueError(f"threshold has shape {jnp.shape(threshold)}; wanted one number")


def _rows(embeddings, where):
    """All rows, with 0 in place of those that do not exist or hold NaN or infinity; and which rows are left."""
    real = finite_rows(embeddings) if where is None else finite_rows(embeddings) & where
    return existing(widen(embeddings), real), real


# --- a given number of clusters -------------------------------------------------------------------------------------


class Clusters(NamedTuple):
    """Clusters around centres.

    labels: the cluster of each row, −1 for a row that does not exist.
    centers: unit vectors, in float32 or float64.
    similarity: mean over rows of the cosine with their centre, at most 1.
    steps: how often the centres moved.
    """

    labels: Int[Array, " n"]
    centers: Float[Array, "c d"]
    similarity: Float[Array, ""]
    steps: Int[Array, ""]


def k_means(
    key: Key[Array, ""],
    embeddings: Float[Array, "n d"],
    count: int,
    *,
    where: Bool[Array, " n"] | None = None,
    steps: ArrayLike = 100,
    restarts: int = 1,
) -> Clusters:
    """Spherical k-means: `count` unit centres c that maximise mean_i max_c cos(x_i, c), by steps that never lower it.

    A step moves each centre to the normalised sum of its rows x / ‖x‖, then gives each row to the centre of the largest
    cosine, ties to the lower one. It ends when no row changes cluster (a local maximum), or after `steps`; labels and
    similarity are always those of the centres returned. The first centres are rows: a random one, then others drawn
    with probability ∝ D², the squared chord to the closest centre so far (k-means++). The same key gives the same
    clusters, and `jax.vmap` over keys runs side by side.

    A cluster that lost all rows moves to the row farthest from its centre (several to the next ones). Clusters stay
    without rows only where every row is its own centre, because fewer than `count` rows differ; their centres are then
    copies of others. A zero row has cosine 0 with all centres: it counts in the mean, belongs to cluster 0 and pulls
    nothing; rows with NaN or infinity do not exist. If there are no other rows, centres are 0. Memory is that of the
    rows and one panel of scores.

    Args:
      count: 1 to n, static.
      where: which rows exist; the others have label −1 and no influence, whatever they hold.
      steps: the most that are done; may be traced.
      restarts: how many runs with different first centres are made; those of the largest similarity are kept.

    Dhillon, Modha 2001, "Concept Decompositions for Large Sparse Text Data Using Clustering"; Arthur, Vassilvitskii
    2007, "k-means++: The Advantages of Careful Seeding" (one draw for each centre; scikit-learn keeps the best of
    several, which costs as many times more).

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0], [-2.0, 0.0], [-3.0, -4.0]])  # two pairs, each with a cosine of 0.6
    >>> found = k_means(jax.random.key(0), x, 2, restarts=3)
    >>> bool(found.labels[0] == found.labels[1] != found.labels[2]), float(found.similarity)  # √0.8
    (True, 0.8944)
    """
    _check(embeddings, where, count=count, restarts=restarts)
    if not 1 <= count <= len(embeddings):
        raise ValueError(f"count is {count}; wanted 1 to {len(embeddings)}, the number of rows")
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}; wanted at least 1")
    return _k_means(key, embeddings, where, steps, count, restarts)


@jax.jit(static_argnums=(4, 5), inline=True)
def _k_means(key, embeddings, where, steps, count, restarts) -> Clusters:
    rows, real = _rows(embeddings, where)
    x = normalize(rows)
    runs = lax.map(lambda key: _run(key, x, real, steps, count), jax.random.split(key, restarts))
    best = jax.tree.map(lambda a: a[jnp.argmax(runs.similarity)], runs)
    return best._replace(labels=jnp.where(real, best.labels, -1))


class _Assignment(NamedTuple):
    """The closest centre of each row and the cosine with it; of each centre the sum and the number of its rows."""

    labels: Int[Array, " n"]
    cosines: Float[Array, " n"]
    sums: Float[Array, "c d"]
    sizes: Int[Array, " c"]


def _run(key, x, real, steps, count) -> Clusters:
    some = jnp.any(x != 0, axis=1)
    centers = _seeds(key, x, some, count)

    def step(state):
        centers, before, _, number = state
        centers = _moved(centers, before, x, some)
        after = _assigned(x, some, centers)
        return centers, after, jnp.any(after.labels != before.labels), number + 1

    start = centers, _assigned(x, some, centers), jnp.array(True), jnp.zeros((), jnp.int32)
    centers, found, _, number = lax.while_loop(lambda state: state[2] & (state[3] < steps), step, start)
    total = jnp.sum(jnp.where(real, found.cosines, 0))
    return Clusters(found.labels, centers, total / jnp.maximum(jnp.sum(real, dtype=x.dtype), 1), number)


_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _closest(x, centers, reduce):
    """`reduce` of each panel of cosines [c, rows]: down the columns, where a CPU reduces several of them at once."""
    height = sizes.rows_in_panel(len(x), len(centers))
    return sweep(lambda _, block: ((), reduce(_product(centers, block.T))), (), height, x)[1]


def _assigned(x, some, centers) -> _Assignment:
    labels, cosines = _closest(x, centers, first_largest_down)
    sums = lax.platform_dependent(
        x,
        jnp.where(some, labels, len(centers)),  # which is nobody's
        cpu=lambda x, labels: jnp.zeros_like(centers).at[labels].add(x, mode="drop"),
        default=partial(_sums_by_product, len(centers)),  # there, the order of scattered sums is not always the same
    )
    numbers = jnp.zeros(len(centers), jnp.int32).at[labels].add(some.astype(jnp.int32))
    return _Assignment(labels, cosines, sums, numbers)


def _sums_by_product(count, x, labels):
    def panel(sums, block):
        x, labels = block
        own = jnp.arange(count, dtype=jnp.int32)[:, None] == labels[None]
        return sums + _product(own.astype(x.dtype), x), None

    nothing = jnp.zeros((count, x.shape[1]), x.dtype)
    return sweep(panel, nothing, sizes.rows_in_panel(len(x), count), (x, labels))[0]


# --- its first centres ----------------------------------------------------------------------------------------------


def _seeds(key, x, some, count):
    """A random row, then rows drawn with probability ∝ D², a batch at a time and yet as if one after the other.

    A batch of candidates is drawn by the D² from the seeds before it. A candidate is kept with probability D² from
    the seeds before itself over that: so those kept are draws by the D² from all seeds before them.
    """
    batch = min(count, sizes.seeds_at_once())

    def draw(state):
        centers, number, squares, time = state
        for_rows, for_keeping = jax.random.split(jax.random.fold_in(key, time))
        none = ~jnp.any(squares > 0)  # fewer rows differ than there are seeds: copies of any
        rows = _drawn(for_rows, jnp.where(none, some.astype(x.dtype), squares), 2 * batch)
        candidates, before = x[rows], squares[rows]
        kept = _kept(for_keeping, _squared_chords(_product(candidates, candidates.T)), before) & (none | (before > 0))
        rank = jnp.cumsum(kept, dtype=jnp.int32) - 1
        new = kept & (rank < jnp.minimum(batch, count - number))
        centers = centers.at[jnp.where(new, number + rank, count)].set(candidates, mode="drop")
        added = jnp.zeros((batch, x.shape[1]), x.dtype).at[jnp.where(new, rank, batch)].set(candidates, mode="drop")
        now = jnp.sum(new, dtype=jnp.int32)
        is_seed = jnp.arange(batch, dtype=jnp.int32)[:, None] < now
        cosines = _closest(x, added, lambda scores: jnp.max(jnp.where(is_seed, scores, -1), axis=0))
        return centers, number + now, jnp.minimum(squares, _squared_chords(cosines)), time + 1

    start = jnp.zeros((count, x.shape[1]), x.dtype), jnp.int32(0), 4 * some.astype(x.dtype)  # 4: no square is larger
    return lax.while_loop(lambda state: state[1] < count, draw, (*start, jnp.int32(0)))[0]


def _squared_chords(cosines):
    """2 − 2 cos θ, and 0 where that is no more than rounding, as it is of duplicates."""
    squares = 2 - 2 * cosines
    return jnp.where(squares > 16 * jnp.finfo(cosines.dtype).eps, squares, 0)


def _drawn(key, weights, count):
    """Rows drawn with probability ∝ weight, by the sums of blocks, then within a block: long sums would lose some."""
    n = len(weights)
    width = math.isqrt(n - 1) + 1
    blocks = jnp.pad(weights, (0, -n % width)).reshape(-1, width)

    def place(uniform, weights):
        sums = jnp.cumsum(weights, axis=-1)
        return jnp.minimum(jnp.sum(sums <= uniform * sums[..., -1:], axis=-1, dtype=jnp.int32), weights.shape[-1] - 1)

    uniform = jax.random.uniform(key, (2, count, 1), weights.dtype)
    block = place(uniform[0], jnp.sum(blocks, axis=1)[None])
    return jnp.minimum(block * width + place(uniform[1], blocks[block]), n - 1)


def _kept(key, squares, before):
    """Which candidates are kept: each as often as its D² from those kept before it stays that from all `before`."""
    places = jnp.arange(len(before), dtype=jnp.int32)
    limits = (1 - jax.random.uniform(key, before.shape, before.dtype)) * before
    refused = (squares < limits[None]) & (places[:, None] < places[None])  # the column, if the row is kept

    def again(state):
        kept, _ = state
        after = ~jnp.any(refused & kept[:, None], axis=0)  # right for one candidate more than `kept`, at least
        return after, jnp.any(after != kept)

    return lax.while_loop(lambda state: state[1], again, (jnp.ones(before.shape, bool), jnp.array(True)))[0]


# --- its steps ------------------------------------------------------------------------------------------------------


def _moved(centers, found: _Assignment, x, some):
    """Where the rows of each cluster point on average; a cluster without rows goes to one that is far from its own."""
    means = jnp.where(jnp.any(found.sums != 0, axis=1, keepdims=True), normalize(found.sums), centers)
    empty = found.sizes == 0

    def filled():
        gaps, farthest = lax.top_k(jnp.where(some, 1 - found.cosines, -1), len(centers))
        rank = jnp.cumsum(empty, dtype=jnp.int32) - 1
        apart = empty & (gaps[rank] > 8 * jnp.finfo(x.dtype).eps)
        return jnp.where(apart[:, None], x[farthest[rank]], means)

    return lax.cond(jnp.any(empty), filled, lambda: means)


# --- as many as a threshold gives -----------------------------------------------------------------------------------


def connected_components(
    embeddings: Float[Array, "n d"],
    threshold: ArrayLike,
    *,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    where: Bool[Array, " n"] | None = None,
) -> Int[Array, " n"]:
    """The cluster of each row, where rows whose similarity is at least `threshold` are together: single linkage.

    The connected components of that graph, exactly, numbered from 0 in order of their first row. They depend neither
    on the order of rows nor on chance, but they chain: rows far apart are together if a path of close ones leads from
    one to the other, and one bad image between two people joins them. `threshold_clusters` does not chain.

    Equal to single-linkage clustering cut at the distance 1 − threshold, and to DBSCAN where one row makes a core. Each
    pair is scored once, a tile of pairs at a time, and memory is linear in n. A zero row has cosine 0 with all others,
    and with a threshold above 0 is a cluster of its own. Rows that do not exist (`where`) or hold NaN or infinity have
    label −1 and join nothing.

    Args:
      similarity: all-pairs function, larger is closer. One that is not symmetric joins rows if either score suffices.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # cosines along the way: 0.6, then 0.8
    >>> connected_components(x, 0.5).tolist(), connected_components(x, 0.7).tolist()
    ([0, 1, 0, 0], [0, 1, 2, 2])
    """
    _check(embeddings, where)
    score = as_pairwise(similarity, "similarity")
    _check_threshold(threshold)
    return _components(score, embeddings, threshold, where)


@jitted
def _components(score, embeddings, threshold, where):
    rows, real = _rows(embeddings, where)
    n, threshold = len(rows), jnp.asarray(threshold, rows.dtype)
    size = sizes.rows_in_joined_tile(n)
    tiles = max(1, math.ceil(n / size))
    all_rows = tiles * size
    x = jnp.pad(score.embed(rows), [(0, all_rows - n), (0, 0)])
    real = jnp.pad(real, (0, all_rows - n))
    part = lambda a, i: lax.dynamic_slice_in_dim(a, i * size, size)

    # root[i] is the first row known to be connected with row i.
    def tile(i, j, root):
        joined = (score.compare(part(x, i), part(x, j)) >= threshold) & part(real, i)[:, None] & part(real, j)[None]
        unfinished = lambda root: jnp.any(joined & (part(root, i)[:, None] != part(root, j)[None]))

        def join(root):
            """Each root of the tile points to the first root that one of its rows is joined to, then to its end."""
            a, b = part(root, i), part(root, j)
            first = jnp.minimum(a, jnp.min(jnp.where(joined, b[None], all_rows), axis=1))
            root = root.at[a].min(first)
            root = root.at[b].min(jnp.min(jnp.where(joined, first[:, None], all_rows), axis=0))
            return lax.while_loop(lambda root: jnp.any(root != root[root]), lambda root: root[root], root)

        return lax.while_loop(unfinished, join, root)

    row_of_tiles = lambda i, root: lax.fori_loop(0, i + 1 if score.symmetric else tiles, partial(tile, i), root)
    index = jnp.arange(all_rows, dtype=jnp.int32)
    root = lax.fori_loop(0, tiles, row_of_tiles, index)
    number = jnp.cumsum((root == index) & real, dtype=jnp.int32) - 1
    return jnp.where(real, number[root], -1)[:n]


class LeaderClusters(NamedTuple):
    """Clusters in the order of their first rows.

    labels: the cluster of each row; −1 for a row that does not exist, and for one that found no place.
    centers: of each cluster Σ x / ‖x‖ over its rows, normalised; 0 in places that are free.
    sizes: rows of each cluster, 0 in places that are free.
    overflow: how many rows found no place.
    """

    labels: Int[Array, " n"]
    centers: Float[Array, "c d"]
    sizes: Int[Array, " c"]
    overflow: Int[Array, ""]


def threshold_clusters(
    embeddings: Float[Array, "n d"],
    threshold: ArrayLike,
    *,
    capacity: int | None = None,
    where: Bool[Array, " n"] | None = None,
) -> LeaderClusters:
    """Leader clustering, as a face album does it: rows in their order, each joins the closest cluster or starts one.

    A row joins the cluster whose centre (the normalised mean of x / ‖x‖ over the rows so far) has the largest cosine
    with it, ties to the older one, if that is at least `threshold`. Nobody is moved later: the clusters depend on the
    order of the rows (put the good images first), and two that grow towards each other stay two. They hardly chain, as
    a row must resemble the mean of a cluster and not just one of its rows; `connected_components` chains, and does not
    depend on the order.

    A zero row has cosine 0 with all others, and with a threshold above 0 is a cluster of its own. Rows that hold NaN or
    infinity do not exist. Time is n × capacity × d in n steps. ValueError if a row found no place; under `jit`, where
    that cannot be raised, its label is −1 and it is counted in `overflow`.

    Args:
      capacity: the most clusters there may be, static; default n. As rows come one by one, a smaller one saves much
        time.

    Hartigan 1975, "Clustering Algorithms", chapter 3 (there the first row of a cluster stands for it, not the mean).

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # cosines along the way: 0.6, then 0.8
    >>> threshold_clusters(x, 0.5).labels.tolist()  # the third has cosine √0.2 with the mean of the others
    [0, 0, 1]
    >>> threshold_clusters(x[::-1], 0.5).labels.tolist()  # and here √0.1
    [0, 0, 1]
    """
    capacity = max(1, len(embeddings)) if capacity is None else capacity
    _check(embeddings, where, capacity=capacity)
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; wanted at least 1")
    _check_threshold(threshold)
    found = _leaders(capacity, embeddings, threshold, where)
    if not isinstance(found.overflow, jax.core.Tracer) and found.overflow > 0:
        left = int(found.overflow)
        raise ValueError(f"capacity is {capacity}; wanted more: {left} rows are not similar to any of these clusters")
    return found


@jax.jit(static_argnums=0, inline=True)
def _leaders(capacity, embeddings, threshold, where) -> LeaderClusters:
    rows, real = _rows(embeddings, where)
    threshold = jnp.asarray(threshold, rows.dtype)
    nothing = jnp.zeros((capacity + -capacity % sizes.leaders_at_once(capacity), rows.shape[1]), rows.dtype)
    start = nothing, nothing, jnp.int32(0)
    height = sizes.rows_led_at_once(len(rows))
    (_, centers, _), places = sweep(partial(_led, capacity, threshold), start, height, (normalize(rows), real))
    placed = places < capacity
    numbers = jnp.zeros(capacity, jnp.int32).at[places].add(1, mode="drop")
    left = jnp.sum(real & ~placed, dtype=jnp.int32)
    return LeaderClusters(jnp.where(placed, places, -1), centers[:capacity], numbers, left)


def _led(capacity, threshold, state, block):
    """Gives each row of a block its place, one after the other.

    Centres that no row of the block joined yet are as they were before it: one product finds the closest of them. The
    others have a slot each, that of the first row that joined. What a slot holds are products of the sum of its
    cluster with the rows of the block, and the square of the sum: with x added they change by products of rows.
    """
    sums, centers, number = state
    x, real = block
    size, nobody = len(x), len(sums)
    slots = jnp.arange(size, dtype=jnp.int32)
    best = _two_best(centers, number, x, slots[:0])

    def step(state, row):
        dots, squares, place, number = state
        i, real, first, index, second, products = row
        cosines = jnp.where(squares > 0, dots[:, i] * lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)
        cosines = jnp.where(place < nobody, cosines, -jnp.inf)
        near = jnp.max(cosines)
        at = jnp.min(jnp.where(cosines == near, place, nobody))
        gone = jnp.any(place == index)  # the closest is one of the slots by now

        def among_others():
            """The closest without a slot, and what its slot would hold."""
            others = jax.tree.map(lambda a: a[0], _two_best(centers, old, x[i][None], place))
            total = sums[others[1]]
            return others[0], others[1], _product(x, total), jnp.sum(jnp.square(total))

        doubtful = gone & (near <= second) & (second >= threshold)
        known = lambda: (jnp.where(gone, -jnp.inf, first), index, dots[i], squares[i])
        first, index, total, square = lax.cond(doubtful, among_others, known)
        chosen = jnp.where((near > first) | ((near == first) & (at < index)), at, index)
        is_new = ~(jnp.maximum(near, first) >= threshold)
        chosen = jnp.where(is_new, jnp.where(number < capacity, number, nobody), chosen)
        chosen = jnp.where(real, chosen, nobody)
        slot = jnp.min(jnp.where((place == chosen) & (place < nobody), slots, i))
        has_slot = slot < i
        total = jnp.where(has_slot, dots[slot], jnp.where(is_new, 0, total))
        square = jnp.where(has_slot, squares[slot], jnp.where(is_new, 0, square))
        slot = jnp.where(chosen < nobody, slot, size)
        dots = dots.at[slot].set(total + products, mode="drop")
        squares = squares.at[slot].set(square + 2 * total[i] + products[i], mode="drop")
        place = place.at[slot].set(chosen, mode="drop")
        return (dots, squares, place, jnp.where(chosen < nobody, jnp.maximum(number, chosen + 1), number)), (
            chosen,
            slot,
        )

    old = number
    totals = sums[best[1]]
    start = _product(totals, x.T), jnp.sum(jnp.square(totals), axis=1), jnp.full(size, nobody, jnp.int32), number
    (_, _, place, number), (places, slot) = lax.scan(step, start, (slots, real, *best, _product(x, x.T)))
    joined = (slots[:, None] == slot[None]).astype(x.dtype)
    totals = sums[jnp.minimum(place, nobody - 1)] + _product(joined, x)
    put = lambda a, rows: a.at[place].set(rows, mode="drop")
    return (put(sums, totals), put(centers, normalize(totals)), number), places


def _two_best(centers, number, x, left_out):
    """Of each row the largest cosine with the first `number` centres, where it is, and the second largest."""
    width = sizes.leaders_at_once(len(centers))

    def block(i, best):
        first, index, second = best
        place = i * width + jnp.arange(width, dtype=jnp.int32)
        counts = (place < number) & ~jnp.any(place[:, None] == left_out[None], axis=1)
        cosines = _product(lax.dynamic_slice_in_dim(centers, i * width, width), x.T)
        cosines = jnp.where(counts[:, None], cosines, -jnp.inf)
        at, top = first_largest_down(cosines)
        at = i * width + at
        runner_up = jnp.max(jnp.where(place[:, None] == at[None], -jnp.inf, cosines), axis=0)
        second = jnp.maximum(jnp.maximum(second, runner_up), jnp.minimum(first, top))
        return jnp.maximum(first, top), jnp.where(top > first, at, index), second

    low = jnp.full(len(x), -jnp.inf, x.dtype)
    return lax.fori_loop(0, -(-number // width), block, (low, jnp.zeros(len(x), jnp.int32), low))
