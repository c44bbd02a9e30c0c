"""Signs of learning and of collapse: some that are cheap enough for every training step, more for a whole set."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from metricjax import distances, losses, mining, similarities
from metricjax.engine import sizes
from metricjax.engine.reductions import with_count
from metricjax.ground.checks import check_class_labels, check_rows
from metricjax.ground.numerics import normalize, widen
from metricjax.ground.precision import exact_product
from metricjax.metrics.sets import check_finite, on_device
from metricjax.prototypes import class_means
from metricjax.search import top_k

__all__ = ["embedding_health", "health"]


def health(embeddings: Float[Array, "n d"], labels: Int[Array, " n"]) -> dict[str, Float[Array, ""]]:
    """Signs of learning and of collapse in one batch; a function for use inside `jit`.

    - `active triplets`: share of all triplets with d_ap + 0.2 > d_an, d the squared chord;
    - `distance/positive`, `distance/negative`: mean chord of the pairs of each kind;
    - `spread`: √ of the summed variances of the normalised embeddings: 1 if they are spread evenly, 0 if they are one
      point.

    >>> import jax.numpy as jnp
    >>> float(health(jnp.ones((4, 2)), jnp.array([0, 0, 1, 1]))["spread"])
    0.0
    """
    check_rows("embeddings", embeddings)
    check_class_labels(labels, len(embeddings))
    if not len(labels):
        raise ValueError(f"embeddings has shape {embeddings.shape}; wanted at least one row")
    embeddings, labels = jnp.asarray(embeddings), on_device("labels", labels)
    d = distances.chord(embeddings, embeddings)
    same = labels[:, None] == labels[None]
    positives, negatives = same & ~jnp.eye(len(labels), dtype=bool), ~same
    mean = lambda where: jnp.sum(jnp.where(where, d, 0)) / jnp.maximum(jnp.sum(where, dtype=d.dtype), 1)
    active = losses.triplet(embeddings, labels, triplets=mining.all_triplets, reduction=with_count)[1]
    number = lambda mask: jnp.sum(mask, axis=1, dtype=d.dtype)
    unit = distances.chord.embed(embeddings)
    return {
        "active triplets": active / jnp.maximum(jnp.sum(number(positives) * number(negatives)), 1),
        "distance/positive": mean(positives),
        "distance/negative": mean(negatives),
        "spread": jnp.sqrt(jnp.sum(jnp.var(unit, axis=0))),
    }


def embedding_health(embeddings: ArrayLike, labels: ArrayLike | None = None, *, k: int = 10) -> dict[str, float]:
    """Signs of collapse in a whole set of embeddings, all of the rows x / ‖x‖, over all pairs i < j and exact.

    To one point or one direction:

    - `uniformity`: log mean_{i<j} exp(−2 ‖x_i − x_j‖²), from 0 (one point) to about −4 (even on a large sphere);
    - `mean_cosine`: mean_{i<j} x_i · x_j, 1 for one point and about 0 if there is no common direction;
    - `spread`: √ of the summed variances of the features, as in `health`: 0 for one point, at most 1;
    - `std`: mean over features of their standard deviation, times √d: 1 if all vary alike around 0, 0 for one point.

    To fewer dimensions:

    - `effective_rank`: exp of the entropy of σ_i / Σ σ, σ the singular values of the rows, not centred: from 1 (all on
      one line) to min(n, d);
    - `effective_rank_share`: the same over d.

    Hubs, with N_i the number of rows that have row i among their k nearest others (k on average):

    - `hubness`: skewness mean (N − k)³ / std(N)³, positive where few rows are in many answers; 0 if all N are equal;
    - `largest_hub`: the largest N / n, the share of rows that have that one among their k;
    - `anti_hubs`: the share of rows with N = 0, which no search from another row finds.

    With labels, how tight classes are:

    - `alignment`: mean of ‖x_i − x_j‖² over all pairs of one class, 0 if each class is one point; NaN without a pair.

    A zero row stays zero: it is at distance 1 from others and 0 from other zeros, and all-zero embeddings have
    effective rank 0. Of equally near neighbours the lower index counts, so that among duplicates the first ones look
    like hubs. Memory is linear in n; time that of the n² products of rows. `labels` are integers. ValueError for
    NaN or infinity, and unless n > k.

    Wang, Isola 2020, arXiv:2005.10242 (alignment with α = 2, uniformity with t = 2); Chen, He 2021, arXiv:2011.10566
    (std against 1/√d); Roy, Vetterli 2007, "The effective rank: A measure of effective dimensionality" (RankMe, Garrido
    et al. 2023, arXiv:2210.02885, is this of embeddings); Radovanović, Nanopoulos, Ivanović 2010, "Hubs in Space:
    Popular Nearest Neighbors in High-Dimensional Data".

    >>> import numpy as np
    >>> found = embedding_health(np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, -3.0]]), k=1)
    >>> found["effective_rank"], found["spread"], found["std"]
    (2.0, 1.0, 1.0)
    >>> print(f"{found['mean_cosine']:.4f}")  # four of the six pairs are at right angles, two are opposite
    -0.3333
    >>> print(f"{embedding_health(np.ones((4, 2)), np.array([0, 0, 1, 1]), k=1)['effective_rank']:.4f}")
    1.0000
    """
    embeddings = jnp.asarray(embeddings)
    check_rows("embeddings", embeddings)
    check_finite("embeddings", embeddings)
    n, d = embeddings.shape
    if not d:
        raise ValueError(f"embeddings has shape {embeddings.shape}; wanted at least one feature")
    if not isinstance(k, int):
        raise TypeError(f"k is {k!r}; wanted an int")
    if not 1 <= k < n:
        raise ValueError(f"k is {k} and embeddings has {n} rows; wanted at least 1 neighbour, and more rows than that")
    if labels is not None:
        labels = np.asarray(labels)
        check_class_labels(labels, n)
    x = normalize(widen(embeddings))
    mean, variances, singular = _moments(np.asarray(x))
    shares = singular[singular > 0] / max(np.sum(singular), np.finfo(float).tiny)
    rank = math.exp(-np.sum(shares * np.log(shares))) if len(shares) else 0.0
    pairs = n * (n - 1)
    found = {
        "uniformity": math.log(2 * np.sum(np.asarray(_gaussian_sums(x)), dtype=np.float64) / pairs),
        "mean_cosine": float((n**2 * (mean @ mean) - np.sum(singular**2)) / pairs),
        "spread": math.sqrt(np.sum(variances)),
        "std": float(np.mean(np.sqrt(variances)) * math.sqrt(d)),
        "effective_rank": rank,
        "effective_rank_share": rank / d,
        **_hubs(x, k),
    }
    return found if labels is None else {**found, "alignment": _alignment(x, labels)}


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means and variances of the features, and the singular values, in float64."""
    n, d = x.shape
    mean = np.asarray(np.mean(x, axis=0, dtype=np.float64))
    spread = np.zeros((d, d))
    height = sizes.rows_in_double()
    for start in range(0, n, height):
        block = x[start : start + height] - mean
        spread += block.T @ block
    values = np.linalg.eigvalsh(spread + n * np.outer(mean, mean))
    noise = values[-1] * d * np.finfo(np.float64).eps
    return mean, np.diag(spread) / n, np.sqrt(np.where(values > noise, values, 0))


@jax.jit
def _gaussian_sums(x):
    """Σ_{j<i} exp(−2 ‖x_i − x_j‖²) in parts, a tile of pairs at a time."""
    n = len(x)
    size = sizes.rows_in_summed_tile(n)
    tiles = math.ceil(n / size)
    padding = tiles * size - n
    x = x - jnp.mean(x, axis=0, keepdims=True)  # so that differences of collapsed rows do not cancel
    squares = jnp.pad(jnp.sum(jnp.square(x), axis=1), (0, padding), constant_values=jnp.inf)  # far from all others
    x = jnp.pad(x, [(0, padding), (0, 0)])
    part = lambda a, i: lax.dynamic_slice_in_dim(a, i * size, size)

    def terms(i, j):
        products = exact_product(part(x, i), part(x, j).T)
        return jnp.exp(jnp.minimum(4 * products - 2 * part(squares, i)[:, None] - 2 * part(squares, j)[None], 0))

    def row_of_tiles(i):
        # Down the columns, which XLA vectorises on a CPU, as it does not a sum along rows.
        add = lambda j, total: total + jnp.sum(terms(i, j), axis=0)
        index = jnp.arange(size, dtype=jnp.int32)
        last = jnp.sum(jnp.where(index[None] < index[:, None], terms(i, i), 0), axis=0)
        return lax.fori_loop(0, i, add, last)

    return lax.map(row_of_tiles, jnp.arange(tiles, dtype=jnp.int32))


def _hubs(x: jax.Array, k: int) -> dict[str, float]:
    n = len(x)
    found = np.asarray(top_k(x, x, k, similarity=similarities.dot, exclude_self=True).indices)
    times = np.bincount(found.ravel(), minlength=n)
    deviation = float(np.std(times))
    skewness = float(np.mean((times - k) ** 3.0)) / deviation**3 if deviation else 0.0
    return {"hubness": skewness, "largest_hub": int(np.max(times)) / n, "anti_hubs": float(np.mean(times == 0))}


def _alignment(x: jax.Array, labels: np.ndarray) -> float:
    """Mean ‖x_i − x_j‖² of the pairs of one class: their sum is the size of the class times Σ ‖x − m‖², m its mean."""
    _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    pairs = np.sum(sizes * (sizes - 1)) / 2
    classes = jnp.asarray(index, jnp.int32)
    means = class_means(x, classes, len(sizes), normalize=False)
    squares = np.asarray(jnp.sum(jnp.square(x - means[classes]), axis=1), np.float64)
    return float(sizes[index] @ squares / pairs) if pairs else math.nan
