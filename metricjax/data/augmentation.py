"""What is done to face images on the device before an encoder sees them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

__all__ = [
    "AUGMENTATION",
    "CLIP_PIXELS",
    "IMAGENET_PIXELS",
    "Pixels",
    "augmented",
    "centred",
    "normalised",
    "resized",
    "scaled",
    "standardised",
]


AUGMENTATION = {"turn": 0.2, "zoom": 0.15, "shift": 0.1, "hide": 0.5}  # limits of moving and hiding, see `augmented`


class Pixels(NamedTuple):
    """Mean and standard deviation of red, green and blue from 0 to 1 over the images that an encoder was trained on."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# torchvision's references, and DINOv2; `_transform` in clip/clip.py of OpenAI, and open_clip.
IMAGENET_PIXELS = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_PIXELS = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def resized(images: Num[Array, "n h w c"], size: Sequence[int]) -> Float[Array, "n h2 w2 c"]:
    """Cropped around the centre to the shape of `size` (height, width), and resized."""
    n, height, width, channels = images.shape
    kept = min(height, round(width * size[0] / size[1])), min(width, round(height * size[1] / size[0]))
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    images = images[:, top : top + kept[0], left : left + kept[1]].astype(jnp.float32)
    return images if kept == tuple(size) else jax.image.resize(images, (n, *size, channels), "cubic")


def standardised(images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Each image brought to mean 0 and variance 1; an image of one value becomes 0."""
    away = images - jnp.mean(images, axis=(1, 2, 3), keepdims=True)  # first, or the variance of bright images cancels
    return away * jax.lax.rsqrt(jnp.mean(away**2, axis=(1, 2, 3), keepdims=True) + 1)


def centred(images: Num[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """(x − 127.5) / 127.5: pixels from 0 to 255 brought to −1 to 1, as in the usual protocol (see `alignment`).

    >>> centred(jnp.array([0, 51, 255]).reshape(1, 1, 3, 1)).ravel()
    Array([-1. , -0.6,  1. ], dtype=float32)
    """
    return (images.astype(jnp.float32) - 127.5) / 127.5


def normalised(images: Num[Array, "n h w c"], pixels: Pixels = IMAGENET_PIXELS) -> Float[Array, "n h w c"]:
    """(x / 255 − mean) / std for each channel: pixels from 0 to 255 as encoders of any images were trained on them.

    `IMAGENET_PIXELS` are for torchvision's ResNet and DINOv2, `CLIP_PIXELS` for CLIP. `centred` is the same with a mean
    and a deviation of a half, as the ViT of ImageNet-21k in timm have it: a model's card says which.

    >>> normalised(jnp.zeros((1, 1, 1, 3))).ravel()
    Array([-2.117904 , -2.0357141, -1.8044444], dtype=float32)
    """
    mean, std = (jnp.array(values, jnp.float32)[None, None, None] for values in pixels)
    return (images.astype(jnp.float32) / 255 - mean) / std


def scaled(images: Num[Array, "n h w c"], size: Sequence[int]) -> Float[Array, "n h2 w2 c"]:
    """`resized`, then `standardised`."""
    return standardised(resized(images, size))


def augmented(
    key: Key[Array, ""],
    images: Float[Array, "n h w c"],
    *,
    turn: float = AUGMENTATION["turn"],
    zoom: float = AUGMENTATION["zoom"],
    shift: float = AUGMENTATION["shift"],
    light: float = 0.2,
    hide: float = AUGMENTATION["hide"],
    mirror: bool = False,
) -> Float[Array, "n h w c"]:
    """Each image turned, zoomed, shifted and perhaps mirrored, its light changed and a rectangle set to 0.

    Every amount is drawn evenly up to its limit, for each image anew.

    Args:
      key: random key.
      images: standardised images.
      turn: radians, either way.
      zoom: logarithm of the scale, either way.
      shift: share of height and of width, either way.
      light: change of contrast (factor 1 ± light) and of brightness (± light).
      hide: height and width of the rectangle, as shares of the image's.
      mirror: whether every other image, at random, is mirrored.
    """
    n, height, width, _ = images.shape
    keys = jax.random.split(key, 6)
    uniform = lambda key, limit, shape=(n,): jax.random.uniform(key, shape, minval=-limit, maxval=limit)
    y, x = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")

    def moved(image, angle, log_scale, offset, mirrored):
        sin, cos = jnp.sin(angle) * jnp.exp(log_scale), jnp.cos(angle) * jnp.exp(log_scale)
        u = jnp.where(mirrored, -x, x)
        rows = cos * y + sin * u + (height - 1) / 2 + offset[0] * height
        columns = cos * u - sin * y + (width - 1) / 2 + offset[1] * width
        take = lambda plane: jax.scipy.ndimage.map_coordinates(plane, [rows, columns], order=1, mode="nearest")
        return jax.vmap(take, in_axes=-1, out_axes=-1)(image)

    mirrored = jax.random.bernoulli(keys[0], 0.5, (n,)) & mirror
    images = jax.vmap(moved)(
        images, uniform(keys[1], turn), uniform(keys[2], zoom), uniform(keys[3], shift, (n, 2)), mirrored
    )
    contrast, brightness = uniform(keys[4], light, (2, n, 1, 1, 1))
    images = images * (1 + contrast) + brightness
    middle = jax.random.uniform(keys[5], (n, 2, 1, 1, 1)) * jnp.array([height, width]).reshape(2, 1, 1, 1)
    rows, columns = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    hidden = jnp.abs(rows - middle[:, 0]) < hide * height / 2
    return jnp.where(hidden & (jnp.abs(columns - middle[:, 1]) < hide * width / 2), 0, images)
