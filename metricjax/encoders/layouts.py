"""The names under which published weights of the encoders are known, and where each of them goes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from metricjax.encoders.face_vit import FaceViT
from metricjax.encoders.iresnet import IResNet
from metricjax.encoders.layers import PReLU
from metricjax.encoders.resnet import ResNet

__all__ = ["Layout", "Place", "conv", "face_vit", "iresnet", "linear", "norm", "resnet"]


class Place(NamedTuple):
    """Where arrays of PyTorch's go: their shapes there (None for any length), and what is made of them here."""

    variable: Any  # of Flax
    shapes: Mapping[str, tuple[int | None, ...]]
    arranged: Callable[..., np.ndarray] = lambda a: a


class Layout(NamedTuple):
    """The places of all weights of a model.

    `unused` are beginnings of names that belong to what the model does not have, such as a classifier, and `fixed` are
    names of arrays that may be there, but of one number, for they are not parameters here.
    """

    title: str
    places: list[Place]
    unused: tuple[str, ...] = ()
    fixed: Mapping[str, float] = {}


def conv(name: str, layer: nnx.Conv) -> list[Place]:
    height, width, channels, out = layer.kernel.shape
    kernel = Place(layer.kernel, {f"{name}.weight": (out, channels, height, width)}, lambda a: a.transpose(2, 3, 1, 0))
    return [kernel] if layer.bias is None else [kernel, Place(layer.bias, {f"{name}.bias": (out,)})]


def norm(name: str, layer: Any) -> list[Place]:
    """Of batches or layers: scale and bias, and averages where there are any."""
    known = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    found = {key: getattr(layer, field, None) for key, field in known.items()}
    return [Place(value, {f"{name}.{key}": value.shape}) for key, value in found.items() if value is not None]


def linear(layer: nnx.Linear, *names: str) -> list[Place]:
    """A map given by one name, with `{}` in place of "weight" and "bias"; or by several, of parts of what it gives."""
    channels, out = layer.kernel.shape
    part = out // len(names)
    kernels = {name.format("weight"): (part, channels) for name in names}
    found = [Place(layer.kernel, kernels, lambda *parts: np.concatenate(parts).T)]
    if layer.bias is not None:
        biases = {name.format("bias"): (part,) for name in names}
        found.append(Place(layer.bias, biases, lambda *parts: np.concatenate(parts)))
    return found


def _prelu(name: str, prelu: PReLU) -> list[Place]:
    return [Place(prelu.slope, {f"{name}.weight": prelu.slope.shape})]


def iresnet(model: IResNet) -> list[Layout]:
    found = conv("conv1", model.stem) + norm("bn1", model.stem_norm) + _prelu("prelu", model.stem_prelu)
    for s, blocks in enumerate(model.stages, start=1):
        for b, block in enumerate(blocks):
            name = f"layer{s}.{b}"
            found += norm(f"{name}.bn1", block.norm1) + conv(f"{name}.conv1", block.conv1)
            found += norm(f"{name}.bn2", block.norm2) + _prelu(f"{name}.prelu", block.prelu)
            found += conv(f"{name}.conv2", block.conv2) + norm(f"{name}.bn3", block.norm3)
            if block.shortcut is not None:
                found += conv(f"{name}.downsample.0", block.shortcut)
                found += norm(f"{name}.downsample.1", block.shortcut_norm)
    height, width, channels = model.map_shape
    joined, out = model.head.kernel.shape

    def channels_last(a):  # PyTorch joins channels, rows and columns in this order
        return a.reshape(out, channels, height, width).transpose(2, 3, 1, 0).reshape(joined, out)

    found += norm("bn2", model.norm) + norm("features", model.head_norm)
    found += [Place(model.head.kernel, {"fc.weight": (out, joined)}, channels_last)]
    found += [Place(model.head.bias, {"fc.bias": (out,)})]
    return [Layout("arcface_torch", found, fixed={"features.weight": 1})]  # a scale that is not trained


def resnet(model: ResNet) -> list[Layout]:
    found = conv("conv1", model.stem) + norm("bn1", model.stem_norm)
    for s, blocks in enumerate(model.stages, start=1):
        for b, block in enumerate(blocks):
            name = f"layer{s}.{b}"
            for i, (layer, after) in enumerate(zip(block.convs, block.norms, strict=True), start=1):
                found += conv(f"{name}.conv{i}", layer) + norm(f"{name}.bn{i}", after)
            if block.shortcut is not None:
                found += conv(f"{name}.downsample.0", block.shortcut)
                found += norm(f"{name}.downsample.1", block.shortcut_norm)
    return [Layout("torchvision", found, unused=("fc.",))]


def face_vit(model: FaceViT) -> list[Layout]:
    found = conv("patch_embed.proj", model.patches)
    found += [Place(model.positions, {"pos_embed": (1, *model.positions.shape)}, lambda a: a[0])]
    for b, block in enumerate(model.blocks):
        name = f"blocks.{b}"
        found += norm(f"{name}.norm1", block.norm1) + linear(block.queries_keys_values, f"{name}.attn.qkv.{{}}")
        found += linear(block.attended, f"{name}.attn.proj.{{}}") + norm(f"{name}.norm2", block.norm2)
        found += linear(block.inner, f"{name}.mlp.fc1.{{}}") + linear(block.outer, f"{name}.mlp.fc2.{{}}")
    found += norm("norm", model.norm)
    found += linear(model.joined, "feature.0.{}") + norm("feature.1", model.joined_norm)
    found += linear(model.head, "feature.2.{}") + norm("feature.3", model.head_norm)
    return [Layout("arcface_torch", found, unused=("mask_token",))]  # which only its training needs
