import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import sizes
from tests.helpers.refusals import refuses


def gallery_of(kind, rng, q=37, g=29):
    people = {"several rows": 9, "one row": g, "one person": 1}[kind]
    gallery_labels = np.arange(g) % people
    query_labels = rng.integers(0, people + max(2, people // 2), q)
    query_labels[:2] = 0, people  # one mated, one not
    scores = rng.standard_normal((q, g)) + (query_labels[:, None] == gallery_labels[None])
    return scores, query_labels, gallery_labels


def answers(scores, query_labels, gallery_labels):
    """(rank of the best mate or None, its score, highest score of others) of each query, by sorting."""
    found = []
    for row, label in zip(scores, query_labels, strict=True):
        others = [s for s, y in zip(row, gallery_labels, strict=True) if y != label]
        mates = [s for s, y in zip(row, gallery_labels, strict=True) if y == label]
        # Among equal scores, others first.
        ordered = sorted([(-s, 0) for s in others] + [(-s, 1) for s in mates])
        rank = next((i for i, (_, is_mate) in enumerate(ordered) if is_mate), None)
        found.append((None if rank is None else rank + 1, max(mates, default=None), max(others, default=-np.inf)))
    return found


def fnir_by_loops(found, fpir, rank):
    strangers = [other for r, _, other in found if r is None]
    candidates = [-np.inf, *(np.nextafter(other, np.inf) for other in strangers)]
    allowed = [t for t in candidates if sum(s >= t for s in strangers) / len(strangers) <= fpir]
    threshold = min(allowed)
    mated = [(r, mate) for r, mate, _ in found if r is not None]
    return threshold, sum(r > rank or mate < threshold for r, mate in mated) / len(mated)


KINDS = ("several rows", "one row", "one person")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", [False, True])
def test_cmc_equals_loops(kind, ties, rng):
    scores, *labels = gallery_of(kind, rng)
    scores = np.round(scores) if ties else scores
    ranks = [rank for rank, _, _ in answers(scores, *labels) if rank is not None]
    got = mj.metrics.cmc(scores, *labels, ranks=range(1, 31))
    assert (got.pop("mated"), got.pop("non_mated")) == (len(ranks), 37 - len(ranks))
    np.testing.assert_allclose(list(got.values()), [np.mean([r <= k for r in ranks]) for k in range(1, 31)])
    assert got["rank-30"] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fpir", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_fnir_at_fpir_equals_loops(kind, ties, fpir, rank, rng):
    scores, *labels = gallery_of(kind, rng, q=80)
    scores = np.round(scores) if ties else scores
    threshold, expected = fnir_by_loops(answers(scores, *labels), fpir, rank)
    assert mj.metrics.searches(scores, *labels).threshold_at_fpir(fpir) == threshold
    np.testing.assert_allclose(mj.metrics.fnir_at_fpir(scores, *labels, fpir, rank), expected, rtol=1e-12)
    np.testing.assert_allclose(mj.metrics.dir_at_fpir(scores, *labels, fpir, rank), 1 - expected, rtol=1e-12)


def test_without_a_threshold_the_fnir_is_what_the_cmc_misses(rng):
    scores, *labels = gallery_of("several rows", rng)
    for k in (1, 2, 5):
        missed = 1 - mj.metrics.cmc(scores, *labels, ranks=(k,))[f"rank-{k}"]
        np.testing.assert_allclose(mj.metrics.fnir_at_fpir(scores, *labels, 1.0, k), missed, rtol=1e-12)


@pytest.mark.parametrize("n", [7, 10, 49, 100])
def test_a_share_of_the_non_mated_is_met_exactly(n):
    """k / n allows k of n, whatever k / n · n rounds to."""
    scores = np.arange(n + 1.0)[:, None]
    found = mj.metrics.searches(scores, np.r_[np.full(n, 7), 0], np.zeros(1, int))
    for k in range(1, n + 1):
        assert np.sum(scores[:n] >= found.threshold_at_fpir(k / n)) == k


def test_thresholds_are_of_the_dtype_of_the_scores():
    scores = np.array([[0.1], [0.2], [0.3]], np.float32)
    threshold = mj.metrics.searches(scores, np.array([1, 2, 0]), np.array([0])).threshold_at_fpir(0.5)
    assert np.sum(scores[:2] >= np.float32(threshold)) == 1
    assert np.float32(threshold) == threshold


def test_equal_scores_for_all_find_nobody():
    labels = np.arange(4)
    got = mj.metrics.cmc(np.ones((4, 4)), labels, labels, ranks=(1, 3, 4))
    assert got == {"rank-1": 0, "rank-3": 0, "rank-4": 1, "mated": 4, "non_mated": 0}
    assert mj.metrics.cmc(np.ones((1, 3), int), [0], [0, 0, 0], ranks=(1,))["rank-1"] == 1  # nobody else there


@pytest.mark.parametrize("similarity", [mj.similarities.cosine, mj.similarities.dot])
@pytest.mark.parametrize("width", [7, 29])
def test_panels_of_embeddings_give_what_all_scores_give(similarity, width, rng, monkeypatch):
    monkeypatch.setattr(sizes, "gallery_in_block", lambda n, queries: width)
    _, query_labels, gallery_labels = gallery_of("several rows", rng)
    # Whole numbers: their dot products are exact, so are ties.
    whole = similarity is mj.similarities.dot
    draw = lambda n: jnp.asarray(rng.integers(-2, 3, (n, 3)) if whole else rng.standard_normal((n, 5)), jnp.float32)
    queries, gallery = draw(37), draw(29)
    got = mj.metrics.identification(queries, query_labels, gallery, gallery_labels, similarity=similarity)
    expected = mj.metrics.searches(similarity(queries, gallery), query_labels, gallery_labels)
    np.testing.assert_array_equal(got.rank, expected.rank)
    np.testing.assert_allclose(got.mate, expected.mate, rtol=1e-5)
    np.testing.assert_allclose(got.other, expected.other, rtol=1e-5)


def test_a_function_of_ones_own_and_half_precision(rng):
    distance = lambda x, y: -jnp.sum((x[:, None] - y[None]) ** 2, axis=2)
    z = jnp.asarray(rng.integers(-9, 9, (12, 3)), jnp.bfloat16)
    labels = np.arange(12)
    got = mj.metrics.identification(z, labels, z, labels, similarity=distance)
    np.testing.assert_array_equal(got.mate, 0)
    np.testing.assert_allclose(got.other, np.max(np.asarray(distance(z, z), float) - 1e9 * np.eye(12), axis=1))


def dot(x, y):
    """Exact for small integers, so that equal scores are equal in every order of summation."""
    return jnp.sum(x[:, None] * y[None], axis=2)


@pytest.mark.parametrize(("height", "width"), [(33, 256), (11, 64), (11, 9), (1, 1)])
def test_distractors_ties_and_several_rows_equal_loops(height, width, rng, monkeypatch):
    """More of the gallery are nobody's mates than are; the mates of a panel of queries lie in one block or in several.

    Labels are wider than 32 bits, and a few would be the same in them, or as floats.
    """
    monkeypatch.setattr(sizes, "queries_in_identification", lambda n: height)
    monkeypatch.setattr(sizes, "gallery_in_block", lambda n, queries: width)
    known = np.array([3, 3 + 2**32, 2**53, 2**53 + 1, -(2**40), 9])
    gallery_labels = rng.permutation(np.r_[rng.choice(known, 90), np.arange(100, 310)])
    query_labels = np.r_[rng.choice(known, 30), 7, 7 + 2**32, 2**53 + 2]
    queries, gallery = (rng.integers(-3, 4, (len(y), 4)).astype(np.float32) for y in (query_labels, gallery_labels))
    expected = answers(queries @ gallery.T, query_labels, gallery_labels)
    got = mj.metrics.identification(queries, query_labels, gallery, gallery_labels, similarity=mj.similarities.dot)
    assert expected == [(r or None, m if r else None, o) for r, m, o in zip(*map(np.ndarray.tolist, got), strict=True)]
    assert got.mated == 30 and max(got.rank) > 50
    assert np.all(np.isneginf(got.mate[30:]))


def test_a_copy_of_a_mate_under_another_name_comes_first(rng, monkeypatch):
    """Whatever a score of real numbers is rounded to: the copies lie in other blocks than the mates."""
    monkeypatch.setattr(sizes, "gallery_in_block", lambda n, queries: 32)
    mates, far = rng.standard_normal((40, 33)), rng.standard_normal((60, 33))
    queries = mates + 0.1 * rng.standard_normal((40, 33))
    gallery = np.concatenate([mates, far, mates, mates]).astype(np.float32)
    labels = np.r_[np.arange(40), np.arange(1000, 1140)]
    got = mj.metrics.identification(queries.astype(np.float32), np.arange(40), gallery, labels)
    np.testing.assert_array_equal(got.rank, 3)
    np.testing.assert_array_equal(got.mate, got.other)


def test_scores_of_a_function_are_the_same_when_they_are_computed_again(rng, monkeypatch):
    """Sums that the compiler may order as it likes, with the mates in all blocks."""
    monkeypatch.setattr(sizes, "gallery_in_block", lambda n, queries: 16)
    z = jnp.asarray(rng.standard_normal((48, 5)), jnp.float32)
    root = lambda x, y: -jnp.sqrt(jnp.sum(jnp.square(x[:, None] - y[None]) * 0.3, axis=2) + 0.7)
    got = mj.metrics.identification(z, np.arange(48) % 7, z, np.arange(48) % 7, similarity=root)
    np.testing.assert_array_equal(got.rank, 1)
    np.testing.assert_allclose(got.mate, -np.sqrt(0.7), rtol=1e-6)
    got = mj.metrics.identification(z, np.arange(48), jnp.tile(z, (2, 1)), np.arange(96), similarity=root)
    np.testing.assert_array_equal(got.rank, 2)


def test_labels_of_different_integer_types():
    z = jnp.eye(3)
    big = np.array([2**63, 2**63 + 1, 5], np.uint64)
    got = mj.metrics.identification(z, np.array([5, 6, 7]), z[::-1], big)
    np.testing.assert_array_equal(got.rank, [1, 0, 0])


def test_mated_queries_have_no_part_in_the_threshold(rng):
    scores, query_labels, gallery_labels = gallery_of("several rows", rng, q=80)
    found = mj.metrics.searches(scores, query_labels, gallery_labels)
    mated = np.isin(query_labels, gallery_labels)
    raised = mj.metrics.searches(np.where(mated[:, None], scores + 100, scores), query_labels, gallery_labels)
    assert raised.threshold_at_fpir(0.1) == found.threshold_at_fpir(0.1)
    assert raised.fnir_at_fpir(0.1, rank=29) == 0 < found.fnir_at_fpir(0.1, rank=29)


S, Q, G, Z = np.eye(3), np.array([0, 1, 5]), np.arange(3), np.eye(3, dtype=np.float32)
M = mj.metrics
WRONG = {
    "shape": (lambda: M.cmc(np.ones(3), Q, G), ValueError, r"scores has shape \(3,\); wanted \[queries, gallery\]"),
    "empty": (lambda: M.cmc(np.ones((0, 3)), Q[:0], G), ValueError, r"scores has shape \(0, 3\)"),
    "queries": (lambda: M.cmc(S, Q[:2], G), ValueError, r"query_labels has shape \(2,\)"),
    "gallery": (lambda: M.cmc(S, Q, G[:2]), ValueError, r"gallery_labels has shape \(2,\)"),
    "label shape": (lambda: M.cmc(S, Q[:, None], G), ValueError, r"query_labels has shape \(3, 1\)"),
    "float labels": (lambda: M.cmc(S, Q / 1, G), TypeError, "query_labels has dtype float64"),
    "nan": (lambda: M.cmc(S * np.nan, Q, G), ValueError, "scores holds NaN or infinity"),
    "ranks": (lambda: M.cmc(S, Q, G, ranks=(0,)), ValueError, r"ranks is \(0,\)"),
    "half a rank": (lambda: M.cmc(S, Q, G, ranks=(1.5,)), ValueError, r"ranks is \(1.5,\); wanted positive ints"),
    "text": (lambda: M.cmc(S.astype(str), Q, G), TypeError, "scores has dtype <U32; wanted real numbers"),
    "no ranks": (lambda: M.cmc(S, Q, G, ranks=()), ValueError, r"ranks is \(\)"),
    "no mates": (lambda: M.cmc(S, Q + 9, G), ValueError, "gallery has none of the labels of the 3 queries"),
    "no mates, open": (lambda: M.fnir_at_fpir(S, Q + 9, G, 1.0), ValueError, "gallery has none of the labels"),
    "no strangers": (lambda: M.fnir_at_fpir(S, G, G, 0.5), ValueError, "every query has a mate"),
    "fpir": (lambda: M.fnir_at_fpir(S, Q, G, 0.1), ValueError, "fpir is 0.1; wanted 1 to 1, with 1 non-mated queries"),
    "fpir nan": (lambda: M.fnir_at_fpir(S, Q, G, np.nan), ValueError, "fpir is nan"),
    "rank": (lambda: M.fnir_at_fpir(S, Q, G, 1.0, rank=0), ValueError, "rank is 0"),
    "features": (lambda: M.identification(Z, G, Z[:, :2], G), ValueError, "queries has 3 features, gallery 2"),
    "embeddings": (lambda: M.identification(Z, G, Z * np.nan, G), ValueError, "gallery holds NaN or infinity"),
    "nan scores": (
        lambda: M.identification(Z, G, Z, G, similarity=lambda x, y: dot(x, y) / 0), ValueError, "similarity gives NaN",
    ),
    "no queries": (lambda: M.identification(Z[:0], G[:0], Z, G), ValueError, r"queries has shape \(0, 3\)"),
    "no gallery": (lambda: M.identification(Z, G, Z[:0], G[:0]), ValueError, r"gallery has shape \(0, 3\)"),
}  # fmt: skip


test_wrong_arguments = refuses(WRONG)
