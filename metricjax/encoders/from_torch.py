"""Weights that were trained with PyTorch."""

import importlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from metricjax.encoders.iresnet import IResNet
from metricjax.encoders.layers import PReLU

__all__ = ["Part", "Place", "load_iresnet"]


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
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    try:
        if is_archive:  # PyTorch does not look at its checksums
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} holds no state_dict that can be read with weights_only=True ({_line(error)})"
        ) from None


def _line(error: Exception) -> str:
    """What is wrong, in one line and without the advice to read the file by running what is in it."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].partition(" Please use ")[0]
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}".rstrip(" :.")


class Part(NamedTuple):
    """A part of a checkpoint: a mapping, what stands before its names, where it is, and how many names it has."""

    given: Mapping
    prefix: str
    where: str
    fitting: int


def _parts(given: Mapping, names: Collection[str], where: str = "", depth: int = 3) -> Iterator[Part]:
    """Of this mapping, and of those in it, a part for each prefix of the names."""
    counts = Counter({"": 0})
    for key in map(str, given):
        starts = (0, *(i for i, letter in enumerate(key, start=1) if letter == "."))
        counts.update(key[:i] for i in starts if key[i:] in names)
    for prefix, count in counts.items():
        yield Part(given, prefix, f"{where} {prefix}".rstrip(), count)
    for key, inner in given.items():
        if isinstance(inner, Mapping) and depth:
            yield from _parts(inner, names, f"{where}[{key!r}]", depth - 1)


def _unwrapped(given: Mapping, names: Collection[str], source: str) -> Part:
    """The part that has most of the names; of several that have all of them, the one that is not a moving average."""
    parts = list(_parts(given, names))
    most = max(part.fitting for part in parts)
    best = [part for part in parts if part.fitting == most]
    plain = [part for part in best if "ema" not in part.where.lower()] or best
    if most == len(names) and len(plain) > 1:
        found = ", ".join(f"{source}{part.where}" for part in plain)
        raise ValueError(f"{source}: the names are there {len(plain)} times ({found}); give one of these mappings")
    return plain[0]


def _numbers(source: str, name: str, given: Any) -> np.ndarray:
    """An array of any library in 32 bits, all of it finite."""
    try:
        if hasattr(given, "detach"):  # of PyTorch: a parameter, perhaps in bfloat16, which NumPy has not
            given = given.detach().cpu()
            given = given.float() if given.is_floating_point() else given
        array = np.asarray(given)
    except Exception as error:
        raise ValueError(f"{source}: {name} does not fit into an array of NumPy ({_line(error)})") from None
    if array.dtype.kind not in "iu" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{source}: {name} is {array.dtype}{list(array.shape)}; wanted real numbers")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{source}: {name} holds NaN or infinity")
    if name.endswith("running_var") and np.any(array < 0):
        raise ValueError(f"{source}: {name} holds negative variances")
    return array


def load_iresnet(model: IResNet, weights: Mapping[str, Any] | str | os.PathLike) -> str:
    """Fill `model` with the weights of an IResNet of PyTorch, by name, and return where they were found.

    The names and shapes are those of insightface's arcface_torch (`conv1.weight`, `layer1.0.bn1.running_mean`, ...,
    `features.bias`); counters (`num_batches_tracked`) are not used. They may stand in a checkpoint, in mappings inside
    it (`state_dict`, `model`) and behind anything that ends with a dot (`module.`, `model.backbone.`): then what is
    beside them, such as a head, is not used, and "['state_dict'] module." is returned, or "" where nothing had to be
    unwrapped. An exponential moving average (`ema` in its name) is taken where there is no other.

    A file is read with `torch.load(..., weights_only=True)`, which runs no code out of it, and only that needs PyTorch:
    a mapping of names to arrays, such as `numpy.load` and safetensors' `load_file` give, does not. Tensors and
    parameters of any floating-point dtype will do. The model may be abstract, `nnx.eval_shape(lambda: IResNet(50,
    rngs=nnx.Rngs(0)))`, and is as it was wherever this raises an error.

    Raises:
      ValueError: names are missing, unknown or there several times, shapes differ, an array is sparse, quantised,
        complex or holds NaN, infinity or negative variances, the frozen scale `features.weight` is not all 1, or the
        file is damaged (by the checksums that PyTorch has written since 1.6) or holds something else.
      ImportError: a path came, and PyTorch is not installed.

    >>> from flax import nnx
    >>> model = IResNet((1, 1), 2, (4, 4, 1), widths=(2, 3), rngs=nnx.Rngs(0))
    >>> load_iresnet(model, {"conv1.weight": np.zeros((2, 1, 3, 3))})
    Traceback (most recent call last):
        ...
    ValueError: weights: 54 names missing (bn1.weight, bn1.bias, bn1.running_mean, ...)
    """
    given: Any = weights
    source = "weights"
    if isinstance(weights, str | os.PathLike):
        given, source = _read(weights), f"weights of {os.fspath(weights)}"
    if not isinstance(given, Mapping):
        raise ValueError(f"{source} hold a {type(given).__name__}; wanted a mapping of names to arrays, a state_dict")
    places = _places(model)
    part = _unwrapped(given, places, source)
    _fill(places, part, source + part.where)
    return part.where.strip()


def _fill(places: dict[str, Place], part: Part, source: str) -> None:
    """All places, or none where anything is wrong."""
    inside = {
        str(key).removeprefix(part.prefix): a for key, a in part.given.items() if str(key).startswith(part.prefix)
    }
    given = {name: a for name, a in inside.items() if not name.endswith(("num_batches_tracked", "n_averaged"))}
    frozen = given.pop("features.weight", np.ones(()))
    arrays = {name: _numbers(source, name, given[name]) for name in places if name in given}
    shapes = [(name, a.shape, places[name].shape) for name, a in arrays.items()]
    problems = {
        "names missing": [name for name in places if name not in given],
        "names unknown": [name for name in given if name not in places],
        "shapes differ": [f"{name} is {came}, wanted {wanted}" for name, came, wanted in shapes if came != wanted],
    }
    told = [f"{len(v)} {k} ({', '.join(v[:3])}{', ...' * (len(v) > 3)})" for k, v in problems.items() if v]
    if told:
        raise ValueError(f"{source}: {'; '.join(told)}")
    if not np.all(_numbers(source, "features.weight", frozen) == 1):
        raise ValueError(f"{source}: features.weight, the frozen scale of the last norm, is not all 1")
    for name, place in places.items():
        place.variable.set_value(jnp.asarray(place.arranged(arrays[name]), jnp.float32))
