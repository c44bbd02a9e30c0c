"""Face encoders: their sizes, their dtypes, what gradients reach, what a second computation saves."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metricjax import encoders
from metricjax.encoders.layers import batch_norm

pytestmark = pytest.mark.usefixtures("standard_promotion")

OPTIONS = {"registers": 2, "pre_norm": True, "layer_scale": 0.5, "projection": 6, "activation": "quick_gelu"}
SMALL = {  # each with a shape that its strides or patches do not divide
    "small_resnet": (partial(encoders.SmallResNet, 5, (9, 6, 3), widths=(8, 16)), (9, 6, 3)),
    "plain_convnet": (partial(encoders.PlainConvNet, 5, (9, 6, 3), widths=(4, 6)), (9, 6, 3)),
    "iresnet": (partial(encoders.IResNet, (1, 2), 5, (9, 6, 3), widths=(4, 6)), (9, 6, 3)),
    "mobilefacenet": (partial(encoders.MobileFaceNet, 5, (9, 6, 3), stages=((2, 8, 1, 2), (1, 8, 1, 1))), (9, 6, 3)),
    "face_vit": (partial(encoders.FaceViT, (8, 2, 2), 5, (20, 11, 3)), (20, 11, 3)),
    "resnet": (partial(encoders.ResNet, (1, 2), 5, (33, 22, 3), widths=(4, 6)), (33, 22, 3)),
    "vit": (partial(encoders.ViT, (8, 2, 2), 5, (9, 7, 3), patch=3, **OPTIONS), (9, 7, 3)),
}
OTHERS = ("resnet", "vit")
FACES = [name for name in SMALL if name not in OTHERS]


def slowly(*parameters):
    """Of encoders that are made of the parts of others: slow tests."""
    return [pytest.param(*p, marks=pytest.mark.slow) if isinstance(p, tuple) else slowly((p,))[0] for p in parameters]


def small(name, **settings):
    make, shape = SMALL[name]
    images = jax.random.uniform(jax.random.key(1), (6, *shape), minval=-1)
    return make(rngs=nnx.Rngs(0), **settings), images


def loss(graph, params, rest, images):
    """A weighted sum of all features; and the statistics after it."""
    model = nnx.merge(graph, params, rest, copy=True)
    z = model.features(images)
    return jnp.sum(z * jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)), nnx.state(model, nnx.BatchStat)


def lowered_gradient(model, images):
    """The gradient and all that comes with it, not yet compiled; and its arguments."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    f = jax.jit(jax.value_and_grad(partial(loss, graph), has_aux=True))
    return f.lower(params, rest, images), (params, rest, images)


def by_name(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def abstract(monkeypatch):
    """A function from an encoder's name to its number of parameters and the shape and dtype of its embeddings."""
    # Counting keys while tracing takes time that grows with the square of their number.
    monkeypatch.setattr(nnx.RngStream, "__call__", lambda self: jax.random.key(0))

    def made(name, embedding_size=512, shape=(112, 112, 3), **settings):
        make = partial(encoders.create, name, embedding_size, shape, rngs=nnx.Rngs(0), **settings)
        return nnx.eval_shape(make)

    return made


def number_of_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def iresnet_parameters(blocks):
    """What arcface_torch's iresnet.py holds, the 512 frozen scales of its last norm included."""
    total, c = 3 * 9 * 64 + 2 * 64 + 64, 64
    for count, out in zip(blocks, (64, 128, 256, 512), strict=True):
        total += c * out + 2 * out  # the first block's shortcut
        for _ in range(count):
            total += 2 * c + 9 * c * out + 2 * out + out + 9 * out * out + 2 * out
            c = out
    return total + 2 * 512 + (7 * 7 * 512 + 1) * 512 + 2 * 512


@pytest.mark.parametrize(
    ("depth", "blocks", "published"),
    [  # millions; 50 and 100 also in the table of github.com/gau-nernst/timm-face
        (18, (2, 2, 2, 2), 24.03),
        (34, (3, 4, 6, 3), 34.14),
        (50, (3, 4, 14, 3), 43.59),
        (100, (3, 13, 30, 3), 65.16),
        (200, (6, 26, 60, 6), 118.83),
    ],
)
def test_iresnet_has_the_published_number_of_parameters(abstract, depth, blocks, published):
    count = number_of_parameters(abstract(f"iresnet{depth}")) + 512
    assert count == iresnet_parameters(blocks)
    assert round(count / 1e6, 2) == published


def test_mobilefacenet_has_the_published_number_of_parameters(abstract):
    """0.99 million (Chen et al. 2018), with norms merged into convolutions; 0.993 in OpenVINO's model zoo."""
    weights = channels = slopes = 0
    layers = [(3, 64, 9, 1, True), (64, 64, 9, 64, True)]
    c = 64
    for t, out, n in [(2, 64, 5), (4, 128, 1), (2, 128, 6), (4, 128, 1), (2, 128, 2)]:  # table 1
        for _ in range(n):
            layers += [(c, t * c, 1, 1, True), (t * c, t * c, 9, t * c, True), (t * c, out, 1, 1, False)]
            c = out
    layers += [(c, 512, 1, 1, True), (512, 512, 49, 512, False), (512, 128, 1, 1, False)]
    for before, after, positions, groups, prelu in layers:
        weights += before // groups * after * positions
        channels += after
        slopes += after * prelu
    merged = weights + channels + slopes
    assert round(merged / 1e6, 3) == 0.993
    # Scale and bias of each norm but the last, which has no scale.
    assert number_of_parameters(abstract("mobilefacenet", 128)) == merged + channels - 128


@pytest.mark.parametrize(
    ("size", "width", "depth", "file"),
    # The last: bytes of LVFace's ONNX files (You et al. 2025, arXiv:2501.13420) of the same network.
    [
        ("tiny", 256, 12, 76_653_813),
        ("small", 512, 12, 304_196_926),
        ("base", 512, 24, 455_533_594),
    ],
)
def test_face_vit_has_the_published_number_of_parameters(abstract, size, width, depth, file):
    block = 12 * width**2 + (1 + 4 + 1) * width + 4 * width  # products, biases, norms
    tail = 2 * width + 144 * width**2 + 2 * width + width * 512 + 2 * 512
    expected = (3 * 81 + 1) * width + 144 * width + depth * block + tail
    count = number_of_parameters(abstract(f"vit_{size}"))
    assert count == expected
    assert 0 < file - 4 * count < 0.002 * file  # the rest is the graph, and statistics


@pytest.mark.parametrize(
    ("name", "published"),
    # torchvision's less its classifier; timm's; Meta's less their mask token (timm's with registers have no position
    # for the class token); OpenAI's image towers.
    [
        ("resnet18", 11_176_512),
        ("resnet50", 23_508_032),
        *slowly(("resnet34", 21_284_672), ("resnet101", 42_500_160), ("resnet152", 58_143_808)),
        ("vit_small_patch16", 21_665_664),
        ("vit_base_patch16", 85_798_656),
        ("vit_base_patch32", 87_455_232),
        ("vit_small_patch14_dinov2", 22_056_576 - 384),
        ("vit_base_patch14_dinov2", 86_580_480 - 768),
        ("vit_small_patch14_dinov2_reg4", 22_057_344 + 384),
        ("vit_base_patch14_dinov2_reg4", 86_582_016 + 768),
        ("vit_base_patch32_clip", 87_849_216),
        ("vit_base_patch16_clip", 86_192_640),
    ],
)
def test_encoders_of_any_images_have_the_published_number_of_parameters(abstract, name, published):
    side = 518 if "dinov2" in name else 224
    model = abstract(name, None, (side, side, 3))
    assert number_of_parameters(model) == published


@pytest.mark.parametrize(
    "name",
    [
        "small_resnet",
        "small_convnet",
        "plain_convnet",
        "iresnet18",
        "mobilefacenet",
        "vit_tiny",
        *slowly("resnet18", "vit_small_patch14_dinov2"),
    ],
)
def test_embeddings_of_named_encoders(abstract, name):
    settings = {} if name == "small_convnet" else {"dtype": jnp.bfloat16, "remat": True}
    model = abstract(name, 16, **settings)
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, 112, 112, 3), jnp.float32)
    for method in ("features", "__call__"):
        f = jax.jit(lambda s, x, m=method: getattr(nnx.merge(graph, s, copy=True), m)(x)).trace(state, images)
        assert (f.out_info.shape, f.out_info.dtype) == ((2, 16), jnp.float32)
        assert ("bf16[" in str(f.jaxpr)) == ("dtype" in settings)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} <= {jnp.dtype("float32")}


def test_unknown_encoders_name_the_known():
    make = partial(encoders.create, embedding_size=4, image_shape=(8, 8, 1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"'resnet51'; wanted one of small_resnet, .*iresnet200, mobilefacenet, vit_t"):
        make("resnet51")
    with pytest.raises(ValueError, match="embedding_size is None; wanted a number for iresnet50"):
        make("iresnet50", embedding_size=None)
    with pytest.raises(ValueError, match="remat True; wanted neither for small_convnet"):
        make("small_convnet", remat=True)
    with pytest.raises(ValueError, match=r"depth is 42; wanted one of 18, 34, 50, 100, 200, or the number"):
        encoders.IResNet(42, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"depth is 42; wanted one of 18, 34, 50, 101, 152, or the number"):
        encoders.ResNet(42, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="'huge'; wanted one of tiny, small, base"):
        encoders.FaceViT("huge", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(8, 30, 3\); wanted at least 9 × 9"):
        encoders.FaceViT("tiny", 4, (8, 30, 3), rngs=nnx.Rngs(0))


def test_wrong_options_of_vit_name_the_known():
    make = partial(encoders.ViT, (8, 1, 2), 4, (9, 9, 3), rngs=nnx.Rngs(0))
    cases = {
        "size is 'huge'; wanted one of small, base, large": lambda: encoders.ViT("huge", rngs=nnx.Rngs(0)),
        "wanted a width that 3 heads divide, not 8": lambda: encoders.ViT((8, 1, 3), rngs=nnx.Rngs(0)),
        r"\(9, 9, 3\); wanted at least 16 × 16 pixels": make,
        "pooling is 'max'; wanted 'class' or 'mean'": partial(make, patch=3, pooling="max"),
        "activation is 'tanh'; wanted one of gelu, quick_gelu": partial(make, patch=3, activation="tanh"),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            wrong()


# --- values and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FACES, *slowly(*OTHERS)])
def test_gradients_reach_every_parameter(name):
    model, images = small(name)
    model.eval()
    lowered, arguments = lowered_gradient(model, images)
    (_, statistics), gradient = lowered.compile()(*arguments)
    for path, g in by_name(gradient).items():
        assert np.all(np.isfinite(g)), path
        assert np.count_nonzero(g) > g.size / 2, path
    before = by_name(nnx.state(model, nnx.BatchStat))
    for path, value in by_name(statistics).items():
        np.testing.assert_array_equal(value, before[path])


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("small_resnet", 2),
        ("plain_convnet", 2),
        ("iresnet", 3),
        ("mobilefacenet", 2),
        ("face_vit", 2),
        *slowly(("resnet", 3), ("vit", 2)),
    ],
)
def test_each_block_is_computed_again(name, blocks):
    text = [lowered_gradient(*small(name, remat=again))[0].as_text() for again in (False, True)]
    assert [program.count("stablehlo.optimization_barrier") for program in text] == [0, blocks]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (partial(encoders.IResNet, (3,), widths=(8,)), (16, 16, 3)),
        (partial(encoders.FaceViT, (16, 3, 4)), (54, 54, 3)),
    ],
)
def test_blocks_computed_again_are_the_same_and_store_less(make, shape):
    images = jax.random.uniform(jax.random.key(1), (16, *shape), minval=-1)
    results, used = [], []
    for again in (False, True):
        lowered, arguments = lowered_gradient(make(5, shape, remat=again, rngs=nnx.Rngs(0)), images)
        # XLA for CPU drops the barriers around a second computation and merges it with the first; accelerators do not.
        program = lowered.compile({"xla_disable_hlo_passes": "cse_barrier_expander"})
        results.append(by_name(program(*arguments)))
        used.append(program.memory_analysis().temp_size_in_bytes)
    once, twice = results
    assert once.keys() == twice.keys()
    for path, value in once.items():  # value, statistics, gradients
        np.testing.assert_allclose(twice[path], value, rtol=1e-4, atol=1e-4 * max(1, np.abs(value).max()), err_msg=path)
    assert used[1] < 0.85 * used[0]


@pytest.mark.parametrize("name", ["plain_convnet", "iresnet", "face_vit"])
def test_bfloat16_is_close_and_keeps_statistics(name):
    outputs = []
    for dtype in (None, jnp.bfloat16):
        model, images = small(name, dtype=dtype)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        outputs.append(jax.jit(partial(loss, graph))(params, rest, images))
    (value, statistics), (rounded, rounded_statistics) = outputs
    assert 0 < abs(rounded - value) < 0.1 * abs(value)
    assert by_name(statistics).keys() == by_name(rounded_statistics).keys()
    for path, a in by_name(rounded_statistics).items():
        assert a.dtype == np.float32
        assert np.any(a != np.asarray(jnp.asarray(a, jnp.bfloat16), np.float32)), path


def test_norms_do_not_round_statistics():
    norm = batch_norm(1, dtype=jnp.bfloat16, use_running_average=True, rngs=nnx.Rngs(0))
    norm.mean.set_value(jnp.array([257.0]))  # bfloat16 holds 256 and 258
    out = norm(jnp.array([[258.0], [256.0]], jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), [[1], [-1]])


def test_dropout_is_for_training():
    model = encoders.IResNet((1,), 4, (4, 4, 1), widths=(2,), dropout=0.5, rngs=nnx.Rngs(0))
    images = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))

    @nnx.jit
    def twice(model, images):
        return model.features(images), model.features(images)

    first, second = twice(model, images)
    assert np.any(first != second)
    model.eval()
    first, second = twice(model, images)
    np.testing.assert_array_equal(first, second)


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FACES, "small_convnet", *slowly(*OTHERS)])
def test_export_with_a_free_batch(name):
    """One program for any number of images."""
    if name == "small_convnet":
        model, shape = encoders.SmallConvNet(5, (9, 6, 3), rngs=nnx.Rngs(0)), (9, 6, 3)
    else:
        model, shape = SMALL[name][0](rngs=nnx.Rngs(0)), SMALL[name][1]
    model.eval()
    graph, state = nnx.split(model)
    (n,) = jax.export.symbolic_shape("n")
    embed = jax.jit(lambda images: nnx.merge(graph, state)(images))
    exported = jax.export.export(embed)(jax.ShapeDtypeStruct((n, *shape), jnp.float32))
    for count in (1, 6):
        images = jax.random.uniform(jax.random.key(count), (count, *shape), minval=-1)
        np.testing.assert_allclose(exported.call(images), embed(images), atol=1e-6)
