"""Galleries in compact form, and indices of faiss and usearch: they find what `search.top_k` and loops find."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.search import CompactGallery, Gallery, compact, to_faiss, to_usearch, top_k
from tests.search.test_compact import DOT, D, first, hamming

pytestmark = pytest.mark.slow


# --- galleries ------------------------------------------------------------------------------------------------------


def a_gallery(rng, people=30, capacity=40):
    x, ids = (
        jnp.asarray(rng.standard_normal((people * 2, D)), jnp.float32),
        jnp.arange(people * 2, dtype=jnp.int32) // 2,
    )
    gallery = Gallery.empty(capacity, D).enrol(x, 3 * ids)
    return gallery.remove(jnp.array([6, 60])), jnp.asarray(rng.standard_normal((7, D)), jnp.float32)


def test_a_gallery_is_searched_in_compact_form(rng):
    gallery, queries = a_gallery(rng)
    lengths = np.linalg.norm(np.asarray(queries), axis=1)
    for precision in ("int8", "binary"):
        small = gallery.compact(precision)
        assert isinstance(small, CompactGallery)
        rows = np.asarray(small.codes.decoded)[np.asarray(gallery.ids) >= 0]
        people = np.asarray(gallery.ids)[np.asarray(gallery.ids) >= 0]
        cosines = np.asarray(queries) @ rows.T / lengths[:, None] / np.linalg.norm(rows, axis=1)
        found = small.identify(queries, 0.2, k=3)
        wanted = first(cosines, 3)
        np.testing.assert_allclose(found.scores, wanted[1], rtol=1e-5)
        np.testing.assert_array_equal(found.ids, np.where(wanted[1] >= 0.2, people[wanted[0]], -1))
        exact = gallery.identify(queries, 0.2, k=3)
        refined = gallery.identify(queries, 0.2, k=3, coarse=small.codes, rescore_multiplier=20)
        np.testing.assert_array_equal(refined.ids, exact.ids)
        few = gallery.identify(queries, k=1, coarse=small.codes, rescore_multiplier=1)
        best = {"binary": -hamming(queries, gallery.templates), "int8": queries @ small.codes.decoded.T}[precision]
        if precision == "binary":
            closest = first(np.where(np.asarray(gallery.ids) < 0, -np.inf, best), 1)[0][:, 0]
            np.testing.assert_array_equal(few.ids[:, 0], np.asarray(gallery.ids)[closest])
    everybody = gallery.compact().identify(queries, k=40)
    assert np.all(np.sort(np.asarray(everybody.ids), axis=1)[:, :12] == -1) and np.all(everybody.ids[:, 27] >= 0)


# --- indices of others ----------------------------------------------------------------------------------------------


def assert_same_neighbours(keys, found, ids=None):
    """Where scores are not equal, which nobody has to order."""
    wanted = np.asarray(found.indices if ids is None else ids)
    scores = np.asarray(found.scores)
    for theirs, ours, row in zip(np.asarray(keys).astype(np.int64), wanted, scores, strict=True):
        for score in np.unique(row[row > row[-1] + 1e-6]):
            tied = np.abs(row - score) <= 1e-6
            assert set(theirs[tied]) == set(ours[tied])


def rows_with_holes(rng, n=200):
    y = jnp.asarray(rng.standard_normal((n, D)), jnp.float32).at[7].set(jnp.nan)
    return jnp.asarray(rng.standard_normal((9, D)), jnp.float32), y


def test_equals_faiss(rng):
    pytest.importorskip("faiss")
    x, y = rows_with_holes(rng)
    unit = np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)
    scores, keys = to_faiss(y).search(unit, 8)
    found = top_k(x, y, 8)
    np.testing.assert_allclose(scores, found.scores, rtol=1e-5)
    assert_same_neighbours(keys, found)
    codes = compact(y)
    scores, keys = to_faiss(codes).search(np.asarray(x), 8)
    found = top_k(x, codes, 8, similarity=DOT)
    np.testing.assert_allclose(scores, found.scores, rtol=1e-5)
    assert_same_neighbours(keys, found)
    signs, queries = compact(y, "binary"), compact(x, "binary")
    distances, keys = to_faiss(signs).search(np.asarray(queries.codes), 8)
    found = top_k(queries, signs, 8)
    np.testing.assert_allclose(1 - 2 * distances / D, found.scores, atol=1e-6)
    assert_same_neighbours(keys, found)
    gallery, x = a_gallery(rng)
    found = gallery.identify(x, k=5)
    assert_same_neighbours(to_faiss(gallery).search(np.asarray(x), 5)[1], found, found.ids)
    assert to_faiss(gallery.compact()).ntotal == 28
    assert (
        to_faiss(y[:0]).ntotal
        == to_faiss(compact(y[:0])).ntotal
        == to_faiss(signs).search(np.zeros((0, 2), np.uint8), 1)[0].size
        == 0
    )


def test_equals_usearch(rng):
    pytest.importorskip("usearch")
    x, y = rows_with_holes(rng)
    found, index = top_k(x, y, 8), to_usearch(y)
    matches = index.search(np.asarray(x), 8, exact=True)
    np.testing.assert_allclose(1 - matches.distances, found.scores, atol=1e-5)
    assert_same_neighbours(matches.keys, found)
    near = to_usearch(y, "i8", connectivity=32).search(np.asarray(x), 8)
    shared = [len(set(a.astype(int)) & set(b)) for a, b in zip(near.keys, np.asarray(found.indices), strict=True)]
    assert np.mean(shared) > 6 and 7 not in near.keys
    signs, queries = compact(y, "binary"), compact(x, "binary")
    matches, found = to_usearch(signs).search(np.asarray(queries.codes), 8, exact=True), top_k(queries, signs, 8)
    np.testing.assert_allclose(1 - 2 * matches.distances / D, found.scores, atol=1e-6)
    assert_same_neighbours(matches.keys, found)
    gallery, x = a_gallery(rng)
    found = gallery.identify(x, k=5)
    assert_same_neighbours(to_usearch(gallery).search(np.asarray(x), 5, exact=True).keys, found, found.ids)
    with pytest.raises(TypeError, match="references are int8 codes, which usearch does not have"):
        to_usearch(gallery.compact())


@pytest.mark.parametrize("make", [to_faiss, to_usearch])
def test_without_the_extra(make, monkeypatch):
    name = make.__name__.removeprefix("to_")
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.index", None)
    with pytest.raises(ImportError, match=rf'pip install "metricjax\[{name}\]"'):
        make(jnp.ones((3, 2)))
