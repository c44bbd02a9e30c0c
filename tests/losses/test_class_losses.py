"""What is particular to some class-based losses: states, schedules, regularisers, outliers, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import metricjax as mj
from tests.helpers import oracle_classes
from tests.helpers.batches import C, D, N, batch, close, inputs
from tests.helpers.cases import CLASSES


def test_states_equal_the_oracle():
    z, y, w = batch(1)
    for scale in (1.0, 20.0):  # norms about 2.5 and 50
        value, state = mj.losses.adaface(scale * z, y, w, jnp.array([2.5, 0.5]), momentum=0.3)
        losses, expected = oracle_classes.adaface(scale * np.asarray(z), y, w, 2.5, 0.5, momentum=0.3)
        close([value, *state], [np.mean(losses), *expected])
    value, t = mj.losses.curricularface(z, y, w, jnp.array(0.25), momentum=0.3)
    losses, expected = oracle_classes.curricularface(z, y, w, 0.25, momentum=0.3)
    close([value, t], [np.mean(losses), expected])
    value, scale = mj.losses.adacos(z, y, w, jnp.array(3.0))
    losses, expected = oracle_classes.adacos(z, y, w, 3.0)
    close([value, scale], [np.mean(losses), expected])


@pytest.mark.parametrize("name, initial", [("curricularface", 0.0), ("adaface", (20.0, 100.0)), ("adacos", None)])
def test_a_state_begins_at_its_default_stays_without_rows_and_goes_through_a_scan(name, initial):
    loss, (z, y, w) = getattr(mj.losses, name), batch(2)
    first = mj.losses.adacos_scale(C) if initial is None else jnp.array(initial)
    value, state = loss(z, y, w)
    again, same = loss(z, y, w, first)
    close([value, *state.ravel()], [again, *same.ravel()])
    close(loss(z, y, w, first, where=jnp.zeros(N, bool))[1], first)
    step = lambda state, z: loss(z, y, w, state)[::-1]
    batches = jnp.stack([z, z[::-1], 2 * z])
    _, values = jax.jit(lambda zs: jax.lax.scan(step, first, zs))(batches)
    for each, value in zip(batches, values, strict=True):
        expected, first = loss(each, y, w, first)
        close(value, expected)


def test_one_row_leaves_adafaces_deviation():
    z, y, w = batch(3)
    close(mj.losses.adaface(z[:1], y[:1], w, jnp.array([2.0, 0.5]))[1][1], 0.5)


def test_adacos_keeps_a_scale_whose_successor_is_not_positive():
    z = jnp.eye(2, D)  # one other class, opposite: B = exp(−s)
    _, scale = mj.losses.adacos(z[:1], jnp.array([0]), jnp.concatenate([z[:1], -z[:1]]), jnp.array(3.0))
    close(scale, 3.0)


def test_adacos_has_the_gradient_of_a_softmax_at_its_scale():
    z, y, w = batch(4)
    value, scale = mj.losses.adacos(z, y, w, jnp.array(3.0))
    plain = lambda z: mj.losses.normalized_softmax(z, y, w, temperature=1 / scale)
    close(value, plain(z))
    close(jax.jit(jax.grad(lambda z: mj.losses.adacos(z, y, w, jnp.array(3.0))[0]))(z), jax.jit(jax.grad(plain))(z))


def test_schedules_and_biases_equal_the_oracle():
    for step in (0, 1, 10, 10_000):
        close(mj.losses.sphereface_annealing(step), oracle_classes.sphereface_annealing(step))
    close(mj.losses.sphereface_annealing(7, base=50, gamma=0.5, power=2, minimum=0.1), 50 * (1 + 3.5) ** -2)
    for classes in (2, 3, 4, 100, 1_000_000):
        close(mj.losses.sphereface2_bias(classes), oracle_classes.sphereface2_bias(classes), atol=1e-5)
        close(mj.losses.adacos_scale(classes), oracle_classes.adacos_scale(classes))


def test_learnt_biases_have_gradients(x64):
    z, y, w = batch(5, dtype=np.float64)
    for name in ("sphereface2", "uniface"):
        f = lambda bias, name=name: getattr(mj.losses, name)(z, y, w, bias=bias, block_size=2)
        check_grads(f, (jnp.float64(0.5),), order=1, modes=["rev"], eps=1e-6)


def test_gradient_of_p2s_grad_is_the_papers(x64):
    """Σ_j (cos θ_j − [j = y]) ∇cos θ_j."""
    z, y, w = batch(6, dtype=np.float64)
    one = lambda z, k: jnp.sum(jax.lax.stop_gradient(cosines(z) - jax.nn.one_hot(k, C)) * cosines(z))
    cosines = lambda z: mj.similarities.cosine(z[None], w)[0]
    expected = jax.vmap(jax.grad(one))(z, y) / N
    close(jax.jit(jax.grad(mj.losses.p2s_grad))(z, y, w), expected, rtol=1e-10)


def test_gradient_of_magface_reaches_norms_inside_its_bounds_only():
    z, y, w = batch(7)
    loss = lambda length: mj.losses.magface(length[:, None] * mj.sphere.project(z), y, w, norms=(2.0, 4.0))
    lengths = jnp.where(jnp.arange(N) % 2 == 0, 3.0, jnp.where(jnp.arange(N) % 4 == 1, 1.0, 5.0))
    gradient = jax.jit(jax.grad(loss))(lengths)
    assert np.all(np.abs(gradient[::2]) > 1e-6)
    close(gradient[1::2], np.zeros(N // 2), atol=1e-5)


def test_elastic_margins_are_those_of_their_distribution():
    """Losses of rows alike in all but their draw, turned back into margins."""
    n = 4000
    z, y, w = jnp.tile(jnp.eye(1, D), (n, 1)), jnp.zeros(n, int), jnp.eye(2, D)
    each = mj.losses.elasticface(z, y, w, jax.random.key(3), scale=1.0, variant="cos", reduction=lambda m: m.total)
    margins = 1 + np.log(np.expm1(each))  # log(1 + e^{m − 1})
    assert abs(margins.mean() - 0.35) < 4 * 0.05 / np.sqrt(n)
    assert abs(margins.std() - 0.05) < 4 * 0.05 / np.sqrt(2 * n)
    assert len(np.unique(margins)) > 0.9 * n


def test_plus_gives_the_farthest_row_the_largest_margin():
    z, y, w = inputs(CLASSES["elasticface-plus"], 8)
    how = {"scale": 1.0, "variant": "cos", "plus": True, "deviation": 0.3, "reduction": lambda m: m.total}
    each = mj.losses.elasticface(z, y, w, jax.random.key(0), **how)
    cosines = mj.similarities.cosine(z, w)
    own = jnp.take_along_axis(cosines, y[:, None], axis=1)[:, 0]
    others = jax.nn.logsumexp(jnp.where(jnp.arange(C)[None] == y[:, None], -jnp.inf, cosines), axis=1)
    margins = own - others + jnp.log(jnp.expm1(each))
    assert np.all(np.diff(np.asarray(margins)[np.argsort(own)]) < 1e-5)


def test_outliers_equal_the_oracle():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((C + 1, 3, D)), jnp.float32)  # the last class has no rows
    z, y, _ = batch(9)
    where = jnp.arange(N) != 2
    found = mj.losses.sub_center_outliers(z, jnp.where(jnp.arange(N) == 4, -1, y), w, angle=1.0, where=where)
    kept = [i for i in range(N) if i not in (2, 4)]
    dominant, outliers = oracle_classes.sub_center_outliers(z[np.array(kept)], y[np.array(kept)], w, 1.0)
    assert found.dominant.tolist() == dominant
    assert found.outliers.tolist() == [True if i in (2, 4) else outliers[kept.index(i)] for i in range(N)]


def test_a_reduction_of_magface_gets_the_regulariser_too():
    z, y, w = batch(11)
    each = np.array(oracle_classes.magface(np.asarray(z), y, w, norms=(2.0, 4.0)))
    squares = lambda mean: jnp.sum(jnp.square(mean.total))
    close(mj.losses.magface(z, y, w, norms=(2.0, 4.0), reduction=squares), np.sum(each**2), rtol=1e-4)


def test_a_negative_margin_turns_the_target_nearer():
    z, w = jnp.array([[0.0, -1.0]]), jnp.eye(2)
    value = mj.losses.arcface(z, jnp.array([1]), w, scale=1.0, margin=-0.5)  # θ = π
    close(value, np.log(1 + np.exp(np.cos(np.pi / 2) - np.cos(np.pi - 0.5))))


def test_merged_centers_equal_the_oracle_with_finite_gradients(x64, debug_nans):
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.standard_normal((C, 3, D)))
    close(mj.losses.merged_centers(w), oracle_classes.merged_centers(np.asarray(w)), rtol=1e-10)
    where, weights = jnp.arange(C) != 1, jnp.linspace(0.5, 2, C)
    close(mj.losses.merged_centers(w, where=where), oracle_classes.merged_centers(np.asarray(w)[np.array(where)]))
    each = [oracle_classes.merged_centers(np.asarray(w)[i : i + 1]) for i in range(C)]
    close(mj.losses.merged_centers(w, weights=weights), np.average(each, weights=weights))
    check_grads(lambda w: mj.losses.merged_centers(jnp.asarray(w)), (w,), order=1, modes=["rev"], eps=1e-6)
    for alike in (jnp.ones((2, 3, D)), jnp.zeros((2, 3, D)), w[:, :1]):
        value, gradient = jax.jit(jax.value_and_grad(mj.losses.merged_centers))(alike)
        assert value == 0
        assert np.all(np.isfinite(gradient))


def test_energies_of_other_powers_equal_the_oracle():
    w = np.asarray(batch(10)[2])
    for power, angular in ((0.0, False), (0.0, True), (1.0, True), (3.0, False)):
        got = mj.losses.hyperspherical_energy(jnp.asarray(w), power=power, angular=angular)
        close(got, oracle_classes.hyperspherical_energy(w, power=power, angular=angular))


def test_proxies_spread_evenly_under_the_energy():
    """Four points in three dimensions reach the cosine −1/3 of a tetrahedron."""
    w = mj.sphere.project(jax.random.normal(jax.random.key(0), (4, 3)))
    descend = lambda _, w: mj.sphere.project(w - 0.5 * jax.jit(jax.grad(mj.losses.hyperspherical_energy))(w))
    w = jax.jit(lambda w: jax.lax.fori_loop(0, 500, descend, w))(w)
    close((w @ w.T)[~np.eye(4, dtype=bool)], np.full(12, -1 / 3), atol=1e-3)
