"""A residual network small enough to train on a laptop's CPU."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from metricjax import sphere


class Block(nnx.Module):
    """Two 3 × 3 convolutions around a shortcut (He et al. 2016, arXiv:1603.05027: normalise, activate, convolve)."""

    def __init__(self, channels: int, out: int, stride: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.GroupNorm(channels, num_groups=min(8, channels), rngs=rngs)
        self.conv1 = nnx.Conv(channels, out, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.norm2 = nnx.GroupNorm(out, num_groups=min(8, out), rngs=rngs)
        self.conv2 = nnx.Conv(out, out, (3, 3), use_bias=False, rngs=rngs)
        same = stride == 1 and channels == out
        self.shortcut = None if same else nnx.Conv(channels, out, (1, 1), strides=stride, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = jax.nn.relu(self.norm1(x))
        short = x if self.shortcut is None else self.shortcut(y)
        return short + self.conv2(jax.nn.relu(self.norm2(self.conv1(y))))


class SmallResNet(nnx.Module):
    """Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    A strided convolution, then one residual block for each of `widths`, each halving height and width but the first,
    then all positions of the last block joined and mapped to the embedding: faces are aligned, so position matters.

    Args:
      embedding_size: length of the embedding.
      image_shape: (height, width, channels) of the images, which this network is then tied to.
      widths: channels of each residual block.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        embedding_size: int,
        image_shape: tuple[int, int, int],
        *,
        widths: Sequence[int] = (32, 64, 96, 128),
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        self.stem = nnx.Conv(channels, widths[0], (5, 5), strides=2, use_bias=False, rngs=rngs)
        height, width = -(-height // 2), -(-width // 2)
        blocks, before = [], widths[0]
        for i, after in enumerate(widths):
            stride = 1 if i == 0 else 2
            blocks.append(Block(before, after, stride, rngs=rngs))
            height, width, before = -(-height // stride), -(-width // stride), after
        self.blocks = nnx.List(blocks)
        self.norm = nnx.GroupNorm(before, num_groups=min(8, before), rngs=rngs)
        self.head = nnx.Linear(height * width * before, embedding_size, rngs=rngs)

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected, for losses that look at their length."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        x = jax.nn.relu(self.norm(x))
        return self.head(x.reshape(len(x), -1))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
