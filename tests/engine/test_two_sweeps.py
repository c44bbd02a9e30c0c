"""Losses of declared statistics in two sweeps over the tiles above the diagonal: the same as dense in every respect."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import sizes
from metricjax.engine.pairs import Mean
from metricjax.engine.statistics import Declared
from tests.helpers.batches import slow_unless
from tests.helpers.cases import PAIRS
from tests.helpers.meshes import SPLIT, axes, mesh_of, put
from tests.helpers.refusals import refuses

L = mj.losses
LOSSES = {
    "nt_xent": L.nt_xent,
    "n_pairs": L.n_pairs,
    "decoupled_contrastive": L.decoupled_contrastive,
    "decoupled_contrastive-sigma": lambda *a, **k: L.decoupled_contrastive(*a, sigma=0.5, **k),
    "supcon": L.supcon,
    "supcon-in": lambda *a, **k: L.supcon(*a, variant="in", **k),
    "nca": L.nca,
    "tuplet_margin": L.tuplet_margin,
    "multi_similarity": L.multi_similarity,
    "circle": L.circle,
    "unified_pair": L.unified_pair,
    "contrastive": L.contrastive,
    "contrastive-valid": lambda *a, **k: L.contrastive(*a, squared=False, average="valid", **k),
    "contrastive-geodesic": lambda *a, **k: L.contrastive(*a, distance=mj.distances.geodesic, **k),
    "signal_to_noise": L.signal_to_noise,  # not symmetric: in panels
    "threshold_consistent_margin": L.threshold_consistent_margin,
    "generalized_lifted_structure": L.generalized_lifted_structure,
}
OFTEN = ("nt_xent", "supcon", "circle", "contrastive-valid", "signal_to_noise")
SWEPT = {"implementation": "sweeps", "block_size": 8}
RNG = np.random.default_rng(0)
LABELS = {
    "some classes": RNG.integers(0, 7, 37),
    "many classes": RNG.permutation(np.arange(37) // 2) - 9,
    "one class": np.zeros(37, int),
    "singletons": np.arange(37)[::-1].copy(),
    "two classes": RNG.integers(0, 2, 37),
}


def rows(n=37, d=5):
    return jnp.asarray(RNG.standard_normal((n, d)))


def program(loss, **options):
    """(z, weights, labels, which rows exist) -> the value, and its gradients in rows and weights."""
    f = lambda z, weights, y, where: loss(z, y, weights=weights, where=where, **options)
    return jax.jit(jax.value_and_grad(f, (0, 1)))


def weights(n):
    return jnp.asarray(np.random.default_rng(1).random(n))


def agree(got, wanted, tolerance=1e-11):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", slow_unless(OFTEN, LOSSES))
def test_value_and_gradients_equal_those_of_the_dense_form(name, x64):
    """With classes of any size in any order, absent rows, weights, and a ragged number of tiles."""
    swept, dense = program(LOSSES[name], **SWEPT), program(LOSSES[name])
    for y in map(jnp.asarray, LABELS.values()):
        for where in (jnp.ones(37, bool), jnp.asarray(RNG.random(37) < 0.8)):
            given = (rows(), weights(37), y, where)
            agree(swept(*given), dense(*given))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["supcon", "nt_xent", "contrastive"])
def test_degenerate_batches(name, x64):
    """No row, one row, zeros, large numbers, booleans as labels; NaN is told."""
    swept, dense = program(LOSSES[name], **SWEPT), program(LOSSES[name])
    y, every = jnp.asarray(LABELS["some classes"]), jnp.ones(37, bool)
    for z, y_, where in ((rows(), y, ~every), (jnp.zeros((37, 5)), y, every), (1e4 * rows(), y > 3, every)):
        agree(swept(z, weights(37), y_, where), dense(z, weights(37), y_, where))
    one = (rows(1), weights(1), y[:1], every[:1])
    agree(swept(*one), dense(*one))
    value, (dz, _) = swept(rows().at[3, 2].set(jnp.nan), weights(37), y, every)
    assert jnp.isnan(value) and jnp.all(jnp.isnan(dz))


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless(["nt_xent"], ["nt_xent", "circle", "contrastive"]))
def test_other_derivatives_and_vmap(name, x64):
    """Of hyper-parameters; forwards; of the gradient, both ways; with each of several margins or temperatures."""
    loss, y, z, along = LOSSES[name], jnp.asarray(LABELS["some classes"]), rows(), rows()
    number = {"nt_xent": "temperature"}.get(name, "margin")
    value = jnp.asarray(0.3)

    def derivatives(**options):
        f = lambda z, value: loss(z, y, **{number: value}, **options)
        along_gradient = lambda z: jnp.sum(jax.grad(f)(z, value) * along)
        both = jax.jvp(lambda z: f(z, value), (z,), (along,)), jax.jvp(jax.grad(f), (z, value), (along, value))
        several = jax.vmap(jax.value_and_grad(f, (0, 1)), (None, 0))(z, jnp.asarray([0.2, 0.5]))
        batched = jax.vmap(lambda z, y: jax.grad(lambda z: loss(z, y, **options))(z))
        each = batched(jnp.stack([z, along]), jnp.stack([y, y[::-1]]))
        return jax.grad(f, 1)(z, value), both, jax.grad(along_gradient)(z), several, each

    agree(jax.jit(lambda: derivatives(**SWEPT))(), jax.jit(lambda: derivatives(block_size=None))(), 1e-9)


def test_float32_is_as_exact_as_the_dense_form():
    """Temperatures that drive exponents far apart: rows, and columns, have levels of their own."""
    z = jnp.asarray(RNG.standard_normal((64, 8)), jnp.float32)
    y = jnp.asarray(RNG.integers(0, 9, 64))
    for temperature in (1e-3, 0.1, 1e4):
        how = {"temperature": temperature}
        value, gradient = jax.value_and_grad(partial(L.supcon, labels=y, **how, **SWEPT))(z)
        wanted, exact = jax.value_and_grad(partial(L.supcon, labels=y, **how))(z)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(gradient, exact, atol=1e-4 * float(jnp.max(jnp.abs(exact))))


def loops(z, y, **options):
    return [L.supcon(z, y, **options), jax.grad(lambda z: L.supcon(z, y, **options))(z)]


@pytest.mark.slow
def test_what_sweeps_cannot_do_runs_in_panels(x64):
    z, y = rows(), jnp.asarray(LABELS["some classes"])
    for options in (
        {"references": rows(9), "reference_labels": jnp.arange(9)},
        {"same": lambda a, b: a % 3 == b % 3},
        {"miner": mj.mining.multi_similarity()},
        {"reduction": lambda mean: jnp.max(mean.total)},
    ):
        agree(loops(z, y, **options, **SWEPT), loops(z, y, block_size=None, **options))
    count = lambda **options: L.contrastive(z, y, reduction=mj.with_count, **options)
    agree(count(**SWEPT), count())


@pytest.mark.slow
@axes
@pytest.mark.parametrize("name", ["nt_xent", "contrastive"])
def test_each_device_by_itself(name, axis):
    """Inside `shard_map` without `axis_name`: what is carried through the loops varies over the devices."""
    mesh, y = mesh_of(axis), jnp.asarray(np.random.default_rng(1).integers(0, 9, 8 * 24))
    z = jnp.asarray(RNG.standard_normal((8 * 24, 5)), jnp.float32)
    slope = lambda **how: lambda z, y: jax.grad(lambda z: LOSSES[name](z, y, **how))(z)
    split = jax.jit(jax.shard_map(slope(**SWEPT), mesh=mesh, in_specs=(SPLIT, SPLIT), out_specs=SPLIT))
    alone = jax.jit(slope(block_size=None))
    each = [alone(z[i : i + 24], y[i : i + 24]) for i in range(0, len(z), 24)]
    np.testing.assert_allclose(split(*put(mesh, z, y)), np.concatenate(each), atol=1e-6)


def test_auto_sweeps_on_cpus_and_not_where_it_was_not_seen_to_be_faster():
    """A program has tiles of 512 rows on CPUs, panels elsewhere; and sweeps everywhere if they are asked for."""
    z, y = jax.ShapeDtypeStruct((4096, 64), jnp.float32), jnp.arange(4096) // 4

    def products(platform, **options):
        step = jax.jit(jax.grad(lambda z: L.circle(z, y, **options)))
        text = step.trace(z).lower(lowering_platforms=(platform,)).as_text()
        return "tensor<512x512xf32>" in text, "tensor<2048x2048xf32>" in text

    assert products("cpu") == (True, False)
    assert products("cpu", implementation="panels") == products("cuda") == products("tpu") == (False, False)
    assert products("cuda", implementation="sweeps") == products("tpu", implementation="sweeps") == (False, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["supcon", "nt_xent", "contrastive"])
def test_memory_is_a_few_arrays_like_the_embeddings(name):
    n, d = 16384, 64
    z = jax.ShapeDtypeStruct((n, d), jnp.float32)
    step = jax.jit(jax.value_and_grad(lambda z: LOSSES[name](z, jnp.arange(n) // 4)))
    assert step.lower(z).compile().memory_analysis().temp_size_in_bytes < 4 * n * d * 4 + 12 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("n", [300, 517])
def test_both_directions_between_two_towers_at_once(n, x64):
    """Value, gradients of all that has one, and second derivatives, are those of one direction after the other."""
    x, y, along = rows(n), rows(n), rows(n)
    where = jnp.asarray(RNG.random(n) < 0.8)

    def derivatives(w, where, **options):
        f = lambda x, y, scale: L.clip(x, y, scale=scale, weights=w, where=where, **options)
        curved = jax.jvp(jax.grad(lambda x: f(x, y, 5.0)), (x,), (along,))[1]
        return jax.value_and_grad(f, (0, 1, 2))(x, y, jnp.asarray(5.0)), curved

    for options in ((weights(n), where), (None, None)):
        at_once = jax.jit(derivatives)(*options)
        agree(at_once, jax.jit(lambda *a: derivatives(*a, block_size=128))(*options), 1e-10)
    assert "tensor<304x304xf64>" in jax.jit(lambda x: L.clip(x, y)).lower(x).as_text() or n != 300


def test_every_declared_loss_is_here():
    """Any loss that is run by its statistics in the tests of every loss."""
    z, y = jnp.ones((4, 3)), jnp.arange(4) // 2
    found = set()

    def noted(self, *a, **k):
        found.add(name)
        return called(self, *a, **k)

    called = Declared.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Declared, "__call__", noted)
        for name in PAIRS:
            jax.eval_shape(lambda z, name=name: PAIRS[name](z, y), z)
    assert {name.split("-")[0] for name in found} == {name.split("-")[0] for name in LOSSES}


@pytest.mark.slow
def test_several_in_one_sum_share_their_tiles(x64):
    """In sweeps, too: with statistics that are given others, and several Means."""
    parts = (L.supcon, L.circle, L.nt_xent, L.threshold_consistent_margin)
    both = mj.weighted_sum(*parts, weights=(1.0, 0.5, 2.0, 3.0))
    given = (rows(), weights(37), jnp.asarray(LABELS["some classes"]), jnp.ones(37, bool))
    agree(program(both, **SWEPT)(*given), program(both)(*given))
    z, y = jax.ShapeDtypeStruct((1024, 16), jnp.float32), jnp.arange(1024) // 4
    text = jax.jit(jax.grad(lambda z: both(z, y))).lower(z).as_text()
    assert "tensor<512x512xf32>" in text


# --- one's own ------------------------------------------------------------------------------------------------------


def _push(scores, scale):
    return scale * scores


def _finish(row, scale):
    return Mean(jnp.where(row.negatives > 0, row.push, 0) / scale + row.pull, row.positives)


STATISTICS = {
    "pull": mj.Statistic("sum", "positives", lambda scores, scale: 1 - scores),
    "push": mj.Statistic("logsumexp", "negatives", _push),
}


def mine(z, y, scale=4.0, statistics=STATISTICS, finish=_finish, **options):
    return mj.over_statistics(statistics, finish, z, y, scale, similarity=mj.similarities.cosine, **options)


def test_a_loss_of_ones_own(x64):
    z, y = rows(), jnp.asarray(LABELS["some classes"])

    def by_hand(z):
        unit = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        same = y[:, None] == y[None]
        pull = jnp.sum(jnp.where(same, 1 - unit @ unit.T, 0), axis=1)
        push = jnp.log(jnp.sum(jnp.where(same, 0, jnp.exp(4 * unit @ unit.T)), axis=1)) / 4
        return jnp.sum(pull + push) / (jnp.sum(same, dtype=z.dtype) - len(z))

    wanted = jax.value_and_grad(by_hand)(z)
    for options in ({}, SWEPT, {"block_size": 8}):
        agree(jax.value_and_grad(lambda z: mine(z, y, **options))(z), wanted)  # noqa: B023


S, ZY = mj.Statistic, (jnp.ones((4, 2)), jnp.arange(4) // 2)
test_errors = refuses(
    {
        "kind": (lambda: mine(*ZY, statistics={"a": S("mean", "positives", _push)}), ValueError, "kind is"),
        "of": (lambda: mine(*ZY, statistics={"a": S("sum", "all", _push)}), ValueError, r"of is 'all'; wanted"),
        "terms": (lambda: mine(*ZY, statistics={"a": S("sum", "positives", 3)}), TypeError, "wanted a function"),
        "given": (
            lambda: mine(*ZY, statistics={"a": S("sum", "positives", _push, ("b",))}), ValueError, r"is given \('b',\)",
        ),
        "a name": (lambda: mine(*ZY, statistics={"positives": STATISTICS["pull"]}), ValueError, "none of 'positives'"),
        "nothing": (lambda: mine(*ZY, statistics={}), ValueError, "one name at least"),
        "a function": (lambda: mine(*ZY, statistics={"a": _push}), TypeError, "is a function; wanted a mj.Statistic"),
        "finish": (lambda: mine(*ZY, finish=None), TypeError, "finish is None; wanted a function"),
        "implementation": (lambda: mine(*ZY, implementation="fast"), ValueError, "implementation is 'fast'; wanted"),
    }
)  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 7, 37, 512, 513, 4096, 100_001])
def test_tiles_are_few_and_cover_all_rows(n):
    height = sizes.rows_in_swept_tile(n)
    assert height.cpu % 8 == 0 and height.cpu <= 512 and height.accelerator <= 2048 and n / height.cpu < 260
    assert height.cpu * -(-n // height.cpu) - n < height.cpu
    assert height.cpu % sizes.rows_in_tile_of_positives(height.cpu) == 0
