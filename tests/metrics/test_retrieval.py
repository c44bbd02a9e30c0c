from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import selecting, sizes
from metricjax.metrics import ranks
from tests.helpers.refusals import refuses

KS = (1, 3, 100)


def retrieved(*args, **options):
    return mj.metrics.retrieval(*args, ks=options.pop("ks", KS), **options)


def dot(x, y):
    """Exact for small integers, so that equal scores are equal in every order of summation."""
    return jnp.sum(x[:, None] * y[None], axis=2)


def measures(hits, ks):
    """Each measure of one query, by the letter, of whether each of its neighbours is a match."""
    r = sum(hits)
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    found = {"r_precision": sum(hits[:r]) / r, "mrr": 1 / (hits.index(True) + 1)}
    found["map@r"] = sum(precision[i] for i in range(r) if hits[i]) / r
    found["map"] = sum(precision[i] for i in range(len(hits)) if hits[i]) / r
    for k in ks:
        gains = sum(1 / np.log2(i + 2) for i, hit in enumerate(hits[:k]) if hit)
        found[f"recall@{k}"] = float(any(hits[:k]))
        found[f"recall_ir@{k}"] = sum(hits[:k]) / r
        found[f"precision@{k}"] = sum(hits[:k]) / k
        found[f"ndcg@{k}"] = gains / sum(1 / np.log2(i + 2) for i in range(min(k, r)))
    return found


def by_loops(scores, query_labels, labels, itself, exists=None, says=lambda a, b: a == b, ks=KS):
    """The measures of each query, or None if it has no match."""
    found = []
    for i, a in enumerate(query_labels):
        told = {}
        for j, b in enumerate(labels):
            if not (itself and i == j) and (exists is None or exists[j]):
                match = says(a, b)
                positive, negative = match if isinstance(match, tuple) else (match, not match)
                if positive or negative:
                    told[j] = bool(positive)
        hits = [told[j] for j in sorted(told, key=lambda j: (-scores[i][j], j))]
        found.append(measures(hits, ks) if any(hits) else None)
    return found


def agree(got, each):
    real = [found for found in each if found is not None]
    assert (got["queries"], got["lone"]) == (len(real), len(each) - len(real))
    assert set(got) == {*real[0], "queries", "lone"}
    for name in real[0]:
        np.testing.assert_allclose(got[name], np.mean([found[name] for found in real]), rtol=1e-12, err_msg=name)


def rows(n, rng):
    """Of few values, so that many scores are equal, some of them 0 and −0."""
    return rng.integers(-2, 3, (n, 3)).astype(np.float32)


def in_panels_of(height, monkeypatch):
    monkeypatch.setattr(sizes, "rows_in_table", lambda columns: height)
    monkeypatch.setattr(sizes, "queries_in_ranking", lambda n, references, matches: height)
    monkeypatch.setattr(sizes, "panels_in_ranking", lambda n, height, matches: 2)


LABELS = {
    "several": lambda n, rng: rng.integers(0, 6, n),
    "one class": lambda n, rng: np.zeros(n, int),
    "lone ones": lambda n, rng: np.where(np.arange(n) < n // 2, np.arange(n), rng.integers(0, n, n) + n // 4),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("height", [1024, 3])
def test_leave_one_out_equals_loops(kind, height, rng, monkeypatch):
    in_panels_of(height, monkeypatch)
    z, y = rows(41, rng), LABELS[kind](41, rng)
    agree(retrieved(z, y, similarity=dot), by_loops(z @ z.T, y, y, itself=True))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("height", [1024, 3])
def test_references_equal_loops(kind, height, rng, monkeypatch):
    in_panels_of(height, monkeypatch)
    x, z = rows(23, rng), rows(31, rng)
    a, b = LABELS[kind](23, rng), LABELS[kind](31, rng)
    got = retrieved(x, a, references=z, reference_labels=b, similarity=dot)
    agree(got, by_loops(x @ z.T, a, b, itself=False))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_every_dtype_of_scores_is_ranked_alike(dtype, rng, x64):
    z, y = rows(41, rng), rng.integers(0, 6, 41)
    z[:5] = 0
    agree(retrieved(jnp.asarray(z, dtype), y, similarity=dot), by_loops(z @ z.T, y, y, itself=True))


@pytest.mark.parametrize("same", [None, mj.relations.equal])
def test_scores_may_be_integers(same, rng):
    z, y = rows(41, rng), rng.integers(0, 6, 41)
    got = retrieved(z, y, similarity=lambda a, b: dot(a, b).astype(jnp.int32), same=same)
    agree(got, by_loops(z @ z.T, y, y, itself=True))


def test_double_precision_is_not_rounded(x64):
    z = np.array([[1.0], [1.0], [1.0 + 1e-12]])
    assert retrieved(z, np.array([0, 1, 0]), similarity=dot, ks=(1,))["recall@1"] == 1


def test_infinite_scores_are_ranked_and_zeros_are_equal():
    table = jnp.array([[0.0, -jnp.inf, -0.0, 0.0, jnp.inf]])
    labels = np.array([1, 0, 0, 1, 1])
    options = {"references": np.eye(5, dtype=np.float32), "reference_labels": labels, "similarity": lambda x, y: table}
    got = retrieved(np.ones((1, 5), np.float32), np.array([0]), **options)
    agree(got, by_loops([[0, -np.inf, 0, 0, np.inf]], [0], labels, itself=False))
    assert got["mrr"] == 1 / 3


@pytest.mark.parametrize("references", [False, True])
def test_rows_that_do_not_exist_change_nothing(references, rng):
    x, a, real = rows(29, rng), rng.integers(0, 5, 29), rng.random(29) < 0.7
    padded = np.where(real[:, None], x, np.nan)
    if references:
        z, b, there = rows(17, rng), rng.integers(0, 6, 17), rng.random(17) < 0.7
        both = {"references": np.where(there[:, None], z, np.nan), "reference_labels": b, "reference_where": there}
        got = retrieved(padded, a, where=real, similarity=dot, **both)
        agree(got, by_loops((x @ z.T)[real], a[real], b, itself=False, exists=there))
    else:
        each = by_loops(x @ x.T, a, a, itself=True, exists=real)
        agree(retrieved(padded, a, where=real, similarity=dot), [each[i] for i in np.flatnonzero(real)])


SAYS = {
    "across_cameras": (mj.relations.across_cameras, lambda a, b: (a[0] == b[0] and a[1] != b[1], a[0] != b[0])),
    "same_level": (mj.relations.same_level(0), lambda a, b: a[0] == b[0]),
    "share_any": (mj.relations.share_any, lambda a, b: any(a & b)),
}


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.parametrize("height", [1024, 2])
@pytest.mark.parametrize("references", [False, True])
def test_relations_equal_loops(name, references, height, rng, monkeypatch):
    in_panels_of(height, monkeypatch)
    same, says = SAYS[name]
    x, z = rows(23, rng), rows(23 if not references else 31, rng)
    labels = lambda n: rng.integers(0, 3, (n, 2)) if name != "share_any" else rng.random((n, 4)) < 0.3
    a, b = labels(len(x)), labels(len(z))
    if references:
        got = retrieved(x, a, references=z, reference_labels=b, same=same, similarity=dot)
        agree(got, by_loops(x @ z.T, a, b, itself=False, says=says))
    else:
        agree(retrieved(x, a, same=same, similarity=dot), by_loops(x @ x.T, a, a, itself=True, says=says))


def test_panels_without_a_match(rng, monkeypatch):
    in_panels_of(3, monkeypatch)
    z, y = rows(20, rng), np.r_[np.arange(18), 16, 17]
    got = retrieved(z, y, same=mj.relations.equal, similarity=dot)
    agree(got, by_loops(z @ z.T, y, y, itself=True))


def test_equality_as_a_relation_is_the_default(rng):
    z, y = rows(20, rng), rng.integers(0, 5, 20)
    assert retrieved(z, y, same=mj.relations.equal) == retrieved(z, y)


def test_per_class_and_macro(rng):
    z = rows(31, rng)
    y = np.r_[rng.choice([3, 5, 9], 30, p=[0.7, 0.2, 0.1]), 77]
    each = by_loops(z @ z.T, y, y, itself=True)
    got = retrieved(z, y, similarity=dot, per_class=True)
    table = got.pop("per_class")
    assert got == retrieved(z, y, similarity=dot)
    assert list(table) == [3, 5, 9, 77]
    for label in (3, 5, 9):
        agree(table[label], [found for found, its in zip(each, y, strict=True) if its == label])
    assert (table[77]["queries"], table[77]["lone"]) == (0, 1)
    assert np.isnan(table[77]["map"])
    macro = retrieved(z, y, similarity=dot, average="macro")
    assert (macro["queries"], macro["lone"]) == (30, 1)
    for name in ("recall@1", "recall_ir@3", "ndcg@3", "map", "mrr", "map@r"):
        np.testing.assert_allclose(macro[name], np.mean([table[label][name] for label in (3, 5, 9)]), rtol=1e-12)


def test_batches_of_queries_add_up(rng):
    x, a, z, b = rows(40, rng), rng.integers(0, 8, 40), rows(30, rng), rng.integers(0, 6, 30)
    both = {"references": z, "reference_labels": b, "similarity": dot}
    batches = [retrieved(x[i : i + 10], a[i : i + 10], **both) for i in range(0, 40, 10)]
    whole = retrieved(x, a, **both)
    for name in set(whole) - {"queries", "lone"}:
        total = sum(batch[name] * batch["queries"] for batch in batches)
        np.testing.assert_allclose(whole[name], total / whole["queries"], rtol=1e-12)


def test_labels_that_are_strings(rng):
    z, y = rows(20, rng), rng.integers(0, 5, 20)
    assert retrieved(z, y.astype(str)) == retrieved(z, y)


@pytest.mark.parametrize("same", [None, mj.relations.equal])
def test_classes_of_any_size_equal_loops(same, rng):
    """Classes of 1, 3, 8, … rows, one of them larger than any list of matches that are counted."""
    each = [1, 3, 8, 20, 70, sizes.LISTS_OF_MATCHES[-1] + 10, 300]
    b = rng.permutation(np.repeat(np.arange(len(each)), each))
    z, x, a = rows(len(b), rng), rows(15, rng), np.arange(15) % (len(each) + 1)
    got = retrieved(x, a, references=z, reference_labels=b, similarity=dot, same=same)
    agree(got, by_loops(x @ z.T, a, b, itself=False))


def test_large_classes_leave_one_out_equal_loops(rng):
    y = rng.permutation(np.repeat([3, 5], [sizes.LISTS_OF_MATCHES[-1] + 2, 40]))
    z = rows(len(y), rng)
    agree(retrieved(z, y, similarity=dot), by_loops(z @ z.T, y, y, itself=True))


def test_embeddings_that_are_all_equal_are_ranked_by_index(rng):
    z, y = np.ones((600, 4), np.float32), rng.permutation(np.arange(600) // 5)
    agree(retrieved(z, y), by_loops(np.ones((600, 600)), y, y, itself=True))


def test_one_feature(rng):
    z, y = rng.integers(-2, 3, (700, 1)).astype(np.float32), rng.permutation(np.arange(700) // 7)
    agree(retrieved(z, y, similarity=dot), by_loops(z @ z.T, y, y, itself=True))


def test_queries_without_a_match_cost_nothing(rng):
    """They are not scored, and so all measures are those of the others."""
    seen = []

    def noted(x, y):
        seen.append(len(x))
        return dot(x, y)

    z, y = rows(40, rng), np.r_[np.arange(38), 37, 36]
    got = retrieved(z, y, similarity=noted)
    assert (got["queries"], got["lone"], max(seen)) == (4, 36, 4)


@pytest.mark.parametrize("m", [1, 30, 512, 1300])
@pytest.mark.parametrize("p", [1, 4, 7, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_counts_of_what_comes_before_equal_loops(m, p, dtype, rng):
    values = [-np.inf, -1, -0.0, 0.0, np.finfo(np.float32).tiny, 1, np.inf] if dtype == np.float32 else [-2, 0, 7]
    x, columns = rng.choice(np.array(values, dtype), (3, m)), rng.integers(0, m, (3, p)).astype(np.int32)
    ahead = lambda row, j: sum(value > row[j] or (value == row[j] and i < j) for i, value in enumerate(row))
    found = jax.jit(selecting.counted_before)(x, columns, jnp.int32(p))
    assert found.tolist() == [[ahead(row, j) for j in own] for row, own in zip(x, columns, strict=True)]


@pytest.mark.parametrize("place", [0, 511, 512, 700])
def test_nan_is_found_anywhere(place):
    def broken_at_place(x, y):
        return jnp.zeros((len(x), len(y))).at[:, place].set(jnp.nan)

    with pytest.raises(ValueError, match="similarity gives NaN"):
        retrieved(np.ones((701, 2), np.float32), np.arange(701) // 2, similarity=broken_at_place)


def test_a_product_that_may_overflow_is_looked_at():
    """∞ is a score; ∞ − ∞ is not."""
    z, y = np.array([[1, 1], [1, -1], [2, 2], [1, 1]], np.float32), np.array([0, 0, 1, 1])
    assert retrieved(np.float32(1e19) * z, y, similarity=mj.similarities.dot)["queries"] == 4
    with pytest.raises(ValueError, match="similarity gives NaN"):
        retrieved(np.float32(1e20) * z, y, similarity=mj.similarities.dot)


def test_memory_is_that_of_one_panel():
    """However many queries there are."""

    def needed(panels, references):
        height, length, integers = 64, 4, partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
        lists = (integers((panels, height, length)), integers((panels, height)), integers((panels, height)), None)
        x, y = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((panels, height, 32), (references, 32)))
        counted = jax.jit(partial(ranks._counted_in_panels, mj.similarities.cosine))
        return counted.lower(x, y, lists).compile().memory_analysis().temp_size_in_bytes

    panel = 4 * 64 * 20_000
    assert needed(40, 20_000) <= needed(4, 20_000) + 2**20 <= 2 * panel
    assert needed(4, 40_000) <= 2.2 * needed(4, 20_000)


X, Y = np.eye(3, dtype=np.float32), np.array([0, 0, 1])
WRONG = {
    "k": (lambda: retrieved(X, Y, ks=()), ValueError, r"ks is \(\)"),
    "average": (lambda: retrieved(X, Y, average="mean"), ValueError, "average is 'mean'; wanted 'micro' or 'macro'"),
    "no labels": (lambda: retrieved(X, Y, references=X), TypeError, "references came without reference_labels"),
    "no references": (lambda: retrieved(X, Y, reference_labels=Y), TypeError, "wanted references"),
    "features": (
        lambda: retrieved(X, Y, references=X[:, :2], reference_labels=Y), ValueError, "references has 2 features",
    ),
    "nothing to find": (
        lambda: retrieved(X, Y, references=X, reference_labels=Y + 2), ValueError, "none of the 3 queries has a match",
    ),
    "nothing related": (
        lambda: retrieved(X, Y, references=X, reference_labels=Y + 2, same=mj.relations.equal), ValueError,
        "none of the 3 queries has a match",
    ),
    "no references left": (
        lambda: retrieved(X, Y, references=X, reference_labels=Y, reference_where=Y > 1), ValueError,
        "none of the 3 queries has a match among the 0 references",
    ),
    "no queries": (
        lambda: retrieved(X, Y, references=X, reference_labels=Y, where=Y > 1), ValueError, "none of the 0 queries",
    ),
    "no rows": (lambda: retrieved(X, Y, where=Y > 1), ValueError, "no two rows of the same class among 0"),
    "where": (lambda: retrieved(X, Y, where=np.ones(2, bool)), ValueError, r"where has shape \(2,\)"),
    "where's dtype": (lambda: retrieved(X, Y, where=Y), TypeError, "where has dtype int64; wanted booleans"),
    "nan references": (
        lambda: retrieved(X, Y, references=X * np.nan, reference_labels=Y), ValueError, "references holds NaN",
    ),
    "nan scores": (lambda: retrieved(X, Y, similarity=lambda x, y: dot(x, y) / 0), ValueError, "similarity gives NaN"),
    "shape of labels": (lambda: retrieved(X, Y[:, None]), ValueError, r"labels has shape \(3, 1\); wanted one label"),
    "classes of relations": (
        lambda: retrieved(X, Y[:, None], same=mj.relations.equal, per_class=True), ValueError, "per row for classes",
    ),
    "large labels": (
        lambda: retrieved(X, Y + 2**40, same=mj.relations.equal), ValueError, "labels does not fit into int32; wanted",
    ),
    "text and a relation": (
        lambda: retrieved(X, Y.astype(str), same=mj.relations.equal), TypeError, "labels has dtype <U.*wanted numbers",
    ),
    "half a neighbour": (lambda: retrieved(X, Y, ks=(1.5,)), ValueError, r"ks is \(1.5,\); wanted positive ints"),
    "one k": (lambda: retrieved(X, Y, ks=5), ValueError, "ks is 5; wanted positive ints"),
}  # fmt: skip


test_wrong_arguments = refuses(WRONG)
