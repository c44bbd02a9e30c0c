"""`mining.hard_negatives` against a plain loop, most scores small integers, so that ties and limits are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import metricjax as mj
from metricjax.mining import hard_negatives
from tests.helpers import oracle_mining
from tests.helpers.batches import slow_unless
from tests.helpers.meshes import mesh_of, put

DOT = mj.similarities.dot


def integers(rng, n, d=4):
    return rng.integers(-3, 4, (n, d)).astype(np.float32)


class Case:
    """Queries, a corpus, and what is known of both."""

    def __init__(self, rng, queries=6, rows=40, p=2):
        self.queries, self.corpus = integers(rng, queries), integers(rng, rows)
        self.positives = rng.integers(0, rows, (queries, p))
        self.positives[1, 1:] = -1  # one positive fewer, and none
        self.positives[2] = -1
        self.query_labels, self.corpus_labels = rng.integers(-2, 300, queries), rng.integers(-2, 300, rows)
        self.corpus_labels[::3] = rng.choice(self.query_labels, len(self.corpus_labels[::3]))
        self.corpus_labels[1::3] = self.query_labels[0] + rng.choice(
            [2**7, 2**8, 2**20, -(2**30)], len(self.corpus_labels[1::3])
        )
        self.documents = rng.integers(0, rows * 2 // 3, rows)
        self.where = rng.random(rows) < 0.8

    def found(self, labels=False, documents=False, where=False, **options):
        given = {"query_labels": self.query_labels, "corpus_labels": self.corpus_labels} if labels else {}
        given |= {"documents": self.documents} if documents else {}
        given |= {"where": self.where} if where else {}
        arrays, given = jax.tree.map(jnp.asarray, ((self.queries, self.corpus, self.positives), given))
        return hard_negatives(*arrays, similarity=DOT, **given, **options)

    def wanted(self, labels=False, documents=False, where=False, rescored=None, block_size=None, **options):
        """What the loop finds for each query."""
        rows = range(len(self.corpus))
        sound = lambda a: bool(np.isfinite(a).all())
        may = [j for j in rows if not where or self.where[j]]
        same = {j: j for j in rows}
        if documents:
            for j in rows:
                copies = [i for i in rows if self.documents[i] == self.documents[j]]
                same[j] = min([i for i in copies if i in may] or copies)
        for i, query in enumerate(self.queries):
            searched = [j for j in may if same[j] == j and sound(query)]
            if labels:
                searched = [j for j in searched if self.corpus_labels[j] != self.query_labels[i]]
            scores = [float(query @ row) if sound(row) and sound(query) else -np.inf for row in self.corpus]
            positives = [j for j in self.positives[i].tolist() if j >= 0]
            again = None if rescored is None else rescored[i]
            given = {"searched": searched, "same": same, "rescored": again, **options}
            yield oracle_mining.hard_negatives(scores, positives, self.positives.shape[1], **given)


def assert_found(found, wanted, num_negatives=3):
    assert found.indices.shape == found.scores.shape == (len(found.indices), num_negatives)
    assert found.indices.dtype == jnp.int32
    for indices, scores, pairs in zip(found.indices, found.scores, wanted, strict=True):
        pairs = (pairs + [(-1, -np.inf)] * num_negatives)[:num_negatives]
        assert indices.tolist() == [j for j, _ in pairs]
        assert scores.tolist() == [s for _, s in pairs]


OPTIONS = [
    {},
    {"range_min": 4},
    {"range_min": 2, "range_max": 9, "num_negatives": 5},
    {"max_score": 3.0, "range_min": 1, "range_max": 13, "num_negatives": 12},
    {"min_score": 2.0, "range_max": 39, "num_negatives": 20},
    {"absolute_margin": 1.0},
    {"relative_margin": 0.25, "labels": True, "documents": True, "where": True},
    {"absolute_margin": 2.0, "relative_margin": 0.5, "max_score": 7.0, "min_score": -4.0, "range_min": 1},
    {"labels": True, "num_negatives": 30},
    {"documents": True},
    {"where": True, "range_max": 100, "num_negatives": 50},
    {"documents": True, "where": True, "absolute_margin": 0.0, "range_min": 3},
]
FEW = [str(OPTIONS[2])]


@pytest.mark.parametrize("options", slow_unless(FEW, {str(one): one for one in OPTIONS}))
def test_equals_a_plain_loop(options, rng):
    options = next(one for one in OPTIONS if str(one) == options)
    for p in (1, 3) if options in OPTIONS[6:7] else (2,):
        case = Case(rng, p=p)
        assert_found(case.found(**options), case.wanted(**options), options.get("num_negatives", 3))


def test_blocks_of_a_corpus_and_rows_with_nan(rng):
    case = Case(rng, rows=300)
    case.corpus[::7, 1] = np.nan
    case.corpus[5, 2], case.queries[0, 2] = np.inf, 1
    case.queries[4, 0] = -np.inf
    case.positives[[0, 3], 0] = 5, 7  # positives whose scores are not known
    options = {"labels": True, "documents": True, "where": True, "relative_margin": 0.125, "range_max": 60}
    found = case.found(**options, block_size=64)
    assert_found(found, case.wanted(**options))
    assert np.all(
        np.asarray(found.indices)[[0, 2, 3, 4]] == -1
    )  # an unknown positive, none, an unknown one, an infinite query
    assert found.positive_scores.shape == case.positives.shape
    known = case.positives >= 0
    with np.errstate(invalid="ignore"):
        own = np.sum(case.queries[:, None] * case.corpus[case.positives], axis=2)
    np.testing.assert_array_equal(found.positive_scores, np.where(known & np.isfinite(own), own, -np.inf))


@pytest.mark.slow
def test_rescoring_on_the_host_and_under_jit(rng):
    case = Case(rng)
    pairs = integers(rng, len(case.queries), len(case.corpus)) + 0.5
    pairs[0, case.positives[0, 0] :] = np.nan
    asked = []

    def on_host(indices):
        asked.append(np.asarray(indices))
        return np.take_along_axis(pairs, np.maximum(asked[-1], 0), axis=1)

    options = {"absolute_margin": 1.0, "max_score": 2.5, "range_min": 1}
    wanted = list(case.wanted(**options, rescored=pairs))
    found = case.found(**options, rescore=on_host)
    assert_found(found, wanted)
    assert [a.shape for a in asked] == [(6, 35), (6, 2)]
    own = np.nan_to_num(on_host(case.positives), nan=-np.inf)
    np.testing.assert_array_equal(found.positive_scores, np.where(case.positives < 0, -np.inf, own))
    assert np.any(np.isnan(pairs[0, case.positives[0]]))
    with pytest.raises(ValueError, match=r"rescore gave scores of shape \(6,\); wanted that of the indices, \(6, 35\)"):
        case.found(**options, rescore=lambda indices: indices[:, 0])
    inside = lambda indices: jnp.take_along_axis(jnp.asarray(pairs), jnp.maximum(indices, 0), axis=1)
    assert_found(jax.jit(lambda: case.found(**options, rescore=inside))(), wanted)


@pytest.mark.slow
def test_draws_from_all_that_are_left_and_from_nothing_else(rng):
    case = Case(rng)
    options = {"range_min": 1, "range_max": 6, "min_score": 10.0}
    wanted = list(case.wanted(**options))
    assert {len(pairs) > 3 for pairs in wanted} == {True, False}
    draw = jax.jit(jax.vmap(lambda key: case.found(**options, key=key)))
    every = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(0), 200)))
    for i, pairs in enumerate(wanted):
        for indices, scores in zip(every.indices[:, i], every.scores[:, i], strict=True):
            drawn = [(int(j), float(s)) for j, s in zip(indices, scores, strict=True) if j >= 0]
            assert drawn == [pair for pair in pairs if pair in drawn]  # some of them, in their order
            assert len(drawn) == min(3, len(pairs))
        share = min(1, 3 / len(pairs))
        times = [np.sum(every.indices[:, i] == j) for j, _ in pairs]
        np.testing.assert_allclose(times, 200 * share, atol=4 * np.sqrt(200 * share * (1 - share)))


@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_over_devices_it_is_that_of_one(drawn, rng):
    case = Case(rng, queries=16, rows=80, p=3)
    options = {"relative_margin": 0.25, "range_min": 1, "similarity": DOT}
    options |= {"key": jax.random.key(0)} if drawn else {}
    names = "query_labels", "corpus_labels", "documents", "where"
    arrays = [case.queries, case.corpus, case.positives, *(getattr(case, name) for name in names)]

    def local(*arrays, **options):
        return hard_negatives(*arrays[:3], **dict(zip(names, arrays[3:], strict=True)), **options)

    one = local(*map(jnp.asarray, arrays), **options)
    over = jax.shard_map(
        lambda *arrays: local(*arrays, **options, axis_name="data"),
        mesh=(mesh := mesh_of(AxisType.Explicit if drawn else AxisType.Auto)),
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
    )
    for a, b in zip(jax.jit(over)(*put(mesh, *arrays)), one, strict=True):
        np.testing.assert_array_equal(a, b)
    if not drawn:
        assert_found(one, case.wanted(labels=True, documents=True, where=True, relative_margin=0.25, range_min=1))


@pytest.mark.slow
def test_the_corpus_stays_on_its_devices():
    shapes = (16, 4), (800, 4)
    local = lambda x, y, p: hard_negatives(x, y, p, absolute_margin=0.1, axis_name="data")
    split = PartitionSpec("data")
    over = jax.jit(jax.shard_map(local, mesh=mesh_of(AxisType.Auto), in_specs=split, out_specs=split))
    text = over.lower(*map(jnp.ones, shapes), jnp.zeros((16, 2), jnp.int32)).compile().as_text()
    gathers = [line for line in text.splitlines() if " all-gather(" in line]
    assert gathers and not any("800" in line or "100," in line for line in gathers)


@pytest.mark.slow
def test_memory_is_linear():
    """Beside the search's own, with 4096 queries of 4 positives in a corpus of 200,000 rows."""
    n, m, d = 4096, 200_000, 64
    shape = jax.ShapeDtypeStruct
    arrays = shape((n, d), jnp.float32), shape((m, d), jnp.float32), shape((n, 4), jnp.int32)
    mine = lambda *arrays: hard_negatives(*arrays, relative_margin=0.05)
    search = lambda x, y, positives: mj.search.top_k(x, y, 38)
    used = [jax.jit(f).lower(*arrays).compile().memory_analysis().temp_size_in_bytes for f in (mine, search)]
    assert used[0] - used[1] <= 4 * 2**20


@pytest.mark.slow
def test_any_similarity_dtype_and_traced_numbers(rng):
    x, y = (jnp.asarray(rng.normal(size=(n, 5)), jnp.float32) for n in (6, 90))
    positives = jnp.asarray(rng.integers(0, 90, 6))
    for similarity in (mj.similarities.cosine, lambda x, y: -mj.distances.euclidean(x, y)):
        scores = np.asarray(similarity(x, y))
        mine = lambda margin, by=similarity: hard_negatives(x, y, positives, absolute_margin=margin, similarity=by)
        found = jax.jit(jax.vmap(mine))(jnp.array([0.0, 0.3]))
        for k, margin in enumerate((0.0, 0.3)):
            for i in range(6):
                pairs = oracle_mining.hard_negatives(scores[i], [int(positives[i])], 1, absolute_margin=margin)[:3]
                assert found.indices[k, i].tolist() == ([j for j, _ in pairs] + [-1] * 3)[:3]
        np.testing.assert_allclose(found.positive_scores[0], scores[np.arange(6), positives], rtol=1e-5)
    labels = {"query_labels": jnp.arange(6) + 1000, "corpus_labels": jnp.arange(90) % 7 + 1000}
    for dtype in (jnp.bfloat16, jnp.float16):
        found = hard_negatives(x.astype(dtype), y.astype(dtype), **labels)
        assert np.all(found.indices % 7 != np.arange(6)[:, None])
        assert found.scores.dtype == jnp.float32
        assert found.positive_scores is None
    assert not np.any(jax.grad(lambda x: jnp.sum(hard_negatives(x, y, positives).scores))(x))


@pytest.mark.slow
def test_the_form_for_accelerators(rng, monkeypatch):
    monkeypatch.setattr(mj.search.panels, "by_platform", lambda f: f(False))
    case = Case(rng, rows=300)
    options = {"labels": True, "documents": True, "where": True, "max_score": 4.0}
    assert_found(case.found(**options), case.wanted(**options))


@pytest.mark.slow
def test_nothing_to_search_for_or_in():
    one, none = jnp.ones((1, 2)), jnp.zeros((0, 2))
    for positives in (jnp.zeros((0, 3), jnp.int32), jnp.zeros(0, jnp.int32)):
        found = hard_negatives(none, one, positives, absolute_margin=0.1)
        assert found.indices.shape == (0, 3) and found.positive_scores.shape == positives.shape
    found = hard_negatives(one, one, jnp.array([0]), relative_margin=0.0, similarity=DOT)
    assert found.indices.tolist() == [[-1] * 3] and found.positive_scores.tolist() == [2.0]
    found = hard_negatives(one, one, jnp.zeros((1, 0), jnp.int32))
    assert found.indices.tolist() == [[0, -1, -1]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": np.ones((2, 5))}, ValueError, "queries has 5 features, corpus 3; they must agree"),
        ({"corpus": np.ones((0, 3))}, ValueError, "corpus has no rows"),
        ({"positives": None}, TypeError, "positives and query_labels are None; wanted one of them"),
        ({"positives": np.ones(2)}, TypeError, "positives has dtype float64; wanted integers"),
        ({"positives": np.zeros(3, int)}, ValueError, r"positives has shape \(3,\); wanted \[2\] or \[2, several\]"),
        ({"positives": np.array([0, 9])}, ValueError, "positives go from 0 to 9; wanted rows of the corpus, 0 to 8"),
        ({"query_labels": np.zeros(2, int)}, TypeError, "one of query_labels and corpus_labels came; wanted both"),
        (
            {"query_labels": np.zeros(2, int), "corpus_labels": np.zeros(9)},
            TypeError,
            "corpus_labels has dtype float64; wanted integers",
        ),
        (
            {
                "positives": None,
                "query_labels": np.zeros(2, int),
                "corpus_labels": np.zeros(9, int),
                "absolute_margin": 1,
            },
            TypeError,
            "absolute_margin came without positives",
        ),
        (
            {"documents": np.zeros(8, int)},
            ValueError,
            r"documents has shape \(8,\); wanted one label for each of the 9",
        ),
        ({"documents": np.zeros((9, 2), int)}, ValueError, r"documents has shape \(9, 2\); wanted \(9,\), one integer"),
        ({"where": np.ones(9)}, TypeError, "where has dtype float64; wanted booleans"),
        ({"max_score": np.ones(2)}, ValueError, r"max_score has shape \(2,\); wanted one number"),
        ({"num_negatives": 0}, ValueError, "num_negatives 0; wanted 0 <= range_min"),
        ({"range_min": -1}, ValueError, "range_min is -1"),
        ({"range_min": 4, "range_max": 6}, ValueError, "range_max 6 and num_negatives 3; wanted .* <= range_max"),
        (
            {"rescore": lambda indices: indices[:, 0]},
            ValueError,
            r"scores of shape \(2,\); wanted .* indices, \(2, 5\)",
        ),
        ({"similarity": mj.distances.cosine}, TypeError, "similarity is .*distances.cosine"),
    ],
)
def test_wrong_arguments(change, error, message, unchecked):
    given = {"queries": np.ones((2, 3)), "corpus": np.ones((9, 3)), "positives": np.array([0, 1])}
    with pytest.raises(error, match=message):
        hard_negatives(**{**given, **change})
