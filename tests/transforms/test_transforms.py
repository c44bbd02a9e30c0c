import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metricjax.transforms import project_to_sphere


@pytest.fixture(autouse=True)
def promotion():
    """Optax's own Adam raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def lengths(x):
    return np.linalg.norm(np.asarray(x, np.float64), axis=-1)


@pytest.mark.parametrize("d", [2, 64, 512])
def test_rows_stay_on_the_sphere_for_thousands_of_steps(d, rng):
    optimizer = optax.chain(optax.adam(1e-2), project_to_sphere())
    p = jnp.asarray(rng.standard_normal((6, d)), jnp.float32)
    target = jnp.asarray(rng.standard_normal((6, d)), jnp.float32)

    @jax.jit
    def run(p):
        def step(carry, key):
            p, state = carry
            noise = jax.random.normal(key, p.shape)
            updates, state = optimizer.update(-target + noise, state, p)
            p = optax.apply_updates(p, updates)
            return (p, state), jnp.max(jnp.abs(jnp.sqrt(jnp.sum(jnp.square(p), axis=-1)) - 1))

        return jax.lax.scan(step, (p, optimizer.init(p)), jax.random.split(jax.random.key(0), 3000))

    (p, _), off = run(p)
    assert np.abs(lengths(p) - 1).max() <= 2e-7
    assert off.max() < 1e-6  # at every step, as far as a float32 norm can tell


def test_equals_moving_and_then_normalising(rng):
    p = jnp.asarray(rng.standard_normal((3, 2, 5)), jnp.float32)
    gradient = jnp.asarray(rng.standard_normal((3, 2, 5)), jnp.float32)
    optimizer = optax.chain(optax.sgd(0.1), project_to_sphere())
    updates, _ = optimizer.update(gradient, optimizer.init(p), p)
    moved = np.asarray(p, np.float64) - 0.1 * np.asarray(gradient, np.float64)
    np.testing.assert_allclose(optax.apply_updates(p, updates), moved / lengths(moved)[..., None], rtol=1e-6, atol=1e-7)


def test_zero_row_stays_finite(debug_nans):
    p = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    updates = jnp.array([[0.0, 0.0], [-1.0, 0.0]])
    updates, _ = project_to_sphere().update(updates, optax.EmptyState(), p)
    np.testing.assert_array_equal(optax.apply_updates(p, updates), 0)


def test_bfloat16_rows(rng):
    p = jnp.asarray(rng.standard_normal((4, 64)), jnp.bfloat16)
    optimizer = optax.chain(optax.sgd(0.1), project_to_sphere())
    updates, _ = optimizer.update(p, optimizer.init(p), p)
    assert optax.apply_updates(p, updates).dtype == jnp.bfloat16
    assert np.abs(lengths(optax.apply_updates(p, updates)) - 1).max() < 4e-3


def test_needs_params():
    with pytest.raises(ValueError, match="project_to_sphere got no params"):
        project_to_sphere().update(jnp.ones((1, 2)), optax.EmptyState())


def test_scalar_parameter_is_refused():
    with pytest.raises(ValueError, match=r"parameter \['bias'\] is a scalar"):
        project_to_sphere().init({"bias": jnp.zeros(())})


@pytest.mark.parametrize("how", ["masked", "partition", "multi_steps", "inject"])
def test_composes_with_optax(how, rng):
    params = {"prototypes": jnp.asarray(rng.standard_normal((3, 4)), jnp.float32), "other": jnp.ones((2, 2))}
    chain = optax.chain(optax.sgd(0.1), project_to_sphere())
    if how == "masked":
        optimizer = optax.chain(optax.sgd(0.1), optax.masked(project_to_sphere(), {"prototypes": True, "other": False}))
    elif how == "partition":
        labels = {"prototypes": "sphere", "other": "free"}
        optimizer = optax.partition({"sphere": chain, "free": optax.sgd(0.1)}, labels)
    elif how == "multi_steps":
        optimizer = optax.MultiSteps(chain, every_k_schedule=1)
    else:
        make = lambda learning_rate: optax.chain(optax.sgd(learning_rate), project_to_sphere())
        optimizer = optax.inject_hyperparams(make)(learning_rate=0.1)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(lengths(moved["prototypes"]), 1, atol=2e-7)
    if how in ("masked", "partition"):
        np.testing.assert_allclose(moved["other"], 0.9, rtol=1e-6)


def test_vmap(rng):
    p = jnp.asarray(rng.standard_normal((3, 2, 4)), jnp.float32)
    update = lambda p: project_to_sphere().update(jnp.full_like(p, 0.1), optax.EmptyState(), p)[0]
    np.testing.assert_allclose(jax.vmap(update)(p), update(p), rtol=1e-6, atol=1e-7)
