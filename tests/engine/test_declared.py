"""What a function can do it declares as data, whatever function object it is: bound values, and one's own, included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import metricjax as mj
from metricjax.mining import Miner, Selection

Z = jnp.asarray(np.random.default_rng(0).standard_normal((24, 6)), jnp.float32)
Y = jnp.arange(24) % 6
SIZES = [None, 5]


def memory(loss, n=192):
    z, y = jax.ShapeDtypeStruct((n, 8), jnp.float32), jnp.arange(n) // 4
    compiled = jax.jit(jax.grad(lambda z: loss(z, y))).lower(z).compile()
    return compiled.memory_analysis().temp_size_in_bytes


# --- selections -----------------------------------------------------------------------------------------------------


def listed(distances, positives, negatives):
    return mj.mining.all_triplets(distances, positives, negatives)


@pytest.mark.parametrize("selection", ["all_triplets", "semi_hard"])
@pytest.mark.parametrize("bind", [Partial, functools.partial])
def test_a_bound_selection_is_run_as_the_selection_itself(selection, bind):
    plain = getattr(mj.mining, selection)
    run = lambda triplets: lambda z, y: mj.losses.triplet(z, y, triplets=triplets, block_size=16)
    assert memory(run(bind(plain))) == memory(run(plain))
    assert float(run(bind(plain))(Z, Y)) == float(run(plain)(Z, Y))


def test_a_selection_of_ones_own_may_say_that_it_takes_every_triplet():
    run = lambda triplets: lambda z, y: mj.losses.triplet(z, y, triplets=triplets, block_size=16)
    assert memory(run(Selection(listed, every=True))) == memory(run(mj.mining.all_triplets)) < memory(run(listed)) / 50
    np.testing.assert_allclose(run(Selection(listed, every=True))(Z, Y), run(listed)(Z, Y), rtol=1e-6)


def test_a_selection_of_ones_own_may_select_for_one_positive_at_a_time():
    """The closest negative, for each positive: all at once, or for one positive after the other."""

    def closest(distances, positives, negatives):
        column = jnp.argmin(jnp.where(negatives, distances, jnp.inf), axis=1).astype(jnp.int32)
        n, m = distances.shape
        spread = lambda a: jnp.broadcast_to(a, (n, m))
        index = jnp.arange(m, dtype=jnp.int32)
        return mj.mining.Triplets(
            spread(jnp.arange(n, dtype=jnp.int32)[:, None]), spread(index), spread(column[:, None]), positives
        )

    def one(d_ap, distances, negatives):
        return jnp.argmin(jnp.where(negatives, distances, jnp.inf), axis=1).astype(jnp.int32)

    run = lambda triplets: lambda z: mj.losses.triplet(z, Y, triplets=triplets, block_size=5)
    together, apart = (jax.value_and_grad(run(Selection(closest, one=f)))(Z) for f in (None, one))
    np.testing.assert_allclose(together[0], apart[0], rtol=1e-6)
    np.testing.assert_allclose(together[1], apart[1], rtol=1e-5, atol=1e-6)


# --- miners ---------------------------------------------------------------------------------------------------------


def nearer_than(limit, distances, positives, negatives):
    return positives, negatives & (distances < limit)


def below_average(total):
    count = total(lambda d, p, n, row_of: jnp.sum(n, dtype=jnp.int32))
    mean = total(lambda d, p, n, row_of: jnp.sum(jnp.where(n, d, 0))) / count.astype(jnp.float32)
    return Miner(Partial(nearer_than, mean))


def keep_all(distances, positives, negatives):
    return positives, negatives


def average_negative(z=Z):
    d = np.asarray(mj.distances.chord(z, z))
    return float(np.mean(d[np.asarray(Y)[:, None] != np.asarray(Y)[None]]))


@pytest.mark.parametrize("size", SIZES)
def test_a_miner_of_ones_own_may_look_at_the_whole_batch_first(size):
    loss = lambda miner: mj.losses.nca(Z, Y, miner=miner, distance=mj.distances.chord, block_size=size)
    own, wanted = Miner(keep_all, prepare=below_average), Partial(nearer_than, average_negative())
    np.testing.assert_allclose(loss(own), loss(wanted), rtol=1e-6)
    assert abs(loss(own) - loss(keep_all)) > 1e-3
    chained = mj.mining.chain(own, mj.mining.rank_range((1, 2)))
    np.testing.assert_allclose(loss(chained), loss(mj.mining.chain(wanted, mj.mining.rank_range((1, 2)))), rtol=1e-6)
    np.testing.assert_allclose(loss(mj.mining.switch(1, [keep_all, own])), loss(own), rtol=1e-6)


def some_of_each_row(keys, distances, positives, negatives):
    return positives, negatives & jax.vmap(lambda key, row: jax.random.bernoulli(key, 0.5, row.shape))(keys, distances)


@pytest.mark.slow
def test_each_row_has_a_key_of_its_own_also_while_miners_are_prepared():
    chance = Partial(some_of_each_row, jax.random.key(0))
    loss = lambda size: mj.losses.nt_xent(
        Z, Y, miner=mj.mining.chain(chance, mj.mining.hard_fraction(0.3)), block_size=size
    )
    np.testing.assert_allclose(loss(5), loss(None), rtol=1e-6)


def near_each_other(limit, distances, positives, negatives, row_of):
    """Negatives that are near the anchor's closest negative."""
    closest = jnp.argmin(jnp.where(negatives, distances, jnp.inf), axis=1).astype(jnp.int32)
    return positives, negatives & (row_of(closest) < limit)


@pytest.mark.parametrize("size", SIZES)
def test_a_miner_of_ones_own_may_reach_other_rows(size):
    loss = lambda miner: mj.losses.nca(Z, Y, miner=miner, distance=mj.distances.chord, block_size=size)
    own = Miner(Partial(near_each_other, 1.2), reaches=True)
    d = mj.distances.chord(Z, Z)

    def by_hand(distances, positives, negatives):
        return near_each_other(1.2, distances, positives, negatives, lambda index: d[index])

    np.testing.assert_allclose(loss(own), loss(by_hand) if size is None else loss(own), rtol=1e-6)
    np.testing.assert_allclose(loss(own), mj.losses.nca(Z, Y, miner=mj.mining.chain(own), distance=mj.distances.chord))
    assert abs(loss(own) - loss(keep_all)) > 1e-3


def test_what_is_for_another_argument_is_refused():
    for wrong, message in (
        (Partial(mj.mining.batch_hard), "mj.mining.batch_hard, which is for `triplets`"),
        (Selection(listed), "a Selection, which is for `triplets`"),
        (mj.with_count, "mj.with_count, which is for `reduction`"),
    ):
        with pytest.raises(TypeError, match=message):
            mj.losses.supcon(Z, Y, miner=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_what_is_bound_to_a_declared_function_reaches_all_of_it(size):
    """Also integers, which have no gradient, and the function that selects for one positive at a time."""
    shift = lambda by, distances, positives, negatives: mj.mining.semi_hard(distances - by, positives, negatives)
    one = lambda by, d_ap, distances, negatives: mj.mining.semi_hard.one(d_ap - by, distances - by, negatives)
    bound = Partial(Selection(shift, one=one), 0.5)
    f = lambda triplets: jax.value_and_grad(lambda z: mj.losses.triplet(z, Y, triplets=triplets, block_size=size))(Z)
    for actual, wanted in zip(f(bound), f(mj.mining.semi_hard), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
    grade = lambda table, a, b: (table[a] == table[b]).astype(jnp.float32)
    graded = lambda **how: jax.value_and_grad(lambda z: mj.losses.supcon(z, Y, block_size=size, **how))(Z)
    for actual, wanted in zip(graded(grade=Partial(grade, jnp.arange(6))), graded(), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
    powered = mj.of_sums(lambda mean, p=1.0: (mean.total / mean.count) ** p)
    loss = lambda reduction: mj.losses.supcon(Z, Y, reduction=reduction, block_size=size)
    np.testing.assert_allclose(loss(functools.partial(powered, p=2.0)), mj.losses.supcon(Z, Y) ** 2, rtol=1e-5)


@pytest.mark.parametrize("shapes", [[(3,)] * 3, [()] * 3, [(16, 2), (16, 2), (16,)]])
def test_a_selection_returns_as_many_triplets_of_each_row(shapes):
    """Else they could not be told from those of other rows: `anchor` is not looked at."""
    few = lambda *_: mj.mining.Triplets(jnp.zeros(3, int), *(jnp.zeros(shape, int) for shape in shapes))
    with pytest.raises(ValueError, match=r"triplets returned .* for \d+ rows; wanted arrays of one shape \[\d+, ...\]"):
        mj.losses.triplet(Z, Y, triplets=few, block_size=16)


def test_many_triplets_a_row_are_picked_out_of_the_scores():
    def several(distances, positives, negatives):
        p, n = (jax.lax.top_k(mask.astype(jnp.float32), k)[1] for mask, k in ((positives, 3), (negatives, 40)))
        at = lambda index: jnp.broadcast_to(index, (len(distances), 3, 40))
        mark = lambda mask, index: jnp.take_along_axis(mask, index.reshape(len(mask), -1), axis=1).reshape(index.shape)
        p, n = at(p[:, :, None]), at(n[:, None])
        return mj.mining.Triplets(at(jnp.arange(len(p))[:, None, None]), p, n, mark(positives, p) & mark(negatives, n))

    loss = lambda z, y: mj.losses.triplet(z, y, triplets=several, block_size=16, distance=mj.distances.chord)
    wide = jax.ShapeDtypeStruct((192, 128), jnp.float32)
    compiled = jax.jit(jax.grad(lambda z: loss(z, jnp.arange(192) // 4))).lower(wide).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 120 * 128 * 4  # no gathered rows of all triplets


# --- reductions, similarities, sums ---------------------------------------------------------------------------------


def test_a_reduction_of_ones_own_may_say_that_sums_are_enough():
    half = lambda mean: jnp.sum(mean.total) / jnp.sum(mean.count) / 2
    run = lambda reduction: lambda z, y: mj.losses.supcon(z, y, reduction=reduction, block_size=16)
    np.testing.assert_allclose(run(mj.of_sums(half))(Z, Y), run(half)(Z, Y), rtol=1e-6)
    weights = jnp.linspace(0, 1, len(Z))
    weighted = lambda reduction: mj.losses.supcon(Z, Y, reduction=reduction, weights=weights, block_size=5)
    np.testing.assert_allclose(weighted(mj.of_sums(half)), weighted(half), rtol=1e-6)
    of_classes = lambda reduction: mj.losses.cosface(Z, Y, Z[:6], reduction=reduction)
    np.testing.assert_allclose(of_classes(mj.of_sums(half)), of_classes(half), rtol=1e-6)


def test_a_similarity_of_ones_own_may_say_how_it_is_scaled():
    called = []

    def scaled(x, y):
        called.append(y.shape)
        return 2 * x @ y.T

    double = mj.pairwise(lambda x: 2 * x, kind="similarity", scaled=scaled)(lambda x, y: x @ y.T)
    loss = lambda size: mj.over_prototypes(own, others, Z, Y, Z[:6], similarity=double, block_size=size)
    own, others = (lambda own: own), (lambda scores, own: scores)
    dense = loss(None)
    assert not called
    np.testing.assert_allclose(loss(2), dense, rtol=1e-6)
    assert called


def test_a_weighted_sum_takes_whatever_is_done_with_a_number():
    squared = lambda z, y: jnp.square(mj.losses.supcon(z, y)).astype(jnp.float32)
    own = lambda z, y: mj.losses.supcon(z, y).mean()
    both = mj.weighted_sum(squared, own, mj.losses.nt_xent)(Z, Y)
    supcon = mj.losses.supcon(Z, Y)
    np.testing.assert_allclose(both, supcon**2 + supcon + mj.losses.nt_xent(Z, Y), rtol=1e-5)
    with pytest.raises(ValueError, match="temperature is -1"):
        mj.weighted_sum(functools.partial(mj.losses.supcon, temperature=-1))(Z, Y)


@pytest.mark.parametrize("name", ["spread_out", "intra_pair_variance", "histogram", "margin", "angular", "quadruplet"])
def test_a_weighted_sum_takes_any_loss_of_a_batch(name):
    both = mj.weighted_sum(mj.losses.supcon, getattr(mj.losses, name), weights=(1.0, 0.5))
    wanted = mj.losses.supcon(Z, Y) + 0.5 * getattr(mj.losses, name)(Z, Y)
    np.testing.assert_allclose(both(Z, Y), wanted, rtol=1e-5)


# --- the record of pairs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [True, False])
def test_positives_are_listed_if_a_row_function_asks_for_them(asks):
    widths = []

    def rows(pairs):
        scores, positives = pairs.apart[:2] if asks else (pairs.scores, pairs.positives)
        widths.append(scores.shape[1])
        return mj.Mean(jnp.sum(jnp.where(positives, scores, 0), axis=1), jnp.sum(positives, axis=1))

    z = jnp.asarray(np.random.default_rng(1).standard_normal((80, 4)), jnp.float32)
    loss = lambda y: mj.over_pairs(rows, z, y, similarity=mj.similarities.cosine, block_size=20)
    for y in (jnp.arange(80) // 4, jnp.arange(80) // 75):
        same = np.equal.outer(np.asarray(y), np.asarray(y)) & ~np.eye(80, dtype=bool)
        np.testing.assert_allclose(loss(y), np.mean(np.asarray(mj.similarities.cosine(z, z))[same]), rtol=1e-4)
    assert (64 in widths) == asks and 80 in widths
