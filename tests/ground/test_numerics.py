import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import selecting
from metricjax.ground import numerics


def test_normalize_at_every_scale(debug_nans):
    direction = np.array([3.0, -4.0], np.float32) / 5
    for scale in (1e-30, 1e-12, 1e-4, 1.0, 1e4, 1e12, 1e30):
        x = jnp.asarray(direction * np.float32(scale))[None]
        np.testing.assert_allclose(numerics.normalize(x)[0], direction, rtol=1e-6)
        gradient = jax.grad(lambda x: numerics.normalize(x)[0, 0])(x)[0]
        np.testing.assert_allclose(gradient * np.float32(scale), [0.64, 0.48], rtol=1e-5)  # (1 − u²) and −u·v


def test_zero_and_subnormal_rows_have_no_gradient(debug_nans):
    for value in (0.0, 1e-40):
        x = jnp.full((1, 3), value, jnp.float32)
        for f in (numerics.normalize, numerics.norm):
            out, gradient = jax.value_and_grad(lambda x, f=f: jnp.sum(f(x)))(x)
            assert out == 0 or value
            assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(numerics.norm(x)))(jnp.zeros((1, 3))), 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalize_of_any_finite_row(dtype, x64):
    """From the smallest subnormal number to the largest one, which processors may flush to 0."""
    info = np.finfo(dtype)
    rows = [[scale * 0.6, -scale * 0.8, 0] for scale in (2**-125 if dtype == np.float32 else 2.0**-1021, 1.0, info.max)]
    rows += [[info.smallest_subnormal, 0, 0], [3 * info.smallest_subnormal, -info.smallest_subnormal, 0]]
    rows += [[info.tiny / 3, -info.tiny, 2 * info.tiny], [info.max, info.max, -info.max], [info.max, 1, info.tiny / 2]]
    x = np.array(rows, dtype)
    parts = np.frexp(x)  # exact where numbers are subnormal
    wide = np.ldexp(
        parts[0].astype(np.float64), parts[1] - np.max(parts[1], axis=1, where=x != 0, initial=-2000)[:, None]
    )
    exact = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    for f in (numerics.normalize, jax.jit(numerics.normalize)):
        np.testing.assert_allclose(f(jnp.asarray(x)), exact, rtol=1e-6, atol=1e-7)
    gradient = jax.grad(lambda x: jnp.sum(numerics.normalize(x)))(jnp.asarray(x))
    assert np.isfinite(gradient).all()


def test_normalize_has_a_gradient_at_zero_entries():
    np.testing.assert_allclose(jax.jacobian(numerics.normalize)(jnp.array([2.0, 0])), [[0, 0], [0, 0.5]])


def test_nan_and_infinity_pass_on():
    x = jnp.array([[1.0, 2.0], [jnp.nan, 1.0], [jnp.inf, 1.0], [0.0, 0.0]])
    for f in (numerics.normalize, numerics.norm, lambda x: numerics.inverse_length(x)[:, None]):
        assert np.isnan(np.asarray(f(x))).any(axis=1)[:2].tolist() == [False, True]
    np.testing.assert_array_equal(numerics.safe_sqrt(x[:, :1])[:, 0], [1, np.nan, np.inf, 0])
    np.testing.assert_array_equal(np.isnan(jax.grad(lambda x: jnp.sum(numerics.norm(x)))(x)).any(axis=1)[:2], [0, 1])
    np.testing.assert_array_equal(np.isnan(jax.grad(lambda x: jnp.sum(numerics.safe_sqrt(x)))(x))[1], [True, False])
    np.testing.assert_array_equal(np.isnan(numerics.softplus(x)), np.isnan(x))
    there = jnp.array([[True, True], [True, False], [False, True], [False, False]])
    np.testing.assert_array_equal(np.isnan(numerics.logsumexp(x, there)), [False, True, False, False])
    np.testing.assert_array_equal(numerics.finite_rows(x), [True, False, False, True])
    assert numerics.finite_rows(jnp.array([[3e38, -3e38]]))[0]


def test_spoilt(debug_nans):
    x = jnp.array([[1.0, 3e38], [3e38, 3e38]])
    value, gradient = jax.value_and_grad(numerics.spoilt)(x)
    assert value == 0 and not np.any(gradient)
    with jax.debug_nans(False):
        for broken in (jnp.nan, jnp.inf):
            value, gradient = jax.value_and_grad(numerics.spoilt)(x.at[0, 1].set(broken))
            assert np.isnan(value) and np.isnan(gradient).all()


def test_norm_equals_numpy(rng):
    x = rng.standard_normal((4, 5)).astype(np.float32)
    np.testing.assert_allclose(numerics.norm(jnp.asarray(x))[:, 0], np.linalg.norm(x, axis=1), rtol=1e-6)


def test_safe_sqrt(debug_nans):
    x = jnp.array([-1.0, 0.0, 4.0])
    np.testing.assert_array_equal(numerics.safe_sqrt(x), [0, 0, 2])
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(numerics.safe_sqrt(x)))(x), [0, 0, 0.25])


def test_masked_logsumexp(debug_nans):
    x = jnp.array([[1000.0, 1001.0, 5e4], [-2000.0, 0.0, 3.0], [1.0, 2.0, 3.0]])
    where = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    value, pull = jax.vjp(lambda x: numerics.logsumexp(x, where), x)
    np.testing.assert_allclose(value, [1000 + np.log1p(np.e), -2000, -np.inf], rtol=1e-6)
    p = 1 / (1 + np.e)
    np.testing.assert_allclose(pull(jnp.ones(3))[0], [[p, 1 - p, 0], [1, 0, 0], [0, 0, 0]], rtol=1e-4, atol=1e-7)


def test_softplus(debug_nans):
    x = jnp.array([-jnp.inf, -1e4, -20.0, 0.0, 20.0, 1e4])
    value, pull = jax.vjp(numerics.softplus, x)
    with np.errstate(over="ignore"):
        expected = np.logaddexp(0, np.asarray(x, np.float64))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(6))[0], np.exp(np.asarray(x, np.float64) - expected), rtol=1e-5)


@pytest.mark.slow
def test_first_largest():
    rng = np.random.default_rng(0)
    for m in (1, 63, 64, 200):
        x = rng.integers(-9, 3, (50, m)).astype(np.float32)  # most rows have several largest entries
        x[:3] = -np.inf
        x[3:6, -1] = np.inf
        np.testing.assert_array_equal(selecting.first_largest(jnp.asarray(x)), np.argmax(x, axis=1))
        index, largest = selecting.first_largest_down(jnp.asarray(x.T))
        np.testing.assert_array_equal(index, np.argmax(x, axis=1))
        np.testing.assert_array_equal(largest, np.max(x, axis=1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sphere_project_keeps_the_dtype(dtype):
    x = jnp.array([[3, 4], [0, 0]], dtype)
    y = mj.sphere.project(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float32), [[0.6, 0.8], [0, 0]], rtol=4e-3)


def test_ordered_integers():
    x = jnp.array([-jnp.inf, -2.5, -1e-30, -0.0, 0.0, 1e-30, 1.0, 3e38, jnp.inf])
    order = np.asarray(jax.jit(selecting.ordered_integers)(x))
    assert order[3] == order[4]
    assert (np.diff(np.delete(order, 3)) > 0).all()
