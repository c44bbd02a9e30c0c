"""Templates of media, pairs of them and searches over galleries, against loops in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import sizes
from metricjax.metrics import identification_over_galleries, pair_similarities, templates
from tests.helpers.refusals import refuses


def by_loops(embeddings, template_ids, media_ids, weights):
    """{id: mean of w·x in each medium, summed over media, normalised}"""
    found = {}
    for t in sorted(set(template_ids.tolist())):
        total = 0
        for medium in set(media_ids[template_ids == t].tolist()):
            images = np.flatnonzero((template_ids == t) & (media_ids == medium))
            total = total + sum(weights[i] * embeddings[i] for i in images) / len(images)
        found[t] = total / np.linalg.norm(total)
    return found


def images(rng, n=60):
    """Videos of several frames and stills, some media in two templates; ids are wide and in no order."""
    template_ids = rng.choice([5, 5 + 2**32, -7, 2**53, 2**53 + 1], n)
    return rng.standard_normal((n, 6)) * rng.uniform(0.5, 9, (n, 1)), template_ids, rng.integers(0, 8, n) * 2**40


@pytest.mark.parametrize("weighted", [False, True])
def test_templates_equal_loops(weighted, rng):
    embeddings, template_ids, media_ids = images(rng)
    weights = rng.random(60) if weighted else None
    got = templates(jnp.asarray(embeddings, jnp.float32), template_ids, media_ids, weights=weights)
    expected = by_loops(embeddings, template_ids, media_ids, weights if weighted else np.ones(60))
    assert got.ids.tolist() == list(expected)
    np.testing.assert_allclose(got.embeddings, list(expected.values()), atol=1e-6)
    np.testing.assert_array_equal(got.of(got.ids[[3, 0, 3]]), got.embeddings[np.array([3, 0, 3])])


def test_order_of_images_and_numbers_of_media_do_not_matter(rng):
    embeddings, template_ids, media_ids = images(rng)
    one, order = templates(embeddings, template_ids, media_ids), rng.permutation(60)
    other = templates(embeddings[order], template_ids[order], -media_ids[order])
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_allclose(one.embeddings, other.embeddings, atol=1e-6)


def test_a_poor_medium_counts_for_less_and_nothing_for_nothing():
    z, ids = np.eye(2, dtype=np.float32), np.array([0, 0])
    got = templates(z, ids, np.array([0, 1]), weights=np.array([3.0, 4.0]))
    np.testing.assert_allclose(got.embeddings, [[0.6, 0.8]], rtol=1e-6)
    got = templates(np.r_[z, -z], np.array([0, 0, 1, 0]), np.arange(4), weights=np.array([0.0, 1, 0, 1]))
    np.testing.assert_array_equal(got.embeddings, [[0, 0], [0, 0]])
    np.testing.assert_array_equal(pair_similarities(got, np.array([[0, 1], [0, 0]])), [0, 0])


def test_half_precision_is_pooled_in_single(rng):
    z = jnp.asarray(rng.standard_normal((3000, 2)) + 5, jnp.bfloat16)
    got = templates(z, np.zeros(3000, int), np.arange(3000))
    total = np.sum(np.asarray(z, np.float64), axis=0)
    np.testing.assert_allclose(got.embeddings[0], total / np.linalg.norm(total), rtol=1e-5)


def test_pairs_equal_loops(rng, monkeypatch):
    monkeypatch.setattr(sizes, "pairs_at_once", lambda: 7)
    embeddings, template_ids, media_ids = images(rng)
    found = templates(embeddings, template_ids, media_ids)
    pairs = rng.choice(found.ids, (33, 2))
    z = dict(zip(found.ids.tolist(), np.asarray(found.embeddings, np.float64), strict=True))
    np.testing.assert_allclose(pair_similarities(found, pairs), [z[a] @ z[b] for a, b in pairs.tolist()], atol=1e-6)
    assert pair_similarities(found, pairs[:0]).shape == (0,)


def test_means_over_galleries_equal_loops(rng):
    """Of 30 people 18 are in the first gallery and 12 in the second; each is a stranger to the other."""
    people = rng.permutation(30)
    centres = rng.standard_normal((30, 4))
    queries, query_labels = np.repeat(centres, 3, axis=0) + 0.7 * rng.standard_normal((90, 4)), np.repeat(people, 3)
    galleries = [(centres[:18], people[:18]), (centres[18:], people[18:])]
    means, found = identification_over_galleries(queries, query_labels, galleries, ranks=(1, 5), fpirs=(0.1, 0.5))
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    rates = []
    for z, y in galleries:
        scores = unit(queries) @ unit(z).T
        both = list(zip(scores, query_labels, strict=True))
        mated = [(np.sum(row > row[y == a]) + 1, row[y == a][0]) for row, a in both if a in y]
        strangers = np.sort([max(row) for row, a in both if a not in y])[::-1]
        tpirs = []
        for fpir in (0.1, 0.5):
            first_refused = strangers[int(fpir * len(strangers) + 1e-9)]
            tpirs.append(np.mean([rank == 1 and score > first_refused for rank, score in mated]))
        rates.append([np.mean([rank <= k for rank, _ in mated]) for k in (1, 5)] + tpirs)
    assert list(means) == ["rank-1", "rank-5", "tpir@0.1", "tpir@0.5"]
    np.testing.assert_allclose(list(means.values()), np.mean(rates, axis=0), rtol=1e-12)
    assert [(answers.mated, answers.non_mated) for answers in found] == [(54, 36), (36, 54)]
    assert 0 < means["tpir@0.1"] < means["tpir@0.5"] < means["rank-1"] < 1
    within_five, _ = identification_over_galleries(queries, query_labels, galleries, ranks=(), fpirs=(0.5,), rank=5)
    assert within_five["tpir@0.5"] >= means["tpir@0.5"]


Z, ONE = np.eye(3, dtype=np.float32), np.arange(3)
WRONG = {
    "template ids": (lambda: templates(Z, ONE[:2], ONE), ValueError, r"template_ids has shape \(2,\)"),
    "media ids": (lambda: templates(Z, ONE, ONE[:2]), ValueError, r"media_ids has shape \(2,\)"),
    "columns": (lambda: templates(Z, ONE[:, None], ONE), ValueError, r"template_ids has shape \(3, 1\); wanted one"),
    "columns of media": (lambda: templates(Z, ONE, ONE[:, None]), ValueError, r"media_ids has shape \(3, 1\)"),
    "float ids": (lambda: templates(Z, ONE / 1, ONE), TypeError, "template_ids has dtype float64"),
    "text": (lambda: templates(Z, ONE.astype(str), ONE), TypeError, "template_ids has dtype <U.*; wanted integers"),
    "large": (lambda: templates(Z, ONE.astype(np.uint64) + 2**63, ONE), ValueError, "wanted at most 2⁶³ − 1"),
    "nan": (lambda: templates(Z * np.nan, ONE, ONE), ValueError, "embeddings holds NaN"),
    "none": (lambda: templates(Z[:0], ONE[:0], ONE[:0]), ValueError, "at least one image"),
    "weights": (lambda: templates(Z, ONE, ONE, weights=np.ones(2)), ValueError, r"weights has shape \(2,\)"),
    "negative": (lambda: templates(Z, ONE, ONE, weights=ONE - 1.0), ValueError, "weights holds negative numbers"),
    "pairs": (lambda: pair_similarities(templates(Z, ONE, ONE), ONE), ValueError, r"pairs has shape \(3,\)"),
    "unknown": (
        lambda: pair_similarities(templates(Z, ONE, ONE), np.array([[0, 1], [2, 9], [7, 1]])), ValueError,
        "pairs holds ids without a template: 2, the first of them 9",
    ),
    "unknown id": (lambda: templates(Z, ONE, ONE).of([-1]), ValueError, "ids holds ids without a template: 1"),
    "no gallery": (lambda: identification_over_galleries(Z, ONE, []), ValueError, "galleries is empty"),
    "all are mated": (lambda: identification_over_galleries(Z, ONE, [(Z, ONE)]), ValueError, "every query has a mate"),
}  # fmt: skip


test_wrong_arguments = refuses(WRONG)


def test_from_images_to_the_roc(rng):
    """The whole of 1:1: two templates of each person, of which every image is near the person's own axis."""
    people = np.repeat(np.arange(6), 10)
    z = np.eye(6)[people] + 0.1 * rng.standard_normal((60, 6))
    template_ids = 2 * people + np.arange(60) % 2
    found = templates(z, template_ids, np.arange(60) // 3)
    pairs = np.array([(a, b) for a in range(12) for b in range(a)])
    curve = mj.metrics.roc(pair_similarities(found, pairs), pairs[:, 0] // 2 == pairs[:, 1] // 2)
    assert (curve.genuine, curve.impostors, curve.tar_at_far(1 / 60)) == (6, 60, 1)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1e-20, 1e20, 1e38, 3e38])
def test_a_template_of_any_finite_embedding_is_a_unit_vector(scale):
    x = np.array([[1, -1, 0], [1, 0, 0], [1, -1, 1]], np.float32) * np.float32(scale)
    exact = (x != 0) * np.sign(x) / np.linalg.norm(x != 0, axis=1, keepdims=True)
    alone = templates(x, np.arange(3), np.zeros(3, np.int32))
    np.testing.assert_allclose(alone.embeddings, exact, atol=1e-6)
    both = templates(x, np.array([4, 4, 4]), np.arange(3), weights=np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(both.embeddings, np.array([[2, -1, 0]]) / np.sqrt(5), atol=1e-6)
    gallery = mj.search.Gallery.empty(3, 3).enrol(jnp.asarray(x), jnp.arange(3))
    np.testing.assert_allclose(gallery.templates, exact, atol=1e-6)
    found = gallery.identify(jnp.asarray(x))
    assert found.ids[:, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-6)
    np.testing.assert_allclose(gallery.verify(jnp.asarray(x), jnp.arange(3)), 1, atol=1e-6)


def test_an_image_of_weight_zero_does_not_set_the_scale_of_a_template():
    x = np.array([[3e-30, 4e-30], [0, 1e30]], np.float32)
    found = templates(x, np.array([0, 0]), np.array([0, 1]), weights=np.array([1.0, 0.0]))
    np.testing.assert_allclose(found.embeddings, [[0.6, 0.8]], rtol=1e-6)
