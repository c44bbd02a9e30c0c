"""Samples of classes: which they are, alone and over eight virtual devices, and losses and training with them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import metricjax as mj
from metricjax.prototypes import sample
from tests.helpers.batches import slow_unless
from tests.helpers.meshes import assert_same, axes, mesh_of, put

C, D, COUNT, Y, OTHERS = 20, 5, 8, jnp.array([7, 2, 7, 11]), sorted(set(range(20)) - {2, 7, 11})
KEYS = jax.random.split(jax.random.key(3), 3000)
Z, W = (jnp.asarray(np.random.default_rng(0).standard_normal((n, D)), jnp.float32) for n in (4, C))


def test_classes_of_the_batch_and_others_at_random():
    """Each of the others as often as any: chi-square with 16 degrees of freedom, 0.999 quantile 39.3."""
    drawn = np.asarray(jax.vmap(lambda key: sample(key, Y, C, COUNT))(KEYS))
    assert drawn.shape == (3000, COUNT) and drawn.dtype == np.int32
    assert np.all(np.diff(drawn) > 0) and drawn.min() >= 0 and drawn.max() < C
    counts, share = np.bincount(drawn.ravel(), minlength=C), (COUNT - 3) / len(OTHERS)
    assert counts[[2, 7, 11]].tolist() == [3000] * 3
    assert np.sum((counts[OTHERS] - 3000 * share) ** 2) / (3000 * share * (1 - share)) * 16 / 17 < 39.3
    assert np.mean((drawn == 4).any(1) & (drawn == 5).any(1)) == pytest.approx(share * (COUNT - 4) / 16, abs=0.02)
    assert np.array_equal(jax.jit(sample, static_argnums=(2, 3))(KEYS[0], Y, C, COUNT), drawn[0])


def test_rows_without_a_class_and_masked_rows_claim_none():
    draw = lambda y, where=None: np.asarray(jax.vmap(lambda key: sample(key, y, C, 5, where=where))(KEYS[:100]))
    got = draw(jnp.array([-1, C, 2**31 - 1, 3, 9]), jnp.arange(5) < 4)
    assert np.all((got == 3).any(1)) and not np.all((got == 9).any(1)) and np.all(np.diff(got) > 0)
    np.testing.assert_array_equal(got, draw(jnp.array([3, -1, -1, -1, -1])))
    assert sample(KEYS[0], jnp.zeros(0, jnp.int32), C, 3).shape == (3,)


def test_all_classes_narrow_labels_and_errors(unchecked):
    for dtype in (jnp.uint8, jnp.int8, jnp.int16, jnp.uint32):  # of which the first two cannot name 300 classes
        y = jnp.array([0, 100, min(jnp.iinfo(dtype).max, 299)], dtype)
        assert set(y.tolist()) <= set(sample(KEYS[0], y, 300, 4).tolist())
    assert sample(KEYS[0], Y, C, C).tolist() == list(range(C))
    assert sample(KEYS[0], jnp.zeros(9, jnp.int32), 5, 5).tolist() == list(range(5))  # more rows than classes
    for count in (3, C + 1):
        with pytest.raises(ValueError, match=rf"count is {count}; wanted from 4 .* to {C}"):
            sample(KEYS[0], Y, C, count)


@axes
@pytest.mark.parametrize("classes, count", [(75, 8), (75, 10), (33, 5), (5, 1)])
def test_each_device_samples_its_own(classes, count, axis):
    """Five classes of 75 are on the last device, and none of 33; only four rows exist."""
    mesh, split, size = mesh_of(axis), PartitionSpec("data"), -(-classes // 8)
    local = lambda key, y, where: sample(key, y, classes, count, where=where, axis_name="data")
    over = jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), split, split), out_specs=split)
    y, where = np.random.default_rng(2).integers(0, classes, 8), np.arange(8) % 2 == 0
    many, wanted = jax.jit(jax.vmap(over, in_axes=(0, None, None))), set(y[where].tolist())
    drawn = np.asarray(many(KEYS[:40], *put(mesh, y, where))).reshape(40, 8, count)
    for device, held in enumerate(set(range(i * size, (i + 1) * size)) for i in range(8)):
        for ids in drawn[:, device]:
            assert wanted & held <= set(ids.tolist()) <= held and np.all(np.diff(ids) > 0)
            assert np.sum(ids < classes) == min(count, sum(k < classes for k in held))
    untouched = [i for i in range(7) if not wanted & set(range(i * size, (i + 1) * size))]
    assert count == size or len(np.unique(drawn[0, untouched] % size, axis=0)) > 1


def value_and_gradient(name, z, y, w, **options):
    """With respect to embeddings and prototypes; for `adaface` with its next state."""
    state = (jnp.array([2.0, 1.0]),) if name == "adaface" else ()
    loss = lambda z, w: getattr(mj.losses, name)(z, y, w, *state, **options)
    return jax.jit(jax.value_and_grad(lambda z, w: loss(z, w) if state else (loss(z, w), ()), (0, 1), has_aux=True))(
        z, w
    )


@pytest.mark.parametrize("name", slow_unless(("cosface",), ["cosface", "adaface", "sphereface2", "proxy_anchor"]))
def test_the_loss_of_a_sample_is_that_of_its_prototypes(name):
    """And of the rows whose class is in it, of which the third may be none."""
    classes, everything, left = sample(KEYS[0], Y, C, COUNT), sample(KEYS[0], Y, C, C), jnp.array([0, 1, 3])
    place = {k: i for i, k in enumerate(classes.tolist())}
    position = lambda y: jnp.array([place.get(k, -1) for k in y.tolist()])
    for y in (Y, Y.at[2].set(next(k for k in OTHERS if k not in place))):
        got = value_and_gradient(name, Z, y, W[classes], classes=classes)
        assert_same(got, value_and_gradient(name, Z, position(y), W[classes]))
    few = value_and_gradient(name, Z[left], position(Y[left]), W[classes])
    assert_same((got[0], (got[1][0][left], got[1][1])), few)
    assert not np.any(got[1][0][2]) and np.all(np.any(got[1][0][left], axis=1)) and np.all(np.any(got[1][1], axis=1))
    assert_same(value_and_gradient(name, Z, Y, W, classes=everything), value_and_gradient(name, Z, Y, W))


def test_training_on_samples_lowers_the_loss_of_all_classes(rng):
    z = jnp.asarray(np.repeat(rng.standard_normal((40, 16)), 4, axis=0) + 0.3 * rng.standard_normal((160, 16)))
    y, p = jnp.repeat(jnp.arange(40), 4), jnp.asarray(rng.standard_normal((40, 16)))
    optimizer, loss = mj.transforms.on_rows(optax.adam(0.1)), partial(mj.losses.cosface, scale=10.0)

    @jax.jit
    def step(p, state, key):
        rows = jax.random.permutation(key, len(z))[:8]
        classes = sample(key, y[rows], 40, 12)
        gradient = jax.jit(jax.grad(lambda w: loss(z[rows], y[rows], w, classes=classes)))(p[classes])
        with jax.numpy_dtype_promotion("standard"):  # Optax's own Adam raises a float to an integer power
            updates, state = optimizer.update(gradient, state, p[classes], rows=classes)
        return mj.transforms.apply_to_rows(p, updates, classes), state

    now, state = p, optimizer.init(p)
    for key in KEYS[:60]:
        now, state = step(now, state, key)
    assert loss(z, y, now) < 0.5 * loss(z, y, p)
