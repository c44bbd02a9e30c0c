"""Weights of PyTorch's IResNet give, by name, what PyTorch computes: against NumPy, in its layout."""

import pathlib
import sys
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metricjax.encoders import IResNet, load_iresnet

pytestmark = pytest.mark.usefixtures("standard_promotion")

BLOCKS, WIDTHS, IMAGE, SIZE = (1, 2), (3, 4), (7, 12, 2), 5
JOINED = 4 * 2 * 3  # channels, rows and columns of the last stage


def state_dict(rng):
    """Random values under the names, and in the shapes, of arcface_torch's iresnet.py."""
    weights = {}

    def norm(name, channels):
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.5, channels)
        weights[f"{name}.bias"] = rng.normal(0, 0.5, channels)
        weights[f"{name}.running_mean"] = rng.normal(0, 0.5, channels)
        weights[f"{name}.running_var"] = rng.uniform(0.5, 2, channels)
        weights[f"{name}.num_batches_tracked"] = np.array(7)

    def conv(name, channels, out, size):
        weights[f"{name}.weight"] = rng.normal(0, 0.3, (out, channels, size, size))

    conv("conv1", IMAGE[2], WIDTHS[0], 3)
    norm("bn1", WIDTHS[0])
    weights["prelu.weight"] = rng.uniform(0, 0.5, WIDTHS[0])
    channels = WIDTHS[0]
    for stage, (count, out) in enumerate(zip(BLOCKS, WIDTHS, strict=True), start=1):
        for b in range(count):
            name = f"layer{stage}.{b}"
            norm(f"{name}.bn1", channels)
            conv(f"{name}.conv1", channels, out, 3)
            norm(f"{name}.bn2", out)
            weights[f"{name}.prelu.weight"] = rng.uniform(0, 0.5, out)
            conv(f"{name}.conv2", out, out, 3)
            norm(f"{name}.bn3", out)
            if b == 0:
                conv(f"{name}.downsample.0", channels, out, 1)
                norm(f"{name}.downsample.1", out)
            channels = out
    norm("bn2", channels)
    weights["fc.weight"] = rng.normal(0, 0.3, (SIZE, JOINED))
    weights["fc.bias"] = rng.normal(0, 0.3, SIZE)
    norm("features", SIZE)
    weights["features.weight"] = np.ones(SIZE)
    return {name: a if a.dtype.kind == "i" else a.astype(np.float32) for name, a in weights.items()}


def forward(weights, images, training):
    """Features in float64, and the running averages afterwards; images are [n, channels, height, width]."""
    w = {name: np.asarray(a, np.float64) for name, a in weights.items()}
    averages = {}

    def conv(name, x, stride=1):
        kernel = w[f"{name}.weight"]
        size, pad = kernel.shape[2], kernel.shape[2] // 2
        x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
        rows, columns = ((x.shape[axis] - size) // stride + 1 for axis in (2, 3))
        out = np.zeros((len(x), len(kernel), rows, columns))
        for r in range(rows):
            for c in range(columns):
                patch = x[:, :, r * stride : r * stride + size, c * stride : c * stride + size]
                out[:, :, r, c] = np.einsum("nihw,oihw->no", patch, kernel)
        return out

    def norm(name, x):
        across = (0, 2, 3)[: x.ndim - 1]
        each = lambda a: a.reshape(1, -1, *[1] * (x.ndim - 2))
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        if training:
            averages[f"{name}.running_mean"] = 0.9 * mean + 0.1 * x.mean(across)
            averages[f"{name}.running_var"] = 0.9 * variance + 0.1 * x.var(across)
            mean, variance = x.mean(across), x.var(across)
        standard = (x - each(mean)) / np.sqrt(each(variance) + 1e-5)
        return standard * each(w[f"{name}.weight"]) + each(w[f"{name}.bias"])

    def prelu(name, x):
        return np.where(x > 0, x, w[f"{name}.weight"].reshape(1, -1, 1, 1) * x)

    x = prelu("prelu", norm("bn1", conv("conv1", images.astype(np.float64))))
    for stage, count in enumerate(BLOCKS, start=1):
        for b in range(count):
            name, stride = f"layer{stage}.{b}", 2 if b == 0 else 1
            y = prelu(f"{name}.prelu", norm(f"{name}.bn2", conv(f"{name}.conv1", norm(f"{name}.bn1", x))))
            y = norm(f"{name}.bn3", conv(f"{name}.conv2", y, stride))
            if b == 0:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = x + y
    x = norm("bn2", x).reshape(len(x), -1)
    return norm("features", x @ w["fc.weight"].T + w["fc.bias"]), averages


def encoder():
    return IResNet(BLOCKS, SIZE, IMAGE, widths=WIDTHS, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("training", [False, True])
def test_loaded_weights_give_what_pytorch_computes(rng, training):
    weights, images = state_dict(rng), rng.uniform(-1, 1, (6, *IMAGE)).astype(np.float32)
    expected, averages = forward(weights, images.transpose(0, 3, 1, 2), training)
    model = nnx.eval_shape(encoder)  # nothing of it is left, or there would be an error
    load_iresnet(model, weights)
    model.train() if training else model.eval()
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, images):
        model = nnx.merge(graph, state, copy=True)
        return model.features(images), nnx.state(model)

    features, after = run(state, jnp.asarray(images))
    np.testing.assert_allclose(features, expected, rtol=2e-4, atol=2e-4)
    nnx.update(model, after)
    for name, norm in {"bn1": model.stem_norm, "layer2.1.bn3": model.stages[1][1].norm3}.items():
        mean, variance = (averages.get(f"{name}.{k}", weights[f"{name}.{k}"]) for k in ("running_mean", "running_var"))
        np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.var[...], variance, rtol=1e-4, atol=1e-5)


def test_every_name_must_fit(rng, unchecked):
    weights, model = state_dict(rng), encoder()
    before = jax.tree.map(np.asarray, nnx.state(model))
    cases = {
        r"2 names missing \(bn1.bias, fc.weight\)": {
            k: v for k, v in weights.items() if k not in ("bn1.bias", "fc.weight")
        },
        r"4 names unknown \(a, b, c, \.\.\.\)": weights | dict.fromkeys("abcd", np.ones(1)),
        r"1 shapes differ \(prelu.weight is \(1,\), wanted \(3,\)\)": weights | {"prelu.weight": np.ones(1)},
        "features.weight, the frozen scale of the last norm, is not all 1": weights
        | {"features.weight": np.full(SIZE, 2)},
        "weights hold a list; wanted a mapping": list(weights),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            load_iresnet(model, wrong)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(model)))


def test_files_are_read_safely_and_only_by_pytorch(rng, monkeypatch):
    """Whatever the file holds, nothing but `torch.load(..., weights_only=True)` opens it."""
    weights, asked, path = state_dict(rng), [], pathlib.Path("backbone.pth")

    def load(file, **settings):
        asked.append((file, settings))
        return weights

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    model = encoder()
    load_iresnet(model, path)
    assert asked == [(path, {"map_location": "cpu", "weights_only": True})]
    np.testing.assert_array_equal(model.head.bias[...], weights["fc.bias"])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"reading 'backbone.pth' needs 'torch'.*or pass a mapping"):
        load_iresnet(model, path)


def test_pytorch_refuses_files_that_run_code(rng, tmp_path):
    torch = pytest.importorskip("torch")
    weights = {name: torch.from_numpy(np.asarray(a)) for name, a in state_dict(rng).items()}
    torch.save(weights, tmp_path / "good.pth")
    model = encoder()
    load_iresnet(model, tmp_path / "good.pth")
    np.testing.assert_array_equal(model.head.bias[...], weights["fc.bias"].numpy())
    torch.save({"fc.bias": partial(print, "code ran")}, tmp_path / "bad.pth")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        load_iresnet(model, tmp_path / "bad.pth")
