"""Weights that were trained with PyTorch."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from metricjax.encoders.face_vit import FaceViT
from metricjax.encoders.iresnet import IResNet
from metricjax.encoders.layouts import Layout, face_vit, iresnet, resnet
from metricjax.encoders.resnet import ResNet
from metricjax.encoders.torch_files import Stored
from metricjax.encoders.vit import ViT
from metricjax.encoders.vit_layouts import vit
from metricjax.encoders.weight_files import opened_weights, reason
from metricjax.ground.names import printable, some
from metricjax.ground.pickles import Note

__all__ = ["Part", "load_weights"]

LAYOUTS: dict[type, Callable[[Any], list[Layout]]] = {
    IResNet: iresnet,
    ResNet: resnet,
    FaceViT: face_vit,
    ViT: vit,
}


def load_weights(model: nnx.Module, weights: Mapping[str, Any] | str | os.PathLike) -> str:
    """Fill `model` with published weights, by name, and return where they were found.

    Of `IResNet` and `FaceViT` these are the names and shapes of insightface's arcface_torch, of `ResNet` torchvision's
    (and timm's), of `ViT` timm's, DINOv2's, those of CLIP's image tower as OpenAI and open_clip have it, and those of
    transformers' CLIP. The layout is recognised by the names, all of which must be there, and no others, but for
    classifiers (`fc.` of `ResNet`, `head.` of `ViT`), counters, mask tokens and text towers, which are not used. A head
    that `embedding_size` put on top of the published features keeps its initial values. Positions of `ViT` that were
    learned on another grid are interpolated, see `metricjax.encoders.vit_layouts.positions_on`.

    The names may stand in a checkpoint, in mappings inside it (`state_dict`, `model`) and behind anything that ends
    with a dot (`module.`, `model.backbone.`, `visual.`): then what is beside them, such as a head, is not used, and
    "['state_dict'] module." is returned, or "" where nothing had to be unwrapped. An exponential moving average (`ema`
    in its name) is taken where there is no other.

    A file is one of safetensors, of `torch.save` (also before PyTorch 1.6), or a TorchScript archive, as OpenAI's of
    CLIP are. PyTorch is not needed and nothing that a file names is run: what is not an array of numbers, such as the
    arguments of a training, is passed over. A mapping of names to arrays will do too, or to tensors and parameters of
    any floating-point dtype. The model may be abstract, `nnx.eval_shape(lambda: IResNet(50,
    rngs=nnx.Rngs(0)))`, unless it has a head that keeps its initial values, and is as it was wherever this raises an
    error.

    Raises:
      ValueError: names are missing, unknown or there several times, shapes differ, an array is sparse, quantised,
        complex or holds NaN, infinity or negative variances, an array is not what the model has fixed (the scale
        `features.weight` of IResNet's last norm, which is 1), or the file is damaged (by its checksums, which
        safetensors and PyTorch before 1.6 do not have) or holds something else.
      TypeError: nobody has published weights of such a model.
      ImportError: a file of safetensors came, and that package is not installed.

    >>> from flax import nnx
    >>> model = IResNet((1, 1), 2, (4, 4, 1), widths=(2, 3), rngs=nnx.Rngs(0))
    >>> load_weights(model, {"conv1.weight": np.zeros((2, 1, 3, 3))})
    Traceback (most recent call last):
        ...
    ValueError: weights: 54 names missing (bn1.weight, bn1.bias, bn1.running_mean, …)
    """
    layouts = next((found for kind, found in LAYOUTS.items() if isinstance(model, kind)), None)
    if layouts is None:
        known = ", ".join(kind.__name__ for kind in LAYOUTS)
        raise TypeError(f"model is of type {type(model).__name__}; wanted one that weights are published of: {known}")
    source, opened = "weights", cast(Any, nullcontext(weights))
    if isinstance(weights, str | os.PathLike):
        source, opened = f"weights of {os.fsdecode(weights)}", opened_weights(weights)
    with opened as given:
        if not isinstance(given, Mapping):
            kind = printable(given.name) if isinstance(given, Note) else type(given).__name__
            raise ValueError(f"{source} hold a {kind}; wanted a mapping of names to arrays, a state_dict")
        layout, part = _recognised(layouts(model), given, source)
        _fill(model, layout, part, source + part.where)
    return part.where.strip()


class Part(NamedTuple):
    """A part of a checkpoint: a mapping, what stands before its names, where it is, and how many names it has."""

    given: Mapping
    prefix: str
    where: str
    fitting: int


def _parts(given: Mapping, names: Collection[str], seen: set[int], where: str = "", depth: int = 3) -> Iterator[Part]:
    """Of this mapping, and of those in it, a part for each prefix of the names."""
    seen.add(id(given))  # a file may say that a thousand mappings are one
    keys, longest = list(filter(_is_text, given)), max(map(len, names))
    counts = Counter({"": 0})
    for key in keys:
        starts = (0, *(i for i, letter in enumerate(key, start=1) if letter == "."))
        counts.update(key[:i] for i in starts if len(key) - i <= longest and key[i:] in names)
    for prefix, count in counts.items():
        yield Part(given, prefix, f"{where} {printable(prefix)}".rstrip(), count)
    for key in keys:
        inner = given[key]
        if isinstance(inner, Mapping) and depth and id(inner) not in seen:
            yield from _parts(inner, names, seen, f"{where}[{key!r}]", depth - 1)


def _is_text(key: Any) -> bool:  # names are; text of another key of a file might be without end
    return isinstance(key, str)


def _recognised(known: list[Layout], given: Mapping, source: str) -> tuple[Layout, Part]:
    """The layout of whose names most are there, and where they are."""
    found = []
    for layout in known:
        names = {name for place in layout.places for name in place.shapes}
        part = _unwrapped(given, names, source)
        found.append((part.fitting / len(names), layout, part))
    share, layout, part = max(found, key=lambda item: item[0])
    if not share and len(known) > 1:
        titles = ", ".join(layout.title for layout in known)
        raise ValueError(f"{source}: no names of {titles}, but {some(filter(_is_text, given)) or 'none at all'}")
    return layout, part


def _unwrapped(given: Mapping, names: Collection[str], source: str) -> Part:
    """The part that has most of the names; of several that have all of them, the one that is not a moving average."""
    parts = list(_parts(given, names, set()))
    most = max(part.fitting for part in parts)
    best = [part for part in parts if part.fitting == most]
    plain = [part for part in best if "ema" not in part.where.lower()] or best
    if most == len(names) and len(plain) > 1:
        found = ", ".join(f"{source}{part.where}" for part in plain)
        raise ValueError(f"{source}: the names are there {len(plain)} times ({found}); give one of these mappings")
    return plain[0]


def _numbers(source: str, name: str, given: Any) -> np.ndarray:
    """An array of any library in 32 bits, all of it finite."""
    if not isinstance(given, Stored) and isinstance(given, Note | tuple | list | Mapping):
        kind = given.name if isinstance(given, Note) else type(given).__name__
        raise ValueError(f"{source}: {name} is a {printable(kind)}; wanted a dense array of numbers")
    try:
        if isinstance(given, Stored):
            given = given.read()
        if hasattr(given, "detach"):  # of PyTorch: a parameter, perhaps in bfloat16, which NumPy has not
            given = given.detach().cpu()
            given = given.float() if given.is_floating_point() else given
        array = np.asarray(given)
    except Exception as error:
        raise ValueError(f"{source}: {name} does not fit into an array of NumPy ({reason(error)})") from None
    if array.dtype.kind not in "iu" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{source}: {name} is {array.dtype}{list(array.shape)}; wanted real numbers")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{source}: {name} holds NaN or infinity")
    if name.endswith("running_var") and np.any(array < 0):
        raise ValueError(f"{source}: {name} holds negative variances")
    return array


def _fill(model: nnx.Module, layout: Layout, part: Part, source: str) -> None:
    """All places, or none where anything is wrong."""
    prefix, counters = part.prefix, ("num_batches_tracked", "n_averaged")
    given = {
        name: array
        for key, array in part.given.items()
        if _is_text(key) and key.startswith(prefix)
        for name in [key.removeprefix(prefix)]
        if not name.endswith(counters) and not name.startswith(layout.unused)
    }
    fixed = {name: given.pop(name) for name in layout.fixed if name in given}
    wanted = {name: shape for place in layout.places for name, shape in place.shapes.items()}
    there = {name: given[name] for name in wanted if name in given}
    shapes = {name: given.shape for name, given in there.items() if isinstance(given, Stored)}
    arrays = {name: _numbers(source, name, array) for name, array in there.items() if name not in shapes}
    shapes |= {name: array.shape for name, array in arrays.items()}
    problems = {
        "names missing": [name for name in wanted if name not in given],
        "names unknown": [name for name in given if name not in wanted],
        "shapes differ": [
            f"{name} is {shapes[name]}, wanted {_shown(shape)}"
            for name, shape in wanted.items()
            if name in shapes and not _fits(shapes[name], shape)
        ],
    }
    told = [f"{len(v)} {k} ({some(v, 3)})" for k, v in problems.items() if v]
    if told:
        raise ValueError(f"{source}: {'; '.join(told)}")
    for name, value in fixed.items():
        if not np.all(_numbers(source, name, value) == layout.fixed[name]):
            raise ValueError(f"{source}: {name}, which is fixed here, is not all {layout.fixed[name]:g}")
    values = []
    for place in layout.places:
        parts = [arrays[name] if name in arrays else _numbers(source, name, there[name]) for name in place.shapes]
        try:
            values.append(jnp.asarray(place.arranged(*parts), jnp.float32))
        except ValueError as error:
            raise ValueError(f"{source}: {', '.join(place.shapes)}: {error}") from None
    filled = {id(place.variable) for place in layout.places}
    left = [
        ".".join(map(str, path))
        for path, value in nnx.iter_graph(model)
        if isinstance(value, nnx.Param) and id(value) not in filled
        if isinstance(value.get_value(), jax.ShapeDtypeStruct)
    ]
    if left:
        raise ValueError(f"{source}: {some(left)} are not part of it and keep what they have, but model is abstract")
    for place, value in zip(layout.places, values, strict=True):
        place.variable.set_value(value)


def _fits(came: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(came) == len(wanted) and all(w is None or c == w for c, w in zip(came, wanted, strict=True))


def _shown(shape: tuple[int | None, ...]) -> str:
    return str(tuple(shape)).replace("None", "any")
