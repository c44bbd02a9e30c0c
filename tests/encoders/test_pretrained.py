"""Weights of PyTorch's IResNet give, by name, what PyTorch computes: against NumPy, in its layout."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metricjax.encoders import IResNet, SmallConvNet, load_weights
from tests.helpers.damage import damaged
from tests.helpers.torch_files import Call, Saved, archive, saved, storage, streamed, tensor

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
    load_weights(model, weights)
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
        r"4 names unknown \(a, b, c, …\)": weights | dict.fromkeys("abcd", np.ones(1)),
        r"1 shapes differ \(prelu.weight is \(1,\), wanted \(3,\)\)": weights | {"prelu.weight": np.ones(1)},
        "features.weight, which is fixed here, is not all 1": weights | {"features.weight": np.full(SIZE, 2)},
        "weights hold a list; wanted a mapping": list(weights),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            load_weights(model, wrong)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(model)))


def under(prefix, weights):
    return {f"{prefix}{name}": a for name, a in weights.items()}


@pytest.mark.parametrize(
    "wrapped, where",
    [
        (lambda w: w, ""),
        (lambda w: under("module.", w) | {"n_averaged": np.array(3)}, "module."),  # a moving average of PyTorch's
        (lambda w: under("model.", w), "model."),
        (lambda w: under("module.backbone.", w), "module.backbone."),
        (lambda w: under("backbone.", w) | {"head.weight": np.zeros((9, SIZE))}, "backbone."),
        (lambda w: {"state_dict": w, "epoch": 3}, "['state_dict']"),
        (lambda w: {"model": w, "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{}]}}, "['model']"),
        (lambda w: {"net": {"state_dict": under("module.model.", w)}}, "['net']['state_dict'] module.model."),
        (
            lambda w: {
                "epoch": 1,
                "pytorch-lightning_version": "2.5",
                "state_dict": under("model.backbone.", w) | {"loss.weight": np.zeros((9, SIZE))},
                "hyper_parameters": {},
            },
            "['state_dict'] model.backbone.",
        ),
        (lambda w: {"state_dict_backbone": w, "state_dict_softmax_fc": {"weight": 0}}, "['state_dict_backbone']"),
        (lambda w: {"state_dict_ema": broken(w), "state_dict": w}, "['state_dict']"),
        (lambda w: {"model_ema": under("module.", w)}, "['model_ema'] module."),
        (lambda w: under("ema.", broken(w)) | under("net.", w), "net."),
    ],
)
def test_checkpoints_are_unwrapped(rng, wrapped, where):
    weights, model = state_dict(rng), encoder()
    assert load_weights(model, wrapped(weights)) == where
    np.testing.assert_allclose(model.head.bias[...], weights["fc.bias"], rtol=1e-6)
    np.testing.assert_allclose(model.stem_norm.var[...], weights["bn1.running_var"], rtol=1e-6)


def broken(weights):
    return weights | {"fc.bias": np.full(SIZE, np.nan)}


def test_weights_that_are_refused_by_name(rng, unchecked):
    weights, model, nested = state_dict(rng), encoder(), [1.0]
    for _ in range(30):
        nested = [nested, nested]
    before = jax.tree.map(np.asarray, nnx.state(model))
    cases = {
        r"^weights: fc.bias holds NaN or infinity$": broken(weights),
        r"^weights\['model'\]: fc.bias holds NaN or infinity$": {"model": broken(weights)},
        "bn1.bias holds NaN or infinity": weights | {"bn1.bias": np.full(3, 1e300)},
        "layer1.0.bn2.running_var holds negative variances": weights | {"layer1.0.bn2.running_var": -np.ones(3)},
        r"fc.bias is complex128\[5\]; wanted real numbers": weights | {"fc.bias": np.ones(SIZE, complex)},
        r"fc.bias is object\[5\]": weights | {"fc.bias": np.array([None] * SIZE)},
        r"fc.bias is <U4\[\]": weights | {"fc.bias": "text"},
        r"fc.bias is object\[\]": weights | {"fc.bias": None},
        r"fc.bias is a list": weights | {"fc.bias": nested},  # which would be 2³⁰ numbers
        r"features.weight holds NaN": weights | {"features.weight": np.full(SIZE, np.nan)},
        r"^weights\['state_dict'\] module.: 1 names missing \(fc.bias\)$": {
            "state_dict": under("module.", {name: a for name, a in weights.items() if name != "fc.bias"})
        },
        r"^weights\['a'\] m.: 1 names unknown \(more\)$": {"a": under("m.", weights | {"more": np.ones(1)})},
        r"the names are there 2 times \(weights\['student'\], weights\['teacher'\] module.\); give one": {
            "student": weights,
            "teacher": under("module.", weights),
        },
        "weights: 70 names missing": {},
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            load_weights(model, wrong)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(model)))


class Tensor:
    """Stands in for one of PyTorch's: a parameter that tracks gradients, in a dtype that NumPy has not."""

    def __init__(self, array, floating=True):
        self.array, self.floating = array, floating

    def detach(self):
        return self

    cpu = detach

    def is_floating_point(self):
        return self.floating

    def float(self):
        return np.asarray(self.array, np.float32)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported\nScalarType")


def test_tensors_and_other_dtypes(rng):
    weights, model = state_dict(rng), encoder()
    for dtype in (jnp.bfloat16, np.float16, np.float64, ">f4"):
        load_weights(model, {name: a.astype(dtype) for name, a in weights.items()})
        np.testing.assert_array_equal(model.head.bias[...], weights["fc.bias"].astype(dtype).astype(np.float32))
    load_weights(model, {name: Tensor(a) for name, a in weights.items()})
    np.testing.assert_array_equal(model.head.bias[...], weights["fc.bias"])
    message = r"^weights: fc.bias does not fit into an array of NumPy \(TypeError: Got unsupported ScalarType\)$"
    with pytest.raises(ValueError, match=message):
        load_weights(model, weights | {"fc.bias": Tensor(weights["fc.bias"], floating=False)})


def test_files_need_no_pytorch(rng, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    weights, path = state_dict(rng), tmp_path / "backbone.pth"
    for data in (saved(weights), saved({"state_dict": under("module.", weights), "epoch": 3}), streamed(weights)):
        path.write_bytes(data)
        model = encoder()
        load_weights(model, path)
        np.testing.assert_array_equal(model.head.bias[...], weights["fc.bias"])
        load_weights(model, str(path))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_weights(encoder(), tmp_path / "nowhere.pth")


def test_what_is_beside_the_weights_does_not_matter_and_what_is_in_their_place_does(rng, tmp_path):
    path, model = tmp_path / "checkpoint.pth", encoder()
    before = jax.tree.map(np.asarray, nnx.state(model))
    made = Saved(state_dict(rng))
    arguments = {"args": Call("argparse Namespace", (), {"lr": 0.1}), "run": Call("os system", ("exit 1",))}
    path.write_bytes(archive({"model": made.tree, **arguments}, made.storages))
    assert load_weights(model, path) == "['model']"
    after = jax.tree.map(np.asarray, nnx.state(model))
    huge = tensor(storage("FloatStorage", "large", 6), (6, 1), (1, 1))
    cases = {
        r"fc.bias is a os.system; wanted a dense array of numbers$": Call("os system", ("exit 1",)),
        r"fc.bias is a torch._utils._rebuild_sparse_tensor; wanted": Call("torch._utils _rebuild_sparse_tensor"),
        r"fc.bias is a dict; wanted": {"a": 1},
        r"fc.bias is a list; wanted": [1.0, 2.0],
        r"1 shapes differ \(fc.bias is \(6, 1\), wanted \(5,\)\)$": huge,
        r"fc.bias does not fit into an array of NumPy \(KeyError: .*archive/data/none": tensor(
            storage("FloatStorage", "none", 5), (5,), (1,)
        ),
    }
    for message, wrong in cases.items():
        made = Saved(state_dict(rng))
        path.write_bytes(archive(made.tree | {"fc.bias": wrong}, made.storages))
        with pytest.raises(ValueError, match=rf"^weights of .*checkpoint\.pth: {message}"):
            load_weights(model, path)
    path.write_bytes(archive(Call("models.iresnet IResNet"), {}))
    with pytest.raises(ValueError, match=r"checkpoint.pth hold a models.iresnet.IResNet; wanted a mapping"):
        load_weights(model, path)
    jax.tree.map(np.testing.assert_array_equal, after, jax.tree.map(np.asarray, nnx.state(model)))
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


def test_one_mapping_a_thousand_times_is_looked_at_once(rng):
    weights = {name: np.ones(1) for name in map(str, range(1000))}
    for _ in range(4):
        weights = dict.fromkeys(map(str, range(1000)), weights)
    with pytest.raises(ValueError, match="70 names missing"):
        load_weights(encoder(), weights)


def test_safetensors_load(rng, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    weights, model = state_dict(rng), encoder()
    rounded = {name: a if a.dtype.kind == "i" else a.astype(jnp.bfloat16) for name, a in weights.items()}
    for given in (weights, rounded):
        numpy.save_file(given, tmp_path / "model.safetensors")
        load_weights(model, tmp_path / "model.safetensors")
        np.testing.assert_array_equal(model.head.bias[...], given["fc.bias"].astype(np.float32))


def test_models_without_published_weights():
    model = SmallConvNet(4, (8, 8, 1), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"model is of type SmallConvNet; wanted one .*: IResNet, ResNet, FaceViT, ViT"):
        load_weights(model, {})


def test_tensors_of_pytorch(rng, tmp_path):
    torch = pytest.importorskip("torch")
    weights, model = {name: torch.from_numpy(np.asarray(a)) for name, a in state_dict(rng).items()}, encoder()
    real = lambda a, dtype: torch.nn.Parameter(a.to(dtype)) if a.is_floating_point() else a
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        torch.save({"state_dict": {f"module.{name}": real(a, dtype) for name, a in weights.items()}}, tmp_path / "a.pt")
        assert load_weights(model, tmp_path / "a.pt") == "['state_dict'] module."
        np.testing.assert_array_equal(model.head.bias[...], weights["fc.bias"].to(dtype).float().numpy())
    matrix = weights["fc.weight"]
    wrong = {
        "fc.weight does not fit into an array of NumPy .*Sparse": matrix.to_sparse(),
        "fc.weight is complex64": matrix.to(torch.complex64),
        "fc.weight does not fit into an array of NumPy .*meta": matrix.to("meta"),
        "fc.weight holds NaN": torch.full_like(matrix, torch.nan),
    }
    for message, given in wrong.items():
        with pytest.raises(ValueError, match=rf"^weights: {message}"):
            load_weights(model, weights | {"fc.weight": given})


def test_damaged_files(rng, fuzz, tmp_path):
    weights, model, path = state_dict(rng), encoder(), tmp_path / "backbone.pth"
    whole, refused = saved(weights), 0
    for seed in fuzz:
        path.write_bytes(damaged(whole, np.random.default_rng(seed)))
        try:
            load_weights(model, path)
        except ValueError as error:
            assert "backbone.pth" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(model.head.bias[...], weights["fc.bias"])
    assert refused > len(fuzz) / 2
