"""A given number of clusters, around the means of their directions."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from metricjax.clusters.inputs import check_input, real_rows
from metricjax.engine import sizes
from metricjax.engine.selecting import first_largest_down
from metricjax.engine.sweeps import sweep
from metricjax.ground.numerics import normalize
from metricjax.ground.one_line import one_line
from metricjax.ground.precision import exact_product

__all__ = ["Clusters", "k_means"]


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

    def __repr__(self) -> str:
        return one_line(self)


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
    several, which costs as many times more). Seeds are drawn a batch at a time, with rejection, so that the odds are
    those of one after the other.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0], [-2.0, 0.0], [-3.0, -4.0]])  # two pairs, each with a cosine of 0.6
    >>> found = k_means(jax.random.key(0), x, 2, restarts=3)
    >>> bool(found.labels[0] == found.labels[1] != found.labels[2]), float(found.similarity)  # √0.8
    (True, 0.8944)
    """
    check_input(embeddings, where, count=count, restarts=restarts)
    if not 1 <= count <= len(embeddings):
        raise ValueError(f"count is {count}; wanted 1 to {len(embeddings)}, the number of rows")
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}; wanted at least 1")
    return _k_means(key, embeddings, where, steps, count, restarts)


@jax.jit(static_argnums=(4, 5), inline=True)
def _k_means(key, embeddings, where, steps, count, restarts) -> Clusters:
    rows, real = real_rows(embeddings, where)
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


def _closest(x, centers, reduce):
    """`reduce` of each panel of cosines [c, rows]: down the columns, where a CPU reduces several of them at once."""
    height = sizes.rows_in_panel(len(x), len(centers))
    return sweep(lambda _, block: ((), reduce(exact_product(centers, block.T))), (), height, x)[1]


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
        return sums + exact_product(own.astype(x.dtype), x), None

    nothing = jnp.zeros((count, x.shape[1]), x.dtype)
    return sweep(panel, nothing, sizes.rows_in_panel(len(x), count), (x, labels))[0]


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


# --- its first centres ----------------------------------------------------------------------------------------------


def _seeds(key, x, some, count):
    """A random row, then rows drawn with probability ∝ D², a batch at a time and yet as if one after the other.

    A batch of candidates is drawn by the D² from the seeds before it. A candidate is kept with probability D² from
    the seeds before itself over that: so those kept are draws by the D² from all seeds before them.
    """
    batch = min(count, sizes.seeds_at_once())

    def draw(state):
        centers, number, squares, turn = state
        for_rows, for_keeping = jax.random.split(jax.random.fold_in(key, turn))
        none = ~jnp.any(squares > 0)  # fewer rows differ than there are seeds: copies of any
        rows = _drawn(for_rows, jnp.where(none, some.astype(x.dtype), squares), 2 * batch)
        candidates, before = x[rows], squares[rows]
        between = _squared_chords(exact_product(candidates, candidates.T))
        kept = _kept(for_keeping, between, before, none | (before > 0))
        rank = jnp.cumsum(kept, dtype=jnp.int32) - 1
        new = kept & (rank < jnp.minimum(batch, count - number))
        centers = centers.at[jnp.where(new, number + rank, count)].set(candidates, mode="drop")
        added = jnp.zeros((batch, x.shape[1]), x.dtype).at[jnp.where(new, rank, batch)].set(candidates, mode="drop")
        now = jnp.sum(new, dtype=jnp.int32)
        is_seed = jnp.arange(batch, dtype=jnp.int32)[:, None] < now
        cosines = _closest(x, added, lambda scores: jnp.max(jnp.where(is_seed, scores, -1), axis=0))
        return centers, number + now, jnp.minimum(squares, _squared_chords(cosines)), turn + 1

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


def _kept(key, squares, before, possible):
    """Which candidates are kept: each as often as its D² from those kept before it stays that from all `before`."""
    places = jnp.arange(len(before), dtype=jnp.int32)
    limits = (1 - jax.random.uniform(key, before.shape, before.dtype)) * before
    refused = (squares < limits[None]) & (places[:, None] < places[None])  # the column, if the row is kept

    def again(state):
        kept, _ = state
        after = possible & ~jnp.any(refused & kept[:, None], axis=0)  # right for at least one candidate more
        return after, jnp.any(after != kept)

    return lax.while_loop(lambda state: state[1], again, (possible, jnp.array(True)))[0]
