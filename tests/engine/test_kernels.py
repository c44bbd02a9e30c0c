"""The fused kernels: interpreted on a CPU they are the dense form; and they lower for GPUs and TPUs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import metricjax as mj
from metricjax.engine.kernels import choice, nvidia
from metricjax.engine.kernels.row_sweeps import spans
from metricjax.engine.order import in_order
from metricjax.engine.positives import Side
from metricjax.engine.sizes import tiling_in_kernel
from tests.engine.test_two_sweeps import LOSSES, agree, mine, program, weights
from tests.helpers.batches import slow_unless
from tests.helpers.lowering import lowered
from tests.helpers.meshes import SPLIT, mesh_of, put

OFTEN = ("supcon", "nt_xent")
NOT_OF_PRODUCTS = ("nca", "signal_to_noise", "generalized_lifted_structure")
GIVEN = ("nt_xent", "n_pairs", "tuplet_margin")  # of which sums are given log-sum-exps
FUSED = [name for name in LOSSES if name not in NOT_OF_PRODUCTS]
ROWS = {"cuda": 300, "tpu": 700}  # several tiles, ragged; programs are cached by their shapes, so that these differ
KERNEL = {"implementation": "kernel"}
RNG = np.random.default_rng(0)

pytestmark = pytest.mark.slow  # nothing takes kernels unless it is asked to


@pytest.fixture(params=["cuda", "tpu"])
def rows_of_backend(request, monkeypatch):
    """How many rows the tests of a backend have, which CPUs meanwhile interpret."""
    monkeypatch.setattr(choice, "INTERPRETED", request.param)
    return ROWS[request.param]


def batch(n, d=5):
    labels = [RNG.integers(0, n // 5, n), RNG.permutation(np.arange(n) // 2) - 9, np.zeros(n, int), np.arange(n)[::-1]]
    return jnp.asarray(RNG.standard_normal((n, d))), [jnp.asarray(y) for y in labels]


@pytest.mark.parametrize(
    "rows_of_backend, name",
    [*(("cuda", name) for name in FUSED), *(("tpu", name) for name in OFTEN)],
    indirect=["rows_of_backend"],
)
def test_value_and_gradients_equal_those_of_the_dense_form(name, rows_of_backend, x64):
    """With classes of any size in any order, pairs, one class and singletons; absent rows and weights; ragged tiles."""
    n = rows_of_backend
    fused, dense = program(LOSSES[name], **KERNEL), program(LOSSES[name], block_size=None)
    z, labels = batch(n)
    assert "sweep" in str(fused.trace(z, weights(n), labels[0], labels[0] >= 0).jaxpr)
    for y in labels:
        for where in (jnp.ones(n, bool), jnp.asarray(RNG.random(n) < 0.8)):
            given = (z, weights(n), y, where)
            agree(fused(*given), dense(*given))


def test_degenerate_batches(rows_of_backend, x64):
    """No row, one row, zeros, large numbers; NaN is told."""
    n = rows_of_backend
    fused, dense = program(LOSSES["nt_xent"], **KERNEL), program(LOSSES["nt_xent"], block_size=None)
    z, (y, *_) = batch(n)
    every = jnp.ones(n, bool)
    for z_, where in ((z, ~every), (z, jnp.arange(n) == 3), (jnp.zeros_like(z), every), (1e4 * z, every)):
        agree(fused(z_, weights(n), y, where), dense(z_, weights(n), y, where))
    value, (dz, _) = fused(z.at[3, 2].set(jnp.nan), weights(n), y, every)
    assert jnp.isnan(value) and jnp.all(jnp.isnan(dz))
    one = (z[: n // n], weights(1), y[:1], every[:1])
    agree(fused(*one), dense(*one))


@pytest.mark.slow
def test_other_derivatives_and_vmap(rows_of_backend, x64):
    """Of a temperature; of the gradient; with each of several temperatures, and of several batches."""
    z, (y, *_) = batch(rows_of_backend)

    def derivatives(**how):
        f = lambda z, temperature: mj.losses.supcon(z, y, temperature=temperature, **how)
        curved = jax.jvp(jax.grad(f), (z, 0.3), (z[::-1], 1.0))
        several = jax.vmap(jax.value_and_grad(f, (0, 1)), (None, 0))(z, jnp.asarray([0.2, 0.5]))
        batches = jax.vmap(lambda z, y: jax.grad(lambda z: mj.losses.nt_xent(z, y, **how))(z))
        return curved, several, batches(jnp.stack([z, z[::-1]]), jnp.stack([y, y[::-1]]))

    agree(jax.jit(lambda: derivatives(**KERNEL))(), jax.jit(lambda: derivatives(block_size=None))(), 1e-9)


HARDEST = {
    "hardest": {},
    "squared euclidean is no function of the product": {"distance": mj.distances.squared_euclidean},
    "easy positives": {"triplets": mj.mining.easy_positive_hard_negative, "distance": mj.distances.cosine},
    "swapped, soft": {"swap": True, "margin": None},
}


@pytest.mark.parametrize("name", slow_unless(["hardest"], HARDEST))
def test_the_hardest_pairs_of_each_row(name, rows_of_backend, x64):
    """The same triplets, the first of equal ones too; and the same derivatives, of second order as well."""
    z, labels = batch(rows_of_backend)
    z = jnp.concatenate([z[:-9], z[:9]])  # twins, which are equally far from all others
    loss = partial(mj.losses.triplet, **HARDEST[name])
    fused, dense = program(loss, **KERNEL), program(loss, block_size=None)
    for y in labels:
        for where in (jnp.ones(len(z), bool), jnp.asarray(RNG.random(len(z)) < 0.8)):
            agree(fused(z, weights(len(z)), y, where), dense(z, weights(len(z)), y, where))
    curved = lambda **o: jax.jvp(jax.grad(lambda z: loss(z, labels[0], **o)), (z,), (z[::-1],))
    agree(jax.jit(lambda: curved(**KERNEL))(), jax.jit(lambda: curved(block_size=None))(), 1e-9)


@pytest.mark.slow
def test_several_in_one_sum_and_a_loss_of_ones_own(rows_of_backend, x64):
    z, (y, *_) = batch(rows_of_backend)
    both = mj.weighted_sum(mj.losses.supcon, mj.losses.nt_xent, weights=(1.0, 2.0))
    for loss in (both, mine):
        agree(jax.jit(slope(loss, y))(z), jax.jit(slope(loss, y, block_size=None))(z))


@pytest.mark.slow
def test_wide_embeddings_in_parts_and_operands_of_16_bits(rows_of_backend):
    """Products of bfloat16 numbers, if asked for or if embeddings come as such; their sums are of 32 bits."""
    z, (y, *_) = batch(rows_of_backend, 300)
    z = z.astype(jnp.float32)
    of = lambda z, **how: jax.value_and_grad(lambda z: mj.losses.supcon(z, y, temperature=0.5, **how))(z)
    exact, gradient = of(z)
    for z_, how in ((z, {"precision": "bfloat16"}), (z.astype(jnp.bfloat16), {})):
        assert "bf16" in str(jax.make_jaxpr(partial(of, **how, **KERNEL))(z_))
        value, slope = of(z_, **how, **KERNEL)
        np.testing.assert_allclose(value, exact, rtol=2e-3)
        assert slope.dtype == z_.dtype
        assert jnp.linalg.norm(slope.astype(jnp.float32) - gradient) < 0.02 * jnp.linalg.norm(gradient)


def kernels(platform, f, *shapes):
    """How many kernels a function is lowered to."""
    text = lowered(platform, f, *shapes).as_text()
    return text.count("@__gpu$xla.gpu.triton" if platform == "cuda" else "@tpu_custom_call")


def slope(loss, y, **how):
    return jax.grad(lambda z: loss(z, y, **(KERNEL | how)))


Z, Y = jax.ShapeDtypeStruct((1024, 128), jnp.float32), jnp.arange(1024) // 4
LOWERS_IN_MESHES = jax.__version_info__ < (0, 11)  # of CPUs, for a GPU: newer versions ask the mesh for a GPU
lowering = pytest.mark.parametrize("platform", ["cuda", "tpu"])


@lowering
@pytest.mark.parametrize("name", slow_unless(["supcon"], FUSED))
def test_they_lower(name, platform):
    """Two sweeps, or three where a sum is given others; at any precision."""
    expected = 3 if name in GIVEN else 2
    for how in ({}, {"precision": "bfloat16"}, {"precision": "exact"})[: 3 if name in OFTEN else 1]:
        f = jax.value_and_grad(partial(LOSSES[name], labels=Y, **KERNEL, **how))
        assert kernels(platform, f, Z) == expected


@pytest.mark.slow
@lowering
def test_they_lower_with_a_learned_number_several_batches_and_on_each_device(platform):
    supcon, several = mj.losses.supcon, Z.update(shape=(3, *Z.shape))
    learned = jax.grad(lambda t, z: supcon(z, Y, temperature=t, **KERNEL))
    assert kernels(platform, learned, 0.1, Z) == 2
    assert kernels(platform, jax.vmap(slope(supcon, Y)), several) == 2
    if platform == "cuda" and not LOWERS_IN_MESHES:
        return
    each = lambda z, y: slope(supcon, y)(z)
    split = jax.shard_map(each, mesh=mesh_of(AxisType.Auto), in_specs=(SPLIT, SPLIT), out_specs=SPLIT)
    assert kernels(platform, split, Z, jax.ShapeDtypeStruct(Y.shape, Y.dtype)) == 2


@pytest.mark.slow
@lowering
def test_the_hardest_lower(platform):
    triplet = mj.losses.triplet
    assert kernels(platform, slope(triplet, Y), Z) == 1
    assert kernels(platform, slope(triplet, Y, miner=mj.mining.multi_similarity()), Z) == 0
    assert kernels(platform, slope(triplet, Y, triplets=mj.mining.semi_hard), Z) == 0


@lowering
def test_what_has_no_kernel_runs_as_without(platform):
    supcon = mj.losses.supcon
    assert kernels(platform, slope(supcon, Y), Z.update(shape=(1024, 2048))) == 0
    assert kernels(platform, slope(supcon, Y, miner=mj.mining.multi_similarity()), Z) == 0
    assert kernels(platform, slope(supcon, Y, implementation="auto"), Z) == 0
    assert kernels(platform, slope(mj.losses.nca, Y), Z) == 0


@pytest.mark.slow
def test_on_each_device_by_itself(monkeypatch):
    monkeypatch.setattr(choice, "INTERPRETED", "cuda")
    mesh, n = mesh_of(AxisType.Auto), 8 * 140
    z, y = jnp.asarray(RNG.standard_normal((n, 5)), jnp.float32), jnp.asarray(RNG.integers(0, 30, n))
    each = lambda **how: lambda z, y: slope(mj.losses.supcon, y, **how)(z)
    specs = {"in_specs": (SPLIT, SPLIT), "out_specs": SPLIT, "check_vma": False}  # which an interpreter does not know
    split = jax.jit(jax.shard_map(each(), mesh=mesh, **specs))
    alone = [each(block_size=None)(z[i : i + 140], y[i : i + 140]) for i in range(0, n, 140)]
    np.testing.assert_allclose(split(*put(mesh, z, y)), np.concatenate(alone), atol=1e-6)


OPERANDS = {
    None: "default", "default": "default", "bfloat16": "bfloat16", "tensorfloat32": "tensorfloat32", "exact": "exact",
    "high": "tensorfloat32", "highest": "exact", "float32": "exact", "BF16_BF16_F32_X6": "exact",
}  # fmt: skip


@pytest.mark.parametrize(("precision", "wanted"), OPERANDS.items())
def test_products_are_never_less_exact_than_asked(precision, wanted):
    score = mj.similarities.cosine.at(precision)
    of = lambda dtype, in_bfloat16: choice.kernels_for(score, jnp.zeros((4, 3), dtype), in_bfloat16)
    assert of(jnp.float32, False).operands == wanted
    assert of(jnp.float32, True).operands == ("bfloat16" if precision is None else wanted)
    with jax.default_matmul_precision("highest"):
        assert of(jnp.float32, True).operands == ("exact" if precision is None else wanted)


@pytest.mark.parametrize(
    ("capabilities", "widest"), [((), 128), (("9.0",), 128), (("8.9",), 128), (("7.5",), 0), (("gfx90a",), 0)]
)
def test_old_gpus_and_those_of_others_have_none(capabilities, widest, monkeypatch):
    monkeypatch.setattr(nvidia, "compute_capabilities", lambda: capabilities)
    assert [d for d in (128, 129) if nvidia.Nvidia("default", heavy=False).fits(d)] == [widest] * (widest > 0)


def test_spans_tell_which_tiles_need_masks():
    for n, there, classes in ((700, 500, 90), (512, 512, 1)):
        y, where = RNG.integers(0, classes, n), RNG.permutation(n) < there
        side = Side(jnp.asarray(y), jnp.asarray(where), jnp.arange(n))
        rows = in_order(128, jnp.ones((n, 2)), side)
        number, exists = np.asarray(rows.number).reshape(-1, 128), np.asarray(rows.exists).reshape(-1, 128)
        columns, there_ = np.asarray(rows.number).reshape(-1, 32), np.asarray(rows.exists).reshape(-1, 32)
        first, end, ragged, last = map(np.asarray, spans(rows, 128, 32))
        assert np.all(first <= end) and np.all(end <= ragged) and np.all(ragged <= last)
        for i, j in np.ndindex(len(number), len(columns)):
            masked = first[i] <= j < end[i] or ragged[i] <= j < last[i]
            some = exists[i].any() and there_[j].any()
            needed = some and (bool(set(number[i]) & set(columns[j])) or not (exists[i].all() and there_[j].all()))
            assert not needed or masked
            assert some <= (j < last[i])


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("d", [1, 64, 128, 129, 256, 512, 513])
def test_tiles_fit_into_shared_memory(d, small):
    """By the formula that compiled kernels follow, to 3 %: 160 KiB where programs have more, else 96 KiB."""
    for operands in ("bfloat16", "default", "exact"):
        for products, heavy in ((1, False), (2, False), (1, True), (2, True)):
            tiling = tiling_in_kernel(operands, d, products, heavy, small)
            assert (tiling is None) == (d > (128 if operands != "bfloat16" else 256 if small else 512))
            if tiling is None:
                continue
            row = (2 if operands == "bfloat16" else 4) * -(-d // 128) * 128
            staged = tiling.stages * tiling.width * (2 if tiling.transposed else 1)
            rows = 2 * tiling.height + staged + tiling.width if operands == "exact" else tiling.height + staged
            assert row * rows <= (96 if small else 160) * 2**10
            assert 128 % tiling.height == 0 and 128 % tiling.width == 0
