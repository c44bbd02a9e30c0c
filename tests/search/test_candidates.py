"""Candidates by rounded products: the k closest are the exact ones, by proof or because all scores are taken."""

import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import sizes
from metricjax.ground.functions import jitted
from metricjax.search import neighbours, panels, top_k
from metricjax.search.rounding import error_of, rounded

DOT, COSINE = mj.similarities.dot, mj.similarities.cosine
ELSEWHERE = -7  # the index that stands for a result of exact scores


@pytest.fixture(autouse=True)
def on_chip(monkeypatch):
    monkeypatch.setattr(panels, "by_platform", lambda f: f(False))
    monkeypatch.setattr(sizes, "SORTED_ROW", 128)
    monkeypatch.setattr(sizes, "CANDIDATES_FROM", 1)
    forget(monkeypatch)


def forget(monkeypatch):
    monkeypatch.setattr(neighbours, "_top_k", jitted(neighbours._top_k.__wrapped__))


@pytest.fixture
def proven(monkeypatch):
    """Tells for which queries of a search nothing but candidates was scored."""

    def elsewhere(options, y, real, first, x, best):
        return best._replace(indices=jnp.full_like(best.indices, ELSEWHERE))

    def proven(*args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(panels, "_exactly", elsewhere)
            forget(patch)
            return np.all(np.asarray(top_k(*args, **options).indices) != ELSEWHERE, axis=1)

    return proven


def normal(rng, n, d=64):
    return jnp.asarray(rng.standard_normal((n, d)), jnp.float32)


def assert_closest(x, y, k, where=None, **options):
    """Equal to a stable sort of scores in float64, but for references that float32 cannot tell apart."""
    found = top_k(x, y, k, similarity=DOT, where=where, **options)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    exists = np.isfinite(y).all(axis=1) & (True if where is None else np.asarray(where))
    scores = np.where(exists, x @ np.where(exists[:, None], y, 0).T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    wanted = np.take_along_axis(scores, order, axis=1)
    noise = 1e-6 * np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(y[exists], axis=1).max(initial=0)
    some = wanted > -np.inf
    np.testing.assert_array_equal(np.asarray(found.scores) > -np.inf, some)
    np.testing.assert_array_equal(np.asarray(found.indices) >= 0, some)
    chosen = np.take_along_axis(scores, np.maximum(found.indices, 0), axis=1)
    wanted, chosen, came = (np.where(some, a, 0) for a in (wanted, chosen, found.scores))
    assert np.all(np.abs(chosen - wanted) <= noise) and np.all(np.abs(came - chosen) <= noise)
    assert all(len(set(row[row >= 0])) == np.sum(row >= 0) for row in np.asarray(found.indices))
    return found


@pytest.mark.parametrize("k, size", [(1, "auto"), (10, "auto"), (10, 1500), (30, "auto")])
@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_random_rows_are_proven(k, size, masked, rng, proven):
    x, y = normal(rng, 40), normal(rng, 4000)
    where = jnp.asarray(rng.random(4000) < 0.5) if masked else None
    assert_closest(x, y, k, where, block_size=size)
    assert np.all(proven(x, y, k, similarity=DOT, where=where, block_size=size))
    assert np.all(proven(x, y, k, similarity=COSINE, where=where, block_size=size))


def _near_duplicates(rng):
    return normal(rng, 9), jnp.repeat(normal(rng, 4), 700, axis=0) * (1 + 1e-5 * normal(rng, 2800, 1))


def _one_point(rng):
    return normal(rng, 9), jnp.broadcast_to(normal(rng, 1), (3000, 64))


def _huge(rng):
    return normal(rng, 9) * 1e18, normal(rng, 3000) * 1e18


def _one_huge(rng):
    return normal(rng, 9), normal(rng, 3000).at[5].mul(1e4)


def _tiny(rng):
    return normal(rng, 9), normal(rng, 3000) * 1e-25


HOSTILE = {"near-duplicates": _near_duplicates, "one point": _one_point, "one huge": _one_huge, "tiny": _tiny}


@pytest.mark.parametrize("rows", HOSTILE)
@pytest.mark.parametrize("size", ["auto", 1000])
def test_what_is_not_proven_is_scored_exactly(rows, size, rng, proven):
    x, y = HOSTILE[rows](rng)
    found = assert_closest(x, y, 10, block_size=size)
    assert not np.any(proven(x, y, 10, similarity=DOT))
    if rows == "one point" and size == "auto":
        np.testing.assert_array_equal(found.indices, np.broadcast_to(np.arange(10), (9, 10)))


def test_products_that_overflow_are_those_of_exact_scores(rng, proven):
    x, y = normal(rng, 9) * 1e20, normal(rng, 3000) * 1e20
    assert not np.any(proven(x, y, 10, similarity=DOT))
    assert np.all(np.asarray(top_k(x, y, 10, similarity=DOT).scores) == np.inf)


def test_huge_rows_in_range(rng, proven):
    x, y = _huge(rng)
    assert_closest(x, y, 10)
    assert np.all(proven(x, y, 10, similarity=DOT))


def test_zeros_and_broken_rows_need_no_exact_scores_of_all(rng, proven):
    x, y = normal(rng, 9).at[3].set(0).at[5].set(jnp.nan), normal(rng, 3000).at[::7].set(jnp.inf).at[1::7].set(jnp.nan)
    some = jnp.arange(9) != 5
    assert_closest(x[some], y, 10)
    assert np.all(proven(x, y, 10, similarity=DOT))
    found = top_k(x, y, 10, similarity=DOT)
    assert found.indices[3].tolist() == [2, 3, 4, 5, 6, 9, 10, 11, 12, 13] and np.all(found.indices[5] == -1)


@pytest.mark.parametrize("there", [0, 3, 10, 30])
def test_fewer_references_than_candidates(there, rng, proven):
    x, y, where = normal(rng, 9), normal(rng, 3000), jnp.arange(3000) % 100 == 50
    where = where & (jnp.cumsum(where) <= there)
    assert_closest(x, y, 10, where)
    assert np.all(proven(x, y, 10, similarity=DOT, where=where))


def test_the_bound_holds_and_is_not_idle(rng):
    """Largest error of rounded products, next to what it may be, for rows that are rounded as badly as possible too."""
    worst = jnp.full((1, 64), 1 + 2.0**-8 - 2.0**-20, jnp.float32)  # half a unit of bfloat16 above 1
    rows = jnp.concatenate([normal(rng, 50), worst, -worst, normal(rng, 50) * 1e-3])
    low = rounded(rows)
    product = np.asarray(low.rows, np.float64) @ np.asarray(low.rows, np.float64).T
    exact = np.asarray(rows, np.float64)
    error = np.max(np.abs(product - exact @ exact.T), axis=1)
    bound = np.asarray(error_of(low, low))
    assert np.all(error <= bound) and np.all(bound <= 30 * np.max(error))
    assert error[50] >= 0.5 * bound[50]
    tiny = rounded(jnp.full((1, 4), 1e-30, jnp.float32))
    assert tiny.length >= 2e-30 and tiny.off >= np.abs(np.asarray(tiny.rows, np.float64) - 1e-30).max()
