"""One page with all that is worth looking at after an evaluation."""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metricjax import metrics, search, similarities
from metricjax.metrics.sets import check_set
from metricjax.plots import curves, maps, sheets
from metricjax.plots.page import figures, left_out, page, paragraph, picture, table, write
from metricjax.plots.style import check_images, check_people, name_of

__all__ = ["report"]

_ROWS = 8  # of each sheet
_KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_HEALTH = {
    "uniformity": "log of the mean of exp(−2 d²) over all pairs: 0 for one point, about −4 if evenly spread",
    "mean_cosine": "mean cosine of all pairs: 1 for one point, about 0 without a common direction",
    "spread": "√ of the summed variances: 0 for one point, at most 1",
    "std": "mean deviation of the features, times √ of their number: 1 if all vary alike",
    "effective_rank": "how many directions are in use, exp of the entropy of the singular values",
    "effective_rank_share": "the same over the number of dimensions",
    "hubness": "skewness of how often each is a near neighbour of others: 0 if equally often",
    "largest_hub": "share of photographs that have the same one among their near neighbours",
    "anti_hubs": "share of photographs that are near neighbours of nobody",
    "alignment": "mean d² of pairs of one person: 0 if each person is one point",
}


class _Row(NamedTuple):
    """A line of the table; its value is None where the set is too small to tell."""

    name: str
    value: float | int | None
    meaning: str
    interval: tuple[float, float] | None = None


class _Set(NamedTuple):
    """What is evaluated, and how."""

    embeddings: Any
    labels: np.ndarray
    images: np.ndarray | None
    people: Sequence[str] | None
    similarity: Callable
    seed: int

    def name(self, row: int) -> str:
        return name_of(self.labels[row], self.people)


def report(
    path: str | pathlib.Path,
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    images: np.ndarray | None = None,
    people: Sequence[str] | None = None,
    title: str = "Evaluation of embeddings",
    fars: Sequence[float] = (0.1, 0.01, 0.001, 1e-4),
    similarity: Callable = similarities.cosine,
    compare: Mapping[str, metrics.PairScores] | None = None,
    notes: Mapping[str, float | int | str] | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """Write one HTML file that holds everything it shows, and opens without a network; return the numbers in it.

    - verification of all pairs: ROC and DET with 95 % bands, histograms of scores, error rates;
    - retrieval, every row a query of all others: recall@k, MAP@R, …;
    - identification: of every other person with two rows or more, the first row is enrolled in a gallery. All other
      rows search it; those of people who are not enrolled should find nobody (CMC, DIR at an FPIR);
    - photographs next to their neighbours, hardest pairs (labels that are wrong show there), maps (PCA, and UMAP where
      umap-learn is installed), similarities of all with all, ordered by person.

    What the set cannot tell is left out with a sentence that says why, and is None among the numbers. The page has no
    scripts; names are shown as text, whatever is in them. The file appears when it is complete.

    Args:
      path: the file; folders that are missing are made.
      embeddings: [n, d], finite.
      labels: [n] integers, the person in each row.
      images: [n, height, width, 1 or 3] uint8, for thumbnails.
      people: names; person `labels[i]` is `people[labels[i]]`.
      fars: false accept rates at which the true accept rate is told; also the FPIRs of the identification.
      similarity: all-pairs function, larger is closer.
      compare: scores of other embeddings (`metrics.pair_scores`), drawn beside those of these.
      notes: further lines of the table.
      resamples: of the people, for the bands; time grows with resamples · n². 0 for no bands.
    """
    path = pathlib.Path(path)
    embeddings, labels = check_set(embeddings, labels)
    check_people(labels, people)
    if len(labels) < 3:
        raise ValueError(f"embeddings has {len(labels)} rows; wanted at least 3 for a report")
    if images is not None:
        check_images(images, len(labels))
    if not len(fars) or not all(0 < far <= 1 for far in fars):
        raise ValueError(f"fars is {fars!r}; wanted rates above 0, up to 1")
    if "embeddings" in (compare or {}):
        raise ValueError("compare has an entry 'embeddings'; wanted another name, as these are called so")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; wanted the name of the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    given = _Set(embeddings, labels, images, people, similarity, seed)
    parts = [
        _verification(given, fars, compare or {}, resamples),
        _retrieval(given),
        _identification(given, fars),
        _health(given),
    ]
    rows = [row for found, _ in parts for row in found]
    rows += [_Row(name, value, "given") for name, value in (notes or {}).items() if not isinstance(value, str)]
    sentences = [f"{name}: {value}." for name, value in (notes or {}).items() if isinstance(value, str)]
    sections = [
        ("Numbers", _numbers(rows, sentences)),
        *(section for _, found in parts for section in found),
        ("Neighbours", _neighbours(given)),
        ("Hardest pairs", _hardest(given)),
        ("Maps", _maps(given)),
        ("Similarities, ordered by person", _matrix(given)),
    ]
    n, d = embeddings.shape
    introduction = paragraph(f"{n:,} photographs of {len(np.unique(labels)):,} people, embedded in {d:,} dimensions.")
    write(path, page(title, sections, introduction))
    numbers: dict[str, float | int | None] = {row.name: row.value for row in rows}
    for row in rows:
        if row.interval is not None:
            numbers |= dict(zip((f"{row.name} lower", f"{row.name} upper"), row.interval, strict=True))
    return numbers


_Part = tuple[list[_Row], list[tuple[str, str]]]  # lines of the table, and sections


def _numbers(rows: list[_Row], sentences: list[str]) -> str:
    shown = lambda v: "–" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.4f}"
    between = lambda row: "" if row.interval is None else "{:.4f} to {:.4f}".format(*row.interval)
    columns = ["measure", "value", "95 % interval", "meaning"]
    cells = [[row.name, shown(row.value), between(row), row.meaning] for row in rows]
    if not any(row.interval for row in rows):
        columns, cells = columns[:2] + columns[3:], [cell[:2] + cell[3:] for cell in cells]
        return table(columns, cells, numbers=(1,)) + "".join(map(paragraph, sentences))
    return table(columns, cells, numbers=(1, 2)) + "".join(map(paragraph, sentences))


def _verification(given: _Set, fars: Sequence[float], compare: Mapping, resamples: int) -> _Part:
    heading = "Verification"
    counts = np.unique(given.labels, return_counts=True)[1]
    if len(counts) < 2:
        return [], [(heading, left_out("Left out: there is one person only, so no pair of different people."))]
    if counts.max() < 2:
        return [], [(heading, left_out("Left out: nobody has two photographs, so no pair is of the same person."))]
    scores = metrics.pair_scores(given.embeddings, given.labels, given.similarity)
    curve = scores.roc
    least = 1 / curve.impostors
    told = [far for far in fars if far >= least]
    grid = np.unique([*np.geomspace(least, 1, 40), 0.5, 0.8, 0.9, *told])
    bands = _bands(given, grid[grid >= least], resamples)
    drawn = _curves({"embeddings": scores, **compare}, bands, resamples)
    return _rates(curve, fars, bands), [(heading, paragraph("Are two photographs of the same person?") + drawn)]


def _rates(curve: metrics.Roc, fars: Sequence[float], bands: metrics.Bands | None) -> list[_Row]:
    """The lines of the table that the curve tells."""
    rows = [
        _Row("AUC", curve.auc(), "the chance that a pair of one person scores above a pair of strangers"),
        _Row("EER", curve.equal_error_rate(), "the rate at which false accepts and false rejects are equal"),
        _Row("threshold at EER", curve.threshold_at_eer(), "the similarity at which they are nearly so"),
    ]
    for far in fars:
        if far >= 1 / curve.impostors:
            means = f"share of pairs of one person accepted where at most {far:g} of the pairs of strangers are"
            rows.append(_Row(f"TAR@FAR={far:g}", curve.tar_at_far(far), means, _at(bands, far)))
        else:
            means = f"needs {1 / far:,.0f} pairs of strangers; there are {curve.impostors:,}"
            rows.append(_Row(f"TAR@FAR={far:g}", None, means))
    rows.append(_Row("genuine pairs", curve.genuine, "pairs of photographs of one person"))
    rows.append(_Row("impostor pairs", curve.impostors, "pairs of photographs of different people"))
    return rows


def _curves(scores: Mapping[str, metrics.PairScores], bands: metrics.Bands | None, resamples: int) -> str:
    """ROC, DET and histograms; those of the embeddings come first."""
    rocs = {name: s.roc for name, s in scores.items()}
    shaded = {} if bands is None else {"embeddings": bands}
    shade = f" Shaded: 95 % of {resamples} resamplings of the people." if shaded else ""
    eer = rocs["embeddings"].equal_error_rate()
    drawn = figures(
        picture(
            curves.roc_curves(rocs, shaded),
            f"ROC: true accept rate against false accept rate; EER {eer:.3f}",
            f"ROC. The further up and left, the better.{shade}",
        ),
        picture(
            curves.det_curves(rocs, shaded),
            "DET: false reject rate against false accept rate, on normal quantiles",
            f"DET. The further down and left, the better.{shade}",
        ),
    )
    histograms = picture(
        curves.score_histograms(scores),
        "Histograms of the similarities of pairs of one person and of pairs of strangers",
        "Similarities of all pairs, each kind with area 1. Where the two overlap, no threshold is right.",
    )
    return drawn + histograms


def _bands(given: _Set, fars: np.ndarray, resamples: int) -> metrics.Bands | None:
    """Bounds of the true accept rate, from resampled people."""
    if resamples == 0:
        return None
    options: dict[str, Any] = {"resamples": resamples, "seed": given.seed, "similarity": given.similarity}
    return metrics.roc_bands(given.embeddings, given.labels, fars, **options)


def _at(bands: metrics.Bands | None, far: float) -> tuple[float, float] | None:
    if bands is None:
        return None
    place = int(np.argmin(np.abs(bands.fars - far)))
    return float(bands.lower[place]), float(bands.upper[place])


def _health(given: _Set) -> _Part:
    """What the embeddings look like by themselves, right or wrong."""
    found = metrics.embedding_health(given.embeddings, given.labels, k=min(10, len(given.labels) - 1))
    number = lambda value: float(value) if np.isfinite(value) else None
    return [_Row(name.replace("_", " "), number(v), _HEALTH.get(name, "health")) for name, v in found.items()], []


def _retrieval(given: _Set) -> _Part:
    heading = "Retrieval"
    counts = np.unique(given.labels, return_counts=True)[1]
    if counts.max() < 2:
        return [], [(heading, left_out("Left out: nobody has two photographs, so there is nothing to find."))]
    ks = [k for k in _KS if k < len(given.labels)]
    found = metrics.retrieval(given.embeddings, given.labels, ks=ks, similarity=given.similarity)
    rows = [
        _Row(f"recall@{k}", found[f"recall@{k}"], f"share of queries with a match among the nearest {k}")
        for k in (1, 5, 10)
        if k in ks
    ]
    rows += [
        _Row("MAP@R", found["map@r"], "mean average precision among the R nearest, R the number of matches"),
        _Row("R-precision", found["r_precision"], "share of matches among the R nearest"),
        _Row("MAP", found["map"], "mean average precision of the whole ranking"),
        _Row("MRR", found["mrr"], "mean of 1 / rank of the first match"),
        _Row("queries", found["queries"], "photographs with another one of the same person"),
        _Row("lone queries", found["lone"], "photographs without: they are searched among, but do not search"),
    ]
    drawn = [
        picture(
            curves.recall_curves({"embeddings": found}, measure),
            f"{measure}@k over k",
            caption,
        )
        for measure, caption in (
            ("recall", "recall@k: share of queries with a match among the k nearest."),
            ("precision", "precision@k: share of the k nearest that match. It falls where k is above the matches."),
        )
    ]
    return rows, [(heading, paragraph("Are photographs of the same person among the nearest?") + figures(*drawn))]


def _identification(given: _Set, fars: Sequence[float]) -> _Part:
    heading = "Identification"
    _, first, counts = np.unique(given.labels, return_index=True, return_counts=True)
    enrolled = np.flatnonzero(counts > 1)[::2]
    if len(enrolled) < 2:
        why = "Left out: it enrols every other person with two photographs or more, of whom there are fewer than three."
        return [], [(heading, left_out(why))]
    gallery = first[enrolled]
    searching = np.ones(len(given.labels), bool)
    searching[gallery] = False
    queries = np.flatnonzero(searching)
    z, labels = given.embeddings, given.labels
    found = metrics.identification(
        z[queries], labels[queries], z[gallery], labels[gallery], similarity=given.similarity
    )
    rates = found.cmc((1, 5))
    rows = [
        _Row("rank-1 identification", rates["rank-1"], "share of mated searches that put the right person first"),
        _Row("rank-5 identification", rates["rank-5"], "share that put the right person among the first five"),
    ]
    for fpir in fars:
        name = f"DIR@FPIR={fpir:g}"
        if found.non_mated and fpir >= 1 / found.non_mated:
            means = f"share of mated searches found first where at most {fpir:g} of the others find anybody"
            rows.append(_Row(name, found.dir_at_fpir(fpir), means))
        else:
            means = f"needs {1 / fpir:,.0f} searches of people who are not enrolled; there are {found.non_mated:,}"
            rows.append(_Row(name, None, means))
    rows += [
        _Row("enrolled people", len(gallery), "each with one photograph: every other person who has several"),
        _Row("mated searches", found.mated, "with further photographs of the enrolled"),
        _Row("non-mated searches", found.non_mated, "with photographs of people who are not enrolled"),
    ]
    drawn = picture(
        curves.cmc_curves({"embeddings": found}, most=min(50, len(gallery))),
        f"CMC: share of mated searches identified within rank k; {rates['rank-1']:.3f} at rank 1",
        f"CMC of {found.mated:,} searches in a gallery of {len(gallery):,} people with one photograph each.",
    )
    asked = "Who is it, if it is anybody at all? Every other person is enrolled with one photograph; all others search."
    return rows, [(heading, paragraph(asked) + drawn)]


def _neighbours(given: _Set) -> str:
    images = given.images
    if images is None:
        return left_out("Left out: no images were given.")
    labels, n = given.labels, len(given.labels)
    count = min(6, n - 1)

    def sheet(queries: np.ndarray, alt: str, caption: str) -> str:
        scores = np.asarray(given.similarity(given.embeddings[queries], given.embeddings))
        made = sheets.neighbour_sheet(images, labels, scores, queries, count, given.people)
        return picture(made, alt, caption, "png")

    caption = f"{min(_ROWS, n)} photographs evenly spaced through the set, and their nearest neighbours."
    drawn = [sheet(np.linspace(0, n - 1, min(_ROWS, n)).astype(int), "Sheet of nearest neighbours", caption)]
    nearest = search.top_k(given.embeddings, given.embeddings, 1, similarity=given.similarity, exclude_self=True)
    nearest_row, scores = np.asarray(nearest.indices)[:, 0], np.asarray(nearest.scores)[:, 0]
    _, person, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wrong = np.flatnonzero((counts[person] > 1) & (labels[nearest_row] != labels))
    if len(wrong):
        worst = wrong[np.argsort(-scores[wrong], kind="stable")][:_ROWS]
        caption = f"Of {len(wrong):,} photographs whose nearest neighbour is a stranger, those with the most similar."
        drawn.append(sheet(worst, "Sheet of photographs whose nearest neighbour is a stranger", caption))
        return figures(*drawn)
    return figures(*drawn) + paragraph("No photograph that has a match is nearest to a stranger.")


def _hardest(given: _Set) -> str:
    found = metrics.hardest_pairs(given.embeddings, given.labels, _ROWS, distinct=True, similarity=given.similarity)
    strangers = [
        [given.name(i), str(i), given.name(j), str(j), f"{score:.4f}"]
        for (i, j), score in zip(found.strangers.tolist(), found.stranger_scores, strict=True)
    ]
    mates = [
        [given.name(i), str(i), str(j), f"{score:.4f}"]
        for (i, j), score in zip(found.mates.tolist(), found.mate_scores, strict=True)
    ]
    shown = ""
    if strangers:
        columns = ["person", "row", "person", "row", "similarity"]
        shown += "<h3>Most similar strangers</h3>" + table(columns, strangers, numbers=(1, 3, 4))
    if mates:
        columns = ["person", "row", "row", "similarity"]
        shown += "<h3>Least similar photographs of one person</h3>" + table(columns, mates, numbers=(1, 2, 3))
    lead = paragraph(
        "Wrong labels, and one photograph under two names, come up here. Of any two people, and of each person, only "
        "the hardest pair is shown."
    )
    if given.images is None:
        return lead + shown + left_out("Without thumbnails: no images were given.")
    made = sheets.pair_sheet(found, given.labels, given.images, given.people)
    alt = "Thumbnails of the most similar strangers and of the least similar photographs of one person"
    return lead + picture(made, alt, kind="png") + shown


def _maps(given: _Set) -> str:
    enough = len(given.labels) > 15  # neighbours that UMAP looks at
    methods = ["pca", *(["umap"] if enough and importlib.util.find_spec("umap") else [])]
    draw = lambda method: maps.embedding_map(
        given.embeddings, given.labels, method=method, people=given.people, seed=given.seed
    )
    alt = "Map of the embeddings in two dimensions, by {}; the people with most photographs in colour"
    return figures(*(picture(draw(method), alt.format(method.upper()), kind="png") for method in methods))


def _matrix(given: _Set) -> str:
    made = maps.similarity_matrix(
        given.embeddings, given.labels, people=given.people, similarity=given.similarity, seed=given.seed
    )
    caption = "Bright squares on the diagonal are people who look like themselves; bright spots off it, look-alikes."
    return picture(made, "Matrix of the similarities of photographs, ordered by person", caption, "png")
