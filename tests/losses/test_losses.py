"""What only some losses have: states, learned numbers, selections, and arguments that they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests.helpers import oracle, oracle_pairs
from tests.helpers.batches import N, batch, close


def gaps(z, y):
    d, lists = oracle.matrix("chord", np.asarray(z), np.asarray(z)), oracle.neighbours(np.asarray(y))
    chosen = [(i, *oracle.batch_hard(d[i], ps, ns)[0]) for i, (ps, ns) in enumerate(zip(*lists, strict=True)) if ps]
    return [d[i, p] - d[i, n] for i, p, n in chosen]


# --- dynamic soft margin --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [None, 4])
def test_dynamic_soft_margin_carries_its_histogram(block_size):
    step = jax.jit(lambda z, y, state: mj.losses.dynamic_soft_margin(z, y, state, momentum=0.3, block_size=block_size))
    state, expected = jnp.zeros(9), np.zeros(9)
    for seed in range(3):
        z, y, _ = batch(seed)
        loss, state = step(z, y, state)
        wanted, expected = oracle_pairs.dynamic_soft_margin(gaps(z, y), expected, momentum=0.3)
        close(loss, wanted)
        close(state, expected)
    loss, after = step(z, jnp.arange(N), state)  # no positives
    assert loss == 0
    close(after, state)


def test_dynamic_soft_margin_weighs_without_a_gradient():
    z, y, _ = batch()
    state = jnp.array([0.5, 0.2, 0.3])
    f = lambda z: mj.losses.dynamic_soft_margin(z, y, state, momentum=0.0)[0]
    at = np.clip(np.asarray(gaps(z, y)), -2, 2)
    weights = np.cumsum([0.5, 0.2, 0.3])[np.floor((at + 2) / 2).astype(int)]

    def terms(chosen):
        gaps, valid = chosen.d_ap - chosen.d_an, chosen.valid
        return mj.Mean(jnp.sum(jnp.where(valid, jnp.where(gaps < 0, 0.5, 0.7) * gaps, 0), -1), jnp.sum(valid, -1))

    fixed = lambda z: mj.over_triplets(terms, mj.mining.batch_hard, z, y, distance=mj.distances.chord)
    close(f(z), np.mean(weights * at))
    close(jax.jit(jax.grad(f))(z), jax.jit(jax.grad(fixed))(z))


# --- margin loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("select", ["batch_hard", "semi_hard"])
def test_margin_loss_over_selected_triplets(select, block_size):
    z, y, _ = batch(3)
    beta = jnp.array([1.0, 1.125, 0.875, 1.25, 1.5])

    def f(z, beta, nu):
        triplets = getattr(mj.mining, select)
        return mj.losses.margin(z, y, beta=beta, nu=nu, triplets=triplets, block_size=block_size)

    d, lists = oracle.matrix("chord", np.asarray(z), np.asarray(z)), oracle.neighbours(np.asarray(y))
    terms, bounds = [], []
    for i, (ps, ns) in enumerate(zip(*lists, strict=True)):
        for p, n in getattr(oracle, select)(d[i], ps, ns) if ps and ns else []:
            bound = float(beta[int(y[i])])
            terms += [max(d[i, p] - bound + 0.2, 0), max(bound - d[i, n] + 0.2, 0)]
            bounds += [bound, bound]
    active = [(t, b) for t, b in zip(terms, bounds, strict=True) if t > 0]
    expected = np.mean([t + 0.1 * b for t, b in active])
    close(f(z, beta, 0.1), expected)
    slope = jax.jit(jax.grad(f, 1))(z, beta, 0.0)
    for k in range(3):
        moved = [float(f(z, beta.at[k].add(step), 0.0)) for step in (1e-3, -1e-3)]
        close(slope[k], (moved[0] - moved[1]) / 2e-3, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("block_size", [None, 4])
def test_gradient_of_a_beta_for_each_class(block_size):
    z, y, _ = batch(4)
    beta = jnp.array([1.0, 1.125, 0.875, 1.25, 1.5])
    f = lambda beta: mj.losses.margin(z, y, beta=beta, block_size=block_size)
    signs = np.zeros(5)
    count = 0
    for kind, lists in zip((-1, 1), oracle.neighbours(np.asarray(y)), strict=True):
        d = oracle.matrix("chord", np.asarray(z), np.asarray(z))
        for i, js in enumerate(lists):
            for j in js:
                if kind * (float(beta[int(y[i])]) - d[i, j]) + 0.2 > 0:
                    signs[int(y[i])] += kind
                    count += 1
    close(jax.jit(jax.grad(f))(beta), signs / count)


# --- miners in losses -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sampled_triplets_do_not_depend_on_the_block_size():
    z, y, _ = batch(5)
    select = mj.mining.distance_weighted(jax.random.key(3), 6)
    f = lambda size, **how: mj.losses.triplet(
        z, y, triplets=select, distance=mj.distances.chord, margin=2.0, block_size=size, **how
    )
    dense = f(None)
    for size in (1, 4, 9):
        close(f(size), dense)
    other = mj.mining.distance_weighted(jax.random.key(4), 6)
    assert abs(dense - mj.losses.triplet(z, y, triplets=other, distance=mj.distances.chord, margin=2.0)) > 1e-4
    where = jnp.arange(N) < 9
    padded = f(4, where=where)
    close(padded, mj.losses.triplet(z[:9], y[:9], triplets=select, distance=mj.distances.chord, margin=2.0))


def test_sampled_triplets_over_devices():
    z, y, _ = batch(5)
    z, y = z[:8], y[:8] // 2
    loss = lambda z, y, **how: mj.losses.triplet(
        z, y, triplets=mj.mining.distance_weighted(jax.random.key(3), 6), distance=mj.distances.chord, **how
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    close(jax.jit(mj.over_mesh(loss, "data", mesh))(z, y), loss(z, y))


def hardest(d, lists, fraction, sign):
    found = sorted((sign * d[i, j] for i, js in enumerate(lists) for j in js), reverse=True)
    limit = found[int(np.ceil(fraction * len(found))) - 1]
    return [[j for j in js if sign * d[i, j] >= limit] for i, js in enumerate(lists)]


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_hard_fraction_is_that_of_the_whole_batch(fraction):
    z, y, _ = batch(6)
    d, (positives, negatives) = oracle.matrix("chord", np.asarray(z), np.asarray(z)), oracle.neighbours(np.asarray(y))
    kept = hardest(d, positives, fraction, 1), hardest(d, negatives, fraction, -1)
    expected = oracle.contrastive(d, *kept, margin=2.0)
    miner = mj.mining.hard_fraction(fraction)
    for size in (None, 4):
        close(mj.losses.contrastive(z, y, margin=2.0, miner=miner, block_size=size), expected)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    over = mj.over_mesh(mj.losses.contrastive, "data", mesh)
    for size in (None, 3):
        close(jax.jit(lambda z, y, size=size: over(z, y, margin=2.0, miner=miner, block_size=size))(z, y), expected)


@pytest.mark.slow
def test_miners_beyond_a_row_in_chains_and_switches():
    z, y, _ = batch(8)
    d, (positives, negatives) = oracle.matrix("chord", np.asarray(z), np.asarray(z)), oracle.neighbours(np.asarray(y))
    near = [[j for j in js if d[i, j] < 1.2] for i, js in enumerate(negatives)]
    kept = hardest(d, positives, 0.5, 1), hardest(d, near, 0.5, -1)
    expected = oracle.contrastive(d, *kept, margin=2.0)
    angular = mj.mining.angular(0.6)
    parts = (
        mj.mining.chain(mj.mining.pair_margin(0.0, 1.2), mj.mining.hard_fraction(0.5)),
        mj.mining.chain(angular, mj.mining.hard_fraction(1.0)),
    )
    loss = lambda miner, size: mj.losses.contrastive(z, y, margin=2.0, miner=miner, block_size=size)
    f = jax.jit(lambda index, size: loss(mj.mining.switch(index, parts), size), static_argnums=1)
    for size in (None, 4):
        close(f(0, size), expected)
        close(f(1, size), loss(angular, None))


@pytest.mark.slow
def test_hard_fraction_of_nothing_and_in_float64(x64):
    z, y, _ = batch(6, dtype=np.float64)
    f = lambda fraction, y: mj.losses.contrastive(z, y, miner=mj.mining.hard_fraction(fraction), block_size=4)
    assert f(0.0, y) == 0
    assert f(0.5, jnp.arange(N) * 0) > 0  # no negatives
    close(f(1.0, y), mj.losses.contrastive(z, y), rtol=1e-12)
    close(jax.vmap(lambda v: f(v, y))(jnp.array([0.2, 0.9])), [f(0.2, y), f(0.9, y)], rtol=1e-12)


def test_angular_miner_equals_its_definition():
    z, y, _ = batch(7)
    points = np.asarray(z, np.float64) / np.linalg.norm(np.asarray(z, np.float64), axis=1, keepdims=True)
    d, (positives, negatives) = oracle.matrix("chord", points, points), oracle.neighbours(np.asarray(y))
    angle, kept = 0.6, ([[] for _ in range(N)], [[] for _ in range(N)])
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        for p in ps:
            for n in ns:
                if np.arctan(d[i, p] / (2 * np.linalg.norm((points[i] + points[p]) / 2 - points[n]))) > angle:
                    kept[0][i].append(p)
                    kept[1][i].append(n)
    lists = [[sorted(set(js)) for js in side] for side in kept]
    assert 0 < sum(map(len, lists[1])) < sum(map(len, negatives))
    expected = oracle.contrastive(d, *lists, margin=2.0)
    for size in (None, 4):
        close(mj.losses.contrastive(z, y, margin=2.0, miner=mj.mining.angular(angle), block_size=size), expected)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_clear_errors(unchecked):
    z, y, _ = batch()
    with pytest.raises(ValueError, match="variant is 'inside'; wanted 'out' or 'in'"):
        mj.losses.supcon(z, y, variant="inside")
    with pytest.raises(ValueError, match="beta has shape"):
        mj.losses.margin(z, y, beta=jnp.ones((2, 2)))
    with pytest.raises(TypeError, match="same is given; log_ratio compares labels"):
        mj.losses.log_ratio(z, y, same=mj.relations.equal)
    with pytest.raises(TypeError, match="references is given; centroid_triplet makes"):
        mj.losses.centroid_triplet(z, y, references=z, reference_labels=y)
    with pytest.raises(ValueError, match="state has shape"):
        mj.losses.dynamic_soft_margin(z, y, jnp.zeros(1))
    with pytest.raises(ValueError, match="bins is 0"):
        mj.losses.histogram(z, y, bins=0)
    for loss in (mj.losses.margin, mj.losses.quadruplet, mj.losses.centroid_triplet):
        with pytest.raises(ValueError, match="average is 'mean'"):
            loss(z, y, average="mean")
