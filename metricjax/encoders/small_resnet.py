"""A residual network small enough to train on a laptop's CPU."""

from collections.abc import Sequence
from functools import partial

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from metricjax import sphere
from metricjax.encoders.layers import group_norm, through

__all__ = ["Block", "SmallResNet"]


class Block(nnx.Module):
    """Two 3 × 3 convolutions around a shortcut (He et al. 2016, arXiv:1603.05027: normalise, activate, convolve).

    The activation is smooth, x · sigmoid(x): at the kink of a ReLU, rounding turns whole gradients on and off, and
    trainings on one device and on eight drift apart.
    """

    def __init__(self, channels: int, out: int, stride: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = partial(group_norm, dtype=dtype, rngs=rngs)
        self.norm1 = norm(channels, num_groups=min(8, channels))
        self.conv1 = conv(channels, out, (3, 3), strides=stride)
        self.norm2 = norm(out, num_groups=min(8, out))
        self.conv2 = conv(out, out, (3, 3))
        same = stride == 1 and channels == out
        self.shortcut = None if same else conv(channels, out, (1, 1), strides=stride)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = jax.nn.silu(self.norm1(x))
        short = x if self.shortcut is None else self.shortcut(y)
        return short + self.conv2(jax.nn.silu(self.norm2(self.conv1(y))))


class SmallResNet(nnx.Module):
    """A residual network without batch statistics, for small aligned images.

    Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    A strided convolution, then one residual block for each of `widths`, each halving height and width but the first,
    then all positions of the last block joined and mapped to the embedding: faces are aligned, so position matters.

    Args:
      embedding_size: length of the embedding.
      image_shape: (height, width, channels) of the images, which this network is then tied to.
      widths: channels of each residual block.
      dtype: bfloat16 to compute in it; parameters, norms, the last linear map and the embeddings stay float32.
      remat: whether the backward pass computes each block again, to store less.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        embedding_size: int,
        image_shape: tuple[int, int, int],
        *,
        widths: Sequence[int] = (32, 64, 96, 128),
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        self.stem = nnx.Conv(channels, widths[0], (5, 5), strides=2, use_bias=False, dtype=dtype, rngs=rngs)
        height, width = -(-height // 2), -(-width // 2)
        blocks, before = [], widths[0]
        for i, after in enumerate(widths):
            stride = 1 if i == 0 else 2
            blocks.append(Block(before, after, stride, dtype=dtype, rngs=rngs))
            height, width, before = -(-height // stride), -(-width // stride), after
        self.blocks = nnx.List(blocks)
        self.norm = group_norm(before, num_groups=min(8, before), rngs=rngs)
        self.head = nnx.Linear(height * width * before, embedding_size, rngs=rngs)
        self.remat = remat

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected, for losses that look at their length."""
        x = through(self.blocks, self.stem(images), self.remat)
        x = jax.nn.silu(self.norm(x))
        return self.head(x.reshape(x.shape[0], -1))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
