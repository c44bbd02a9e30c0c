"""Every public loss of embeddings and labels through every invariant (test_views.py has the others).

test_catalogue.py sees to it that none is missing. What a row function can get wrong is asked of every loss: its value,
its gradient, rows that do not exist, references, degenerate and broken batches, lengths of embeddings, half precision.
What the engine does before and after the row function, which gets scores and masks and returns a total and a count for
each row, is asked of the losses of `PATHS` and `CLASS_PATHS`, one for each way through it: miners, relations, weights,
the order and the size of the batch, masks against smaller batches, reductions and their gradients, `vmap`, `jit`,
derivatives of a higher order, tracing once, panels, and lists of positives.

Tests share compiled programs: see `tests.helpers.programs`. Of the ways, `OFTEN` is run each time, and the rest as slow
tests.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine.sizes import LIST
from tests.helpers import oracle
from tests.helpers.batches import (
    C,
    D,
    N,
    assert_finite,
    batch,
    class_paths,
    classes,
    close,
    each_of,
    inputs,
    pairs,
    pairs_with,
    paths,
    paths_with,
)
from tests.helpers.cases import CLASS_PATHS, CLASSES, OFTEN, PAIRS, PATHS, SCALED, VIEWS
from tests.helpers.programs import run, usual, value_and_grad

BOTH = {**PAIRS, **CLASSES}
WAYS = (*PATHS, *CLASS_PATHS)


def is_a_way(case):
    return any(case is BOTH[name] for name in WAYS)


every, every_way = each_of(BOTH), each_of(BOTH, WAYS)
every_path = each_of(WAYS, OFTEN)


# --- values ---------------------------------------------------------------------------------------------------------


@pairs
def test_pair_loss_equals_the_oracle(case):
    z, y, _ = batch()
    close(case(z, y), case.expected(z, y))
    for value in case.values if case.varied else ():
        close(run(case, z, y, **{case.varied: value})[0], case.expected(z, y, **{case.varied: value}))


def with_references(seed):
    """References, and some of them that do not exist."""
    references, labels, _ = batch(seed, n=9)
    return {"references": references, "reference_labels": labels, "reference_where": jnp.arange(9) % 4 != 1}


@pairs_with("references")
def test_pair_loss_over_references_equals_the_oracle(case):
    (z, y, _), given = batch(1), with_references(2)
    value, gradients = run(case, z, y, block_size=5, weights=jnp.ones(N), **given)
    close(value, case.expected(z, y, **usual(case), **given))
    assert np.abs(gradients["references"]).max() > 0
    assert not np.any(gradients["references"][~given["reference_where"]])
    if is_a_way(case):
        close(case(z, y, block_size=None, **given), case.expected(z, y, **given))
        dense = run(case, z, y, weights=jnp.ones(N), **given)
        chex.assert_trees_all_close((value, gradients), dense, rtol=2e-5, atol=5e-6)


@paths_with("same")
def test_custom_label_relation(case):
    z, y, _ = batch(3)
    several = jnp.stack([y == 0, y == 1, (y == 2) | (y == 0), y >= 3], axis=1)
    share = lambda a, b: (a & b).any()
    close(case(z, several, same=share), case.expected(z, several, same=share), rtol=1e-4)


def nearest_negatives(distances, positives, negatives):
    """A miner that keeps the negatives nearer than 1 in the loss's measure."""
    return positives, negatives & (distances < 1)


@paths_with("miner")
def test_miner_equals_the_oracle_on_what_it_keeps(case):
    z, y, _ = batch(4)
    expected = case.expected(z, y, mined=lambda distance: distance < 1)
    for block_size in (None, 4):
        close(case(z, y, miner=nearest_negatives, block_size=block_size), expected)


@pytest.mark.slow
@paths
def test_classes_too_large_for_lists_of_positives(case):
    rng = np.random.default_rng(5)
    n = LIST + 8
    y = jnp.asarray(rng.permutation(n) >= LIST + 2, jnp.int32)
    z = jnp.asarray(rng.standard_normal((2, D))[y] + rng.standard_normal((n, D)), jnp.float32)
    expected = case.expected(z, y)
    for block_size in (None, 17):
        close(case(z, y, block_size=block_size), expected, rtol=1e-4)


@each_of([name for name in PATHS if "same" not in PAIRS[name].lacks], OFTEN)
def test_lists_of_positives_equal_whole_rows(case):
    rng = np.random.default_rng(6)
    y = jnp.asarray(rng.permutation(LIST + 8) // 6)
    z = jnp.asarray(rng.standard_normal((LIST // 6 + 2, D))[y] + rng.standard_normal((len(y), D)), jnp.float32)
    f = lambda **how: value_and_grad(case, z, y, block_size=30, **how)
    chex.assert_trees_all_close(f(), f(same=mj.relations.equal), rtol=1e-4, atol=1e-5)


@classes
def test_class_loss_equals_the_oracle(case):
    z, y, prototypes = inputs(case)
    close(case(z, y, prototypes), case.expected(z, y, prototypes))
    for value in case.values if case.varied else ():
        given = {case.varied: value}
        close(run(case, z, y, prototypes, **given)[0], case.expected(z, y, prototypes, **given))


def test_softmax_with_bias_equals_the_oracle(rng):
    z, y, prototypes = batch()
    bias = jnp.asarray(rng.standard_normal(C), jnp.float32)
    f = lambda bias, size: mj.losses.softmax(z, y, prototypes, bias=bias, block_size=size)
    for size in (None, 2):
        close(f(bias, size), np.mean(oracle.softmax(z, y, prototypes, bias)))
    gradient = jax.jit(jax.grad(f), static_argnums=1)
    close(gradient(bias, 2), gradient(bias, None))


def test_update_centers_equals_the_oracle():
    z, y, centers = batch()
    close(mj.losses.update_centers(centers, z, y, rate=0.3), oracle.update_centers(centers, z, y, 0.3))
    where = jnp.arange(N) < 6
    close(mj.losses.update_centers(centers, z, y, where=where), oracle.update_centers(centers, z[:6], y[:6]))


# --- masks, weights, order ------------------------------------------------------------------------------------------


@every
def test_rows_that_do_not_exist_do_not_count(case):
    z, y, *rest = inputs(case, 5)
    where = jnp.array([True] * 9 + [False] * 5)
    filled = [run(case, jnp.where(where[:, None], z, pad), y, *rest, where=where) for pad in (jnp.nan, 0.5)]
    for value, gradients in filled:
        close(value, case.expected(z, y, *rest, where, **usual(case)))
        close(gradients["z"], filled[0][1]["z"])
        assert np.any(gradients["z"][:9]) or value == 0
        assert not np.any(gradients["z"][9:])


@every_path
def test_where_equals_the_smaller_batch(case):
    z, y, *rest = inputs(case, 5)
    where = jnp.array([True] * 9 + [False] * 5)
    value, gradients = run(case, jnp.where(where[:, None], z, jnp.nan), y, *rest, where=where)
    small, small_gradient = value_and_grad(case, z[:9], y[:9], *rest, **usual(case))
    close(value, small)
    close(gradients["z"], np.concatenate([small_gradient, np.zeros((5, D))]))


@every_path
def test_order_of_the_batch_does_not_matter(case):
    z, y, *rest = inputs(case, 6)
    order = np.random.default_rng(0).permutation(N)
    value, gradients = run(case, z, y, *rest)
    permuted, permuted_gradients = run(case, z[order], y[order], *rest)
    close(permuted, value)
    close(permuted_gradients["z"], gradients["z"][order])


@every_path
def test_weights_of_zero_and_one_equal_leaving_anchors_out(case):
    z, y, *rest = inputs(case, 7)
    if case is CLASSES["proxy_anchor"]:
        pytest.skip("its terms are those of proxies, not of rows")
    weights = jnp.array([1, 0] * 7, jnp.float32)
    is_pair = case in PAIRS.values()
    columns = {"block_size": 5, **with_references(2)} if is_pair and "references" not in case.lacks else {}
    f = lambda weights, **options: run(case, z, y, *rest, weights=weights, **columns, **options)
    (value, gradients), (expected, expected_gradients) = f(weights), f(weights * 0.01)
    close(value, expected)
    close(gradients["z"], expected_gradients["z"])
    if "weights" not in case.lacks and (columns or not is_pair):
        chosen, chosen_gradients = f(jnp.ones(N), where=weights > 0)
        close(value, chosen)
        close(gradients["z"], chosen_gradients["z"])
    if columns:
        own = {"references": z, "reference_labels": y}
        close(case(z, y, weights=weights, **own), case(z[::2], y[::2], **own))


@every_path
def test_reduction_gets_one_mean_per_anchor(case):
    arguments = inputs(case, 8)
    by_hand = lambda mean: jnp.sum(mean.total) / jnp.maximum(jnp.sum(mean.count), 1)
    value, gradients = run(case, *arguments)
    own, own_gradient = value_and_grad(case, *arguments, reduction=by_hand, **usual(case))
    close(own, value)
    close(own_gradient, gradients["z"])


# --- degenerate batches ---------------------------------------------------------------------------------------------

SIGNS = np.where(np.arange(N) % 2, 1.0, -1.0)[:, None]
DEGENERATE = {
    "no positives": (lambda z, y: (z, jnp.arange(N)), {}),
    "no negatives, one class": (lambda z, y: (z, jnp.zeros_like(y)), {}),
    "two strangers": (lambda z, y: (z, jnp.arange(N)), {"where": np.arange(N) < 2}),
    "one row": (lambda z, y: (z, y), {"where": np.arange(N) < 1}),
    "all masked": (lambda z, y: (z, y), {"where": np.zeros(N, bool)}),
    "duplicates": (lambda z, y: (jnp.ones((N, D)), y), {}),
    "zero vectors": (lambda z, y: (jnp.where(np.arange(N)[:, None] < 4, 0, z), y), {}),
    "all zero": (lambda z, y: (jnp.zeros((N, D)), y), {}),
    "opposite": (lambda z, y: (jnp.asarray(SIGNS * np.ones(D), jnp.float32), y), {}),
    "tiny": (lambda z, y: (z * 1e-4, y), {}),
    "huge": (lambda z, y: (z * 1e4, y), {}),
}
# What a batch without a single usable term is worth, for losses over pairs; some make do with two strangers.
NOTHING = ("all masked", "one row", "two strangers")


@paths
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_of_pairs_in_panels(case, name, debug_nans):
    test_degenerate_batches_of_pairs(case, name, debug_nans, block_size=5)


@pairs
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_of_pairs(case, name, debug_nans, block_size=None):
    make, options = DEGENERATE[name]
    z, y = make(*batch(9)[:2])
    check_degenerate(case, name, *run(case, z, y, block_size=block_size, **options))


@paths
@pytest.mark.parametrize("name, rows", [("two strangers", 2), ("one row", 1)])
def test_batches_of_two_rows_and_of_one(case, name, rows, debug_nans):
    z, y = batch(9)[0][:rows], jnp.arange(rows)
    value, gradient = value_and_grad(case, z, y)
    check_degenerate(case, name, value, {"z": gradient})


def check_degenerate(case, name, value, gradients):
    assert_finite((value, gradients))
    if name in NOTHING and not (name == "two strangers" and case.strangers):
        assert value == 0
        assert not np.any(gradients["z"])


@classes
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_of_classes(case, name, debug_nans):
    make, options = DEGENERATE[name]
    z, y, prototypes = inputs(case, 9)
    z, y = make(z, y)
    alike = jnp.concatenate([z[:2], jnp.zeros((1, D))])
    alike = jnp.broadcast_to(alike[:, None], (len(alike), 3, D)) if case.several else alike
    prototypes = jnp.concatenate([alike, prototypes])[:C]
    value, gradients = run(case, z, y, prototypes, **options)
    assert_finite((value, gradients))
    if name == "all masked":
        assert value == 0
        assert not np.any(gradients["z"])


@class_paths
@pytest.mark.parametrize("rows", [1, 2])
def test_batches_of_few_rows_and_classes(case, rows, debug_nans):
    z, y, prototypes = inputs(case, 9)
    assert_finite(value_and_grad(case, z[:rows], y[:rows], prototypes))


@paths
def test_nan_in_a_row_that_exists_is_seen_in_panels(case):
    test_nan_in_a_row_that_exists_is_seen(case, block_size=5)


@every
def test_nan_in_a_row_that_exists_is_seen(case, block_size=None):
    """Value and gradient are NaN, all of it, whatever is selected, hidden by a comparison or not active."""
    z, *rest = inputs(case, 21)
    there = jnp.arange(N) != 3
    for broken in (jnp.nan, jnp.inf):
        holes = z.at[3, 1].set(broken)
        value, gradients = run(case, holes, *rest, block_size=block_size)
        assert np.isnan(value)
        assert np.isnan(gradients["z"]).all()
        assert_finite(run(case, holes, *rest, where=there, block_size=block_size))


def arrays_of(case, seed):
    z, y, _ = batch(seed)
    arrays = {"x": z, "y": z[::-1], "labels": y}
    return tuple(arrays[taken] for taken in case.takes)


@each_of(VIEWS)
def test_nan_in_a_row_of_a_view_is_seen(case):
    x, *rest = arrays_of(case, 21)
    there = jnp.arange(N) != 3
    f = jax.jit(jax.value_and_grad(lambda x, where: case(x, *rest, where=where)))
    for broken in (jnp.nan, jnp.inf):
        holes = x.at[3, 1].set(broken)
        value, gradient = f(holes, jnp.ones(N, bool))
        assert np.isnan(value)
        assert np.isnan(gradient).all()
        assert_finite(f(holes, there))


@class_paths
def test_nan_in_a_prototype_is_seen(case):
    z, y, prototypes = inputs(case, 22)
    assert np.isnan(case(z, y, prototypes.at[1].set(jnp.nan), block_size=2))


def check_scales(f, z, prototypes=None):
    value, gradient = f(z, prototypes)
    for scale in (1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30):
        factor = np.float32(scale)
        scaled_value, scaled_gradient = f(z * factor, None if prototypes is None else prototypes * factor)
        close(scaled_value, value, rtol=1e-4, atol=1e-5)
        most = max(1e-3, np.abs(gradient).max())
        close(np.asarray(scaled_gradient, np.float64) * scale / most, gradient / most, rtol=1e-3, atol=1e-4)


@each_of([name for name in BOTH if name not in SCALED])
def test_the_scale_of_embeddings_does_not_count(case):
    z, y, *prototypes = inputs(case, 24)

    def f(z, prototypes):
        value, gradients = run(case, z, y, prototypes)
        return value, gradients["z"]

    check_scales(f, z, *prototypes)


@each_of([name for name in VIEWS if name not in SCALED])
def test_the_scale_of_views_does_not_count(case):
    x, *rest = arrays_of(case, 24)
    others = [a for a in rest if jnp.issubdtype(a.dtype, jnp.floating)]
    f = jax.jit(jax.value_and_grad(lambda x, *other: case(x, *(other or rest))))
    check_scales(lambda x, other: f(x, *([] if other is None else [other])), x, *others)


def test_large_margin_softmax_at_every_length(x64):
    """Against float64, where squares of lengths are in range."""
    z, y, prototypes = batch(24)
    f = jax.jit(jax.value_and_grad(mj.losses.large_margin_softmax))
    for scale in (1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30):
        rows = z * np.float32(scale)
        value, gradient = f(rows, y, prototypes)
        wide, expected = f(rows.astype(jnp.float64), y, prototypes.astype(jnp.float64))
        close(float(value) / float(wide), 1, rtol=1e-4)
        close(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@class_paths
def test_label_that_is_no_class_is_left_out(case):
    z, y, prototypes = inputs(case)
    outside = jnp.where(np.arange(N) < 4, -1, jnp.where(np.arange(N) < 6, C, y))
    value, gradients = run(case, z, outside, prototypes)
    expected, expected_gradients = run(case, z, y, prototypes, where=jnp.arange(N) >= 6)
    close(value, expected)
    close(gradients["z"], expected_gradients["z"])


@pytest.mark.parametrize("name", ["nt_xent", "supcon", "normalized_softmax"])
def test_small_temperatures_neither_saturate_nor_lose_the_gradient(name):
    z = jnp.array([[1, 0], [0, 1], [0.9, 0.1]])
    y = jnp.array([0, 0, 1])
    case = {**PAIRS, **CLASSES}[name]
    rest = [z[1:]] if name in CLASSES else []
    value, gradient = value_and_grad(case, z, y, *rest, temperature=1e-3)
    assert value > 200
    assert np.abs(gradient).max() > 100
    close(value, case.expected(z, y, *rest, temperature=1e-3), rtol=1e-4)


@classes
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_is_finite_where_the_cosine_is_one(case, sign, debug_nans):
    w, y = np.eye(C, D, dtype=np.float32), batch()[1]
    for dtype in (jnp.float32, jnp.bfloat16):
        z, prototypes = jnp.asarray(sign * w[y], dtype), jnp.asarray(w, dtype)
        prototypes = jnp.stack([prototypes] * 3, axis=1) if case.several else prototypes
        assert_finite(run(case, z, y, prototypes))


@pytest.mark.slow
@paths
@pytest.mark.parametrize("block_size", [None, 5])
def test_vmap_over_batches_equals_a_loop(case, block_size):
    batches = [batch(seed)[:2] for seed in (30, 31, 32)]
    f = lambda z, y: run(case, z, y, block_size=block_size)
    mapped = jax.jit(jax.vmap(f))(*(jnp.stack(a) for a in zip(*batches, strict=True)))
    loop = [f(*each) for each in batches]
    chex.assert_trees_all_close(mapped, jax.tree.map(lambda *a: np.stack(a), *loop), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own, other", [("int32", "uint8"), ("uint8", "int32"), ("bool", "bool")])
def test_labels_of_different_integer_types(own, other):
    """256 is not 0, whichever side has the wider type."""
    labels = {"int32": [0, 256, 1, 257], "uint8": [0, 1, 1, 0], "bool": [False, True, True, False]}
    z = jax.random.normal(jax.random.key(0), (8, D))
    value = lambda a, b: mj.losses.supcon(z[:4], a, references=z[4:], reference_labels=b, block_size=2)
    with jax.numpy_dtype_promotion("standard"):
        typed = value(*(jnp.array(labels[kind], kind) for kind in (own, other)))
    close(typed, value(*(jnp.array(labels[kind], jnp.int32) for kind in (own, other))))


def test_labels_are_compared_as_given():
    """Above 2²⁴ neighbouring integers are one float."""
    z = jnp.eye(3)
    y = jnp.array([2**24, 2**24 + 1, 2**24 + 1])
    close(mj.losses.supcon(z, y), mj.losses.supcon(z, jnp.array([0, 1, 1])))


# --- transformations ------------------------------------------------------------------------------------------------


@every_path
def test_jit_equals_eager(case):
    arguments = inputs(case, 10)
    chex.assert_trees_all_close(jax.jit(lambda *a: case(*a))(*arguments), case(*arguments), rtol=1e-6)


@each_of([name for name in WAYS if BOTH[name].varied], OFTEN)
def test_vmap_over_a_hyper_parameter_equals_a_loop(case):
    """In dense form and in panels; the programs of every loss trace the hyper-parameter and differentiate it."""
    arguments = inputs(case, 11)
    values = jnp.array(case.values)
    for block_size in (None, 5) if case in PAIRS.values() else (None,):
        f = lambda v, size=block_size: run(case, *arguments, block_size=size, **{case.varied: v})
        loop = [f(v) for v in values]
        expected = jax.tree.map(lambda *a: np.stack(a), *loop)
        chex.assert_trees_all_close(jax.jit(jax.vmap(f))(values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@paths
def test_blocks_equal_dense_with_a_reduction_of_ones_own(case):
    check_blocks(case, (5,), lambda mean: jnp.sum(jnp.square(mean.total)) / 7)


@paths
def test_blocks_equal_dense(case):
    """In float64 all losses do: see below."""
    check_blocks(case, (1, 5))


def check_blocks(case, sizes, reduction=None):
    z, y, _ = batch(12)
    varied = {case.varied: case.values[0]} if case.varied else {}
    given = {"weights": jnp.asarray(np.random.default_rng(0).uniform(0.1, 2, N), jnp.float32), **varied}
    static = {} if reduction is None else {"reduction": reduction}
    dense = run(case, z, y, static=static, **given)
    scale = max(1.0, *(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(dense)))
    for block_size in sizes:
        blocks = run(case, z, y, static=static, block_size=block_size, **given)
        chex.assert_trees_all_close(blocks, dense, rtol=2e-5, atol=2e-5 * scale)


@each_of([*PAIRS, *CLASS_PATHS], OFTEN)
def test_bfloat16_is_close_to_float32(case):
    z, y, *rest = inputs(case, 15)
    half = lambda a: a.astype(jnp.bfloat16)
    value, gradients = run(case, half(z), y, *map(half, rest))
    wide = lambda a: half(a).astype(jnp.float32)
    expected, expected_gradients = run(case, wide(z), y, *map(wide, rest))
    assert value.dtype == jnp.float32
    close(value, expected)
    for name in ("z", "prototypes")[: 1 + len(rest)]:
        gradient, wanted = gradients[name], expected_gradients[name]
        assert gradient.dtype == jnp.bfloat16
        close(gradient, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


@every_path
def test_float64_stays_and_gradients_match_finite_differences(case, x64):
    z, y, *rest = inputs(case, 16, dtype=np.float64)
    still = dict(getattr(case, "still", {}))
    varied = {case.varied: 0.9} if case.loss is mj.losses.triplet and case.varied else usual(case)
    f = lambda z, *rest, **how: run(case, z, y, *rest, static=still, **{**varied, **how})
    value, gradients = f(z, *rest)
    assert value.dtype == gradients["z"].dtype == jnp.float64
    close(value, case.expected(z, y, *rest, **still, **varied), rtol=1e-10)
    if not case.held or still:  # else weights carry no gradient by definition
        rng = np.random.default_rng(0)
        for _ in range(3):
            steps = [1e-6 * rng.standard_normal(a.shape) for a in (z, *rest)]
            moved = [f(*(a + sign * step for a, step in zip((z, *rest), steps, strict=True)))[0] for sign in (1, -1)]
            along = sum(np.sum(gradients[name] * step) for name, step in zip(("z", "prototypes"), steps, strict=False))
            close((moved[0] - moved[1]) / 2e-6, along / 1e-6, rtol=1e-4, atol=1e-6)
    if case in PAIRS.values():
        chex.assert_trees_all_close(f(z, block_size=5), (value, gradients), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@paths
def test_forward_mode_and_second_derivatives_in_panels(case, x64):
    z, y, _ = batch(16, dtype=np.float64)
    along = jnp.asarray(np.random.default_rng(1).standard_normal(z.shape))

    def derivatives(size, twice):
        """Along a direction: the derivative, and that of the gradient, forward over reverse, and reverse over it."""
        f = lambda z: case(z, y, block_size=size)
        forward = lambda z: (jax.jvp(f, (z,), (along,))[1], *jax.jvp(jax.grad(f), (z,), (along,)))
        backward = jax.grad(lambda z: jnp.sum(jax.grad(f)(z) * along))
        return jax.jit(lambda z: (*forward(z), backward(z) if twice else None))(z)

    tangent, gradient, curved, _ = derivatives(None, False)
    close(tangent, jnp.sum(gradient * along), rtol=1e-9, atol=1e-10)
    tangent_in_panels, _, curved_in_panels, backward = derivatives(4, case is not PAIRS["triplet-semi-hard"])
    close(tangent_in_panels, tangent, rtol=1e-9, atol=1e-10)
    close(curved_in_panels, curved, rtol=1e-9, atol=1e-10)
    if backward is not None:
        close(backward, curved, rtol=1e-9, atol=1e-10)


@paths
@pytest.mark.parametrize("block_size", [None, 5])
def test_the_count_comes_beside_the_loss(case, block_size):
    z, y, _ = batch(17)
    weights, how = jnp.linspace(0.5, 2.0, N), {"block_size": block_size}
    f = lambda z: case(z, y, reduction=mj.with_count, weights=weights, **how, **usual(case))
    (value, count), gradient = jax.jit(jax.value_and_grad(f, has_aux=True))(z)
    expected, gradients = run(case, z, y, weights=weights, **how)
    close(value, expected)
    close(gradient, gradients["z"])
    close(count, case(z, y, reduction=lambda mean: jnp.sum(mean.count), weights=weights, **how))
    assert count > 0 or value == 0


@pytest.mark.parametrize("name", ["circle", "circle_class"])
def test_gradient_of_circle_is_that_with_weights_held_fixed(name, x64):
    """Finite differences of the oracle's formula in which only s, not its weight α, moves."""
    z, y, prototypes = batch(17, dtype=np.float64)
    scale, margin, eps = 10.0, 0.25, 1e-6
    columns, is_class = (prototypes, True) if name == "circle_class" else (z, False)
    case = {**PAIRS, **CLASSES}[name]
    rest = (prototypes,) if is_class else ()
    gradient = jax.jit(jax.grad(lambda z: case(z, y, *rest, scale=scale, margin=margin)))(z)

    def value(moved):
        now = oracle.matrix("cosine_similarity", moved, columns if is_class else moved)
        fixed = oracle.matrix("cosine_similarity", z, columns)
        pull = scale * np.maximum(1 + margin - fixed, 0) * (now - 1 + margin)
        push = scale * np.maximum(fixed + margin, 0) * (now - margin)
        losses = []
        for i in range(N):
            if is_class:
                logits = np.where(np.arange(C) == y[i], pull[i], push[i])
                losses.append(np.log(np.sum(np.exp(logits))) - logits[y[i]])
            else:
                mine = (y == y[i]) & (np.arange(N) != i)
                if mine.any():
                    losses.append(np.log1p(np.sum(np.exp(-pull[i][mine])) * np.sum(np.exp(push[i][y != y[i]]))))
        return np.mean(losses)

    for i, j in ((0, 0), (3, 2), (9, 5)):
        step = np.zeros_like(z)
        step[i, j] = eps
        close(gradient[i, j], (value(z + step) - value(z - step)) / (2 * eps), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["ranked_list", "decoupled_contrastive-weighted", "unified_pair-weighted"])
def test_gradient_with_weights_held_fixed(name, x64):
    """Finite differences of the oracle in which the weights stay what they are at z."""
    case, eps = PAIRS[name], 1e-6
    z, y, _ = batch(17, dtype=np.float64)
    held = oracle.matrix(case.measure, z, z)
    gradient = jax.jit(jax.grad(lambda z: case(z, y)))(z)
    for i, j in ((0, 0), (3, 2), (9, 5)):
        step = np.zeros_like(z)
        step[i, j] = eps
        slope = (case.expected(z + step, y, held=held) - case.expected(z - step, y, held=held)) / (2 * eps)
        close(gradient[i, j], slope, rtol=1e-5, atol=1e-8)


@every_path
def test_one_trace_for_each_shape(case):
    arguments = inputs(case, 18)
    varied = {case.varied: 0.5} if case.varied else {}
    traces = []

    @jax.jit
    def f(varied, *arguments):
        traces.append(None)
        return case(*arguments, **varied)

    for factor in (1.0, 2.0):
        f({k: v * factor for k, v in varied.items()}, *arguments)
    assert len(traces) == 1


@every_path
def test_eager_calls_compile_once(case):
    arguments = inputs(case, 19)
    case(*arguments)
    with jax.no_tracing(True):
        case(*arguments)


@paths
def test_no_leaked_tracers(case, young_objects):
    z, y, _ = batch(20)
    with jax.checking_leaks():
        jax.eval_shape(jax.grad(lambda z: case(z, y, block_size=4)), z)
