"""As many clusters as there are groups of rows that a threshold connects."""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from metricjax import similarities
from metricjax.clusters.inputs import check_input, check_threshold, real_rows
from metricjax.engine import sizes
from metricjax.ground.functions import jitted
from metricjax.ground.pairwise import exactly

__all__ = ["connected_components"]


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
    check_input(embeddings, where)
    score = exactly(similarity, "similarity")
    check_threshold(threshold)
    return _components(score, embeddings, threshold, where)


@jitted
def _components(score, embeddings, threshold, where):
    rows, real = real_rows(embeddings, where)
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
