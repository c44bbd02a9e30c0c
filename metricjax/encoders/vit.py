"""Vision transformers for faces."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from metricjax import sphere
from metricjax.encoders.layers import batch_norm, through
from metricjax.ground.numerics import widen

__all__ = ["PATCH", "SIZES", "Block", "ViT"]

PATCH = 9
SIZES = {"tiny": (256, 12, 8), "small": (512, 12, 8), "base": (512, 24, 8)}  # width, depth, heads


class Block(nnx.Module):
    """Attention and a two-layer network, each behind a norm and around a shortcut; the shortcut stays float32."""

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, kernel_init=normal(0.02), dtype=dtype, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.queries_keys_values = linear(width, 3 * width, use_bias=False)
        self.attended = linear(width, width)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.inner = linear(width, 4 * width)
        self.outer = linear(4 * width, width)
        self.heads = heads

    def attention(self, x: Float[Array, "n t w"]) -> Float[Array, "n t w"]:
        n, tokens, width = x.shape
        apart = self.queries_keys_values(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        together = jax.nn.dot_product_attention(*jnp.moveaxis(apart, 2, 0))  # softmax in float32
        return self.attended(together.reshape(n, tokens, width))

    def __call__(self, x: Float[Array, "n t w"]) -> Float[Array, "n t w"]:
        x = x + self.attention(self.norm1(x)).astype(x.dtype)
        return x + self.outer(jax.nn.relu6(self.inner(self.norm2(x)))).astype(x.dtype)


class ViT(nnx.Module):
    """Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) as insightface's arcface_torch has it for faces:
    patches of 9 × 9 pixels (what is left at the right and below is not seen), learned positions, no class token,
    ReLU6; after the last norm all tokens are joined, since faces are aligned, and mapped to the embedding by two linear
    maps with a norm over the batch after each (ε = 2e-5). Its random masking of patches and dropping of blocks are left
    out. At 112 × 112 tiny, small and base have 19.1, 76.0 and 113.8 million parameters.

    Images are float, within [-1, 1]; `model.train()` and `model.eval()` as in `IResNet`.

    >>> from flax import nnx
    >>> model = nnx.eval_shape(lambda: ViT("tiny", rngs=nnx.Rngs(0)))
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
        if isinstance(size, str) and size not in SIZES:
            raise ValueError(f"size is {size!r}; wanted one of {', '.join(SIZES)}, or (width, depth, heads)")
        wide, depth, heads = SIZES[size] if isinstance(size, str) else size
        if wide % heads:
            raise ValueError(f"size is {size}; wanted a width that {heads} heads divide, not {wide}")
        height, width, channels = image_shape
        tokens = (height // PATCH) * (width // PATCH)
        if tokens == 0:
            raise ValueError(f"image_shape is {image_shape}; wanted at least {PATCH} × {PATCH} pixels")
        within = variance_scaling(1 / 3, "fan_in", "uniform")  # within ±1/√fan_in
        patches = partial(nnx.Conv, kernel_size=(PATCH, PATCH), strides=PATCH, padding="VALID", kernel_init=within)
        self.patches = patches(channels, wide, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(normal(0.02)(rngs.params(), (tokens, wide), jnp.float32))
        self.blocks = nnx.List([Block(wide, heads, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(wide, epsilon=1e-5, rngs=rngs)
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
