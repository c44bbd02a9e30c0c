import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metricjax.prototypes import add_classes, class_means
from metricjax.transforms import apply_to_rows, on_rows
from tests.helpers.oracle import unit


@pytest.mark.parametrize("on_sphere", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_class_means_equal_loops(on_sphere, dtype, rng, debug_nans):
    n, d, c = 40, 5, 8
    x = jnp.asarray(rng.standard_normal((n, d)) * 10.0 ** rng.integers(-3, 4, (n, 1)), dtype).at[:3].set(0)
    y = rng.integers(-2, c + 2, n)
    y[y == 4], y[:2] = 5, 6  # class 4 has no rows, class 6 two zero rows
    w = rng.random(n) < 0.8
    expected = np.zeros((c, d))
    for k in range(c):
        rows = [np.asarray(x[i], np.float64) for i in range(n) if y[i] == k and w[i]]
        if rows:
            expected[k] = unit(np.mean([unit(v) for v in rows], axis=0)) if on_sphere else np.mean(rows, axis=0)
    x = jnp.where(jnp.asarray(w)[:, None], x, jnp.inf)
    got = class_means(x, jnp.asarray(y, jnp.int32), c, where=jnp.asarray(w), normalize=on_sphere)
    assert got.dtype == dtype
    close = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(np.float64(got), expected, rtol=close, atol=close if on_sphere else 1e-6)


def test_class_means_of_nothing_are_zero_with_finite_gradient(debug_nans):
    y = jnp.array([0, 0, -1])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(class_means(x, y, 2)))(jnp.zeros((3, 2)))
    assert value == 0 and np.isfinite(gradient).all()
    assert class_means(jnp.zeros((0, 2)), jnp.zeros(0, jnp.int32), 3).tolist() == [[0, 0]] * 3


def test_more_classes_than_the_labels_could_name():
    assert class_means(jnp.ones((2, 1)), jnp.array([100, -3], jnp.int8), 300)[:, 0].nonzero()[0].tolist() == [100]


@pytest.mark.parametrize("sampled", [True, False])
def test_training_goes_on_with_further_classes(sampled, rng):
    """Old classes move as if the new ones were not there; new ones begin with fresh moments."""
    c, k, d = 6, 3, 4
    optimizer = on_rows(optax.adam(0.1)) if sampled else optax.with_extra_args_support(optax.adam(0.1))

    @jax.jit
    def step(p, state, gradient):
        rows = jnp.arange(len(gradient))
        with jax.numpy_dtype_promotion("standard"):  # Optax's own Adam raises a float to an integer power
            updates, state = optimizer.update(gradient, state, p[: len(gradient)], rows=rows)
        return apply_to_rows(p, updates, rows), state

    p, gradients = jnp.ones((c, d)), jnp.asarray(rng.standard_normal((4, c, d)), jnp.float32)
    state = optimizer.init(p)
    for gradient in gradients[:2]:
        p, state = step(p, state, gradient)
    more = jnp.concatenate([p, jnp.ones((k, d))])
    grown = add_classes(state, optimizer.init(more))
    np.testing.assert_array_equal(add_classes(p, more), more)
    np.testing.assert_array_equal(grown[0].mu, jnp.pad(state[0].mu, [(0, k), (0, 0)]))
    for gradient in gradients[2:]:
        p, state = step(p, state, gradient)
        more, grown = step(more, grown, jnp.pad(gradient, [(0, 0 if sampled else k), (0, 0)]))
    np.testing.assert_allclose(more, jnp.concatenate([p, jnp.ones((k, d))]), rtol=1e-6)
    assert int(grown[0].count) == 4


def test_errors(unchecked):
    p, y = jnp.ones((2, 3)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="new has the structure"):
        add_classes({"a": p}, {"b": p})
    for wrong in (jnp.ones((1, 3)), jnp.ones((3, 4)), jnp.ones(3), jnp.ones(())):
        with pytest.raises(ValueError, match=r"new\['a'\] has shape .*; wanted that of old, \(2, 3\)"):
            add_classes({"a": p}, {"a": wrong})
    with pytest.raises(ValueError, match="labels has shape"):
        class_means(p, y[:1], 2)
