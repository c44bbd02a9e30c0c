"""A face network for phones."""

from collections.abc import Sequence
from functools import partial

from flax import nnx
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from metricjax import sphere
from metricjax.encoders.layers import PReLU, batch_norm, through

__all__ = ["KAIMING", "STAGES", "Bottleneck", "ConvNorm", "MobileFaceNet"]

KAIMING = variance_scaling(2.0, "fan_out", "normal")
# Expansion, channels, blocks and stride of the first block: table 1 of the paper.
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class ConvNorm(nnx.Module):
    """Convolution and norm, then PReLU unless `linear`."""

    def __init__(self, channels, out, size, *, linear: bool = False, dtype: DTypeLike | None = None, rngs, **settings):
        conv = partial(nnx.Conv, use_bias=False, kernel_init=KAIMING, dtype=dtype, rngs=rngs)
        self.conv = conv(channels, out, size, **settings)
        self.norm = batch_norm(out, dtype=dtype, rngs=rngs)
        self.prelu = None if linear else PReLU(out)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        x = self.norm(self.conv(x))
        return x if self.prelu is None else self.prelu(x)


class Bottleneck(nnx.Module):
    """Widen, convolve each channel by itself, narrow; a shortcut where the shape stays (MobileNetV2)."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int, *, dtype: DTypeLike | None, rngs):
        layer, wide = partial(ConvNorm, dtype=dtype, rngs=rngs), channels * expansion
        self.widen = layer(channels, wide, (1, 1))
        self.depthwise = layer(wide, wide, (3, 3), strides=stride, padding=1, feature_group_count=wide)
        self.narrow = layer(wide, out, (1, 1), linear=True)
        self.same = stride == 1 and channels == out

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.same else y


class MobileFaceNet(nnx.Module):
    """A network of a million parameters for aligned faces, made for telephones.

    Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    The first network of Chen et al. 2018, arXiv:1804.07573: a strided and a depthwise convolution, bottlenecks, and in
    place of an average over positions a global depthwise convolution, which weighs them, then a linear map and a norm
    without scale. The paper's 0.99 million parameters count a norm as one bias per channel, as it is once merged with
    its convolution; training has scale and bias, together 1.003 million. Initial values are those of insightface's
    arcface_torch, whose own MobileFaceNet is twice as wide.

    Images are float, within [-1, 1]; `model.train()` and `model.eval()` as in `IResNet`.

    >>> from flax import nnx
    >>> model = nnx.eval_shape(lambda: MobileFaceNet(rngs=nnx.Rngs(0)))
    >>> model.weigh.conv.kernel.shape
    (7, 7, 1, 512)

    Args:
      embedding_size: length of the embedding.
      image_shape: (height, width, channels) of the images, which this network is then tied to.
      stages: expansion, channels, number of blocks and first stride of each run of bottlenecks.
      dtype: bfloat16 to compute the bottlenecks in it; parameters, statistics, norms, what follows the bottlenecks and
        the embeddings stay float32.
      remat: whether the backward pass computes each bottleneck again, to store less.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        embedding_size: int = 128,
        image_shape: tuple[int, int, int] = (112, 112, 3),
        *,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        stem = partial(ConvNorm, dtype=dtype, rngs=rngs)
        self.stem = stem(channels, 64, (3, 3), strides=2, padding=1)
        self.stem_depthwise = stem(64, 64, (3, 3), padding=1, feature_group_count=64)
        height, width = -(-height // 2), -(-width // 2)
        blocks, before = [], 64
        for expansion, after, count, first in stages:
            for stride in [first] + [1] * (count - 1):
                blocks.append(Bottleneck(before, after, expansion, stride, dtype=dtype, rngs=rngs))
                before = after
            height, width = -(-height // first), -(-width // first)
        self.blocks = nnx.List(blocks)
        self.widen = ConvNorm(before, 512, (1, 1), rngs=rngs)
        size = (height, width)
        self.weigh = ConvNorm(512, 512, size, padding="VALID", feature_group_count=512, linear=True, rngs=rngs)
        self.head = nnx.Linear(512, embedding_size, use_bias=False, kernel_init=KAIMING, rngs=rngs)
        self.head_norm = batch_norm(embedding_size, use_scale=False, rngs=rngs)
        self.remat = remat

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected, for losses that look at their length."""
        x = through(self.blocks, self.stem_depthwise(self.stem(images)), self.remat)
        x = self.weigh(self.widen(x))
        return self.head_norm(self.head(x.reshape(x.shape[0], -1)))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
