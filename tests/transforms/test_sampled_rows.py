"""Updates of sampled rows: a dense step on a gradient that is 0 elsewhere, after which all other rows are put back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metricjax.transforms import apply_to_rows, on_rows, project_to_sphere

C, D, R = 9, 4, 3


@pytest.fixture(autouse=True)
def promotion():
    """Optax's own Adam raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


halving = optax.exponential_decay(0.1, transition_steps=1, decay_rate=0.5)
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "adam-bfloat16": optax.adam(0.1, mu_dtype=jnp.bfloat16),
    "adamw": optax.adamw(halving, weight_decay=0.1),
    "sphere": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1), project_to_sphere()),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=halving),
    "masked": optax.masked(optax.adam(0.1), True),
    "multi_steps": optax.MultiSteps(optax.adam(0.1), every_k_schedule=2).gradient_transformation(),
    "if_finite": optax.apply_if_finite(optax.adam(0.1), max_consecutive_errors=2),
}


def put_back(old, new, rows):
    """`new` in the rows `rows`, `old` in all others; here every array of C rows is one of prototypes."""
    there = jnp.zeros((C, 1), bool).at[rows].set(True)
    return jax.tree.map(lambda o, n: jnp.where(there, n, o) if n.shape[:1] == (C,) else n, old, new)


@jax.jit(static_argnums=0)
def dense(inner, p, state, gradient, rows):
    whole = jnp.zeros_like(p).at[rows].set(gradient)
    updates, new = inner.update(whole, state, p)
    return put_back(p, optax.apply_updates(p, updates), rows), put_back(state, new, rows)


def step_of(optimizer):
    def step(p, state, gradient, rows):
        updates, state = optimizer.update(gradient, state, p.at[rows].get(mode="fill", fill_value=0), rows=rows)
        return apply_to_rows(p, updates, rows), state

    return step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_dense_steps_with_other_rows_put_back(name, rng):
    inner, optimizer = OPTIMIZERS[name], on_rows(OPTIMIZERS[name])
    p = expected_p = jnp.asarray(rng.standard_normal((C, D)), jnp.float32)
    state = expected = optimizer.init(p)

    step = jax.jit(step_of(optimizer))
    for _ in range(6):
        rows = jnp.asarray(rng.permutation(C)[:R])
        gradient = jnp.asarray(rng.standard_normal((R, D)), jnp.float32)
        before = p, state
        p, state = step(p, state, gradient, rows)
        expected_p, expected = dense(inner, expected_p, expected, gradient, rows)
        for a, b in zip(jax.tree.leaves((p, state)), jax.tree.leaves((expected_p, expected)), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-2 if "bfloat16" in name else 2e-5)
        jax.tree.map(np.testing.assert_array_equal, (p, state), put_back(before, (p, state), rows))


def test_partition_hands_rows_to_prototypes_only(rng):
    params = {"encoder": jnp.ones((2, D)), "prototypes": jnp.asarray(rng.standard_normal((C, D)), jnp.float32)}
    inner = optax.adam(0.1)
    optimizer = optax.partition({"encoder": optax.sgd(0.1), "prototypes": on_rows(inner)}, {k: k for k in params})
    rows, state = jnp.array([7, 0, 3]), optimizer.init(params)
    gradient = {"encoder": jnp.ones((2, D)), "prototypes": jnp.asarray(rng.standard_normal((R, D)), jnp.float32)}
    sampled = {**params, "prototypes": params["prototypes"][rows]}
    updates, state = jax.jit(optimizer.update)(gradient, state, sampled, rows=rows)
    np.testing.assert_allclose(updates["encoder"], -0.1, rtol=1e-6)
    p = params["prototypes"]
    expected, own = dense(inner, p, inner.init(p), gradient["prototypes"], rows)
    np.testing.assert_allclose(apply_to_rows(p, updates["prototypes"], rows), expected, rtol=1e-6)
    kept = state.inner_states["prototypes"].inner_state[0]
    np.testing.assert_allclose(kept.mu["prototypes"], own[0].mu, rtol=1e-6)
    assert int(kept.count) == 1 and isinstance(kept.mu["encoder"], optax.MaskedNode)


def test_vmap_over_seeds(rng):
    optimizer = on_rows(optax.chain(optax.adam(0.1), project_to_sphere()))
    p = jnp.asarray(rng.standard_normal((2, C, D)), jnp.float32)
    gradient = jnp.asarray(rng.standard_normal((2, R, D)), jnp.float32)
    rows = jax.vmap(lambda key: jax.random.permutation(key, C)[:R])(jax.random.split(jax.random.key(0), 2))
    state = jax.vmap(optimizer.init)(p)
    got = jax.vmap(step_of(optimizer))(p, state, gradient, rows)
    for i in range(2):
        one = step_of(optimizer)(*jax.tree.map(lambda a, i=i: a[i], (p, state, gradient, rows)))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-7), got, one)


def test_padding_reads_and_writes_nothing(rng, debug_nans):
    optimizer = on_rows(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1), project_to_sphere()))
    p = jnp.asarray(rng.standard_normal((C, D)), jnp.float32)
    gradient, rows = jnp.asarray(rng.standard_normal((R, D)), jnp.float32), jnp.array([8, 2, 5])
    expected = step_of(optimizer)(p, optimizer.init(p), gradient, rows)
    padded = jnp.concatenate([rows, jnp.array([C, C, C + 7])])
    got = step_of(optimizer)(p, optimizer.init(p), jnp.pad(gradient, [(0, 3), (0, 0)]), padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_apply_to_rows_is_apply_updates_there(dtype, rng):
    p = {"w": jnp.asarray(rng.standard_normal((C, D)), dtype), "b": jnp.asarray(rng.standard_normal(C), dtype)}
    rows = jnp.array([4, 1, 6])
    updates = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal((R, *a.shape[1:])), jnp.float32), p)
    whole = jax.tree.map(lambda a, u: jnp.zeros(a.shape, jnp.float32).at[rows].set(u), p, updates)
    got = apply_to_rows(p, updates, rows)
    jax.tree.map(np.testing.assert_array_equal, got, optax.apply_updates(p, whole))
    assert got["w"].dtype == dtype


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "sphere", "inject", "multi_steps"])
def test_donated_parameters_and_state_are_changed_in_place(name):
    c, d, r = 1_000_000, 128, 1024
    optimizer, array = on_rows(OPTIMIZERS[name]), jax.ShapeDtypeStruct
    p, rows = array((c, d), jnp.float32), array((r,), jnp.int32)
    arguments = p, jax.eval_shape(optimizer.init, p), array((r, d), jnp.float32), rows
    used = jax.jit(step_of(optimizer), donate_argnums=(0, 1)).lower(*arguments).compile().memory_analysis()
    assert used.temp_size_in_bytes <= 16 * r * d * 4
    assert used.alias_size_in_bytes >= 0.99 * used.output_size_in_bytes


def test_errors():
    optimizer, p, rows = on_rows(optax.adam(0.1)), jnp.ones((C, D)), jnp.arange(R)
    state = optimizer.init(p)
    on_rows(optax.masked(optax.adam(0.1), {"a": True, "b": False})).init({"a": p, "b": p[0, 0]})  # fits
    with pytest.raises(ValueError, match=r"shape \(4,\) for a parameter of shape \(9, 4\)"):
        on_rows(optax.adafactor(0.1, min_dim_size_to_factor=2)).init(p)
    with pytest.raises(ValueError, match=r"params has shape \(9, 4\); wanted a row for each of the 3"):
        optimizer.update(p[rows], state, p, rows=rows)
    with pytest.raises(ValueError, match=r"updates\['w'\] has shape \(9, 4\)"):
        apply_to_rows({"w": p}, {"w": p}, rows)
    with pytest.raises(TypeError, match=r"wanted an array \[r\] of integers"):
        optimizer.update(p, state, p, rows=jnp.ones(C, bool))
