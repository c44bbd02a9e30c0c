"""Figures hold what they should: the data of what is drawn, and words. What they look like, only eyes can tell."""

import io
import json
import pathlib
import pickle
import sys
import types
import xml.etree.ElementTree
from statistics import NormalDist

import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import metricjax as mj
from metricjax.engine import sizes
from metricjax.plots import style

NAMES = ["Ann $\\frac", "<b>Bo</b>", "Cem", "Dora"]


def people(rng, persons=4, each=3, d=5):
    labels = np.repeat(np.arange(persons), each)
    centres = rng.normal(size=(persons, d))
    return (centres[labels] + 0.6 * rng.normal(size=(len(labels), d))).astype(np.float32), labels


def images(n, channels=1):
    return np.stack([np.full((6, 5, channels), 10 * i, np.uint8) for i in range(n)])


def drawn_images(figure):
    """The grey value of each thumbnail, row by row."""
    return [int(image.get_array().ravel()[0]) for image in figure.axes[0].images]


def rendered(figure):
    """Draw everything, which warns (an error here) of what cannot be drawn; returns the renderer."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def words(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


# --- the search for the hardest pairs ---------------------------------------------------------------------------------


def brute_force(z, labels, count, distinct):
    """Both kinds of pairs from all of them, in float64."""
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)
    found = []
    for same in (False, True):
        pairs = [
            (float(unit[i] @ unit[j]), i, j)
            for i in range(len(z))
            for j in range(i + 1, len(z))
            if (labels[i] == labels[j]) == same
        ]
        kept, seen = [], set()
        for score, i, j in sorted(pairs, key=lambda p: p[0] if same else -p[0]):
            who = frozenset((int(labels[i]), int(labels[j])))
            if not (distinct and who in seen):
                kept.append((score, i, j))
            seen.add(who)
        found.append(kept[:count])
    return found


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("height", [1024, 5])
def test_hardest_pairs_are_those_of_brute_force(rng, monkeypatch, height, distinct):
    monkeypatch.setattr(sizes, "rows_in_table", lambda columns: height)
    z, labels = people(rng)
    labels = rng.permutation(labels) - 2
    for count in (3, 5, 100):
        found = mj.metrics.hardest_pairs(z, labels, count, distinct=distinct)
        strangers, mates = brute_force(z, labels, count, distinct)
        for pairs, scores, wanted in (
            (found.strangers, found.stranger_scores, strangers),
            (found.mates, found.mate_scores, mates),
        ):
            assert pairs.tolist() == [[i, j] for _, i, j in wanted]
            np.testing.assert_allclose(scores, [score for score, _, _ in wanted], atol=1e-6)


def test_hardest_pairs_of_equal_scores_come_in_order(unchecked):
    found = mj.metrics.hardest_pairs(np.ones((5, 2)), np.array([0, 1, 0, 1, 2]), 3)
    assert found.strangers.tolist() == [[0, 1], [0, 3], [0, 4]]
    assert found.mates.tolist() == [[0, 2], [1, 3]]
    lone = mj.metrics.hardest_pairs(np.ones((2, 2)), np.array([0, 1]))
    assert lone.mates.shape == (0, 2) and lone.mate_scores.shape == (0,)
    for count in (0, 1.5):
        with pytest.raises(ValueError, match=f"count is {count}; wanted a positive number"):
            mj.metrics.hardest_pairs(np.ones((2, 2)), np.array([0, 1]), count)


def test_hardest_pairs_are_none_of_nan():
    broken = lambda x, y: jnp.where(jnp.arange(len(y))[None] == 1, jnp.nan, x @ y.T)
    with pytest.raises(ValueError, match="similarity gives NaN for finite rows"):
        mj.metrics.hardest_pairs(np.eye(4), np.array([0, 1, 0, 1]), 1, similarity=broken)


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def curve(rng):
    same = np.arange(60) < 20
    return mj.metrics.roc(np.round(rng.normal(size=60) + same, 1), same)


def band(curve):
    fars = np.array([0.1, 0.5, 1.0])
    tars = np.array([curve.tar_at_far(far) for far in fars])
    return mj.metrics.Bands(fars=fars, lower=tars - 0.1, upper=np.minimum(tars + 0.05, 1))


def shaded(axes):
    """Corners of the one shaded area, as a set of rounded points."""
    (area,) = axes.collections
    return {tuple(np.round(point, 6)) for point in area.get_paths()[0].vertices}


def test_roc_curves_with_a_band(curve):
    figure = mj.plots.roc_curves({"a $ b": curve, "other": curve}, {"other": band(curve)})
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), curve.tar)
    assert axes.get_xlim() == (1 / 40, 1)
    given = band(curve)
    for bound in (given.lower, given.upper):
        assert {tuple(p) for p in np.round(np.stack([given.fars, bound], 1), 6)} <= shaded(axes)
    assert axes.collections[0].get_facecolor()[0, :3] == pytest.approx(
        matplotlib.colors.to_rgb(axes.lines[1].get_color())
    )
    assert axes.get_legend().get_texts()[0].get_text() == f"a $ b (EER {curve.equal_error_rate():.3f})"
    rendered(figure)  # a "$" is no formula
    with pytest.raises(ValueError, match="bands has 'b'"):
        mj.plots.roc_curves({"a": curve}, {"b": given})
    with pytest.raises(ValueError, match="curves is empty"):
        mj.plots.roc_curves({})


def test_the_band_of_det_curves_is_that_of_the_false_rejects(curve):
    given = band(curve)
    (axes,) = mj.plots.det_curves({"a": curve}, {"a": given}).axes
    probit = np.vectorize(NormalDist().inv_cdf)
    wanted = np.stack([probit(given.fars[:2]), probit(1 - given.lower[:2])], 1)
    assert {tuple(p) for p in np.round(wanted, 6)} <= shaded(axes)
    assert np.isfinite([list(p) for p in shaded(axes)]).all()


def test_many_curves_are_told_apart_and_the_legend_ends(curve):
    (axes,) = mj.plots.roc_curves({f"run {i}": curve for i in range(20)}).axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 20
    (legend,) = axes.figure.legends
    assert len(legend.get_texts()) == 14
    assert legend.get_title().get_text() == "and 6 more"


def test_cmc_curves_count_ranks():
    found = mj.metrics.Searches(np.array([1, 3, 1, 0]), np.zeros(4), np.zeros(4))
    (axes,) = mj.plots.cmc_curves({"a": found}, most=4).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2 / 3, 2 / 3, 1, 1])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 2, 3, 4])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2"]


def test_recall_curves_read_the_keys():
    found = {"recall@1": 0.5, "recall@10": 1.0, "recall_ir@10": 0.2, "recall@2": 0.75, "map": 0.1}
    (axes,) = mj.plots.recall_curves({"a": found}).axes
    assert list(axes.lines[0].get_xdata()) == [1, 2, 10]
    assert list(axes.lines[0].get_ydata()) == [0.5, 0.75, 1.0]
    assert mj.plots.recall_curves({"a": found}, "recall_ir").axes[0].lines[0].get_ydata() == [0.2]
    with pytest.raises(ValueError, match=r"results\['a'\] has no ndcg@k"):
        mj.plots.recall_curves({"a": found}, "ndcg")


def test_score_histograms_have_area_one(rng):
    z, labels = people(rng)
    scores = mj.metrics.pair_scores(z, labels)
    (axes,) = mj.plots.score_histograms({"a": scores}).axes
    for patch in axes.patches:
        values, edges, _ = patch.get_data()
        assert np.sum(values * np.diff(edges)) == pytest.approx(1)
    lowest = scores.edges[np.flatnonzero(scores.genuine + scores.impostors)[0]]
    assert axes.get_xlim()[0] == pytest.approx(lowest - 0.02)


def test_training_curves_share_panels():
    history = {"step": [1, 2], "loss": [3.0, 2.0], "distance/positive": [0.5, 0.4], "distance/negative": [1.0, 1.1]}
    figure = mj.plots.training_curves(history)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "distance"]
    assert [line.get_label() for line in figure.axes[1].lines] == ["positive", "negative"]
    with pytest.raises(ValueError, match="history holds"):
        mj.plots.training_curves({"step": [1]})


# --- thumbnails -------------------------------------------------------------------------------------------------------


def test_neighbour_sheet_orders_and_frames():
    similarity = np.array([[0.1, 0.9, 0.5, 0.7], [0.2, 0.1, 0.3, 1.0]])
    labels = np.array([0, 0, 1, 0])
    figure = mj.plots.neighbour_sheet(images(4), labels, similarity, [0, 3], count=4, people=NAMES)
    assert drawn_images(figure) == [0, 10, 30, 20, 30, 20, 0, 10]
    titles = [text.get_text() for text in figure.axes[0].texts]
    assert titles[:4] == ["query\nAnn $\\frac", "0.90\nAnn $\\frac", "0.70\nAnn $\\frac", "0.50 ✗\n<b>Bo</b>"]
    widths = [frame.get_linewidth() for frame in figure.axes[0].patches[:4]]
    assert widths == [0.5, 0.5, 0.5, 3]
    renderer = rendered(figure)
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    without = mj.plots.neighbour_sheet(images(4, channels=3), labels, similarity, [0, 3], count=1)
    assert [text.get_text() for text in without.axes[0].texts] == ["query", "0.90", "query", "0.30 ✗"]


def test_hardest_pairs_are_shown_side_by_side():
    z = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    labels = np.array([0, 0, 1, 1])
    figure = mj.plots.hardest_pairs(z, labels, images(4), count=2, people=NAMES)
    assert drawn_images(figure) == [10, 20, 0, 20, 0, 10, 20, 30]  # strangers, then mates
    assert "similarity 0.960\nAnn $\\frac" in words(figure)
    assert "<b>Bo</b>" in words(figure)
    rendered(figure)
    lone = mj.plots.hardest_pairs(z, np.arange(4), images(4), count=1, distinct=True)
    assert "least similar photographs of one person: none" in words(lone)


def test_wrong_images_and_names(rng):
    s = np.zeros((1, 3))
    sheet = lambda images, **options: mj.plots.neighbour_sheet(images, np.arange(3), s, [0], **options)
    with pytest.raises(ValueError, match=r"images has shape \(2, 6, 5, 1\); wanted \[3, height"):
        sheet(images(2))
    with pytest.raises(TypeError, match="images has dtype float64; wanted uint8"):
        sheet(images(3) / 1.0)
    with pytest.raises(ValueError, match="people has 2 names; wanted one for each label, 0 to 2"):
        sheet(images(3), people=NAMES[:2])
    with pytest.raises(ValueError, match=r"similarity has shape \(1, 3\); wanted \(2, 3\)"):
        mj.plots.neighbour_sheet(images(3), np.arange(3), s, [0, 1])
    labels = np.zeros((3, 2), int)
    with pytest.raises(ValueError, match=r"labels has shape \(3, 2\); wanted one label"):
        mj.plots.neighbour_sheet(images(3), labels, s, [0])
    for draw in (mj.plots.embedding_map, mj.plots.similarity_matrix):
        with pytest.raises(ValueError, match=r"labels has shape \(3, 2\); wanted one label"):
            draw(np.eye(3), labels)


# --- maps -------------------------------------------------------------------------------------------------------------


def points(figure):
    return np.concatenate([np.asarray(drawn.get_offsets()) for drawn in figure.axes[0].collections])


def test_the_map_keeps_the_largest_variance(rng):
    z, labels = people(rng)
    figure = mj.plots.embedding_map(z, labels, people=NAMES)
    unit = z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)
    eigenvalues, vectors = np.linalg.eigh(np.cov(unit.T))
    wanted = (unit - unit.mean(axis=0)) @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(points(figure)), np.abs(wanted), atol=1e-6)
    share = (eigenvalues[-1] + eigenvalues[-2]) / eigenvalues.sum()
    assert figure.axes[0].get_title() == f"PCA: {share:.0%} of the variance"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == NAMES
    rendered(figure)


def test_a_large_map_draws_a_part_and_names_few(rng):
    z, labels = people(rng, persons=30, each=2)
    labels[:4] = 29  # who now has six rows
    figure = mj.plots.embedding_map(z, labels, rows=20, named=1)
    assert figure.axes[0].get_title().endswith("; 20 of 60 rows")
    others, named = figure.axes[0].collections
    assert (len(others.get_offsets()), len(named.get_offsets())) == (14, 6)
    assert (others.get_label(), named.get_label()) == ("27 others", "29")


def test_degenerate_maps(rng, unchecked):
    z, labels = people(rng)
    assert np.ptp(points(mj.plots.embedding_map(np.ones_like(z), labels))) == 0
    flat = mj.plots.embedding_map(z[:, :1], labels)
    assert np.ptp(points(flat)[:, 1]) == 0
    with pytest.raises(ValueError, match="2 rows; wanted at least 3 for a map"):
        mj.plots.embedding_map(z[:2], labels[:2])
    with pytest.raises(ValueError, match="method is 'tsne'"):
        mj.plots.embedding_map(z, labels, method="tsne")


def test_umap_is_asked_for_cosine_and_named_when_missing(rng, monkeypatch):
    z, labels = people(rng)
    asked = {}

    class Umap:
        def __init__(self, **options):
            asked.update(options)

        def fit_transform(self, x):
            return x[:, :2] * 3

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    figure = mj.plots.embedding_map(z, labels, method="umap", seed=7)
    np.testing.assert_allclose(points(figure), 3 * np.asarray(mj.sphere.project(jnp.asarray(z)))[:, :2], atol=1e-6)
    with pytest.raises(ValueError, match="4 rows; wanted at least 5 for a map"):
        mj.plots.embedding_map(z[:4], labels[:4], method="umap")
    assert asked == {"n_neighbors": 11, "metric": "cosine", "random_state": 7, "n_jobs": 1}
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="umap"):
        mj.plots.embedding_map(z, labels, method="umap")


def test_the_matrix_is_ordered_by_person(rng):
    z, labels = people(rng)
    mixed = rng.permutation(len(labels))
    figure = mj.plots.similarity_matrix(z[mixed], labels[mixed], people=NAMES)
    axes = figure.axes[0]
    order = mixed[np.argsort(labels[mixed], kind="stable")]
    wanted = mj.similarities.cosine(jnp.asarray(z[order]), jnp.asarray(z[order]))
    np.testing.assert_allclose(axes.images[0].get_array(), wanted, atol=1e-6)
    assert axes.get_title() == "12 rows, 4 people"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == NAMES
    assert axes.get_yticks() == pytest.approx([1, 4, 7, 10])  # the middle of three rows each
    rendered(figure)


def test_a_large_matrix_shows_whole_people(rng):
    z, labels = people(rng, persons=30, each=2)
    axes = mj.plots.similarity_matrix(z, labels, rows=9).axes[0]
    assert axes.get_title() == "8 of 60 rows, 4 of 30 people"
    assert axes.images[0].get_array().shape == (8, 8)


# --- names ------------------------------------------------------------------------------------------------------------

ODD = [
    "Ren\udce9\udcff", "\ud83d lone", "a\0b\x1b[2J\nc\td", "\u202ereversed\u2066", "_hidden", "", "$x^2_{\\frac$",
    "a_b^c", "</text><script>alert(1)</script>", "日本 太郎", "שלום", "علی\u200cرضا", "🙂\ufe0f", "\ufffe\uffff",
    "x" * 300, "--><!--",
]  # fmt: skip


def saved(figure):
    """Warnings being errors."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    xml.etree.ElementTree.fromstring(file.getvalue())
    return [text for text in words(figure) if text]


def test_any_name_is_drawn_by_every_figure_that_shows_names(rng):
    z, labels = people(rng, persons=len(ODD), each=2)
    pixels = np.zeros((len(z), 6, 5, 1), np.uint8)
    shown = [style.short(name, 16) for name in ODD]
    figure = mj.plots.embedding_map(z, labels, people=ODD, named=13)
    found = saved(figure)
    figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")
    assert {style.short(name, 20) for name in ODD[:13]} <= set(found)
    assert set(shown) <= set(saved(mj.plots.similarity_matrix(z, labels, people=ODD)))
    saved(mj.plots.neighbour_sheet(pixels, labels, z[::2] @ z.T, range(0, len(z), 2), 1, people=ODD))
    saved(mj.plots.hardest_pairs(z, labels, pixels, people=ODD))
    scores = mj.metrics.pair_scores(z, labels)
    found = saved(mj.plots.roc_curves(dict.fromkeys(ODD[:5], scores.roc)))
    assert [text for text in found if text.startswith(" _hidden (EER")]
    saved(mj.plots.det_curves(dict.fromkeys(ODD, scores.roc)))
    saved(mj.plots.score_histograms(dict.fromkeys(ODD[:3], scores)))
    searched = mj.metrics.identification(z[1::2], labels[1::2], z[::2], labels[::2])
    saved(mj.plots.cmc_curves(dict.fromkeys(ODD, searched), most=3))
    saved(mj.plots.recall_curves(dict.fromkeys(ODD, mj.metrics.retrieval(z, labels, ks=(1, 2)))))


def test_printable_names_can_be_shown_anywhere():
    for name in ODD:
        shown = mj.data.printable(name)
        shown.encode()
        assert mj.data.printable(shown) == shown
        assert "\n" not in shown and "\0" not in shown and "\u202e" not in shown
        assert json.loads(json.dumps(name)) == name
    assert mj.data.printable(ODD[0]) == r"Ren\xe9\xff"
    assert mj.data.printable("علی\u200cرضا") == "علی\u200cرضا"
    assert mj.data.printable("日本 太郎 Zoë $x") == "日本 太郎 Zoë $x"
    assert len({mj.data.printable(name) for name in ODD}) == len(ODD)


# --- notebooks --------------------------------------------------------------------------------------------------------


def test_figures_show_themselves_to_notebooks(rng):
    z, labels = people(rng)
    figures = mj.plots.training_curves({"step": [1, 2], "loss": [2.0, 1.0]}), mj.plots.embedding_map(z, labels)
    for figure in (*figures, pickle.loads(pickle.dumps(figures[0]))):
        with Image.open(io.BytesIO(figure._repr_png_())) as image:
            assert image.format == "PNG" and min(image.size) > 200


def test_ipython_asks_figures_for_a_picture():
    formatters = pytest.importorskip("IPython.core.formatters")
    figure = mj.plots.training_curves({"step": [1, 2], "loss": [2.0, 1.0]})
    shown, _ = formatters.DisplayFormatter().format(figure)
    assert shown["image/png"][:8] == b"\x89PNG\r\n\x1a\n" and "image/svg+xml" not in shown


def test_every_figure_is_made_for_notebooks():
    for path in pathlib.Path(mj.plots.__file__).parent.glob("*.py"):
        if path.name not in ("style.py", "page.py"):  # the one that makes the kind, and one that is given figures
            assert "matplotlib.figure" not in path.read_text(), path


def test_variants_show_seeds_intervals_and_what_was_lost():
    recall = {"a $ b": [0.5, 0.6, None], "supcon": [0.7, 0.9, 0.8], "lost": [None] * 3}
    summary = mj.variants.summary({"recall@1": recall, "loss": recall}, baseline="a $ b")
    figure = mj.plots.variants(summary)
    assert [axes.get_title() for axes in figure.axes] == ["recall@1", "loss"]
    (axes, _) = figure.axes
    seeds = [line for line in axes.lines if line.get_markersize() == 4]
    assert [list(line.get_xdata()) for line in seeds] == [[0.5, 0.6], [0.7, 0.9, 0.8], []]
    (bars,) = [c for c in axes.containers if c.get_children()[0].get_xdata() == pytest.approx(0.8)]
    low, high = bars[2][0].get_segments()[0][:, 0]
    assert (high - low) / 2 == pytest.approx(summary.metrics["recall@1"]["supcon"].half_width)
    assert axes.lines[-1].get_xdata() == pytest.approx([0.55, 0.55])  # the baseline
    p = summary.metrics["recall@1"]["supcon"].difference.p_corrected
    assert {"a $ b", "1 of 3 lost", f"p {p:.2g}", "3 of 3 lost"} <= set(words(figure))
    rendered(figure)
