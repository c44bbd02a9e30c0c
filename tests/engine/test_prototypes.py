"""What the prototype driver does for every class-based loss: blocks of classes, classes over devices, options."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import metricjax as mj
from tests.helpers import oracle, oracle_classes
from tests.helpers.batches import D, batch, class_paths, close, each_of, inputs, slow_unless
from tests.helpers.cases import CLASS_PATHS, CLASSES, OFTEN
from tests.helpers.meshes import assert_same, mesh_of, put
from tests.helpers.programs import run


def weighted(case):
    return {} if "weights" in case.lacks else {"weights": jnp.linspace(0.5, 2.0, 14)}


# --- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_unless(OFTEN, CLASSES))
def test_blocks_equal_dense(name):
    """Of ragged sizes too, with the gradients of prototypes and of a hyper-parameter."""
    case = CLASSES[name]
    z, y, prototypes = inputs(case, 1)
    varied = {case.varied: case.values[0]} if case.varied else {}

    def run(size):
        f = lambda z, w, varied: case(z, y, w, block_size=size, num_classes=4, **weighted(case), **varied)
        return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(z, prototypes, varied)

    dense = run(None)
    scale = max(1.0, *(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(dense)))
    for size in (2, 4):
        chex.assert_trees_all_close(run(size), dense, rtol=2e-5, atol=2e-6 * scale)


@pytest.mark.slow
@each_of(CLASS_PATHS, ("softmax", "sub_center_arcface", "proxy_anchor"))
def test_blocks_under_jit_and_vmap(case):
    batches = [inputs(case, seed) for seed in (2, 3)]
    f = lambda z, y, w: run(case, z, y, w, block_size=2)
    mapped = jax.jit(jax.vmap(f))(*(jnp.stack(a) for a in zip(*batches, strict=True)))
    loop = [f(*each) for each in batches]
    chex.assert_trees_all_close(mapped, jax.tree.map(lambda *a: jnp.stack(a), *loop), rtol=1e-4, atol=1e-5)


@class_paths
@pytest.mark.parametrize("name", ["one class", "zero prototypes", "all masked", "huge"])
def test_degenerate_blocks(case, name, debug_nans):
    z, y, prototypes = inputs(case, 4)
    options = {"where": jnp.zeros(len(z), bool)} if name == "all masked" else {}
    z = 1e4 * z if name == "huge" else z
    prototypes = {"one class": prototypes[:1], "zero prototypes": 0 * prototypes}.get(name, prototypes)
    value, gradients = run(case, z, y, prototypes, block_size=2, **options)
    chex.assert_tree_all_finite((value, gradients))
    dense = run(case, z, y, prototypes, **options)
    rounding = 2e-3 if name == "huge" else 1e-5  # logits of 10⁴ are rounded to 10⁻³
    largest = max(1.0, *(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(dense)))
    chex.assert_trees_all_close((value, gradients), dense, rtol=1e-4, atol=rounding * largest)


@pytest.mark.slow
@pytest.mark.parametrize("falling", [False, True])
def test_logits_that_rise_far_from_block_to_block(falling):
    """By more than a float's exponent holds, for some rows, while for others they hardly move."""
    angles = jnp.linspace(3.0, 0.0, 12)[:: -1 if falling else 1]
    w = jnp.stack([jnp.cos(angles), jnp.sin(angles), jnp.zeros(12)], axis=1)
    z, y = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.7, 0.7, 0.1]]), jnp.array([2, 5, 7])
    run = lambda size: jax.jit(jax.value_and_grad(mj.losses.cosface, (0, 2)), static_argnames="block_size")(
        z, y, w, scale=1000.0, block_size=size
    )
    for size in (1, 5):
        chex.assert_trees_all_close(run(size), run(None), rtol=1e-4, atol=1e-3)


def test_prototypes_of_any_length_in_blocks(debug_nans):
    """Cosines are made by another path there; the gradient of a prototype grows as its length falls."""
    z, y, prototypes = batch(5)
    lengths = jnp.array([1e-25, 1e-12, 0.0, 1.0, 1e12, 1e25])[: len(prototypes), None]
    run = lambda size: jax.jit(jax.value_and_grad(mj.losses.cosface, (0, 2)), static_argnames="block_size")(
        z, y, lengths * prototypes, block_size=size
    )
    (value, (to_z, to_w)), (expected, (expected_z, expected_w)) = run(2), run(None)
    chex.assert_trees_all_close(
        (value, to_z, lengths * to_w), (expected, expected_z, lengths * expected_w), rtol=1e-4, atol=1e-5
    )


def test_dense_has_forward_mode():
    z, y, prototypes = batch(5)
    f = lambda w: mj.losses.arcface(z, y, w, block_size=None)
    chex.assert_trees_all_close(jax.jacfwd(f)(prototypes), jax.jit(jax.grad(f))(prototypes), rtol=1e-4, atol=1e-5)


def test_bfloat16_prototypes_keep_their_dtype_in_blocks():
    z, y, prototypes = batch(5)
    half, gradient = prototypes.astype(jnp.bfloat16), {}
    for size in (None, 2):
        gradient[size] = jax.jit(jax.grad(mj.losses.cosface, 2), static_argnames="block_size")(
            z, y, half, block_size=size
        )
        assert gradient[size].dtype == jnp.bfloat16
    close(gradient[2].astype(jnp.float32), gradient[None].astype(jnp.float32), rtol=2e-2, atol=1e-3)


def test_many_rows_of_one_class_do_not_vanish_in_a_bfloat16_sum():
    n = 600
    z = jnp.tile(jnp.array([[0.6, 0.8, 0.0, 0.0, 0.0, 0.0]]), (n, 1))
    half, y = jnp.eye(3, D, dtype=jnp.bfloat16), jnp.zeros(n, int)
    gradient = lambda size: jax.jit(jax.grad(mj.losses.cosface, 2), static_argnames="block_size")(
        z, y, half, scale=1.0, block_size=size
    )
    expected = jax.jit(jax.grad(mj.losses.cosface, 2))(z, y, half.astype(jnp.float32), scale=1.0)
    for size in (None, 2):
        close(gradient(size).astype(jnp.float32), expected, rtol=1e-2, atol=1e-4)


def used(name, n, classes, size):
    """Bytes of temporaries of value and gradients."""
    array = jax.ShapeDtypeStruct
    arguments = array((n, 128), jnp.float32), array((n,), jnp.int32), array((classes, 128), jnp.float32)
    f = jax.value_and_grad(lambda z, y, w: CLASSES[name](z, y, w, block_size=size), (0, 2))
    return jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_temporaries_in_blocks():
    """At most a sixth of the dense form's, and for many classes a tenth of the logits and their gradient."""
    assert used("cosface", 512, 50_000, "auto") <= used("cosface", 512, 50_000, None) / 6
    assert used("adaface", 256, 1_000_000, "auto") <= 0.1 * 2 * 256 * 1_000_000 * 4


# --- options --------------------------------------------------------------------------------------------------------


@class_paths
def test_padding_of_classes_changes_nothing(case):
    z, y, prototypes = inputs(case, 6)
    y = jnp.where(y == 4, 9, y)  # 9 is no class
    padded = jnp.concatenate([prototypes[:4], jnp.full_like(prototypes[:2], 7.0)])
    value, gradients = jax.jit(jax.value_and_grad(lambda z, w: case(z, y, w, num_classes=4), (0, 1)))(z, padded)
    small, expected = jax.jit(jax.value_and_grad(lambda z, w: case(z, y, w), (0, 1)))(z, prototypes[:4])
    close(value, small)
    close(gradients[0], expected[0])
    close(gradients[1], jnp.concatenate([expected[1], jnp.zeros_like(padded[4:])]))


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("name", ["cosface", "arcface", "sub_center_arcface"])
def test_label_smoothing_equals_the_oracle(name, size):
    z, y, prototypes = inputs(CLASSES[name], 7)
    hyper = {"scale": 10.0, "margin": 0.3}
    cosines = np.array([[[oracle.cosine_similarity(v, p) for p in np.atleast_2d(c)] for c in prototypes] for v in z])
    logits = 10.0 * cosines.max(axis=2)
    for row, k, c in zip(logits, y, cosines.max(axis=2), strict=True):
        row[k] = 10.0 * (c[k] - 0.3 if name == "cosface" else oracle_classes._added(c[k], 0.3))
    expected = np.mean(oracle_classes.label_smoothing(logits, np.asarray(y), 0.2))
    close(CLASSES[name](z, y, prototypes, label_smoothing=0.2, block_size=size, **hyper), expected)


@pytest.mark.parametrize("size", [None, 2])
def test_classes_that_score_too_well_are_left_out(size):
    z, y, prototypes = batch(8)
    losses = []
    for v, k in zip(z, y, strict=True):
        cosines = [oracle.cosine_similarity(v, p) for p in prototypes]
        kept = [10 * c for j, c in enumerate(cosines) if j == k or c <= 0.3]
        losses.append(oracle._log_sum_exp(kept) - 10 * cosines[k])
    options = {"ignore_above": 0.3, "block_size": size}
    close(mj.losses.normalized_softmax(z, y, prototypes, temperature=0.1, **options), np.mean(losses))


@pytest.mark.slow
def test_gradients_of_label_smoothing_and_threshold_match_finite_differences(x64):
    z, y, prototypes = batch(9, dtype=np.float64)
    for size in (None, 2):
        f = lambda z, w, e, s=size: mj.losses.cosface(
            jnp.asarray(z), y, jnp.asarray(w), scale=5.0, label_smoothing=e, ignore_above=0.5, block_size=s
        )
        jax.test_util.check_grads(f, (z, prototypes, jnp.float64(0.1)), order=1, modes=["rev"], eps=1e-6, rtol=1e-4)


@pytest.mark.parametrize("variant", ["arcface", "sphereface_r"])
def test_straight_through_gradient_is_that_without_a_margin(variant):
    """At a target whose logit is as high as without a margin the weights agree; so do then the gradients."""
    loss, z = getattr(mj.losses, variant), jnp.array([[1.0, 0.0, 0.0]])
    w, y = jnp.array([[0.8, 0.6, 0.0], [0.0, 1.0, 0.0]]), jnp.array([0])
    through = jax.jit(jax.grad(lambda z: loss(z, y, w, scale=1.0, gradient="straight_through")))(z)
    value, exact = (loss(z, y, w, scale=1.0, gradient=kind) for kind in ("straight_through", "exact"))
    close(value, exact, rtol=1e-6)
    plain = lambda z: mj.losses.normalized_softmax(z, y, w, temperature=1.0)
    share = lambda loss: 1 - np.exp(-float(loss))  # how much the target's logit is pulled
    close(through, jax.jit(jax.grad(plain))(z) * share(exact) / share(plain(z)), rtol=1e-5)
    assert np.abs(through - jax.jit(jax.grad(lambda z: loss(z, y, w, scale=1.0)))(z)).max() > 1e-3


def test_narrow_labels_and_many_classes():
    z, y, prototypes = batch(10)
    many = jnp.concatenate([prototypes] * 60)
    close(mj.losses.cosface(z, y.astype(jnp.int8), many), mj.losses.cosface(z, y, many))


def test_errors(unchecked):
    z, y, prototypes = batch(11)
    loss = mj.losses.cosface
    with pytest.raises(TypeError, match="unknown options \\['miner'\\]; besides its own, a class-based loss takes"):
        loss(z, y, prototypes, miner=None)
    with pytest.raises(ValueError, match="block_size is 0; wanted 'auto', None or a positive int"):
        loss(z, y, prototypes, block_size=0)
    with pytest.raises(TypeError, match="label_smoothing is for losses that are a softmax cross-entropy"):
        mj.losses.proxy_nca(z, y, prototypes, label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"classes is int32\[3\]; wanted one integer id for each of the 5"):
        loss(z, y, prototypes, classes=jnp.arange(3))
    with pytest.raises(ValueError, match=r"prototypes has shape \(5, 6\); wanted \[classes, prototypes of each, 6\]"):
        mj.losses.soft_triple(z, y, prototypes)
    with pytest.raises(ValueError, match=r"prototypes has shape \(0, 6\); wanted at least one class"):
        loss(z, y, prototypes[:0])
    with pytest.raises(ValueError, match="num_classes is 9; wanted 1 to 5"):
        loss(z, y, prototypes, num_classes=9)
    with pytest.raises(TypeError, match="weights is given; terms of proxy_anchor"):
        mj.losses.proxy_anchor(z, y, prototypes, weights=jnp.ones(len(z)))
    with pytest.raises(ValueError, match=r"state has shape \(3,\); wanted \(2,\)"):
        mj.losses.adaface(z, y, prototypes, jnp.zeros(3))
    with pytest.raises(ValueError, match="variant is 'arccos'; wanted 'arc' or 'cos'"):
        mj.losses.elasticface(z, y, prototypes, jax.random.key(0), variant="arccos")


# --- devices --------------------------------------------------------------------------------------------------------

ROWS, COUNT = 16, 19  # classes: three on each of eight devices, two of them padding on the last but one, and none there


def spread(case, seed=0):
    rng = np.random.default_rng(seed)
    shape = (24, 2, D) if case.several else (24, D)
    z, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((ROWS, D), shape))
    y = jnp.asarray(rng.integers(-1, COUNT, ROWS))
    return z, y, jnp.arange(ROWS) < 11, w


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless(["softmax", "curricularface", "proxy_anchor"], CLASS_PATHS))
def test_eight_devices_equal_one(name):
    case, mesh = CLASSES[name], mesh_of(AxisType.Explicit)
    z, y, where, w = spread(case)
    how = {"num_classes": COUNT, **({} if "weights" in case.lacks else {"weights": jnp.linspace(0.5, 2.0, ROWS)})}
    one = jax.jit(jax.value_and_grad(lambda z, w: case(z, y, w, where=where, **how), (0, 1)))(z, w)
    loss = mj.over_mesh(case, "data", mesh)
    split = put(mesh, z, y, where, w)
    for size in (2, None):
        f = jax.value_and_grad(lambda z, y, where, w, s=size: loss(z, y, w, where=where, block_size=s, **how), (0, 3))
        assert_same(jax.jit(f)(*split), one)


@pytest.mark.parametrize("name", slow_unless(OFTEN, ["curricularface", "adaface", "adacos"]))
def test_states_are_those_of_one_device(name):
    case, mesh = CLASSES[name], mesh_of(AxisType.Auto)
    z, y, where, w = spread(case)
    how = {"where": where, "num_classes": COUNT}
    one = case.loss(z, y, w, *case._extra(), **how)
    loss = mj.over_mesh(case.loss, "data", mesh)
    assert_same(jax.jit(lambda *arrays: loss(*arrays, **how))(z, y, w, *case._extra()), one)


@pytest.mark.parametrize(
    "name", slow_unless(OFTEN, ["adaface", "proxy_anchor", "cosface", "sphereface2", "adacos", "uniface"])
)
def test_samples_on_eight_devices_equal_one_with_their_real_classes(name):
    """The last devices sample padding too, which counts nowhere, in default biases and scales neither."""
    case, mesh, split = CLASSES[name], mesh_of(AxisType.Auto), jax.sharding.PartitionSpec("data")
    z, y, where, w = spread(case)
    sampled = lambda y: mj.prototypes.sample(jax.random.key(0), y, COUNT, 3, axis_name="data")
    over = lambda f, count, out: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(split,) * count, out_specs=out))
    ids = over(sampled, 1, split)(y)
    real = ids[ids < COUNT]

    def local(z, y, where, w):
        ids = sampled(y)
        return case(z, y, w[ids % len(w)], where=where, classes=ids, num_classes=COUNT, axis_name="data", block_size=2)

    whole = over(local, 4, jax.sharding.PartitionSpec())
    got = jax.jit(jax.value_and_grad(whole, (0, 3)))(*put(mesh, z, y, where, w))
    one = jax.jit(jax.value_and_grad(lambda z, w: case(z, y, w[real], where=where, classes=real), (0, 1)))(z, w)
    assert_same(got, one)


def test_centers_move_alike_on_eight_devices():
    z, y, where, w = spread(CLASSES["center"])
    mesh, split = mesh_of(AxisType.Auto), jax.sharding.PartitionSpec("data")
    move = lambda c, z, y, where: mj.losses.update_centers(c, z, y, where=where, axis_name="data")
    spread_out = jax.jit(jax.shard_map(move, mesh=mesh, in_specs=split, out_specs=split))
    assert_same(spread_out(*put(mesh, w, z, y, where)), mj.losses.update_centers(w, z, y, where=where))


def test_over_mesh_refuses_classes_that_do_not_fit():
    z, y, _, w = spread(CLASSES["cosface"])
    with pytest.raises(ValueError, match=r"prototypes has 19 rows; wanted .* 8 devices \(see `num_classes`\)"):
        mj.over_mesh(mj.losses.cosface, "data", mesh_of(AxisType.Auto))(z, y, w[:COUNT])


def test_the_gradient_of_prototypes_stays_on_its_device():
    """Embeddings travel once and their gradient back once; nothing of the size of the prototypes travels."""
    z, y, _, w = spread(CLASSES["cosface"])
    mesh = mesh_of(AxisType.Auto)
    loss = mj.over_mesh(mj.losses.cosface, "data", mesh)
    f = jax.jit(jax.grad(lambda z, y, w: loss(z, y, w, block_size=2), (0, 2)))
    text = f.lower(*put(mesh, z, y, w)).compile().as_text()
    moves = [line for line in text.splitlines() if any(f" {kind}(" in line for kind in COLLECTIVES)]
    whole = [line for line in moves if f"f32[{ROWS},{D}]" in line.split("(")[0]]
    assert len(whole) == 1, whole
    assert not [line for line in moves if "24,6]" in line or "3,6]" in line]


COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
