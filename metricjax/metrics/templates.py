"""Templates, each of several images and videos of a person, compared 1:1 and 1:N as in IJB-B and IJB-C."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from metricjax import similarities
from metricjax.engine import sizes
from metricjax.ground.checks import check_per_row
from metricjax.ground.numerics import lifted, normalize, widen
from metricjax.ground.one_line import one_line
from metricjax.metrics.identification import Searches, identification
from metricjax.metrics.sets import check_flat_labels, check_set

__all__ = ["Templates", "identification_over_galleries", "pair_similarities", "templates"]


class Templates(NamedTuple):
    """The embedding of each template, of length 1, and its id; the ids rise."""

    embeddings: Float[Array, "t d"]
    ids: np.ndarray

    def __repr__(self) -> str:
        return one_line(self)

    def of(self, ids: ArrayLike) -> Float[Array, "n d"]:
        """The embeddings of the templates `ids`, in their order; ValueError if one is unknown."""
        return self.embeddings[self.rows("ids", ids)]

    def rows(self, name: str, ids: ArrayLike) -> np.ndarray:
        """In which rows the templates `ids` are, in any shape; an error about them says `name`."""
        ids = _ids(name, np.asarray(ids))
        rows = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        unknown = ids[self.ids[rows] != ids]
        if len(unknown):
            raise ValueError(f"{name} holds ids without a template: {len(unknown)}, the first of them {unknown[0]}")
        return rows


def templates(
    embeddings: ArrayLike, template_ids: ArrayLike, media_ids: ArrayLike, *, weights: ArrayLike | None = None
) -> Templates:
    """One embedding for each template: the mean w·x of each of its media, summed over media, divided by its length.

    A video counts as much as a still, however many of its frames there are (media pooling). An embedding is taken as
    it is, so that one of great length counts for more; to have all count alike, give `mj.sphere.project(embeddings)`.

    Args:
      embeddings: [n, d], one of each image or frame; for "flip testing" the sum of those of an image and its mirror
        image.
      template_ids, media_ids: [n] integers. A medium that occurs in several templates is a medium of its own in each.
      weights: [n] quality of each image, at least 0, default 1: the detector's score, as insightface has it. A mean is
        divided by the number of images, not by the sum of their weights, so that a poor medium counts for less.

    A template whose images cancel, or all have weight 0, is the zero vector, whose cosine with anything is 0.

    Whitelam et al. 2017, "IARPA Janus Benchmark-B"; Maze et al. 2018, "IARPA Janus Benchmark-C"; media pooling as in
    Crosswhite et al. 2016, arXiv:1603.03958, and the evaluation scripts of insightface.

    >>> import numpy as np
    >>> frames = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> found = templates(frames, template_ids=np.array([7, 7, 7, 7]), media_ids=np.array([1, 1, 1, 2]))
    >>> found.ids.tolist(), found.embeddings.tolist()  # a video of three frames and a still
    ([7], [[0.7071, 0.7071]])
    """
    embeddings, template_ids = check_set(embeddings, template_ids, labels_name="template_ids")
    n = len(embeddings)
    media_ids = np.asarray(media_ids)
    check_flat_labels("media_ids", media_ids, n)
    if not n:
        raise ValueError(f"embeddings has shape {embeddings.shape}; wanted at least one image")
    weights = np.ones(n) if weights is None else np.asarray(weights)
    check_per_row("weights", weights, n, jnp.floating)
    if not np.all((weights >= 0) & (weights < np.inf)):
        raise ValueError("weights holds negative numbers, NaN or infinity; wanted finite numbers, at least 0")
    ids, template = np.unique(_ids("template_ids", template_ids), return_inverse=True)
    media, medium = np.unique(media_ids, return_inverse=True)
    _, group, images = np.unique(template * len(media) + medium, return_inverse=True, return_counts=True)
    share = jnp.asarray(weights / images[group], widen(embeddings).dtype)
    return Templates(_pooled(len(ids), embeddings, share, jnp.asarray(template, jnp.int32)), ids)


def pair_similarities(templates: Templates, pairs: ArrayLike) -> np.ndarray:
    """The cosine of each of [p, 2] pairs of template ids: with whether they are of the same person, a `roc`.

    Pairs are gathered a few at a time. ValueError for an id without a template.

    >>> import numpy as np
    >>> found = templates(np.eye(2), template_ids=np.array([3, 8]), media_ids=np.array([0, 1]))
    >>> pair_similarities(found, np.array([[3, 8], [8, 8]])).tolist()
    [0.0, 1.0]
    """
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs has shape {pairs.shape}; wanted [pairs, 2], the ids of two templates each")
    rows = jnp.asarray(templates.rows("pairs", pairs), jnp.int32)
    return np.asarray(_cosines(jnp.asarray(templates.embeddings), rows))


def identification_over_galleries(
    queries: ArrayLike,
    query_labels: ArrayLike,
    galleries: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    ranks: Sequence[int] = (1, 5, 10),
    fpirs: Sequence[float] = (0.1, 0.01),
    rank: int = 1,
    similarity: Callable = similarities.cosine,
) -> tuple[dict[str, float], list[Searches]]:
    """The protocol 1:N of IJB-B and IJB-C: every query is searched for in each of several galleries of other people.

    Returns the means over galleries, and of each gallery what `identification` finds. A mean gives every gallery the
    same weight, whatever the number of its mates:

    - `rank-k`: share of mated queries whose rank is at most k (CMC, closed set), for each of `ranks`;
    - `tpir@f`: share of mated queries that are found within `rank` at or above the threshold at which the share f of
      the queries that are not in that gallery, but in another one, finds anybody (open set), for each of `fpirs`.

    Args:
      queries: [q, d], `templates(...).of(ids)`, one row for each template.
      query_labels: [q] integers, whose templates they are.
      galleries: embeddings [g, d] and labels [g] of each, as for the queries.
      ranks, fpirs: may be empty. An FPIR must be at least 1 / number of non-mated queries of each gallery.

    Whitelam et al. 2017; Maze et al. 2018. The script of insightface joins the galleries, and has its thresholds from
    the scores of mated queries with others, which is another figure.

    >>> import numpy as np
    >>> z, labels = np.eye(2), np.array([0, 1])
    >>> galleries = [(z[:1], labels[:1]), (z[1:], labels[1:])]
    >>> identification_over_galleries(z, labels, galleries, ranks=(1,), fpirs=(1.0,))[0]
    {'rank-1': 1.0, 'tpir@1.0': 1.0}
    """
    if not len(galleries):
        raise ValueError("galleries is empty; wanted embeddings and labels of at least one")
    found = [identification(queries, query_labels, *gallery, similarity=similarity) for gallery in galleries]
    means = {}
    for k in ranks:
        means[f"rank-{k}"] = float(np.mean([answers.cmc((k,))[f"rank-{k}"] for answers in found]))
    for fpir in fpirs:
        means[f"tpir@{fpir}"] = float(np.mean([answers.dir_at_fpir(fpir, rank) for answers in found]))
    return means, found


def _ids(name: str, ids: np.ndarray) -> np.ndarray:
    """`ids` as 64-bit integers, all of one kind, so that they compare exactly."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{name} has dtype {ids.dtype}; wanted integers")
    wide = ids.astype(np.int64)
    if not np.array_equal(wide, ids):
        raise ValueError(f"{name} holds {ids.max()}; wanted at most 2⁶³ − 1")
    return wide


@jax.jit(static_argnums=0)
def _pooled(count: int, embeddings, share, template) -> Float[Array, "t d"]:
    """Σ of the shares of a template's images: dividing by the number of images of each medium makes that its mean.

    Images of any scale: each template's largest number is brought near 1 first.
    """
    near_one, power = lifted(widen(embeddings))
    power = jnp.where(share > 0, power[:, 0], jnp.finfo(power.dtype).max)
    common = jax.ops.segment_min(power, template, count)[template]
    share = jnp.where(share > 0, share * (common / power), 0)
    return normalize(jax.ops.segment_sum(near_one * share[:, None], template, count))


@jax.jit
def _cosines(embeddings, pairs) -> Float[Array, " p"]:
    cosine = lambda pair: jnp.sum(embeddings[pair[0]] * embeddings[pair[1]])
    return lax.map(cosine, pairs, batch_size=sizes.pairs_at_once())
