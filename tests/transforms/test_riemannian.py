"""Optimisers on the sphere, against float64 NumPy loops written from the papers and problems with known answers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from metricjax.transforms import (
    apply_to_rows,
    on_rows,
    project_to_sphere,
    riemannian_adam,
    riemannian_gradient,
    riemannian_sgd,
)
from tests.helpers.meshes import axes

RETRACTIONS = ("exponential", "projection")


@pytest.fixture(autouse=True)
def promotion():
    """Optax's own Adam raises a float to an integer power, and its `apply_updates` adds float32 to bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache  # the same functions, compiled once
def optimizers(rate=0.1, retraction="exponential"):
    return {
        "sgd": riemannian_sgd(rate, retraction=retraction),
        "momentum": riemannian_sgd(rate, 0.9, retraction=retraction),
        "nesterov": riemannian_sgd(rate, 0.9, nesterov=True, retraction=retraction),
        "adam": riemannian_adam(rate, retraction=retraction),
    }


NAMES = tuple(optimizers())
some = pytest.mark.parametrize("name", ["nesterov", "adam"])
mixed = pytest.mark.parametrize(("name", "retraction"), [*zip(NAMES, 2 * RETRACTIONS, strict=True)])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def points(rng, *shape):
    return jnp.asarray(unit(rng.standard_normal(shape)), jnp.float32)


def lengths(x):
    return np.linalg.norm(np.asarray(x, np.float64), axis=-1)


def run(optimizer, gradient_at, p, steps):
    def step(carry, _):
        p, state = carry
        updates, state = optimizer.update(gradient_at(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    return jax.lax.scan(step, (p, optimizer.init(p)), length=steps)[0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def stepped(optimizer, p, gradient, steps=1):
    return run(optimizer, lambda p: gradient, p, steps)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def minimized(loss, optimizer, p, steps):
    return run(optimizer, jax.grad(loss), p, steps)[0]


# --- the papers' formulas -------------------------------------------------------------------------------------------


def moved(x, v, retraction):
    if retraction == "projection":
        return (x + v) / math.sqrt(1 + v @ v)
    length = math.sqrt(v @ v)
    return math.cos(length) * x + (math.sin(length) / length * v if length else 0)


def transported(x, y, m):
    return m - (y @ m) / (1 + x @ y) * (x + y)


def sgd_loop(p, gradients, rate, momentum, nesterov, retraction):
    x, m = unit(p), np.zeros_like(p)
    for t, gradient in enumerate(gradients):
        for i in range(len(x)):
            g = gradient[i] - (gradient[i] @ x[i]) * x[i]
            trace = momentum * m[i] + g
            y = moved(x[i], -rate(t) * (g + momentum * trace if nesterov else trace), retraction)
            x[i], m[i] = y, transported(x[i], y, trace)
    return x, m


def adam_loop(p, gradients, rate, b1, b2, eps, retraction):
    x, m, v = unit(p), np.zeros_like(p), np.zeros(len(p))
    for t, gradient in enumerate(gradients):
        for i in range(len(x)):
            g = gradient[i] - (gradient[i] @ x[i]) * x[i]
            first = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * (g @ g)
            scale = (math.sqrt(v[i] / (1 - b2 ** (t + 1))) + eps) * (1 - b1 ** (t + 1))
            y = moved(x[i], -rate(t) * first / scale, retraction)
            x[i], m[i] = y, transported(x[i], y, first)
    return x, m, v


@pytest.mark.parametrize("retraction", RETRACTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_a_loop_in_float64(name, retraction, rng):
    """From rows that are not of length 1, by the constant gradients of linear losses and a falling learning rate."""
    p, gradients = 3 * rng.standard_normal((3, 5)), rng.standard_normal((20, 3, 5))
    rate = lambda t: 0.3 * 0.9**t
    schedule = lambda count: 0.3 * 0.9 ** jnp.asarray(count, jnp.float32)
    got = jnp.asarray(p, jnp.float32)
    optimizer = optimizers(schedule, retraction)[name]
    state, update = optimizer.init(got), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(jnp.asarray(gradient, jnp.float32), state, got)
        got = optax.apply_updates(got, updates)
    if name == "adam":
        x, *moments = adam_loop(p, gradients, rate, 0.9, 0.999, 1e-8, retraction)
        np.testing.assert_allclose(state.mu, moments[0], atol=2e-5)
        np.testing.assert_allclose(state.nu[:, 0], moments[1], rtol=2e-5)
    else:
        x, m = sgd_loop(p, gradients, rate, 0.0 if name == "sgd" else 0.9, name == "nesterov", retraction)
        if name != "sgd":
            np.testing.assert_allclose(state.trace, m, atol=2e-5)
    np.testing.assert_allclose(got, x, atol=2e-5)
    assert state.count == 20


def test_gradient_descent_by_projection_is_a_chain(rng):
    p, gradient = points(rng, 4, 2, 6), points(rng, 4, 2, 6)
    chain = optax.chain(riemannian_gradient(), optax.sgd(0.3), project_to_sphere())
    whole = riemannian_sgd(0.3, retraction="projection")
    np.testing.assert_allclose(stepped(whole, p, gradient, 3)[0], stepped(chain, p, gradient, 3)[0], atol=1e-6)


def test_riemannian_gradient_is_tangential_whatever_the_length_of_the_row(rng):
    p, g = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    p[0] = 0
    got, _ = riemannian_gradient().update(jnp.asarray(g, jnp.float32), optax.EmptyState(), jnp.asarray(p, jnp.float32))
    x = unit(p[1:])
    np.testing.assert_allclose(got[1:], g[1:] - np.sum(g[1:] * x, axis=1, keepdims=True) * x, atol=1e-6)
    np.testing.assert_array_equal(got[0], np.float32(g[0]))


def test_a_turned_problem_is_solved_by_turned_steps(rng):
    """Adam's own moments of coordinates depend on the axes; those of rows do not."""
    p, g = points(rng, 3, 4), points(rng, 3, 4)
    turn = jnp.asarray(np.linalg.qr(rng.standard_normal((4, 4)))[0], jnp.float32)
    for optimizer in optimizers().values():
        plain, turned = (stepped(optimizer, p @ q, g @ q, 5)[0] for q in (jnp.eye(4), turn))
        np.testing.assert_allclose(plain @ turn, turned, atol=5e-6)


# --- known answers --------------------------------------------------------------------------------------------------


def karcher_mean(x):
    mean = unit(x.sum(axis=0))
    for _ in range(200):
        tangent = x - (x @ mean)[:, None] * mean
        angle = np.arctan2(np.linalg.norm(tangent, axis=1), x @ mean)
        step = np.mean(tangent * (angle / np.linalg.norm(tangent, axis=1))[:, None], axis=0)
        mean = moved(mean, step, "exponential")
    return mean


@mixed
def test_frechet_mean(name, retraction, rng):
    x = unit(rng.standard_normal((10, 4)) + np.array([2, 0, 0, 0]))
    data = jnp.asarray(x, jnp.float32)
    loss = lambda p: jnp.mean(jnp.square(jnp.arccos(jnp.clip(data @ p[0], -0.9999, 0.9999)))) / 2
    rate = optax.cosine_decay_schedule(0.1 if name == "adam" else 0.2, 300)
    got = minimized(loss, optimizers(rate, retraction)[name], points(rng, 1, 4), 300)
    np.testing.assert_allclose(got[0], karcher_mean(x), atol=1e-5)


@mixed
def test_leading_eigenvector(name, retraction, rng):
    a = rng.standard_normal((6, 6))
    a = a + a.T
    values, vectors = np.linalg.eigh(a)
    matrix = jnp.asarray(a, jnp.float32)
    rate = optax.cosine_decay_schedule(0.1, 400)
    got = minimized(lambda p: -p[0] @ matrix @ p[0] / 2, optimizers(rate, retraction)[name], points(rng, 1, 6), 400)
    x = np.asarray(got[0], np.float64)
    np.testing.assert_allclose(x @ a @ x, values[-1], rtol=1e-6)
    np.testing.assert_allclose(abs(x @ vectors[:, -1]), 1, atol=1e-6)


def coulomb(p):
    i, j = np.triu_indices(len(p), 1)
    return jnp.sum(1 / jnp.linalg.norm(p[i] - p[j], axis=1))


def crowding(p):
    i, j = np.triu_indices(len(p), 1)
    return jax.nn.logsumexp(10 * jnp.sum(p[i] * p[j], axis=1)) / 10


@pytest.mark.parametrize(("name", "loss"), [*zip(NAMES, [crowding, coulomb] * 2, strict=True)])
def test_d_plus_one_points_become_a_simplex(loss, name, rng):
    rate = optax.cosine_decay_schedule(0.05 if name == "adam" else 0.1, 500)
    p = minimized(loss, optimizers(rate)[name], points(rng, 6, 5), 500)
    cosines = np.asarray(p @ p.T)[np.triu_indices(6, 1)]
    np.testing.assert_allclose(cosines, -1 / 5, atol=1e-4)


# --- staying there --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_rows_stay_on_the_sphere_for_ten_thousand_steps(retraction, rng):
    p, target = points(rng, 4, 8), points(rng, 4, 8)
    every = optimizers(0.05, retraction)

    @jax.jit
    def run(p):
        def step(carry, key):
            gradient = jax.random.normal(key, target.shape) - target
            new = {name: optimizer.update(gradient, *carry[name]) for name, optimizer in every.items()}
            carry = {name: (state, optax.apply_updates(carry[name][1], u)) for name, (u, state) in new.items()}
            return carry, {name: p for name, (_, p) in carry.items()}

        first = {name: (optimizer.init(p), p) for name, optimizer in every.items()}
        return jax.lax.scan(step, first, jax.random.split(jax.random.key(0), 10_000))

    last, path = run(p)
    for name, rows in path.items():
        assert np.abs(lengths(rows) - 1).max() <= 2e-7, name
    for name in NAMES[1:]:
        state, p = last[name]
        m = np.asarray(state.mu if name == "adam" else state.trace, np.float64)
        assert np.abs(np.sum(m * np.asarray(p, np.float64), axis=1)).max() <= 5e-7 * lengths(m).max()


@some
def test_rows_of_any_length_land_on_the_sphere(name, rng):
    p = points(rng, 3, 8) * jnp.array([[1e-20], [0.5], [30.0]])
    got, _ = stepped(optimizers()[name], p, points(rng, 3, 8))
    np.testing.assert_allclose(lengths(got), 1, atol=2e-6)  # 30 has that much rounding: an update is added
    got, _ = stepped(optimizers()[name], p, points(rng, 3, 8), 2)
    np.testing.assert_allclose(lengths(got), 1, atol=2e-7)


@some
def test_without_a_gradient_rows_stay(name, rng):
    p = points(rng, 50, 8)
    once, _ = stepped(optimizers()[name], p, jnp.zeros_like(p), 5)
    often, _ = stepped(optimizers()[name], p, jnp.zeros_like(p), 1000)
    np.testing.assert_allclose(once, p, atol=2e-7)
    np.testing.assert_array_equal(often, once)


@mixed
def test_zero_rows_and_opposite_points(name, retraction, debug_nans):
    """A step of half a great circle has no direction to come back from; a row of zeros has no tangent space."""
    p = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    gradient = jnp.array([[0.0, 0.0], [0.0, 5.0], [0.0, 0.0], [0.0, 1.0]])
    step = math.pi / (1.9 if name == "nesterov" else 1)
    got, state = stepped(optimizers(step, retraction)[name], p, gradient)
    last = [-1, 0] if retraction == "exponential" else unit(np.array([1, -math.pi]))
    np.testing.assert_allclose(got, [[0, 0], [0, -1], [1, 0], last], atol=1e-6)
    assert all(np.isfinite(moment).all() for moment in jax.tree.leaves(state))
    got, _ = stepped(optimizers(step, retraction)[name], got, gradient)
    np.testing.assert_allclose(lengths(got), [0, 1, 1, 1], atol=2e-7)


# --- dtypes ---------------------------------------------------------------------------------------------------------


@some
def test_bfloat16_rows(name, rng):
    p = points(rng, 4, 64).astype(jnp.bfloat16)
    optimizer = optimizers()[name]
    state = optimizer.init(p)
    first, update = jax.tree.map(lambda a: a.dtype, state), jax.jit(optimizer.update)
    for _ in range(50):
        updates, state = update(jnp.asarray(rng.standard_normal(p.shape), jnp.bfloat16), state, p)
        assert updates.dtype == jnp.float32
        p = optax.apply_updates(p, updates)
        assert np.abs(lengths(p) - 1).max() < 4e-3
    assert p.dtype == jnp.bfloat16
    assert jax.tree.map(lambda a: a.dtype, state) == first
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(state) if a.ndim)


def test_bfloat16_rounds_small_steps_away():
    """As the module says; a float32 copy takes them."""
    p, gradient = jnp.full((1, 16), 0.25), jnp.tile(jnp.array([0.25, -0.25]), (1, 8))
    free, _ = stepped(riemannian_sgd(1e-3), p, gradient, 100)
    stuck, _ = stepped(riemannian_sgd(1e-3), p.astype(jnp.bfloat16), gradient, 100)
    np.testing.assert_allclose(free, 0.25 - 0.1 * gradient, rtol=1e-2)
    np.testing.assert_array_equal(stuck.astype(jnp.float32), p)


def test_float64_rows(x64, rng):
    p, gradient = rng.standard_normal((3, 5)), rng.standard_normal((3, 5))
    for name, optimizer in optimizers().items():
        got, state = stepped(optimizer, jnp.asarray(p), jnp.asarray(gradient), 5)
        if name == "adam":
            x, m, _ = adam_loop(p, [gradient] * 5, lambda t: 0.1, 0.9, 0.999, 1e-8, "exponential")
            np.testing.assert_allclose(state.mu, m, atol=1e-13)
        else:
            momentum = 0.0 if name == "sgd" else 0.9
            x, _ = sgd_loop(p, [gradient] * 5, lambda t: 0.1, momentum, name == "nesterov", "exponential")
        np.testing.assert_allclose(got, x, atol=1e-13)


# --- composition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["masked", "partition", "multi_steps", "skipping", "inject"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("nesterov", jnp.float32), pytest.param("adam", jnp.float32, marks=pytest.mark.slow), ("adam", jnp.bfloat16)],
)
def test_composes_with_optax(name, dtype, how, rng):
    optimizer, steps = optimizers()[name], 2
    p, g = points(rng, 3, 4).astype(dtype), points(rng, 3, 4).astype(dtype)
    wanted, _ = stepped(optimizer, p, g, steps)
    if how in ("masked", "partition"):
        p, g = ({"prototypes": a, "bias": jnp.ones((), dtype)} for a in (p, g))
    if how == "masked":
        optimizer = optax.masked(optimizer, {"prototypes": True, "bias": False})
    elif how == "partition":
        parts = {"sphere": optimizer, "free": optax.sgd(0.1)}
        optimizer = optax.partition(parts, {"prototypes": "sphere", "bias": "free"})
    elif how == "inject":
        make = riemannian_adam if name == "adam" else functools.partial(riemannian_sgd, momentum=0.9, nesterov=True)
        rate = lambda count: jnp.float32(0.1)
        optimizer = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(learning_rate=rate)
    else:
        skip = {"should_skip_update_fn": optax.skip_not_finite} if how == "skipping" else {}
        optimizer, steps = optax.MultiSteps(optimizer, every_k_schedule=2, **skip).gradient_transformation(), 4
    got, _ = stepped(optimizer, p, g, steps)
    got = got["prototypes"] if how in ("masked", "partition") else got
    assert got.dtype == dtype
    np.testing.assert_allclose(np.float32(got), np.float32(wanted), atol=1e-6)


@pytest.mark.slow
@some
def test_vmap_over_learning_rates_and_numpy_arrays(name, rng, unchecked):
    p, g = np.asarray(points(rng, 3, 4)), np.asarray(points(rng, 3, 4))
    rates = jnp.array([0.05, 0.1])
    got = jax.jit(jax.vmap(lambda rate: run(optimizers.__wrapped__(rate)[name], lambda p: g, p, 2)[0]))(rates)
    optimizer = optimizers()[name]
    updates, state = optimizer.update(g, optimizer.init(p), p)
    p = optax.apply_updates(p, updates)
    p = optax.apply_updates(p, optimizer.update(g, state, p)[0])
    np.testing.assert_allclose(got[1], p, atol=1e-6)
    assert not np.allclose(got[0], got[1], atol=1e-3)


@pytest.mark.slow
def test_hyper_parameters_can_be_traced_and_differentiated(rng):
    p, g = points(rng, 2, 4), points(rng, 2, 4)
    loss = jax.jit(lambda h: jnp.sum(run(riemannian_adam(*h), lambda p: p * g, p, 3)[0] * g))
    h = jnp.array([0.1, 0.9, 0.99, 1e-3])
    numeric = [(loss(h + change) - loss(h - change)) / 2e-2 for change in 1e-2 * jnp.eye(4)[:2]]
    gradient = jax.jit(jax.grad(loss))(h)
    np.testing.assert_allclose(gradient[:2], numeric, rtol=2e-2, atol=1e-3)
    assert np.isfinite(gradient).all()


@some
def test_on_rows(name, rng):
    """The rows of a batch and their moments move as by themselves; padding writes nothing."""
    p, g, rows = points(rng, 6, 4), points(rng, 3, 4), jnp.array([4, 1, 6])
    optimizer = on_rows(optimizers()[name])
    held = p.at[rows].get(mode="fill", fill_value=0)
    updates, state = optimizer.update(g.at[2].set(0), optimizer.init(p), held, rows=rows)
    moved = apply_to_rows(p, updates, rows)
    wanted, alone = stepped(optimizers()[name], p[rows[:2]], g[:2])
    np.testing.assert_allclose(moved[rows[:2]], wanted, atol=1e-6)
    np.testing.assert_array_equal(moved[jnp.array([0, 2, 3, 5])], p[jnp.array([0, 2, 3, 5])])
    for whole, part in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(whole[rows[:2]] if whole.ndim else whole, part, atol=1e-6)


@pytest.mark.slow
@axes
@some
def test_rows_split_over_devices_need_no_traffic(name, axis, rng):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    p, g = points(rng, 16, 4), points(rng, 16, 4)
    wanted, _ = stepped(optimizers()[name], p, g, 2)
    p, g = jax.device_put((p, g), split)
    optimizer = optimizers()[name]
    state = optimizer.init(p)
    of_rows = lambda state: [a for a in jax.tree.leaves(state) if a.ndim]
    assert all(a.sharding.is_equivalent_to(split, a.ndim) for a in of_rows(state))
    step = jax.jit(lambda p, s: (lambda u, s: (optax.apply_updates(p, u), s))(*optimizer.update(g, s, p)))
    program = step.lower(p, state).compile().as_text()
    assert not any(word in program for word in ("all-reduce", "all-gather", "all-to-all", "collective", "permute"))
    for _ in range(2):
        p, state = step(p, state)
    assert p.sharding.is_equivalent_to(split, 2)
    assert all(a.sharding.is_equivalent_to(split, a.ndim) for a in of_rows(state))
    np.testing.assert_allclose(p, wanted, atol=1e-6)


@some
def test_state_is_saved_and_restored(name, rng, tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    params = {"prototypes": points(rng, 3, 4)}
    gradient = {"prototypes": points(rng, 3, 4)}
    optimizer = optimizers()[name]
    params, state = stepped(optimizer, params, gradient)
    with checkpoint.StandardCheckpointer() as keeper:
        keeper.save(tmp_path / "state", (params, state))
        keeper.wait_until_finished()
        fresh = jax.eval_shape(lambda: (params, optimizer.init(params)))
        restored = keeper.restore(tmp_path / "state", fresh)
    assert jax.tree.structure(restored) == jax.tree.structure((params, state))
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves((params, state)), strict=True):
        np.testing.assert_array_equal(a, b)


# --- refusals -------------------------------------------------------------------------------------------------------

ALL = {**optimizers(), "gradient": riemannian_gradient()}


@pytest.mark.parametrize("name", ALL)
def test_needs_params(name):
    with pytest.raises(ValueError, match="got no params; wanted update"):
        ALL[name].update(jnp.ones((1, 2)), ALL[name].init(jnp.ones((1, 2))))


@pytest.mark.parametrize("name", ALL)
def test_scalar_parameter_is_refused(name):
    with pytest.raises(ValueError, match=r"riemannian_\w+: parameter \['bias'\] is a scalar; wanted rows"):
        ALL[name].init({"bias": jnp.zeros(())})


def test_unknown_retraction_is_refused(unchecked):
    for make in (riemannian_sgd, riemannian_adam):
        with pytest.raises(ValueError, match="retraction is 'cayley'; wanted 'exponential' or 'projection'"):
            make(0.1, retraction="cayley")


MAKERS = {
    "project_to_sphere": project_to_sphere,
    "riemannian_gradient": riemannian_gradient,
    "nesterov": functools.partial(riemannian_sgd, 0.1, 0.9, nesterov=True),
    "adam": functools.partial(riemannian_adam, 0.1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_rows_along_another_axis(name, rng):
    gradient, rows = (jnp.asarray(rng.standard_normal((3, 4, 5)), jnp.float32) for _ in range(2))
    columns = functools.partial(jax.tree.map, lambda a: jnp.moveaxis(a, -1, 1) if a.ndim else a)
    for axis in (1, -2):
        usual, other = MAKERS[name](), MAKERS[name](axis=axis)
        state, moved = usual.init(rows), other.init(columns(rows))
        for _ in range(2):
            updates, state = usual.update(gradient, state, rows)
            also, moved = other.update(columns(gradient), moved, columns(rows))
            np.testing.assert_array_equal(also, columns(updates))
            jax.tree.map(np.testing.assert_array_equal, moved, columns(state))


def test_kernel_of_a_layer_has_a_prototype_in_each_column(rng):
    params = {"prototypes": points(rng, 3, 4), "head": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
    by_layout = {"rows": project_to_sphere(), "columns": project_to_sphere(axis=0), "free": optax.identity()}
    layout = {"prototypes": "rows", "head": {"kernel": "columns", "bias": "free"}}
    optimizer = optax.chain(optax.sgd(0.1), optax.partition(by_layout, layout))
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(lengths(moved["prototypes"]), 1, atol=2e-7)
    np.testing.assert_allclose(lengths(moved["head"]["kernel"].T), 1, atol=2e-7)
    np.testing.assert_allclose(moved["head"]["bias"], -0.1, rtol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_an_axis_that_a_parameter_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=r"parameter \['a'\] has shape \(2, 3\); wanted an axis 2, along which"):
        MAKERS[name](axis=2).init({"a": jnp.ones((2, 3))})
