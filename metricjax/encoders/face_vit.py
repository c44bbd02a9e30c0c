"""Vision transformers for faces."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from metricjax import sphere
from metricjax.encoders.layers import batch_norm, through
from metricjax.encoders.transformer import Block, layer_norm, sized
from metricjax.ground.numerics import widen

__all__ = ["PATCH", "SIZES", "FaceViT"]

PATCH = 9
SIZES = {"tiny": (256, 12, 8), "small": (512, 12, 8), "base": (512, 24, 8)}  # width, depth, heads


class FaceViT(nnx.Module):
    """A vision transformer for aligned faces, as insightface trains it.

    Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) as insightface's arcface_torch has it for faces,
    whose weights `load_weights` reads: patches of 9 × 9 pixels (what is left at the right and below is not seen),
    learned positions, no class token, ReLU6; after the last norm all tokens are joined, since faces are aligned, and
    mapped to the embedding by two linear maps with a norm over the batch after each (ε = 2e-5). Its random masking of
    patches and dropping of blocks are left out. At 112 × 112 tiny, small and base have 19.1, 76.0 and 113.8 million
    parameters.

    Images are float, within [-1, 1]; `model.train()` and `model.eval()` as in `IResNet`.

    >>> from flax import nnx
    >>> model = nnx.eval_shape(lambda: FaceViT("tiny", rngs=nnx.Rngs(0)))
    >>> model.positions.shape, len(model.blocks)
    ((144, 256), 12)

    Args:
      size: "tiny", "small" or "base", or (width, depth, heads).
      embedding_size: length of the embedding.
      image_shape: (height, width, channels) of the images, which this network is then tied to.
      dtype: bfloat16 to compute the products of the blocks in it; parameters, statistics, norms, shortcuts, what
        follows the blocks and the embeddings stay float32.
      remat: whether the backward pass computes each block again, to store less.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        size: str | tuple[int, int, int],
        embedding_size: int = 512,
        image_shape: tuple[int, int, int] = (112, 112, 3),
        *,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        wide, depth, heads = sized(size, SIZES)
        height, width, channels = image_shape
        tokens = (height // PATCH) * (width // PATCH)
        if tokens == 0:
            raise ValueError(f"image_shape is {image_shape}; wanted at least {PATCH} × {PATCH} pixels")
        within = variance_scaling(1 / 3, "fan_in", "uniform")  # within ±1/√fan_in
        patches = partial(nnx.Conv, kernel_size=(PATCH, PATCH), strides=PATCH, padding="VALID", kernel_init=within)
        self.patches = patches(channels, wide, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(normal(0.02)(rngs.params(), (tokens, wide), jnp.float32))
        settings: Any = {"activation": "relu6", "epsilon": 1e-5, "attention_bias": False}
        block = partial(Block, wide, heads, **settings, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([block() for _ in range(depth)])
        self.norm = layer_norm(wide, epsilon=1e-5, rngs=rngs)
        linear = partial(nnx.Linear, use_bias=False, kernel_init=normal(0.02), rngs=rngs)
        self.joined = linear(tokens * wide, wide)
        self.joined_norm = batch_norm(wide, epsilon=2e-5, rngs=rngs)
        self.head = linear(wide, embedding_size)
        self.head_norm = batch_norm(embedding_size, epsilon=2e-5, rngs=rngs)
        self.remat = remat

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected, for losses that look at their length."""
        tokens = widen(self.patches(images)).reshape(images.shape[0], *self.positions.shape)
        x = self.norm(through(self.blocks, tokens + self.positions[...][None], self.remat))
        x = self.joined_norm(self.joined(x.reshape(x.shape[0], -1)))
        return self.head_norm(self.head(x))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
