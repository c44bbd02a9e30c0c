import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests.helpers import oracle

ALL = {
    "dot": mj.similarities.dot,
    "cosine_similarity": mj.similarities.cosine,
    "cosine": mj.distances.cosine,
    "squared_euclidean": mj.distances.squared_euclidean,
    "euclidean": mj.distances.euclidean,
    "squared_chord": mj.distances.squared_chord,
    "chord": mj.distances.chord,
    "geodesic": mj.distances.geodesic,
    "lp1": mj.distances.lp(1),
    "lp3": mj.distances.lp(3),
    "snr": mj.distances.snr,
    "poincare": mj.distances.poincare(1.0),
}
every = pytest.mark.parametrize("name", ALL)


def points(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    x, y = 0.3 * rng.standard_normal((5, 4)), 0.3 * rng.standard_normal((7, 4))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


@every
def test_equals_the_oracle(name):
    x, y = points()
    np.testing.assert_allclose(ALL[name](x, y), oracle.matrix(name, np.asarray(x), np.asarray(y)), rtol=2e-5, atol=2e-6)


@every
def test_float64_is_exact(name, x64):
    x, y = points(1, jnp.float64)
    assert ALL[name](x, y).dtype == jnp.float64
    np.testing.assert_allclose(
        ALL[name](x, y), oracle.matrix(name, np.asarray(x), np.asarray(y)), rtol=1e-11, atol=1e-12
    )


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_computes_in_float32(name, dtype):
    x, y = points(2, dtype)
    out = ALL[name](x, y)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, ALL[name](x.astype(jnp.float32), y.astype(jnp.float32)), rtol=1e-6)


@every
def test_degenerate_points_are_finite(name, debug_nans):
    x = jnp.array([[0.0, 0, 0], [1, 2, 2], [1, 2, 2], [-1, -2, -2], [1e-4, 0, 0], [1e4, 0, 0]])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(ALL[name](x, x)))(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("dot", "cosine_similarity")])
def test_distance_to_itself_is_zero_and_no_distance_is_negative(name, x64):
    x, y = points(3, jnp.float64)
    if name not in ("snr",):
        np.testing.assert_allclose(ALL[name](x, y), ALL[name](y, x).T, rtol=1e-10)
    assert (np.asarray(ALL[name](x, y)) >= 0).all()
    np.testing.assert_allclose(jnp.diagonal(ALL[name](x, x)), 0, atol=1e-6)


def test_squared_euclidean_does_not_cancel_far_from_the_origin():
    rng = np.random.default_rng(0)
    x = 100 + 0.01 * rng.standard_normal((6, 8))
    x = np.asarray(x, np.float32)
    exact = oracle.matrix("squared_euclidean", x.astype(np.float64), x.astype(np.float64))
    np.testing.assert_allclose(mj.distances.squared_euclidean(jnp.asarray(x), jnp.asarray(x)), exact, atol=1e-8)


def test_geodesic_is_precise_near_zero_and_near_opposite(x64):
    angles = np.array([0, 1e-7, 1e-4, 1.0, np.pi - 1e-4, np.pi - 1e-6, np.pi])
    points = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    np.testing.assert_allclose(mj.distances.geodesic(points[:1], points)[0], angles, atol=2e-8)


def test_embed_and_compare_make_the_whole():
    x, y = points()
    f = mj.distances.chord
    np.testing.assert_allclose(f.compare(f.embed(x), f.embed(y)), f(x, y), rtol=1e-6)


def test_factories_return_the_same_function_again():
    assert mj.distances.lp(2) is mj.distances.lp(2) is mj.distances.lp(2.0) is mj.distances.lp(np.float32(2))
    assert mj.distances.poincare(0.5) is mj.distances.poincare(0.5)


def test_wrong_arguments(unchecked):
    x, y = points()
    with pytest.raises(ValueError, match=r"euclidean: x has shape \(4,\); wanted \[rows, features\]"):
        mj.distances.euclidean(x[0], y)
    with pytest.raises(ValueError, match="x has 4 features, y has 3"):
        mj.distances.euclidean(x, y[:, :3])
    with pytest.raises(ValueError, match="p is 0"):
        mj.distances.lp(0)
    with pytest.raises(ValueError, match="c is -1"):
        mj.distances.poincare(-1)
