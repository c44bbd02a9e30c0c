import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests.helpers import oracle, oracle_mining
from tests.helpers.batches import masks

SELECTORS = ("batch_hard", "easy_positive_hard_negative", "semi_hard", "all_triplets")


def chosen(triplets):
    """Valid triplets as a set."""
    valid = np.asarray(triplets.valid).ravel()
    columns = [np.asarray(a).ravel()[valid].tolist() for a in triplets[:3]]
    return set(zip(*columns, strict=True))


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("ties", [False, True])
def test_selects_what_the_oracle_selects(name, ties, rng):
    labels = np.array([0, 0, 1, 1, 1, 2, 3, 0, 3, 3])
    d = rng.integers(0, 4, (10, 10)).astype(np.float32) if ties else rng.random((10, 10)).astype(np.float32)
    positives, negatives, p, n = masks(labels)
    expected = set()
    for i in range(10):
        if positives[i] and negatives[i]:
            expected |= {(i, *pair) for pair in getattr(oracle, name)(d[i], positives[i], negatives[i])}
    select = getattr(mj.mining, name)
    assert chosen(select(jnp.asarray(d), p, n)) == expected
    assert chosen(jax.jit(select)(jnp.asarray(d), p, n)) == expected


@pytest.mark.parametrize("select", [mj.mining.semi_hard, mj.mining.semi_hard_within(0.5)], ids=["all", "within"])
@pytest.mark.parametrize("ties", [False, True])
def test_semi_hard_negative_is_that_of_semi_hard(ties, select, rng):
    d = rng.integers(0, 4, (50, 9)) if ties else rng.random((50, 9))
    d = jnp.asarray(d, jnp.float32)
    positive = rng.integers(0, 4, 50)
    positives = jnp.asarray(np.arange(9) == positive[:, None])
    negatives = ~positives & jnp.asarray(rng.random((50, 9)) < 0.7) & (np.arange(50)[:, None] > 3)
    limit = jnp.take_along_axis(d, jnp.asarray(positive)[:, None], axis=1)
    negative = select.one(limit, d, negatives)
    some = np.asarray(negatives)[np.arange(50), negative]
    together = {(i, int(positive[i]), int(negative[i])) for i in range(50) if some[i]}
    assert together == chosen(select(d, positives, negatives))


@pytest.mark.parametrize("name", SELECTORS)
def test_indices_stay_in_range_when_nothing_is_there(name):
    empty = jnp.zeros((3, 4), bool)
    triplets = getattr(mj.mining, name)(jnp.ones((3, 4)), empty, empty)
    assert not np.any(triplets.valid)
    for index, size in zip(triplets[:3], (3, 4, 4), strict=True):
        assert np.all((np.asarray(index) >= 0) & (np.asarray(index) < size))


def test_batch_hard_makes_no_matrix_product_in_the_backward_pass():
    """Beyond the one that mines, only gathers: the dot products of the chosen pairs are linear in n."""
    n, d, r = 256, 32, 64
    z, y = jnp.ones((n, d)), jnp.arange(n) // 4
    for triplets in (mj.mining.batch_hard, mj.mining.semi_hard, mj.mining.easy_positive_hard_negative):
        loss = lambda z, triplets=triplets: mj.losses.triplet(z, y, triplets=triplets, block_size=r)
        text = jax.jit(jax.grad(loss)).lower(z).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line and f"{r}x{n}xf32>" in line]
        assert len(products) == 1
        assert f"-> tensor<{r}x{n}xf32>" in products[0]


# --- the other two meanings of semi-hard ----------------------------------------------------------------------------

SEMI_HARD = {
    "semi_hard_of_hardest": (mj.mining.semi_hard_of_hardest, ()),
    "semi_hard_within-0.3": (mj.mining.semi_hard_within(0.3), (0.3,)),
    "semi_hard_within-0.5": (mj.mining.semi_hard_within(0.5), (0.5,)),
}


@pytest.mark.parametrize("name", SEMI_HARD)
@pytest.mark.parametrize("ties", [False, True])
def test_semi_hard_selects_what_the_oracle_selects(name, ties, rng):
    """Classes that overlap, with rows that have no semi-hard negative, no positive, or no negative."""
    select, settings = SEMI_HARD[name]
    labels = np.array([0, 0, 1, 1, 1, 2, 3, 0, 3, 3])
    d = rng.integers(0, 5, (10, 10)) / 4 if ties else rng.random((10, 10))
    d = jnp.asarray(d, jnp.float32)
    positives, negatives, p, n = masks(labels)
    negatives[8], n = [], n.at[8].set(False)
    rule = getattr(oracle_mining, name.split("-")[0])
    expected = {(i, *pair) for i in range(10) for pair in rule(np.asarray(d[i]), positives[i], negatives[i], *settings)}
    run = jax.jit(select)
    assert chosen(run(d, p, n)) == chosen(select(d, p, n)) == expected
    assert 0 < len({i for i, *_ in expected}) < 10
    empty = jnp.zeros_like(p)
    for sides in ((p, empty), (empty, n), (empty, empty)):
        triplets = run(d, *sides)
        assert not np.any(triplets.valid)
        assert all(np.all((np.asarray(a) >= 0) & (np.asarray(a) < 10)) for a in triplets[:3])


def test_the_margin_of_semi_hard_is_traced(rng):
    d = jnp.asarray(rng.random((10, 10)), jnp.float32)
    _, _, p, n = masks(np.arange(10) // 3)
    within = mj.mining.semi_hard_within
    assert jax.tree.structure(within(0.1)) == jax.tree.structure(within(0.2))
    loop = [within(margin)(d, p, n) for margin in (0.05, 0.3)]
    assert np.any(loop[0].valid != loop[1].valid)
    mapped = jax.vmap(lambda margin: within(margin)(d, p, n))(jnp.array([0.05, 0.3]))
    chex.assert_trees_all_equal(mapped, jax.tree.map(lambda *a: jnp.stack(a), *loop))
    run = jax.jit(lambda margin: within(margin)(d, p, n))
    chex.assert_trees_all_equal([run(0.05), run(0.3)], loop)


def test_the_three_meanings_agree_where_each_has_a_triplet(rng):
    """For the farthest positive of an anchor, wherever a negative lies beyond it and inside the margin."""
    d = jnp.asarray(rng.random((10, 10)), jnp.float32)
    _, _, p, n = masks(np.arange(10) // 3)
    of_hardest = chosen(mj.mining.semi_hard_of_hardest(d, p, n))
    within = chosen(mj.mining.semi_hard_within(0.3)(d, p, n))
    assert within & of_hardest
    assert within | of_hardest <= chosen(mj.mining.semi_hard(d, p, n))


# --- distance-weighted sampling -------------------------------------------------------------------------------------


@jax.jit
def drawn(key, dimension, d, p, n, **settings):
    return mj.mining.distance_weighted(key, dimension, **settings)(d, p, n)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [3, 128, 512])
@pytest.mark.parametrize("settings", [{}, {"cutoff": 0.9, "upper": 1.3}])
def test_negatives_are_drawn_with_the_stated_probabilities(dimension, settings, rng):
    """Pearson's statistic of 20,000 draws for each of a few anchors."""
    n, m, draws = 4, 24, 20_000
    spread = {3: 0.5, 128: 0.03, 512: 0.01}[dimension]  # so that several negatives are likely
    center = np.array([[0.8], [1.1], [1.1], [1.3]])
    d = np.clip(center + spread * rng.standard_normal((n, m)), 0.05, 1.99).astype(np.float32)
    d[:, 0], d[:, 1] = 1.4, 1.45  # not nearer than the limit
    d[2] = np.linspace(0.1, 0.5, m)  # all below the cutoff: equally likely
    positives = np.arange(m) >= m - 1
    negatives = ~positives & (np.arange(m) != 5)
    masks = [jnp.broadcast_to(jnp.asarray(a), (n, m)) for a in (positives, negatives)]
    keys = jax.random.split(jax.random.key(1), draws)
    got = jax.jit(jax.vmap(lambda key: drawn(key, dimension, jnp.asarray(d), *masks, **settings).negative[:, -1]))(keys)
    for i in range(n):
        exact = oracle_mining.distance_weights(d[i], np.flatnonzero(negatives).tolist(), dimension, **settings)
        counts = np.bincount(np.asarray(got[:, i]), minlength=m)
        expected = draws * np.array([exact.get(j, 0.0) for j in range(m)])
        assert not np.any(counts[expected == 0])
        likely = expected > 5
        assert np.sum(likely) > 2
        statistic = np.sum((counts - expected)[likely] ** 2 / expected[likely])
        freedom = np.sum(likely)
        assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_draws_do_not_depend_on_blocks_of_rows_or_padding(rng):
    n, m = 12, 70
    d = jnp.asarray(rng.uniform(0.4, 1.6, (n, m)), jnp.float32)
    same = jnp.asarray(rng.integers(0, 4, (n, 1)) == rng.integers(0, 4, (1, m)))
    key = jax.random.key(3)
    whole = drawn(key, 16, d, same, ~same)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))
    for rows in (slice(0, 5), slice(5, 12)):
        part = drawn(keys[rows], 16, d[rows], same[rows], ~same[rows])
        chex.assert_trees_all_equal(part[1:], jax.tree.map(lambda a, rows=rows: a[rows], whole[1:]))
    padded = lambda a: jnp.pad(a, [(0, 0), (0, 61)])
    longer = drawn(key, 16, padded(d), padded(same), padded(~same))
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[:, :m], longer), whole)
    assert not np.any(longer.valid[:, m:])


def test_draws_are_negatives_below_the_limit_whatever_the_rounding(rng):
    """Also where weights differ by hundreds of orders of magnitude, and no negative is near enough for some rows."""
    n, m = 64, 300
    d = rng.uniform(0.0, 2.0, (n, m)).astype(np.float32)
    d[:8] = rng.uniform(1.4, 2.0, (8, m))
    p, negatives = rng.random((n, m)) < 0.3, rng.random((n, m)) < 0.3
    negatives &= ~p
    for dimension in (2, 3, 64, 2048):
        t = drawn(jax.random.key(dimension), dimension, *map(jnp.asarray, (d, p, negatives)))
        valid = np.asarray(t.valid)
        np.testing.assert_array_equal(valid, p & np.any(negatives & (d < 1.4), axis=1, keepdims=True))
        anchor, negative = np.asarray(t.anchor)[valid], np.asarray(t.negative)[valid]
        assert np.all(negatives[anchor, negative]) and np.all(d[anchor, negative] < 1.4)
        assert np.all((np.asarray(t.negative) >= 0) & (np.asarray(t.negative) < m))


def test_only_weights_raise_the_cumulative_sum(rng):
    weight = rng.random((20, 3000)) * (rng.random((20, 3000)) < 0.3)
    reached = np.asarray(mj.mining.triplets._cumulative(jnp.asarray(weight, jnp.float32)))
    assert np.all(np.diff(reached, axis=1) >= 0)
    assert not np.any((np.diff(reached, axis=1) > 0) & (weight[:, 1:] == 0))
    np.testing.assert_allclose(reached, np.cumsum(weight, axis=1), rtol=1e-5)


def test_different_rows_positives_and_keys_draw_differently():
    d, p = jnp.ones((4, 64)), jnp.arange(64) < 32
    p = jnp.broadcast_to(p, (4, 64))
    one, other = (np.asarray(drawn(jax.random.key(k), 8, d, p, ~p).negative)[:, :32] for k in (0, 1))
    assert np.mean(one == other) < 0.15
    assert np.mean(one[0] == one[1]) < 0.3
    assert len(np.unique(one[0])) > 10


def test_the_numbers_of_distance_weighted_are_traced(rng):
    d = jnp.asarray(rng.uniform(0.4, 1.6, (6, 20)), jnp.float32)
    p = jnp.broadcast_to(jnp.arange(20) < 5, (6, 20))
    key, make = jax.random.key(0), mj.mining.distance_weighted
    assert jax.tree.structure(make(key, 3)) == jax.tree.structure(make(jax.random.key(1), 64, cutoff=0.1))
    assert len(jax.tree.leaves(make(key, 3))) == 4
    run = lambda key, dimension, cutoff, upper: drawn(key, dimension, d, p, ~p, cutoff=cutoff, upper=upper)
    values = [(key, 3, 0.5, 1.4), (jax.random.key(1), 3, 0.5, 1.4), (key, 64, 0.5, 1.2), (key, 64, 1.1, 1.2)]
    loop = [run(*v) for v in values]
    chex.assert_trees_all_equal([jax.jit(run)(*v) for v in values], loop)
    columns = [jnp.stack([jnp.asarray(a) for a in column]) for column in zip(*values, strict=True)]
    chex.assert_trees_all_equal(jax.vmap(run)(*columns), jax.tree.map(lambda *a: jnp.stack(a), *loop))
    with jax.enable_x64(True):
        assert np.mean(run(key, 3, 0.5, 1.4).negative == loop[0].negative) > 0.9


@pytest.mark.parametrize("value", [0.0, 1.0, 2.0, 1e30])
@pytest.mark.parametrize("limits", [(0.5, 1.4), (0.0, 3.0), (0.5, float("inf"))])
def test_distance_weighted_without_nan(value, limits, debug_nans):
    d, full, empty = jnp.full((2, 3), value), jnp.ones((2, 3), bool), jnp.zeros((2, 3), bool)
    draw = lambda p, n: drawn(jax.random.key(0), 512, d, p, n, cutoff=limits[0], upper=limits[1])
    for p, n in ((full, empty), (empty, full), (empty, empty)):
        assert not np.any(draw(p, n).valid)
    last = jnp.broadcast_to(jnp.arange(3) == 2, (2, 3))
    t = draw(last, ~last)
    np.testing.assert_array_equal(t.valid, last & (value < limits[1]))
    assert np.all(t.negative[t.valid] < 2)


def test_a_key_of_the_old_kind_is_refused(unchecked):
    with pytest.raises(TypeError, match=r"wanted one made by jax\.random\.key"):
        mj.mining.distance_weighted(jax.random.PRNGKey(0), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["of_hardest", "within", "weighted"])
def test_the_triplet_loss_takes_them(name, rng):
    z, y = jnp.asarray(rng.standard_normal((12, 4)), jnp.float32), jnp.arange(12) // 4
    select = {
        "of_hardest": mj.mining.semi_hard_of_hardest,
        "within": mj.mining.semi_hard_within(0.5),
        "weighted": mj.mining.distance_weighted(jax.random.key(0), 4, cutoff=0.1, upper=1.9),
    }[name]
    d = mj.distances.chord(z, z)
    _, _, p, n = masks(np.asarray(y))
    t = select(d, p, n)
    terms = jnp.where(t.valid, jnp.maximum(d[t.anchor, t.positive] - d[t.anchor, t.negative] + 0.2, 0), 0)
    expected = jnp.sum(terms) / jnp.sum(t.valid, dtype=jnp.float32)
    assert expected > 0
    options = {"triplets": select, "distance": mj.distances.chord, "average": "valid"}
    for size in (None,) if name == "weighted" else (None, 5):
        np.testing.assert_allclose(mj.losses.triplet(z, y, block_size=size, **options), expected, rtol=1e-5)
