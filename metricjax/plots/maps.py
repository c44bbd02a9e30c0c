"""Where the people are: maps of embeddings in two dimensions, and the matrix of all similarities."""

import importlib
from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from metricjax import similarities, sphere
from metricjax.ground.extras import extra
from metricjax.metrics.sets import check_set
from metricjax.plots.style import COLOURS, Figure, add_legend, as_written, check_people, name_of, short

__all__ = ["MARKERS", "embedding_map", "similarity_matrix"]

MARKERS = "osD^vP*"


def embedding_map(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    method: Literal["pca", "umap"] = "pca",
    people: Sequence[str] | None = None,
    rows: int = 3000,
    named: int = 10,
    seed: int = 0,
) -> Figure:
    """The embeddings, projected to the sphere, in two dimensions.

    - "pca": the two directions of largest variance, by a singular value decomposition; the title says which share of
      the variance they have. Distances are real ones, seen from one side.
    - "umap": McInnes et al. 2018, arXiv:1802.03426, of cosine distances, as the package umap-learn has it. It shows who
      is near whom; distances between groups mean little.

    Args:
      embeddings: [n, d], finite.
      labels: [n], the person in each row.
      people: names; person `labels[i]` is `people[labels[i]]`.
      rows: the most that are drawn; of more, a random part with all rows of the named people.
      named: the people with most rows who get a colour and a name; the others are grey.
    """
    if method not in ("pca", "umap"):
        raise ValueError(f"method is {method!r}; wanted 'pca' or 'umap'")
    embeddings, labels = check_set(embeddings, labels)
    check_people(labels, people)
    least = 3 if method == "pca" else 5
    if len(labels) < least:
        raise ValueError(f"embeddings has {len(labels)} rows; wanted at least {least} for a map")
    unit = np.asarray(sphere.project(embeddings), np.float64)
    values, counts = np.unique(labels, return_counts=True)
    chosen = values[np.argsort(-counts, kind="stable")][:named]
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(~np.isin(labels[order], chosen), kind="stable")]
    drawn = np.sort(order[:rows])
    points, what = (_pca if method == "pca" else _umap)(unit[drawn], seed)
    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    axes = figure.subplots()
    x, y = points.T
    other = ~np.isin(labels[drawn], chosen)
    if np.any(other):
        rest = f"{len(values) - len(chosen):,} others"
        axes.scatter(x[other], y[other], s=8, color="0.7", linewidths=0, label=rest)
    for number, value in enumerate(chosen):
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
        colour = COLOURS[number % len(COLOURS)]
        of = labels[drawn] == value
        name = short(name_of(value, people), 20)
        axes.scatter(x[of], y[of], s=22, color=colour, marker=marker, linewidths=0, alpha=0.85, label=name)
    part = "" if len(drawn) == len(labels) else f"; {len(drawn):,} of {len(labels):,} rows"
    axes.set_title(what + part, fontsize=10)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    add_legend(axes, "best")
    return figure


def _pca(x: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Coordinates [n, 2] along the directions of largest variance, and a title."""
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    points = u * s
    points = np.pad(points, [(0, 0), (0, max(0, 2 - points.shape[1]))])[:, :2]
    extreme = np.abs(points).argmax(axis=0)
    points = points * np.where(points[extreme, np.arange(2)] < 0, -1, 1)[None]  # a decomposition leaves the sign open
    share = np.sum(s[:2] ** 2) / max(np.sum(s**2), np.finfo(float).tiny)
    return points, f"PCA: {share:.0%} of the variance"


def _umap(x: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    with extra("umap"):
        umap = importlib.import_module("umap")
    made = umap.UMAP(n_neighbors=min(15, len(x) - 1), metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(x)), "UMAP"


def similarity_matrix(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    people: Sequence[str] | None = None,
    rows: int = 500,
    similarity: Callable = similarities.cosine,
    seed: int = 0,
) -> Figure:
    """Similarities of all pairs of rows, ordered by person: good embeddings give bright squares on the diagonal.

    Of more than `rows`, as many people as fit are drawn at random with 20 of their photographs at most; the title says
    so. Lines divide up to 60 people, and up to 25 are named.
    """
    embeddings, labels = check_set(embeddings, labels)
    check_people(labels, people)
    if not len(labels):
        raise ValueError("embeddings has no rows; there is nothing to draw")
    values, starts, counts = _grouped(labels, rows, seed)
    drawn = np.concatenate(starts)
    z = jnp.asarray(embeddings)[drawn]
    scores = np.asarray(similarity(z, z))
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    off = scores[~np.eye(len(scores), dtype=bool)]
    low = float(np.quantile(off, 0.005)) if len(off) else -1.0
    shown = axes.imshow(scores, cmap="cividis", vmin=low, vmax=float(scores.max()), interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="similarity", shrink=0.9)
    ends = np.cumsum(counts)
    if len(values) <= 60:
        for end in ends[:-1]:
            axes.axhline(end - 0.5, color="white", linewidth=0.4)
            axes.axvline(end - 0.5, color="white", linewidth=0.4)
    if len(values) <= 25:
        names = [short(name_of(value, people), 16) for value in values]
        for axis, turn in ((axes.xaxis, 90), (axes.yaxis, 0)):
            axis.set_ticks(ends - counts / 2 - 0.5, names, rotation=turn, fontsize=7)
            as_written(*axis.get_ticklabels())
    else:
        axes.set(xticks=[], yticks=[], xlabel="photographs, person by person")
    everyone = len(np.unique(labels))
    part = f"{len(drawn):,} of {len(labels):,} rows, {len(values):,} of {everyone:,} people"
    axes.set_title(part if len(drawn) < len(labels) else f"{len(labels):,} rows, {everyone:,} people", fontsize=10)
    return figure


def _grouped(labels: np.ndarray, rows: int, seed: int) -> tuple[list, list[np.ndarray], np.ndarray]:
    """People in the order of their labels, the rows drawn of each, and how many those are."""
    order = np.argsort(labels, kind="stable")
    values, first = np.unique(labels[order], return_index=True)
    of = np.split(order, first[1:])
    if len(labels) > rows:
        of = [own[:20] for own in of]
        mixed = np.random.default_rng(seed).permutation(len(of))
        total = np.cumsum([len(of[i]) for i in mixed])
        kept = np.sort(mixed[: max(1, int(np.searchsorted(total, rows, side="right")))])
        values, of = values[kept], [of[i] for i in kept]
    return list(values), of, np.array([len(own) for own in of])
