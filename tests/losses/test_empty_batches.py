"""Batches without rows, and references without any: 0 with gradients of 0, in every loss and what is made of losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import metricjax as mj
from tests.helpers.batches import slow_unless
from tests.helpers.cases import CLASS_PATHS, CLASSES, OFTEN, PAIRS, PATHS, VIEWS

D = 4
NOTHING, NO_LABELS = jnp.zeros((0, D)), jnp.zeros(0, jnp.int32)
Z = jnp.asarray(np.random.default_rng(0).standard_normal((6, D)), jnp.float32)
Y = jnp.arange(6) // 2
PANELS, BLOCKS = [PAIRS[name] for name in PATHS], [CLASSES[name] for name in CLASS_PATHS]
SELECTIONS = (
    mj.mining.batch_hard, mj.mining.easy_positive_hard_negative, mj.mining.semi_hard, mj.mining.semi_hard_of_hardest,
    mj.mining.semi_hard_within(), mj.mining.distance_weighted(jax.random.key(0), D), mj.mining.all_triplets,
)  # fmt: skip


def assert_zero(tree, like):
    """Zeros of the shapes and dtypes of the arguments."""
    assert jax.tree.map(lambda a: (a.shape, a.dtype), tree) == jax.tree.map(lambda a: (a.shape, a.dtype), like)
    assert not any(np.any(np.asarray(a)) for a in jax.tree.leaves(tree))  # nor NaN, which is true


def assert_zero_with_gradients(losses, *arguments):
    """Of several forms of a loss, in one program."""
    forms = [jax.value_and_grad(f, range(len(arguments))) for f in losses]
    for value, gradient in jax.jit(lambda *arguments: [f(*arguments) for f in forms])(*arguments):
        assert_zero(value, jnp.zeros(()))
        assert_zero(gradient, arguments)


@pytest.mark.parametrize("name", slow_unless(OFTEN, PAIRS))
def test_pair_loss(name):
    case = PAIRS[name]
    sizes = (None, 4) if case in PANELS else (None,)
    assert_zero_with_gradients([lambda z, size=size: case(z, NO_LABELS, block_size=size) for size in sizes], NOTHING)
    if "references" not in case.lacks:
        over = lambda size: lambda z, r: case(z, Y, references=r, reference_labels=NO_LABELS, block_size=size)
        assert_zero_with_gradients([over(size) for size in sizes], Z, NOTHING)


@pytest.mark.parametrize("name", slow_unless(OFTEN, CLASSES))
def test_class_loss(name):
    case = CLASSES[name]
    prototypes = jnp.stack([Z[:3], Z[3:]], axis=1) if case.several else Z[:3]
    sizes = (None, 2) if case in BLOCKS else (None,)
    forms = [lambda z, w, size=size: case(z, NO_LABELS, w, block_size=size) for size in sizes]
    assert_zero_with_gradients(forms, NOTHING, prototypes)


@pytest.mark.parametrize("case", VIEWS.values(), ids=VIEWS)
def test_loss_of_views_and_regulariser(case):
    given = [{"x": NOTHING, "y": NOTHING, "labels": NO_LABELS}[name] for name in case.takes]
    sizes = [{"block_size": size} for size in (None, 4)] if case.panels else [{}]
    assert_zero_with_gradients([lambda x, how=how: case(x, *given[1:], **how) for how in sizes], NOTHING)
    assert_zero_with_gradients([mj.losses.merged_centers], jnp.zeros((0, 2, D)))


def test_states_come_back_as_they_were():
    losses, key = mj.losses, jnp.array([3.0, 0.5])
    for loss, state in ((losses.curricularface, key[0]), (losses.adacos, key[0]), (losses.adaface, key)):
        value, new = loss(NOTHING, NO_LABELS, Z, state)
        assert float(value) == 0 and new.tolist() == state.tolist()
    value, new = losses.dynamic_soft_margin(NOTHING, NO_LABELS, jnp.array([0.25, 0.5, 0.25]))
    assert float(value) == 0 and new.tolist() == [0.25, 0.5, 0.25]
    assert losses.update_centers(Z, NOTHING, NO_LABELS).tolist() == Z.tolist()


@pytest.mark.parametrize("select", SELECTIONS, ids=lambda f: getattr(f, "__name__", None) or f.select.func.__name__)
def test_selections(select):
    loss = lambda size: lambda z: mj.losses.triplet(z, NO_LABELS, triplets=select, block_size=size)
    assert_zero_with_gradients([loss(None), loss(4)], NOTHING)


def test_options_and_what_is_made_of_losses():
    supcon, circle = mj.losses.supcon, mj.losses.circle
    for options in (
        {"miner": mj.mining.multi_similarity()}, {"miner": mj.mining.hard_fraction()}, {"weights": jnp.zeros(0)},
        {"where": jnp.zeros(0, bool)}, {"same": mj.relations.equal}, {"reduction": mj.with_count},
    ):  # fmt: skip
        for size in (None, 4):
            value = supcon(NOTHING, NO_LABELS, block_size=size, **options)
            assert not any(map(np.any, jax.tree.leaves(value)))
    own = mj.engine.reductions.as_mean  # of rows, of which there are none
    assert [a.shape for a in circle(NOTHING, NO_LABELS, reduction=own, block_size=4)] == [(0,), (0,)]
    assert [a.shape for a in mj.losses.cosface(NOTHING, NO_LABELS, Z, reduction=own)] == [(0,), (0,)]
    both, nested = mj.weighted_sum(supcon, circle), mj.matryoshka(supcon, (2, D))
    assert_zero_with_gradients([lambda z, f=f: f(z, NO_LABELS) for f in (both, nested)], NOTHING)
    assert jax.vmap(lambda z: supcon(z, NO_LABELS))(jnp.zeros((3, 0, D))).tolist() == [0, 0, 0]
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    assert float(jax.jit(mj.over_mesh(supcon, "data", mesh))(NOTHING, NO_LABELS)) == 0
    encode = mj.cached(lambda w, x: x @ w, 2)
    assert_zero_with_gradients([lambda w: supcon(encode(w, NOTHING), NO_LABELS)], jnp.eye(D))


def test_prototypes_of_no_class_are_an_error():
    with pytest.raises(ValueError, match="wanted at least one class"):
        mj.losses.cosface(Z, Y, NOTHING)
