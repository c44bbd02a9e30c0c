"""The residual networks of ImageNet."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from metricjax import sphere
from metricjax.encoders.layers import batch_norm, through
from metricjax.ground.numerics import widen

__all__ = ["BLOCKS", "Block", "ResNet"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTHS, EXPANSION = (64, 128, 256, 512), 4


class Block(nnx.Module):
    """Convolutions and norms around a shortcut, each followed by a ReLU: two of 3 × 3, or 1 × 1, 3 × 3 and 1 × 1.

    The first of 3 × 3 has the stride, also where it is the second of three, as in PyTorch ("version 1.5").
    """

    def __init__(
        self, channels: int, width: int, stride: int, *, bottleneck: bool, dtype: DTypeLike | None, rngs: nnx.Rngs
    ):
        init = variance_scaling(2.0, "fan_out", "normal")
        conv = partial(nnx.Conv, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        norm = partial(batch_norm, dtype=dtype, rngs=rngs)
        layers = [(3, width, stride), (3, width, 1)]  # size, channels, stride
        if bottleneck:
            layers = [(1, width, 1), (3, width, stride), (1, EXPANSION * width, 1)]
        convs, before = [], channels
        for size, after, step in layers:
            convs.append(conv(before, after, (size, size), strides=step, padding=size // 2))
            before = after
        self.convs = nnx.List(convs)
        self.norms = nnx.List([norm(after) for _, after, _ in layers])
        same = stride == 1 and channels == before
        self.shortcut = None if same else conv(channels, before, (1, 1), strides=stride, padding=0)
        self.shortcut_norm = None if same else norm(before)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = self.norms[0](self.convs[0](x))
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            y = norm(conv(jax.nn.relu(y)))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """ResNet 18 to 152 for photographs of anything, as torchvision has it.

    Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    The network of He et al. 2015, arXiv:1512.03385, as torchvision has it (strides on the 3 × 3 convolutions), whose
    weights `load_weights` reads: a strided convolution of 7 × 7, max-pooling, four stages, and as features the mean of
    all positions: 512 at the depths 18 and 34, 2048 at 50, 101 and 152. Without the classifier those have 11.2, 21.3,
    23.5, 42.5 and 58.1 million parameters.

    Images are float, of any height and width, normalised as the weights want them, see `mj.data.normalised`;
    `model.train()` and `model.eval()` as in `IResNet`.

    >>> from flax import nnx
    >>> model = nnx.eval_shape(lambda: ResNet(50, 128, rngs=nnx.Rngs(0)))
    >>> model.head.kernel.shape
    (2048, 128)

    Args:
      depth: 18, 34, 50, 101 or 152, or the number of blocks for each of `widths`.
      embedding_size: length of the embedding, by a linear map of the features; None for the features themselves.
      image_shape: (height, width, channels) of the images, of which only the channels matter here.
      widths: channels of each stage; those of bottlenecks leave with four times as many.
      bottleneck: whether blocks are of 1 × 1, 3 × 3 and 1 × 1; by default those of 50 and deeper.
      dtype: bfloat16 to compute in it; parameters, statistics, norms, the mean, the last linear map and the embeddings
        stay float32.
      remat: whether the backward pass computes each block again, to store less.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        depth: int | Sequence[int],
        embedding_size: int | None = None,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        *,
        widths: Sequence[int] = WIDTHS,
        bottleneck: bool | None = None,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        counts = BLOCKS.get(depth, ()) if isinstance(depth, int) else depth
        if len(counts) != len(widths):
            known = ", ".join(map(str, BLOCKS))
            raise ValueError(f"depth is {depth}; wanted one of {known}, or the number of blocks for each of {widths}")
        if bottleneck is None:
            bottleneck = not isinstance(depth, int) or depth >= 50
        init = variance_scaling(2.0, "fan_out", "normal")
        stem = partial(nnx.Conv, kernel_size=(7, 7), strides=2, padding=3, use_bias=False, kernel_init=init)
        self.stem = stem(image_shape[2], widths[0], dtype=dtype, rngs=rngs)
        self.stem_norm = batch_norm(widths[0], dtype=dtype, rngs=rngs)
        block = partial(Block, bottleneck=bottleneck, dtype=dtype, rngs=rngs)
        stages, before = [], widths[0]
        for stage, (count, width) in enumerate(zip(counts, widths, strict=True)):
            blocks = []
            for b in range(count):
                blocks.append(block(before, width, 2 if stage and b == 0 else 1))
                before = width * (EXPANSION if bottleneck else 1)
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.head = None if embedding_size is None else nnx.Linear(before, embedding_size, rngs=rngs)
        self.remat = remat

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected, for losses that look at their length."""
        x = jax.nn.relu(self.stem_norm(self.stem(images)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for blocks in self.stages:
            x = through(blocks, x, self.remat)
        x = jnp.mean(widen(x), axis=(1, 2))
        return x if self.head is None else self.head(x)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
