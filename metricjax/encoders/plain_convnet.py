"""A plain convolutional network, for a few thousand photographs and minutes on a CPU."""

from collections.abc import Sequence

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from metricjax import sphere
from metricjax.encoders.layers import PReLU, batch_norm, through

__all__ = ["Layer", "PlainConvNet"]


class Layer(nnx.Module):
    """A 3 × 3 convolution, norm, PReLU, and, where height and width are to be halved, the maximum of 2 × 2."""

    def __init__(self, channels: int, out: int, halved: bool, *, dtype: DTypeLike | None, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, out, (3, 3), use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = batch_norm(out, dtype=dtype, rngs=rngs)
        self.prelu = PReLU(out)
        self.halved = halved

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        y = self.prelu(self.norm(self.conv(x)))
        return nnx.max_pool(y, (2, 2), (2, 2), padding="SAME") if self.halved else y


class PlainConvNet(nnx.Module):
    """A plain convolutional network for small aligned faces, which learns in few steps.

    Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    3 × 3 convolutions, one for each of `widths`, each but the last followed by a halving of height and width; then all
    positions are joined and mapped to the embedding: faces are aligned, so position matters. Its first convolution sees
    every pixel, as faces of about 50 pixels have none to spare, and batch normalisation makes it learn in few steps.

    `model.train()`, the default, normalises by the batch (inside `jax.shard_map` by each device's part of it) and
    updates the averages; `model.eval()` uses the averages. Inside `jax.grad` merge a split model with
    `nnx.merge(..., copy=True)`, so that the averages can be written.

    Args:
      embedding_size: length of the embedding.
      image_shape: (height, width, channels) of the images, which this network is then tied to.
      widths: channels of each convolution.
      dtype: bfloat16 to compute in it; parameters, statistics, norms, the last linear map and the embeddings stay
        float32.
      remat: whether the backward pass computes each layer again, to store less.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        embedding_size: int,
        image_shape: tuple[int, int, int],
        *,
        widths: Sequence[int] = (32, 64, 128, 256),
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        height, width, before = image_shape
        layers = []
        for i, after in enumerate(widths):
            halved = i < len(widths) - 1
            layers.append(Layer(before, after, halved, dtype=dtype, rngs=rngs))
            if halved:
                height, width = -(-height // 2), -(-width // 2)
            before = after
        self.layers = nnx.List(layers)
        self.head = nnx.Linear(height * width * before, embedding_size, rngs=rngs)
        self.remat = remat

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected, for losses that look at their length."""
        x = through(self.layers, images, self.remat)
        return self.head(x.reshape(x.shape[0], -1))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
