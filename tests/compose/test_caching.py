"""Gradient caching: the big batch's gradient, in the memory of a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import metricjax as mj

N, FEATURES, HIDDEN, SIZE = 24, 6, 16, 5


def encode(params, inputs):
    hidden = jnp.tanh(inputs["x"] @ params["first"]) * inputs["scale"][:, None]
    return hidden @ params["second"]


@pytest.fixture
def given(rng):
    array = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params = {"first": array(FEATURES, HIDDEN), "second": array(HIDDEN, SIZE)}
    return params, {"x": array(N, FEATURES), "scale": array(N)}, jnp.arange(N) // 3


@pytest.mark.parametrize("loss", [mj.losses.supcon, mj.losses.triplet, mj.losses.smooth_ap])
@pytest.mark.parametrize("chunk_size", [1, 4, N])
def test_value_and_gradient_are_those_of_the_whole_batch(given, loss, chunk_size):
    params, inputs, labels = given
    of = lambda encode: jax.jit(jax.value_and_grad(lambda params: loss(encode(params, inputs), labels)))
    np.testing.assert_allclose(mj.cached(encode, chunk_size)(params, inputs), encode(params, inputs), atol=1e-5)
    (value, gradient), (expected, wanted) = of(mj.cached(encode, chunk_size))(params), of(encode)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.max(np.abs(b))), gradient, wanted)


def test_inputs_have_gradients_too(given):
    params, inputs, labels = given
    of = lambda encode: jax.grad(lambda x: mj.losses.supcon(encode(params, {**inputs, "x": x}), labels))(inputs["x"])
    np.testing.assert_allclose(of(mj.cached(encode, 6)), of(encode), atol=1e-6)


@pytest.mark.slow
def test_memory_is_that_of_a_chunk():
    rows, width, depth = 1024, 512, 4
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)

    def deep(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x[:, :8]

    def temporaries(encode):
        loss = lambda params, x: mj.losses.supcon(encode(params, x), jnp.arange(rows) // 2)
        lowered = jax.jit(jax.grad(loss)).lower([shape(width, width)] * depth, shape(rows, width))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    activations = 4 * rows * width  # of one layer
    assert temporaries(deep) > depth * activations
    scores = 4 * rows * rows
    assert temporaries(mj.cached(deep, 64)) < 1.5 * activations + 2 * scores + depth * 4 * width * width


def test_something_else_comes_stacked(given):
    params, inputs, _ = given
    with_mean = lambda params, inputs: (encode(params, inputs), jnp.mean(inputs["x"]))
    embeddings, means = mj.cached(with_mean, 6, has_aux=True)(params, inputs)
    np.testing.assert_allclose(embeddings, encode(params, inputs), atol=1e-5)
    np.testing.assert_allclose(means, [np.mean(inputs["x"][j::4]) for j in range(4)], atol=1e-6)


def test_rows_that_are_split_over_devices_stay_there(given):
    params, inputs, labels = given
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    split = NamedSharding(mesh, PartitionSpec("data"))
    loss = lambda params, x: mj.losses.supcon(mj.cached(encode, 8)(params, x), labels)
    placed = jax.device_put(inputs, split)
    f = jax.jit(jax.grad(loss)).lower(params, placed).compile()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), f(params, placed), jax.grad(loss)(params, inputs)
    )
    assert f"f32[{N},{FEATURES}]" not in f.as_text()  # nowhere are all inputs together


def test_wrong_arguments(given):
    params, inputs, _ = given
    with pytest.raises(ValueError, match="chunk_size is 0; wanted a positive int"):
        mj.cached(encode, 0)
    with pytest.raises(ValueError, match="chunk_size is 5; wanted a divisor of the 24 rows"):
        mj.cached(encode, 5)(params, inputs)
    with pytest.raises(ValueError, match=r"inputs have \[3, 24\] rows"):
        mj.cached(encode, 4)(params, {**inputs, "scale": inputs["scale"][:3]})
