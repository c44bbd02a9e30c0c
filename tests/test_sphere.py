"""Each function against the oracle at angles up to the ends, its identities, derivatives, and degenerate input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from metricjax import distances, sphere
from tests.helpers import oracle_sphere as oracle

to_tangent, exp, log, distance, interpolate, transport, frechet_mean = map(
    jax.jit,
    (
        sphere.to_tangent,
        sphere.exp,
        sphere.log,
        sphere.distance,
        sphere.interpolate,
        sphere.transport,
        sphere.frechet_mean,
    ),
)

GAPS = [1e-7, 1e-6, 1e-5, 1e-3, 0.1, 1.0]
ANGLES = np.array([*GAPS, np.pi / 2, *(np.pi - gap for gap in GAPS)])
TOLERANCE = {"float32": 1e-6, "float64": 2e-12}  # the latter is that of the oracle

by_dimension = pytest.mark.parametrize("d", [2, 3, 128])
by_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"], indirect=True)


@pytest.fixture
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def pairs(rng, d, dtype, angles=ANGLES):
    """Points x and y that are `angles` apart, and unit tangents v at x."""
    draw = lambda: rng.standard_normal((len(angles), d))
    x = draw()
    n, v = (np.stack(list(map(oracle.direction, x, draw()))) for _ in range(2))
    y = np.stack(list(map(oracle.exp, x, np.asarray(angles)[:, None] * n)))
    x = np.stack(list(map(oracle.unit, x)))
    return tuple(jnp.asarray(np.float64(a), dtype) for a in (x, y, v))


def each(function, *rows):
    """The oracle's function of each row."""
    return np.stack([np.float64(function(*given)) for given in zip(*map(np.asarray, rows), strict=True)])


def close(found, wanted, atol):
    np.testing.assert_allclose(np.float64(found), np.float64(wanted), rtol=0, atol=atol)


def lengths(x):
    return np.linalg.norm(np.asarray(x, np.float64), axis=-1)


def dots(x, y):
    return np.sum(np.float64(x) * np.float64(y), axis=-1)


def jacobian(f, arguments):
    return jax.jit(jax.jacobian(f, arguments))


# --- values ---------------------------------------------------------------------------------------------------------


@by_dimension
@by_dtype
def test_values(d, dtype, rng):
    x, y, v = pairs(rng, d, dtype)
    way = jnp.asarray(np.asarray(v) * ANGLES[:, None], dtype)
    atol = TOLERANCE[dtype]
    close(distance(x, y), each(oracle.angle, x, y), atol)
    close(log(x, y), each(oracle.log, x, y), atol)
    close(exp(x, way), each(oracle.exp, x, way), atol)
    close(transport(x, y, v), each(oracle.transport, x, y, v), atol)
    for t in (0.0, 0.3, 1.0, -0.5):
        close(interpolate(x, y, t), each(lambda x, y, t=t: oracle.interpolate(x, y, t), x, y), atol)


@by_dimension
@by_dtype
def test_angles_have_a_small_relative_error(d, dtype, rng):
    x, y, _ = pairs(rng, d, dtype)
    rtol = TOLERANCE[dtype]
    np.testing.assert_allclose(distance(x, y), each(oracle.angle, x, y), rtol=rtol)
    ways = np.asarray(log(x, y), np.float64)
    assert (lengths(ways - each(oracle.log, x, y)) <= rtol * ANGLES).all()
    close(ways / lengths(ways)[:, None], each(oracle.direction, x, y), rtol)  # nearly opposite points too


@by_dimension
@by_dtype
def test_identities(d, dtype, rng):
    x, y, v = pairs(rng, d, dtype)
    atol = TOLERANCE[dtype]
    way = log(x, y)
    close(exp(x, way), y, atol)
    close(dots(x, way), 0, atol)
    close(distance(x, y), lengths(way), atol)
    close(distance(x, y), distance(y, x), atol)
    middle = interpolate(x, y, 0.3)
    close(np.add(distance(x, middle), distance(middle, y)), distance(x, y), 2 * atol)
    np.testing.assert_array_equal(interpolate(x, y, 0.0), x)
    close(interpolate(x, y, 1.0), y, atol)
    moved = transport(x, y, v)
    close(dots(y, moved), 0, atol)
    close(dots(moved, transport(x, y, way)), dots(v, way), 4 * atol)
    close(transport(y, x, moved), v, 2 * atol)
    close(transport(x, y, way), -log(y, x), 4 * atol)


def test_tangents(rng):
    x, v = (jnp.asarray(rng.standard_normal((9, 5)), jnp.float32) for _ in range(2))
    wanted = each(lambda x, v: v - (oracle.unit(x) @ v) * oracle.unit(x), x, v)
    close(to_tangent(x, v), wanted, 1e-6)  # only the direction of x counts
    close(to_tangent(x, x), 0, 1e-6)
    np.testing.assert_array_equal(to_tangent(jnp.zeros((9, 5)), v), v)


def test_distance_is_that_of_all_pairs(rng):
    x, y = (sphere.random_uniform(jax.random.key(seed), (6, 4)) for seed in range(2))
    close(distance(x[:, None], y[None]), distances.geodesic(x, y), 1e-6)


@pytest.mark.parametrize("d", [2, 128])
def test_rows_stay_on_the_sphere_for_thousands_of_steps(d):
    x, v = (sphere.random_uniform(jax.random.key(seed), (5, d)) for seed in range(2))
    step = lambda i, x: exp(x, 0.1 * to_tangent(x, v + x[::-1]))
    close(lengths(jax.jit(lambda x: jax.lax.fori_loop(0, 3000, step, x))(x)), 1, 2e-7)


def test_bfloat16_is_kept(rng):
    dtype = jnp.bfloat16
    x, y, v = pairs(rng, 8, dtype, [0.5, 1.0, 2.0])
    out = {
        "project": (sphere.project(x), each(oracle.unit, x)),
        "to_tangent": (to_tangent(x, v), v),
        "exp": (exp(x, v), each(oracle.exp, x, v)),
        "log": (log(x, y), each(oracle.log, x, y)),
        "transport": (transport(x, y, v), each(oracle.transport, x, y, v)),
        "distance": (distance(x, y), each(oracle.angle, x, y)),
        "interpolate": (interpolate(x, y, 0.3), each(lambda x, y: oracle.interpolate(x, y, 0.3), x, y)),
    }
    for found, wanted in out.values():
        assert found.dtype == dtype
        close(found, wanted, 1e-2)
    np.testing.assert_array_equal(exp(x, jnp.zeros_like(x)), x)
    assert frechet_mean(x).dtype == sphere.random_uniform(jax.random.key(0), (2, 3), dtype).dtype == dtype


def test_leading_axes_broadcast(rng):
    x, y, v = (a.reshape(3, 2, 4) for a in pairs(rng, 4, jnp.float32, np.linspace(0.1, 3, 6)))
    for f in (exp, log, distance, lambda x, y: transport(x, y, v[:1])):
        rows = jnp.stack([f(x[:1], y[i : i + 1])[0] for i in range(3)])
        close(f(x[:1], y), rows, 1e-6)
    t = jnp.asarray([[0.1, 0.5]])
    apart = distance(x, interpolate(x, y, t))
    close(apart, t * distance(x, y), 1e-6)
    close(jax.vmap(interpolate, (0, 0, None))(x, y, t[0]), interpolate(x, y, t), 1e-6)


@pytest.mark.parametrize("d", [2, 5])
def test_random_points_are_uniform(d):
    x = np.asarray(sphere.random_uniform(jax.random.key(0), (100, 400, d)), np.float64).reshape(-1, d)
    close(lengths(x), 1, 2e-7)
    close(x.mean(0), 0, 0.02)
    close(x.T @ x / len(x), np.eye(d) / d, 0.02)
    close((x[:, 0] ** 4).mean(), 3 / (d * (d + 2)), 0.01)


# --- derivatives ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_derivatives(x64, rng):
    x, y, v = pairs(rng, 3, jnp.float64, [0.01, 1.0, 2.5])
    for f, given in [
        (to_tangent, (x, v)),
        (exp, (x, v)),
        (exp, (x, 1e-3 * v)),
        (log, (x, y)),
        (distance, (x, y)),
        (transport, (x, y, v)),
        (interpolate, (x, y, jnp.asarray([0.3, 0.5, 1.2]))),
    ]:
        check_grads(f, given, order=1, eps=1e-6, atol=1e-6, rtol=1e-6)
    check_grads(exp, (x, v), order=2, eps=1e-5, atol=1e-5, rtol=1e-5)


def test_derivatives_at_angle_zero(rng, debug_nans):
    x = sphere.random_uniform(jax.random.key(0), (4,))
    tangential = np.eye(4) - np.outer(x, x)
    close(jacobian(log, 1)(x, x), tangential, 1e-6)
    close(jacobian(exp, 1)(x, 0 * x), np.eye(4) - np.outer(x, x), 1e-6)
    close(jacobian(interpolate, 1)(x, x, 0.25), tangential / 4, 1e-6)
    close(jacobian(transport, 2)(x, x, 0 * x), np.eye(4) - 2 * np.outer(x, x), 1e-6)
    v = tangential[0].astype(np.float32)
    curve = jax.jit(jax.hessian(lambda t: exp(x, t * jnp.asarray(v))))(0.0)
    close(curve, -(v @ v) * x, 1e-6)
    for y in (x, -x):
        close(jacobian(distance, (0, 1))(x, y), 0, 0)


# --- degenerate input -----------------------------------------------------------------------------------------------


def sums(v):
    """Each function of (x, y) as a number, to be differentiated."""
    weights = jnp.arange(1, v.shape[-1] + 1, dtype=v.dtype)[None]
    return {
        "exp": lambda x, y: jnp.sum(exp(x, to_tangent(x, y)) * weights),
        "log": lambda x, y: jnp.sum(log(x, y) * weights),
        "distance": lambda x, y: jnp.sum(distance(x, y)),
        "interpolate": lambda x, y: jnp.sum(interpolate(x, y, 0.4) * weights),
        "transport": lambda x, y: jnp.sum(transport(x, y, v) * weights),
        "frechet_mean": lambda x, y: jnp.sum(frechet_mean(jnp.stack([x, y], axis=-2)) * weights),
    }


@pytest.mark.parametrize("name", sums(jnp.zeros((1, 2))))
def test_values_and_gradients_are_finite(name, debug_nans):
    e, zero = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    tilted = np.asarray(sphere.random_uniform(jax.random.key(0), (3,)))
    pairs = [(zero, zero), (zero, e[0]), (e[0], zero)]
    for x in (e[0], tilted):
        for gap in (0, 1e-40, 1e-30, 1e-20, 1e-15, 1e-12, 1e-9, 1e-7, 1e-4):
            y = x + np.float32(gap) * e[1]
            pairs += [(x, y), (y, x), (x, -y), (-y, x)]
    x, y = (jnp.stack([jnp.asarray(p[i]) for p in pairs]) for i in range(2))
    f = sums(jnp.broadcast_to(jnp.asarray(e[2:]), x.shape))[name]
    value, gradients = jax.jit(jax.value_and_grad(f, (0, 1)))(x, y)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_opposite_points(rng, debug_nans):
    x, _, v = pairs(rng, 3, jnp.float32)
    way = log(x, -x)
    close(lengths(way), np.pi, 1e-6)
    close(exp(x, way), -x, 1e-6)
    close(distance(x, interpolate(x, -x, 0.5)), np.pi / 2, 1e-6)
    moved = transport(x, -x, v)
    close(lengths(moved), 1, 1e-6)
    close(transport(-x, x, moved), v, 1e-6)
    close(jax.grad(lambda y: jnp.sum(log(x, y)))(-x), 0, 0)


def test_distance_to_a_zero_row():
    zero, x = jnp.zeros((1, 3)), jnp.eye(3)[:1]
    for pair in [(zero, x), (x, zero), (zero, zero)]:
        close(distance(*pair), np.pi / 2, 1e-7)


# --- the mean -------------------------------------------------------------------------------------------------------


def cap(rng, n, d, radius):
    """Points within `radius` of the first axis, half of them on the rim, and weights."""
    away = rng.standard_normal((n, d)) * (np.arange(d) > 0)
    away *= radius * np.where(np.arange(n) % 2, 1, rng.random(n))[:, None] / np.linalg.norm(away, axis=1, keepdims=True)
    return each(lambda v: oracle.exp(np.eye(d)[0], v), away), 0.05 + rng.random(n)


@pytest.mark.parametrize("d", [pytest.param(3, marks=pytest.mark.slow), 16])
@by_dtype
def test_frechet_mean(d, dtype, rng):
    points, weights = zip(*(cap(rng, 7, d, radius) for radius in (1e-3, 0.5, 1.2, 1.5)), strict=True)
    points, weights = (jnp.asarray(np.stack(a), dtype) for a in (points, weights))
    wanted = each(oracle.frechet_mean, points, weights)
    close(frechet_mean(points, weights), wanted, 3 * TOLERANCE[dtype])
    close(jax.jit(jax.vmap(sphere.frechet_mean))(points, weights), wanted, 3 * TOLERANCE[dtype])


def test_points_that_do_not_count(rng):
    points, weights = (jnp.asarray(a, jnp.float32) for a in cap(rng, 4, 3, 1.2))
    mean = frechet_mean(jnp.concatenate([points, points]), jnp.concatenate([weights, weights]))
    close(mean, frechet_mean(points, weights), 1e-6)
    zero, other = jnp.zeros_like(points), jnp.ones(4)
    close(frechet_mean(jnp.concatenate([points, zero]), jnp.concatenate([weights, other])), mean, 1e-6)
    close(frechet_mean(jnp.concatenate([points, -points]), jnp.concatenate([weights, 0 * other])), mean, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 128])
def test_frechet_mean_of_two_points_lies_between_them(d, rng):
    x, y, _ = pairs(rng, d, jnp.float32, [0, 1e-6, 1e-3, 0.5, 1.5, 3.0, np.pi - 1e-3, np.pi - 1e-4])
    points = jnp.stack([x, y], axis=1)
    mean = lambda t: frechet_mean(points, jnp.broadcast_to(jnp.stack([1 - t, t])[None], (8, 2)))
    along = lambda f: jax.jit(lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),)))(jnp.float32(0.5))
    (found, found_slope), (wanted, slope) = along(mean), along(lambda t: interpolate(x, y, t))
    close(found[:-2], wanted[:-2], 2e-6)
    close(found, wanted, 2e-3)  # nearly opposite points lie as close to many
    close(found_slope, slope, 5e-3)


@pytest.mark.slow
def test_derivatives_of_the_frechet_mean(x64, rng):
    points, weights = map(jnp.asarray, cap(rng, 5, 3, 1.3))
    check_grads(frechet_mean, (points, weights), order=2, eps=1e-5, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_derivatives_of_the_frechet_mean_of_equal_points(debug_nans):
    x = sphere.random_uniform(jax.random.key(0), (3,))
    points = jnp.stack([x, x, x])
    weights = jnp.asarray([1.0, 1.0, 2.0])
    close(frechet_mean(points, weights), x, 2e-7)
    by_points, by_weights = jacobian(frechet_mean, (0, 1))(points, weights)
    tangential = np.eye(3) - np.outer(x, x)
    close(by_points, tangential[:, None] * np.asarray(weights)[:, None] / 4, 1e-6)
    close(by_weights, 0, 1e-7)


@pytest.mark.slow
def test_frechet_mean_of_degenerate_points(debug_nans):
    e = np.eye(3, dtype=np.float32)
    points = jnp.asarray(np.stack([e[:2], np.stack([e[0], -e[0]]), 0 * e[:2]]))
    weights = jnp.asarray([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    value, pull = jax.vjp(frechet_mean, points, weights)
    close(value, 0, 0)
    assert not any(np.any(g) for g in pull(jnp.ones((3, 3))))
    close(frechet_mean(points[:, :0]), 0, 0)
    everywhere = sphere.random_uniform(jax.random.key(0), (20, 9, 3))  # mostly in no half-sphere
    means, pull = jax.vjp(frechet_mean, everywhere)
    close(lengths(means), 1, 2e-7)
    assert np.isfinite(pull(jnp.ones((20, 3)))[0]).all()


def test_a_weight_for_each_point_is_wanted(unchecked):
    with pytest.raises(ValueError, match=r"weights has shape \(3,\)"):
        sphere.frechet_mean(jnp.ones((2, 3)), jnp.ones(3))
