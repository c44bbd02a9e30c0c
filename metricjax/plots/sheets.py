"""Sheets of thumbnails: what the neighbours of a face are, and which pairs are hardest."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from metricjax.metrics import HardestPairs
from metricjax.metrics import hardest_pairs as hardest
from metricjax.plots.style import VERMILLION, Figure, as_written, check_images, check_people, name_of, short

__all__ = ["hardest_pairs", "neighbour_sheet", "pair_sheet"]


def neighbour_sheet(
    images: np.ndarray,
    labels: np.ndarray,
    similarity: np.ndarray,
    queries: Sequence[int] | np.ndarray,
    count: int = 6,
    people: Sequence[str] | None = None,
) -> Figure:
    """Queries in the first column, their nearest neighbours to the right; those of another class are framed in red.

    Args:
      images: [n, height, width, 1 or 3] uint8.
      labels: [n].
      similarity: [queries, n], larger is closer.
      queries: index of the image that each row of `similarity` belongs to; it is not its own neighbour.
      count: neighbours shown.
      people: names; person `labels[i]` is `people[labels[i]]`. With names each image has one.
    """
    check_images(images, len(labels))
    check_people(np.asarray(labels), people)
    if np.shape(similarity) != (len(queries), len(labels)):
        shape = np.shape(similarity)
        raise ValueError(f"similarity has shape {shape}; wanted ({len(queries)}, {len(labels)}), queries by images")
    words = 0.2 if people is None else 0.36
    figure, show = _sheet(len(queries), count + 1, (1.0, 1.05), words)
    for row, (query, scores) in enumerate(zip(queries, similarity, strict=True)):
        order = [i for i in np.argsort(-np.asarray(scores), kind="stable") if i != query][:count]
        for column, index in enumerate([query, *order]):
            wrong = bool(labels[index] != labels[query])
            title = "query" if index == query else f"{scores[index]:.2f}" + (" ✗" if wrong else "")
            if people is not None:
                title += "\n" + short(name_of(labels[index], people), 12)
            show(row, column, images[index], title, wrong)
    return figure


def hardest_pairs(
    embeddings: ArrayLike,
    labels: ArrayLike,
    images: np.ndarray,
    count: int = 8,
    people: Sequence[str] | None = None,
    **options: Any,
) -> Figure:
    """The most similar strangers and the least similar photographs of one person, side by side.

    The pairs are those of `metrics.hardest_pairs(embeddings, labels, count, **options)`; the figure is that of
    `pair_sheet`.
    """
    return pair_sheet(hardest(embeddings, labels, count, **options), np.asarray(labels), images, people)


def pair_sheet(
    pairs: HardestPairs, labels: np.ndarray, images: np.ndarray, people: Sequence[str] | None = None
) -> Figure:
    """Two columns of pairs of thumbnails, the hardest on top, with their similarity and the names of the people.

    Args:
      pairs: of `metrics.hardest_pairs`.
      labels: [n].
      images: [n, height, width, 1 or 3] uint8.
      people: names; person `labels[i]` is `people[labels[i]]`. Without them labels are shown.
    """
    check_images(images, len(labels))
    check_people(labels, people)
    kinds = {
        "most similar strangers": (pairs.strangers, pairs.stranger_scores),
        "least similar photographs of one person": (pairs.mates, pairs.mate_scores),
    }
    rows = max(len(pairs.strangers), len(pairs.mates))
    figure, show = _sheet(rows, 4.3, (1.6, 1.3), words=0.36, heading=0.4)
    for start, (title, (indices, scores)) in zip((0, 2.3), kinds.items(), strict=True):
        middle, top = (start + 1) / 4.3, 1 - 0.12 / figure.get_figheight()
        figure.text(middle, top, title if len(indices) else f"{title}: none", ha="center", va="top", fontsize=11)
        for row, (pair, score) in enumerate(zip(indices, scores, strict=True)):
            for side, index in enumerate(pair):
                above = "" if side else f"similarity {score:.3f}\n"
                show(row, start + side, images[index], above + short(name_of(labels[index], people), 20), False)
    return figure


def _sheet(
    rows: int, columns: float, size: tuple[float, float], words: float, heading: float = 0.0
) -> tuple[Figure, Callable[[int, float, np.ndarray, str, bool], None]]:
    """A figure of cells, thumbnails of `size` inches under `words` inches of text, and what fills a cell.

    All are in one set of axes, whose unit is an inch: axes of its own for each would take seconds.
    """
    across, down, edge = size[0] + 0.1, size[1] + words + 0.06, 0.08
    width, height = columns * across + edge, rows * down + heading + edge
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()

    def show(row: int, column: float, image: np.ndarray, title: str, framed: bool) -> None:
        shape = np.array(image.shape[1::-1]) * min(size[0] / image.shape[1], size[1] / image.shape[0])
        left = edge + column * across + (size[0] - shape[0]) / 2
        top = height - heading - words - row * down
        place = (left, left + shape[0], top - shape[1], top)
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=place, aspect="auto")
        colour, thick = (VERMILLION, 3) if framed else ("black", 0.5)
        corner = (left, top - shape[1])
        axes.add_patch(Rectangle(corner, *shape, fill=False, edgecolor=colour, linewidth=thick))
        text = axes.text(left + shape[0] / 2, top + 0.04, title, ha="center", va="bottom", fontsize=8, color=colour)
        as_written(text)

    return figure, show
