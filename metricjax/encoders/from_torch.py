"""Weights that were trained with PyTorch."""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from metricjax.encoders.iresnet import IResNet
from metricjax.encoders.layers import PReLU


class Place(NamedTuple):
    """Where an array of PyTorch's goes: its shape there, and how its axes are arranged here."""

    variable: Any  # of Flax
    shape: tuple[int, ...]
    arranged: Callable[[np.ndarray], np.ndarray] = lambda a: a


def _conv(name: str, conv: nnx.Conv) -> dict[str, Place]:
    height, width, channels, out = conv.kernel.shape
    return {f"{name}.weight": Place(conv.kernel, (out, channels, height, width), lambda a: a.transpose(2, 3, 1, 0))}


def _norm(name: str, norm: Any) -> dict[str, Place]:
    found = {"weight": norm.scale, "bias": norm.bias, "running_mean": norm.mean, "running_var": norm.var}
    return {f"{name}.{key}": Place(value, value.shape) for key, value in found.items() if value is not None}


def _prelu(name: str, prelu: PReLU) -> dict[str, Place]:
    return {f"{name}.weight": Place(prelu.slope, prelu.slope.shape)}


def _places(model: IResNet) -> dict[str, Place]:
    """Each name of arcface_torch's IResNet, and its place in the model."""
    found = _conv("conv1", model.stem) | _norm("bn1", model.stem_norm) | _prelu("prelu", model.stem_prelu)
    for s, blocks in enumerate(model.stages, start=1):
        for b, block in enumerate(blocks):
            name = f"layer{s}.{b}"
            found |= _norm(f"{name}.bn1", block.norm1) | _conv(f"{name}.conv1", block.conv1)
            found |= _norm(f"{name}.bn2", block.norm2) | _prelu(f"{name}.prelu", block.prelu)
            found |= _conv(f"{name}.conv2", block.conv2) | _norm(f"{name}.bn3", block.norm3)
            if block.shortcut is not None:
                found |= _conv(f"{name}.downsample.0", block.shortcut)
                found |= _norm(f"{name}.downsample.1", block.shortcut_norm)
    height, width, channels = model.map_shape
    joined, out = model.head.kernel.shape

    def channels_last(a):  # PyTorch joins channels, rows and columns in this order
        return a.reshape(out, channels, height, width).transpose(2, 3, 1, 0).reshape(joined, out)

    fc = {
        "fc.weight": Place(model.head.kernel, (out, joined), channels_last),
        "fc.bias": Place(model.head.bias, (out,)),
    }
    return found | _norm("bn2", model.norm) | fc | _norm("features", model.head_norm)


def _read(path: str | os.PathLike) -> Any:
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        hint = f"reading {os.fspath(path)!r} needs 'torch': install it, or pass a mapping of names to arrays"
        raise ImportError(hint, name="torch") from error
    return torch.load(path, map_location="cpu", weights_only=True)


def load_iresnet(model: IResNet, weights: Mapping[str, Any] | str | os.PathLike) -> None:
    """Fill `model` with the weights of an IResNet of PyTorch, by name.

    The names and shapes are those of insightface's arcface_torch (`conv1.weight`, `layer1.0.bn1.running_mean`, ...,
    `features.bias`); counters (`num_batches_tracked`) are not used. A file is read with `torch.load(...,
    weights_only=True)`, which runs no code out of it, and only that needs PyTorch: a mapping of names to arrays, such
    as `numpy.load` and safetensors' `load_file` give, does not. The model may be abstract, `nnx.eval_shape(lambda:
    IResNet(50, rngs=nnx.Rngs(0)))`, and is as it was wherever this raises an error.

    Raises:
      ValueError: names are missing or unknown, shapes differ, or the frozen scale `features.weight` is not all 1.
      ImportError: a path came, and PyTorch is not installed.

    >>> from flax import nnx
    >>> model = IResNet((1, 1), 2, (4, 4, 1), widths=(2, 3), rngs=nnx.Rngs(0))
    >>> load_iresnet(model, {"conv1.weight": np.zeros((2, 1, 3, 3))})
    Traceback (most recent call last):
        ...
    ValueError: weights: 54 names missing (bn1.weight, bn1.bias, bn1.running_mean, ...)
    """
    given = _read(weights) if isinstance(weights, str | os.PathLike) else weights
    if not isinstance(given, Mapping):
        raise ValueError(f"weights hold a {type(given).__name__}; wanted a mapping of names to arrays")
    arrays: dict[str, np.ndarray] = {
        name: np.asarray(a) for name, a in given.items() if not str(name).endswith("num_batches_tracked")
    }
    places = _places(model)
    frozen = arrays.pop("features.weight", np.ones(()))
    shapes = [(name, arrays[name].shape, place.shape) for name, place in places.items() if name in arrays]
    problems = {
        "names missing": [name for name in places if name not in arrays],
        "names unknown": [name for name in arrays if name not in places],
        "shapes differ": [f"{name} is {came}, wanted {wanted}" for name, came, wanted in shapes if came != wanted],
    }
    told = [f"{len(v)} {k} ({', '.join(v[:3])}{', ...' * (len(v) > 3)})" for k, v in problems.items() if v]
    if told:
        raise ValueError(f"weights: {'; '.join(told)}")
    if not np.all(frozen == 1):
        raise ValueError("weights: features.weight, the frozen scale of the last norm, is not all 1")
    for name, place in places.items():
        place.variable.set_value(jnp.asarray(place.arranged(arrays[name]), jnp.float32))
