"""Losses made of losses: equal to the losses that they are made of, at the cost of one; and schedules."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import metricjax as mj
from tests.helpers.batches import slow_unless
from tests.helpers.meshes import SPLIT, WHOLE, axes, mesh_of, put

losses, mining = mj.losses, mj.mining
partial = functools.partial
RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.standard_normal((16, 6)), jnp.float32)
R = jnp.asarray(RNG.standard_normal((9, 6)), jnp.float32)
W = jnp.asarray(RNG.standard_normal((4, 6)), jnp.float32)
Y = jnp.arange(16) % 4


def close(actual, wanted, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_close(actual, wanted, rtol=rtol, atol=atol * max(1, *map(jnp.max, jax.tree.leaves(wanted))))


def whole_rows(scores, positives, negatives, slope):
    terms = jnp.where(positives, -slope * scores, jnp.where(negatives, scores, 0))
    return mj.Mean(jnp.sum(terms, axis=-1), jnp.sum(negatives, axis=-1))


def whole(z, y, *, slope=2.0, **options):
    """A loss of one's own that gets positives and negatives in one array."""
    return mj.over_anchors(whole_rows, z, y, slope, similarity=mj.similarities.cosine, **options)


all_triplets = partial(losses.triplet, triplets=mining.all_triplets)
linear = partial(losses.contrastive, squared=False, positive_margin=0.2)
MIXES = {
    "apart": (losses.supcon, losses.multi_similarity, losses.circle),
    "apart and whole": (losses.nt_xent, whole, partial(whole, slope=0.5)),
    "two means each": (losses.contrastive, linear, losses.ranked_list),
    "by pair": (losses.contrastive, linear),
    "every way": (
        losses.supcon, losses.triplet, partial(losses.triplet, triplets=mining.semi_hard), losses.lifted_structure,
        losses.nt_xent,
    ),
    "within each other": (mj.weighted_sum(losses.supcon, losses.triplet, weights=(3.0, 1)), losses.circle),
    "prefixes": (mj.matryoshka(losses.supcon, (2, 6)), losses.circle),
}  # fmt: skip
OPTIONS = {
    "dense": {},
    "panels": {"block_size": 5},
    "all options": {
        "block_size": 5, "where": jnp.arange(16) < 14, "weights": jnp.linspace(0.5, 2, 16), "references": R,
        "reference_labels": jnp.arange(9) % 5, "reference_where": jnp.arange(9) < 8,
        "miner": mining.pair_margin(0.1, 1.2),
    },
}  # fmt: skip


def one_by_one(parts, weights):
    """What a weighted sum has to equal."""
    return lambda z, y, **options: sum(w * part(z, y, **options) for w, part in zip(weights, parts, strict=True))


def scales(parts):
    return tuple(0.5 + k for k in range(len(parts)))


@pytest.mark.parametrize("mix", slow_unless(["two means each", "every way"], MIXES))
@pytest.mark.parametrize("name", OPTIONS)
def test_weighted_sum_equals_one_by_one(mix, name):
    parts, options = MIXES[mix], OPTIONS[name]
    together = mj.weighted_sum(*parts, weights=scales(parts))
    run = lambda f: jax.jit(jax.value_and_grad(lambda z: f(z, Y, **options)))(Z)
    close(run(together), run(one_by_one(parts, scales(parts))))


def test_weighted_sum_with_class_based_losses_and_arithmetic():
    """A loss may also be a sum or a multiple of losses, of which only a first argument is known."""
    cosface = partial(losses.cosface, prototypes=W, scale=8.0)
    own = lambda z, y, **options: 2 * losses.supcon(z, y, **options) + losses.embedding_norm(z) * jnp.float32(0.1)
    for parts in ((losses.supcon, cosface), (own, losses.circle), (losses.clip, losses.info_nce)):
        y = Z[::-1] if losses.clip in parts else Y
        together = mj.weighted_sum(*parts)
        run = lambda f, y=y: jax.jit(
            jax.value_and_grad(lambda z: f(z, y, where=Y > 0, weights=jnp.linspace(0.5, 2, 16)))
        )(Z)
        close(run(together), run(one_by_one(parts, (1, 1))))


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 5])
def test_weights_are_traced_and_differentiable(size):
    parts = losses.supcon, losses.circle, losses.triplet
    f = lambda z, w: mj.weighted_sum(*parts, weights=w)(z, Y, block_size=size)
    weights = jnp.array([[1.0, 0.5, 2.0], [0.0, -1.0, 0.25]])
    both = jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1)), (None, 0)))
    g = lambda z, w: one_by_one(parts, w)(z, Y)
    separately = jax.jit(jax.value_and_grad(g, (0, 1)))
    wanted = [separately(Z, w) for w in weights]
    close(both(Z, weights), jax.tree.map(lambda *a: jnp.stack(a), *wanted))
    close(wanted[0][1][1], jnp.stack([part(Z, Y) for part in parts]))


@pytest.mark.slow
@axes
@pytest.mark.parametrize("size", [None, 3])
def test_weighted_sum_over_devices(axis, size):
    parts = losses.supcon, losses.contrastive, losses.circle, losses.triplet
    z, y, where = jnp.concatenate([Z, Z[::-1] + 1]), jnp.concatenate([Y, Y]), jnp.arange(32) < 21
    wanted = jax.jit(jax.value_and_grad(lambda z: one_by_one(parts, scales(parts))(z, y, where=where)))(z)
    mesh, together = mesh_of(axis), mj.weighted_sum(*parts, weights=scales(parts))
    arrays = put(mesh, z, y, where)
    over = mj.over_mesh(together, "data", mesh)
    close(jax.jit(jax.value_and_grad(lambda z, y, w: over(z, y, where=w, block_size=size)))(*arrays), wanted)
    local = lambda z, y, w: together(z, y, where=w, block_size=size, axis_name="data")
    inside = jax.shard_map(jax.grad(local), mesh=mesh, in_specs=(SPLIT,) * 3, out_specs=SPLIT)
    close(jax.jit(inside)(*arrays), wanted[1])


def test_weights_are_differentiable_over_devices():
    mesh, parts = mesh_of(jax.sharding.AxisType.Auto), (losses.supcon, losses.contrastive)

    def f(w, z, y):
        summed = lambda w, z, y: mj.weighted_sum(*parts, weights=w)(z, y, axis_name="data")
        return jax.shard_map(summed, mesh=mesh, in_specs=(WHOLE, SPLIT, SPLIT), out_specs=PartitionSpec())(w, z, y)

    w = jnp.array([1.0, 0.5])
    wanted = jax.jit(jax.value_and_grad(lambda w: one_by_one(parts, w)(Z, Y)))(w)
    close(jax.jit(jax.value_and_grad(f))(w, *put(mesh, Z, Y)), wanted)


# --- what compiled programs hold ------------------------------------------------------------------------------------


def program(loss, n=80, d=48, **options):
    z, y = jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    return jax.jit(jax.value_and_grad(lambda z, y: loss(z, y, **options))).lower(z, y)


def products(loss, **options):
    """Matrix products; there are two forms of a loss whose positives may come as a list, of which one runs."""
    return program(loss, **options).as_text().count("stablehlo.dot_general")


@pytest.mark.parametrize("size", [None, 16])
def test_losses_share_their_products(size):
    """Scores, and a product for the gradient of either end: as many as one loss has."""
    parts = MIXES["apart"]
    together = products(mj.weighted_sum(*parts), block_size=size)
    assert together == products(losses.circle, block_size=size) == 2 * 3
    assert products(one_by_one(parts, (1, 1, 1)), block_size=size) == 3 * together


def test_losses_that_count_active_terms_need_one_product_more_in_panels():
    """Each total is divided by its own count, which depends on scores: a sweep that counts comes first."""
    parts = all_triplets, partial(all_triplets, margin=0.9)
    assert products(all_triplets, block_size=16) == 2 * 3
    assert products(mj.weighted_sum(*parts), block_size=16) == 2 * 4
    assert products(mj.weighted_sum(*parts), block_size=None) == 2 * 3


def test_losses_by_pair_stay_cheap_together():
    """With a gradient that is the same from both ends of a pair, one product less."""
    alone = products(losses.contrastive, block_size=16)
    assert alone == products(mj.weighted_sum(losses.contrastive), block_size=16) == 2 * 3
    assert alone == products(mj.weighted_sum(losses.contrastive, linear), block_size=16)
    assert alone < products(mj.weighted_sum(losses.contrastive, losses.ranked_list), block_size=16)


@pytest.mark.slow
def test_memory_of_a_sum_is_that_of_one():
    n, d = 4096, 128
    used = program(mj.weighted_sum(*MIXES["apart"]), n, d).compile().memory_analysis().temp_size_in_bytes
    assert used <= 3 * n * d * 4 + 32 * 2**20


# --- prefixes -------------------------------------------------------------------------------------------------------

CONTINUOUS = jnp.asarray(RNG.standard_normal((16, 6)), jnp.float32)
OTHER = {"references": R, "reference_labels": jnp.arange(9) % 4}
# A loss for `matryoshka`, its arguments, and the value at a size, in which all that is cut is cut by hand.
NESTED = {
    "supcon": (losses.supcon, (Z, Y), {}, lambda k: losses.supcon(Z[:, :k], Y)),
    "panels": (losses.contrastive, (Z, Y), {"block_size": 5}, lambda k: losses.contrastive(Z[:, :k], Y)),
    "by name": (losses.supcon, (), {"labels": Y, "embeddings": Z}, lambda k: losses.supcon(Z[:, :k], Y)),
    "references": (
        losses.supcon, (Z, Y), OTHER, lambda k: losses.supcon(Z[:, :k], Y, **{**OTHER, "references": R[:, :k]})
    ),
    "references of a partial": (
        partial(losses.supcon, **OTHER), (Z, Y), {},
        lambda k: losses.supcon(Z[:, :k], Y, **{**OTHER, "references": R[:, :k]}),
    ),
    "prototypes": (
        losses.cosface, (Z, Y, W), {"scale": 4.0}, lambda k: losses.cosface(Z[:, :k], Y, W[:, :k], scale=4.0)
    ),
    "prototypes of a partial": (
        partial(losses.cosface, prototypes=W, scale=4.0), (Z, Y), {},
        lambda k: losses.cosface(Z[:, :k], Y, W[:, :k], scale=4.0),
    ),
    "centers": (losses.center, (Z, Y), {"centers": W}, lambda k: losses.center(Z[:, :k], Y, W[:, :k])),
    "second view": (losses.info_nce, (Z, CONTINUOUS), {}, lambda k: losses.info_nce(Z[:, :k], CONTINUOUS[:, :k])),
    "continuous labels": (losses.log_ratio, (Z, CONTINUOUS), {}, lambda k: losses.log_ratio(Z[:, :k], CONTINUOUS)),
    "labels of many levels": (
        losses.supcon, (Z, CONTINUOUS > 0), {"same": mj.relations.share_any},
        lambda k: losses.supcon(Z[:, :k], CONTINUOUS > 0, same=mj.relations.share_any),
    ),
    "no labels": (losses.koleo, (Z,), {}, lambda k: losses.koleo(Z[:, :k])),
    "of one's own": (lambda z, classes: losses.supcon(z, classes), (Z, Y), {}, lambda k: losses.supcon(Z[:, :k], Y)),
    "weighted sum": (
        mj.weighted_sum(losses.supcon, losses.circle), (Z, Y), OTHER,
        lambda k: sum(f(Z[:, :k], Y, **{**OTHER, "references": R[:, :k]}) for f in (losses.supcon, losses.circle)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_matryoshka_equals_cutting_by_hand(name):
    loss, arguments, options, at = NESTED[name]
    got = mj.matryoshka(loss, (2, 3, 6), weights=(0.5, 1, 2.0))(*arguments, **options)
    close(got, 0.5 * at(2) + at(3) + 2 * at(6))


@pytest.mark.parametrize("size", [None, 5])
def test_gradient_of_matryoshka(size):
    """Also of its weights, and over a batch of them."""
    at = lambda z, k: losses.supcon(z[:, :k], Y)
    f = lambda z, w: mj.matryoshka(losses.supcon, (2, 6), weights=w)(z, Y, block_size=size)
    weights = jnp.array([[1.0, 0.5], [0.0, 2.0]])
    got = jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1)), (None, 0)))(Z, weights)
    separately = jax.jit(jax.value_and_grad(lambda z, w: w[0] * at(z, 2) + w[1] * at(z, 6), (0, 1)))
    wanted = [separately(Z, w) for w in weights]
    close(got, jax.tree.map(lambda *a: jnp.stack(a), *wanted))


def test_matryoshka_over_devices():
    mesh, nested = mesh_of(jax.sharding.AxisType.Auto), mj.matryoshka(losses.supcon, (2, 6))
    wanted = jax.jit(jax.value_and_grad(lambda z: nested(z, Y)))(Z)
    close(jax.jit(jax.value_and_grad(mj.over_mesh(nested, "data", mesh)))(*put(mesh, Z, Y)), wanted)


def test_matryoshka_cuts_numpy_arrays(unchecked):
    nested = mj.matryoshka(losses.cosface, (2, 6))
    close(nested(np.asarray(Z), np.asarray(Y), np.asarray(W)), nested(Z, Y, W))


def test_what_does_not_fit_is_named():
    state = partial(losses.dynamic_soft_margin, state=jnp.zeros(5))
    wrong = {
        "weights has 1 numbers for 2 losses": lambda: mj.weighted_sum(losses.supcon, losses.circle, weights=[1.0]),
        "weights has 0 numbers for 0 losses": mj.weighted_sum,
        "weights has 1 numbers for 2 sizes": lambda: mj.matryoshka(losses.supcon, (2, 4), weights=[1.0]),
        "weights has 0 numbers for 0 sizes": lambda: mj.matryoshka(losses.supcon, ()),
        r"sizes are \(0, 4\); wanted numbers from 1 to the 6": lambda: mj.matryoshka(losses.supcon, (0, 4))(Z, Y),
        r"sizes are \(7,\); wanted numbers from 1 to the 6": lambda: mj.matryoshka(losses.supcon, (7,))(Z, Y),
        "reduction is given; weighted_sum reduces each loss by its own mean": lambda: mj.weighted_sum(losses.supcon)(
            Z, Y, reduction=mj.with_count
        ),
        "weighted_sum adds losses that return one number": lambda: mj.weighted_sum(losses.supcon, state)(Z, Y),
        "matryoshka adds losses that return one number": lambda: mj.matryoshka(state, (2, 6))(Z, Y),
        "unknown options": lambda: mj.weighted_sum(losses.supcon, losses.circle)(Z, Y, margin=0.1),
    }
    for message, call in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()


# --- schedules ------------------------------------------------------------------------------------------------------


def counted(f):
    """`f` under `jit`, and a list that grows with each trace."""
    traces = []
    return jax.jit(lambda step: traces.append(None) or f(step)), traces


@pytest.mark.parametrize("size", [None, 5])
def test_a_margin_on_a_schedule(size):
    margin = optax.linear_schedule(0.1, 0.5, 20)
    f = lambda m: losses.triplet(Z, Y, margin=m, block_size=size) + losses.circle(Z, Y, margin=m, block_size=size)
    scheduled, traces = counted(lambda step: f(margin(step)))
    for step in (0, 10, 30):
        close(scheduled(step), f(float(margin(step))))
    assert len(traces) == 1


MINERS = (mining.chain(), mining.multi_similarity(0.1), mining.rank_range((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 5])
def test_miners_on_a_schedule(size):
    """One after another by `switch`, and one whose limit moves."""
    loss = partial(losses.multi_similarity, beta=2.0, block_size=size)
    f = lambda miner: jax.jit(jax.value_and_grad(lambda z: loss(z, Y, miner=miner)))(Z)
    in_turn, traces = counted(lambda step: f(mining.switch(step // 10, MINERS)))
    values = []
    for step, miner in ((0, MINERS[0]), (15, MINERS[1]), (29, MINERS[2]), (99, MINERS[2])):
        values.append(float(in_turn(step)[0]))
        close(in_turn(step), f(miner))
    assert len(traces) == 1 and len(set(values)) == 3
    moving, traces = counted(lambda step: f(mining.multi_similarity(0.01 * step)))
    for step in (0.0, 30.0):
        close(moving(step), f(mining.multi_similarity(0.01 * step)))
    assert len(traces) == 1


def test_a_miner_on_a_schedule_in_a_weighted_sum():
    parts = losses.supcon, losses.circle
    f = lambda loss, miner: jax.jit(jax.value_and_grad(lambda z: loss(z, Y, miner=miner, block_size=5)))(Z)
    scheduled, traces = counted(lambda step: f(mj.weighted_sum(*parts), mining.switch(step // 10, MINERS)))
    for step, miner in ((5, MINERS[0]), (25, MINERS[2])):
        close(scheduled(step), f(one_by_one(parts, (1, 1)), miner))
    assert len(traces) == 1
