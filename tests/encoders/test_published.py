"""Weights of torchvision's, timm's and transformers' models, through files, give the features that these compute."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metricjax.encoders import FaceViT, ResNet, ViT, create, layouts, load_weights
from tests.helpers import clip_names

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]

DINOV2 = {"patch": 14, "layer_scale": 1e-5}
CLIP = {"patch": 8, "pre_norm": True, "projection": 24, "activation": "quick_gelu", "epsilon": 1e-5}


def randomised(model):
    """With random norms, statistics, scales and tokens too, which are all alike in a new model."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda p: 0.3 * torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scales = p.ndim == 1 and name.endswith(("weight", "gamma"))
            if scales or p.ndim == 1 or "embed" in name or "token" in name:
                p.copy_(0.5 + torch.rand(p.shape, generator=generator) if scales else normal(p))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def images_of(height, width):
    return torch.randn((2, 3, height, width), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def compare(features, weights, make, images, path, save=torch.save):
    """Our features of these images beside theirs, after a file."""
    wanted = features(images).numpy()
    save(weights, path)
    model = nnx.eval_shape(make)
    load_weights(model, path)
    model.eval()
    found = nnx.jit(lambda model, x: model.features(x))(model, jnp.asarray(images.numpy().transpose(0, 2, 3, 1)))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def old(weights, path):
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=False)


def safetensors(weights, path):
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


SAVED = (torch.save, safetensors, old)


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_of_torchvision(depth, tmp_path):
    models = pytest.importorskip("torchvision.models")
    theirs = randomised(getattr(models, f"resnet{depth}")())
    features = torch.nn.Sequential(*list(theirs.children())[:-1], torch.nn.Flatten())
    make = lambda: ResNet(depth, None, (75, 50, 3), rngs=nnx.Rngs(0))
    for save in SAVED:
        compare(features, theirs.state_dict(), make, images_of(75, 50), tmp_path / "weights", save)


def of_timm(name, **settings):
    timm = pytest.importorskip("timm")
    return randomised(timm.create_model(name, depth=2, **settings))


def before_head(model):
    return lambda images: model.forward_head(model.forward_features(images), pre_logits=True)


@pytest.mark.parametrize(
    ("name", "size", "settings"),
    [
        ("vit_small_patch16_224", "small", {}),
        ("vit_base_patch16_224", "base", {}),
        ("vit_base_patch32_224", "base", {"patch": 32}),
        ("vit_small_patch14_dinov2", "small", DINOV2),
        ("vit_small_patch14_reg4_dinov2", "small", DINOV2 | {"registers": 4}),
    ],
)
def test_vit_of_timm(name, size, settings, tmp_path):
    theirs = of_timm(name, img_size=(96, 128) if "32" in name else (70, 56) if "14" in name else (64, 80))
    wide, _, heads = {"small": (384, 12, 6), "base": (768, 12, 12)}[size]
    shape = theirs.patch_embed.img_size
    make = lambda: ViT((wide, 2, heads), None, (*shape, 3), rngs=nnx.Rngs(0), **settings)
    for save in SAVED:
        compare(before_head(theirs), theirs.state_dict(), make, images_of(*shape), tmp_path / "weights", save)


def test_mean_of_patches(tmp_path):
    theirs = of_timm("vit_small_patch14_reg4_dinov2", img_size=28, global_pool="avg", fc_norm=False)
    make = lambda: ViT((384, 2, 6), None, (28, 28, 3), pooling="mean", registers=4, rngs=nnx.Rngs(0), **DINOV2)
    compare(before_head(theirs), theirs.state_dict(), make, images_of(28, 28), tmp_path / "weights")


def test_registers_as_dinov2_names_them(tmp_path):
    theirs = of_timm("vit_small_patch14_reg4_dinov2", img_size=70)
    weights, first = theirs.state_dict(), torch.full((1, 1, 384), 0.25)
    weights["register_tokens"] = weights.pop("reg_token")
    weights["pos_embed"] = torch.cat([first, weights["pos_embed"]], dim=1)
    weights |= {"cls_token": weights["cls_token"] - first, "mask_token": torch.zeros(1, 384)}
    make = lambda: ViT((384, 2, 6), None, (70, 70, 3), registers=4, rngs=nnx.Rngs(0), **DINOV2)
    trained = {"teacher": {f"backbone.{name}": a for name, a in weights.items()}, "iteration": 7}
    for given in (weights, trained):
        compare(before_head(theirs), given, make, images_of(70, 70), tmp_path / "weights")


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("shape", [(42, 42), (56, 98), (140, 126)])
def test_positions_of_another_grid(name, shape, tmp_path):
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    weights = of_timm(name, img_size=84).state_dict()  # 6 × 6
    theirs = of_timm(name, img_size=shape)
    theirs.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(weights), theirs))
    registers = 4 if "reg4" in name else 0
    make = lambda: ViT((384, 2, 6), None, (*shape, 3), registers=registers, rngs=nnx.Rngs(0), **DINOV2)
    compare(before_head(theirs), weights, make, images_of(*shape), tmp_path / "weights")


def clip(**settings):
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "num_heads": 4, "num_classes": 24} | settings
    model = of_timm("vit_base_patch32_clip_quickgelu_224", **settings)
    torch.nn.init.zeros_(model.head.bias)
    return model


def test_image_tower_of_clip(tmp_path):
    theirs = clip()
    make = lambda: ViT((64, 2, 4), None, (32, 32, 3), rngs=nnx.Rngs(0), **CLIP)
    weights = theirs.state_dict()
    for given in (weights, clip_names.openai(weights), clip_names.transformers(weights)):
        compare(theirs, given, make, images_of(32, 32), tmp_path / "weights")
    with pytest.raises(ValueError, match=r"head.bias, which is fixed here, is not all 0$"):
        load_weights(make(), weights | {"head.bias": torch.ones(24)})


class Tower(torch.nn.Module):
    def __init__(self, visual):
        super().__init__()
        self.visual = visual

    def forward(self, images):
        return self.visual(images)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_torchscript(tmp_path):
    theirs, path = clip(), tmp_path / "scripted.pt"
    scripted = torch.jit.trace(Tower(theirs), images_of(32, 32), check_trace=False)
    model = nnx.eval_shape(lambda: ViT((64, 2, 4), None, (32, 32, 3), rngs=nnx.Rngs(0), **CLIP))
    torch.jit.save(scripted, path)
    assert load_weights(model, path) == "visual."
    np.testing.assert_array_equal(model.projection.kernel[...], theirs.head.weight.detach().numpy().T)
    torch.save(theirs, path)
    with pytest.raises(ValueError, match=r"hold a timm.models.vision_transformer.VisionTransformer; wanted a mapping"):
        load_weights(model, path)


@pytest.mark.filterwarnings("ignore")
def test_clip_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision = text | {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision | {"image_size": 32, "patch_size": 8}, projection_dim=24
    )
    theirs = randomised(transformers.CLIPModel(config))
    features = lambda images: theirs.visual_projection(theirs.vision_model(images).pooler_output)
    make = lambda: ViT((64, 1, 4), None, (32, 32, 3), rngs=nnx.Rngs(0), **CLIP)
    weights = theirs.state_dict() | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    for save in SAVED:
        compare(features, weights, make, images_of(32, 32), tmp_path / "weights", save)


def face_vit(weights, images):
    """arcface_torch's, of one block, written with PyTorch's functions."""
    f, w = torch.nn.functional, weights
    x = f.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=9).flatten(2).mT
    x = x + w["pos_embed"]
    norm = lambda x, name: f.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)
    y = norm(x, "blocks.0.norm1") @ w["blocks.0.attn.qkv.weight"].T
    q, k, v = y.reshape(*y.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
    y = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + f.linear(y, w["blocks.0.attn.proj.weight"], w["blocks.0.attn.proj.bias"])
    y = f.relu6(f.linear(norm(x, "blocks.0.norm2"), w["blocks.0.mlp.fc1.weight"], w["blocks.0.mlp.fc1.bias"]))
    x = x + f.linear(y, w["blocks.0.mlp.fc2.weight"], w["blocks.0.mlp.fc2.bias"])
    x = norm(x, "norm").flatten(1)
    for map_name, norm_name in (("feature.0", "feature.1"), ("feature.2", "feature.3")):
        parts = [w[f"{norm_name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = f.batch_norm(x @ w[f"{map_name}.weight"].T, *parts, eps=2e-5)
    return x


def test_face_vit(tmp_path):
    make = lambda: FaceViT((8, 1, 2), 5, (29, 18, 3), rngs=nnx.Rngs(0))
    (layout,) = layouts.face_vit(nnx.eval_shape(make))
    shapes = {name: shape for place in layout.places for name, shape in place.shapes.items()}
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.3 + torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    compare(lambda images: face_vit(weights, images), weights, make, images_of(29, 18), tmp_path / "weights")


def test_embeddings_are_features_with_a_head_on_the_sphere(tmp_path):
    pytest.importorskip("timm")
    weights = of_timm("vit_small_patch16_224", img_size=32).state_dict()
    model = ViT((384, 2, 6), 7, (32, 32, 3), rngs=nnx.Rngs(0))
    kernel = np.asarray(model.head.kernel[...])
    load_weights(model, weights)
    np.testing.assert_array_equal(model.head.kernel[...], kernel)
    z = model(jnp.ones((2, 32, 32, 3)))
    assert z.shape == (2, 7)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1, rtol=1e-6)


def made(name, side):
    return lambda: create(name, None, (side, side, 3), rngs=nnx.Rngs(0))


def test_named_models_of_full_size(tmp_path):
    timm = pytest.importorskip("timm")
    for ours, theirs, side in (
        ("vit_small_patch16", "vit_small_patch16_224", 224),
        ("vit_small_patch14_dinov2_reg4", "vit_small_patch14_reg4_dinov2", 518),
        ("vit_base_patch32_clip", "vit_base_patch32_clip_quickgelu_224", 224),
    ):
        classes = {"num_classes": 512} if "clip" in ours else {}
        weights = timm.create_model(theirs, **classes).state_dict()
        if "clip" in ours:
            weights["head.bias"].zero_()
        load_weights(nnx.eval_shape(made(ours, side)), weights)
