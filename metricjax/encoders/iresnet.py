"""The residual networks of face recognition."""

from collections.abc import Sequence
from functools import partial

from flax import nnx
from jax.nn.initializers import normal, variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from metricjax import sphere
from metricjax.encoders.layers import PReLU, batch_norm, through

__all__ = ["BLOCKS", "Block", "IResNet"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}


class Block(nnx.Module):
    """Norm, convolution, norm, PReLU, strided convolution, norm, around a shortcut."""

    def __init__(self, channels: int, out: int, stride: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, kernel_init=normal(0.1), dtype=dtype, rngs=rngs)
        norm = partial(batch_norm, dtype=dtype, rngs=rngs)
        self.norm1 = norm(channels)
        self.conv1 = conv(channels, out, (3, 3), padding=1)
        self.norm2 = norm(out)
        self.prelu = PReLU(out)
        self.conv2 = conv(out, out, (3, 3), strides=stride, padding=1)
        self.norm3 = norm(out)
        same = stride == 1 and channels == out
        self.shortcut = None if same else conv(channels, out, (1, 1), strides=stride, padding=0)
        self.shortcut_norm = None if same else norm(out)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = self.prelu(self.norm2(self.conv1(self.norm1(x))))
        y = self.norm3(self.conv2(y))
        if self.shortcut is None or self.shortcut_norm is None:
            return x + y
        return self.shortcut_norm(self.shortcut(x)) + y


class IResNet(nnx.Module):
    """The network of ArcFace for aligned faces.

    Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    The network of ArcFace (Deng et al. 2019, arXiv:1801.07698), with the blocks of Han et al. 2017, arXiv:1610.02915: a
    convolution, four stages that each halve height and width, then norm, dropout, all positions joined and mapped to
    the embedding, and a norm without scale: the projection would undo most of it. Layers, initial values, ε = 1e-5
    and the average of statistics (0.9 of its past) are those of insightface's arcface_torch, whose weights
    `load_weights` reads. At 112 × 112 the depths 18, 34, 50, 100 and 200 have 24.03, 34.14, 43.59, 65.16 and 118.83
    million parameters.

    Images are float, within [-1, 1]. `model.train()`, the default, normalises by the batch (inside `jax.shard_map` by
    each device's part of it) and updates the averages; `model.eval()` uses the averages and no dropout. Inside
    `jax.grad` merge a split model with `nnx.merge(..., copy=True)`, so that the averages can be written.

    >>> from flax import nnx
    >>> model = nnx.eval_shape(lambda: IResNet(18, rngs=nnx.Rngs(0)))
    >>> model.head.kernel.shape
    (25088, 512)

    Args:
      depth: 18, 34, 50, 100 or 200, or the number of blocks for each of `widths`.
      embedding_size: length of the embedding.
      image_shape: (height, width, channels) of the images, which this network is then tied to.
      widths: channels of each stage.
      dropout: probability that a joined feature is dropped while training.
      dtype: bfloat16 to compute in it; parameters, statistics, norms, the last linear map and the embeddings stay
        float32.
      remat: whether the backward pass computes each block again, to store less.
      rngs: where the initial weights come from, and the dropout.
    """

    def __init__(
        self,
        depth: int | Sequence[int],
        embedding_size: int = 512,
        image_shape: tuple[int, int, int] = (112, 112, 3),
        *,
        widths: Sequence[int] = (64, 128, 256, 512),
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        counts = BLOCKS.get(depth, ()) if isinstance(depth, int) else depth
        if len(counts) != len(widths):
            wanted = f"one of {', '.join(map(str, BLOCKS))}, or the number of blocks for each of {len(widths)} widths"
            raise ValueError(f"depth is {depth}; wanted {wanted}")
        height, width, channels = image_shape
        before = widths[0]
        self.stem = nnx.Conv(
            channels, before, (3, 3), padding=1, use_bias=False, kernel_init=normal(0.1), dtype=dtype, rngs=rngs
        )
        self.stem_norm = batch_norm(before, dtype=dtype, rngs=rngs)
        self.stem_prelu = PReLU(before)
        stages = []
        for count, after in zip(counts, widths, strict=True):
            strides = [2] + [1] * (count - 1)
            blocks = []
            for stride in strides:
                blocks.append(Block(before, after, stride, dtype=dtype, rngs=rngs))
                before = after
            stages.append(nnx.List(blocks))
            height, width = -(-height // 2), -(-width // 2)
        self.stages = nnx.List(stages)
        self.norm = batch_norm(before, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        uniform = variance_scaling(1 / 3, "fan_in", "uniform")  # within ±1/√fan_in
        self.head = nnx.Linear(height * width * before, embedding_size, kernel_init=uniform, rngs=rngs)
        self.head_norm = batch_norm(embedding_size, use_scale=False, rngs=rngs)
        self.map_shape = (height, width, before)
        self.remat = remat

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected, for losses that look at their length."""
        x = self.stem_prelu(self.stem_norm(self.stem(images)))
        for blocks in self.stages:
            x = through(blocks, x, self.remat)
        x = self.norm(x).reshape(x.shape[0], -1)
        if self.dropout is not None:
            x = self.dropout(x)
        return self.head_norm(self.head(x))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
