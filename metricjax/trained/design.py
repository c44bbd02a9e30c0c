"""All of an encoder but its weights: which network, which photographs, and what the network sees of them."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from metricjax import encoders
from metricjax.data.augmentation import CLIP_PIXELS, IMAGENET_PIXELS, centred, normalised, resized, standardised

__all__ = ["PIXELS", "Design", "design_of", "split"]

PIXELS: dict[str, Callable[..., Array]] = {
    "standardised": standardised,
    "centred": centred,
    "imagenet": partial(normalised, pixels=IMAGENET_PIXELS),
    "clip": partial(normalised, pixels=CLIP_PIXELS),
}
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Design:
    """All of an encoder but its weights.

    photograph: height and width at which photographs are read; image_size: what the network sees of them.
    pixels: "standardised" (each image has mean 0 and variance 1), "centred" (from −1 to 1), or as the encoders of any
        images take them, "imagenet" or "clip".
    """

    name: str
    embedding_size: int
    photograph: tuple[int, int]
    image_size: tuple[int, int]
    channels: int
    pixels: str = "standardised"
    precision: str = "float32"

    def network(self, seed: int = 0, remat: bool = False) -> nnx.Module:
        shape = (*self.image_size, self.channels)
        rngs, dtype = nnx.Rngs(seed), None if self.precision == "float32" else jnp.dtype(self.precision)
        return encoders.create(self.name, self.embedding_size, shape, dtype=dtype, remat=remat, rngs=rngs)

    def seen(self, images: Num[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        """Photographs as the network sees them."""
        return PIXELS[self.pixels](resized(images, self.image_size))


def split(network: nnx.Module):
    """Structure, parameters, and the rest (statistics of batch normalisation)."""
    return nnx.split(network, nnx.Param, ...)


def design_of(written: Mapping[str, Any], place: object) -> Design:
    """The design in a JSON object that lies at `place`, with every part of it checked."""
    size = lambda value: type(value) is int and 0 < value < 2**16
    pair = lambda value: isinstance(value, list) and len(value) == 2 and all(map(size, value))
    good = {
        "name": lambda value: isinstance(value, str) and value in encoders.NAMED,
        "embedding_size": size,
        "photograph": pair,
        "image_size": pair,
        "channels": lambda value: value in (1, 3),
        "pixels": lambda value: value in tuple(PIXELS),
        "precision": lambda value: value in PRECISIONS,
    }
    for field in dataclasses.fields(Design):
        if field.name not in written and field.default is dataclasses.MISSING:
            raise ValueError(f"{place} is damaged: it holds no {field.name!r}")
    for name, value in written.items():
        if name not in good or not good[name](value):
            raise ValueError(f"{place} is damaged: {name!r} is {value!r:.80}")
    values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in written.items()}
    return Design(**values)
