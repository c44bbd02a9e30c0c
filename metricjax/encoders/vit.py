"""Vision transformers with a class token: those of ImageNet, DINOv2 and CLIP."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from metricjax import sphere
from metricjax.encoders.layers import through
from metricjax.encoders.transformer import ACTIVATIONS, Block, layer_norm, sized
from metricjax.ground.numerics import widen

__all__ = ["SIZES", "ViT"]

SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, depth, heads


class ViT(nnx.Module):
    """A vision transformer for photographs of anything: ImageNet's, DINOv2, and the image tower of CLIP.

    Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    The vision transformer of Dosovitskiy et al. 2021, arXiv:2010.11929, and its kin: patches, a class token, learned
    positions, blocks of attention, a norm; its features are the class token, as in the published models, whose weights
    `load_weights` reads. Of those, by their names in `create`:

    - `vit_small_patch16`, `vit_base_patch16`, `vit_base_patch32`: trained on ImageNet, as timm has them;
    - `vit_base_patch14_dinov2`, `vit_small_…` and `…_reg4`: `patch=14, layer_scale=1e-5`, perhaps `registers=4` (Oquab
      et al. 2023, arXiv:2304.07193; Darcet et al. 2023, arXiv:2309.16588), trained at 518 × 518;
    - `vit_base_patch32_clip`, `vit_base_patch16_clip`: `pre_norm=True, projection=512, activation="quick_gelu",
      epsilon=1e-5`, the image tower of CLIP (Radford et al. 2021, arXiv:2103.00020). Those of open_clip, of the same
      names, mostly have `activation="gelu"`: files do not say which.

    Images are float, normalised as the weights want them, see `mj.data.normalised`. What is left at the right and below
    of the last whole patch is not seen. `train()` and `eval()` change nothing: training is not different.

    >>> from flax import nnx
    >>> model = nnx.eval_shape(lambda: ViT("small", rngs=nnx.Rngs(0)))
    >>> model.positions.shape, len(model.blocks)
    ((197, 384), 12)

    Args:
      size: "small", "base" or "large", or (width, depth, heads).
      embedding_size: length of the embedding, by a linear map of the features; None for the features themselves.
      image_shape: (height, width, channels) of the images, which this network is then tied to.
      patch: height and width of a patch.
      registers: number of tokens beside the class token that are dropped in the end.
      pre_norm: whether there is a norm in front of the blocks; patches have no bias then.
      layer_scale: first value of the blocks' scales; None for blocks without.
      projection: width of a linear map of the features, without bias, that belongs to the published model.
      pooling: "class", or "mean" for the mean of the patches' tokens after the norm.
      activation: "gelu", or "quick_gelu" (x · sigmoid(1.702 x)).
      epsilon: what the norms add to variances.
      dtype: bfloat16 to compute the products of the blocks in it; parameters, norms, shortcuts, what follows the blocks
        and the embeddings stay float32.
      remat: whether the backward pass computes each block again, to store less.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        size: str | tuple[int, int, int],
        embedding_size: int | None = None,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        *,
        patch: int = 16,
        registers: int = 0,
        pre_norm: bool = False,
        layer_scale: float | None = None,
        projection: int | None = None,
        pooling: str = "class",
        activation: str = "gelu",
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        wide, depth, heads = sized(size, SIZES)
        if pooling not in ("class", "mean"):
            raise ValueError(f"pooling is {pooling!r}; wanted 'class' or 'mean'")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; wanted one of {', '.join(ACTIVATIONS)}")
        height, width, channels = image_shape
        self.grid = (height // patch, width // patch)
        tokens = self.grid[0] * self.grid[1]
        if tokens == 0:
            raise ValueError(f"image_shape is {image_shape}; wanted at least {patch} × {patch} pixels")
        drawn = lambda *shape: nnx.Param(normal(0.02)(rngs.params(), shape, jnp.float32))
        patches = partial(nnx.Conv, kernel_size=(patch, patch), strides=patch, padding="VALID", use_bias=not pre_norm)
        self.patches = patches(channels, wide, dtype=dtype, rngs=rngs)
        self.class_token = drawn(wide)
        self.registers = drawn(registers, wide) if registers else None
        self.positions = drawn(1 + tokens, wide)  # first that of the class token; registers have none
        norm = partial(layer_norm, wide, epsilon=epsilon, rngs=rngs)
        self.norm_before = norm() if pre_norm else None
        settings = partial(Block, activation=activation, epsilon=epsilon, layer_scale=layer_scale)
        self.blocks = nnx.List([settings(wide, heads, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.norm = norm()
        linear = partial(nnx.Linear, kernel_init=normal(0.02), rngs=rngs)
        self.projection = None if projection is None else linear(wide, projection, use_bias=False)
        self.head = None if embedding_size is None else linear(projection or wide, embedding_size)
        self.pooling = pooling
        self.remat = remat

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected to the sphere, for losses that look at their length."""
        positions = self.positions[...]
        first = (self.class_token[...] + positions[0])[None]
        if self.registers is not None:
            first = jnp.concatenate([first, self.registers[...]])
        patches = widen(self.patches(images)).reshape(images.shape[0], len(positions) - 1, -1) + positions[None, 1:]
        x = jnp.concatenate([jnp.broadcast_to(first[None], (images.shape[0], *first.shape)), patches], axis=1)
        if self.norm_before is not None:
            x = self.norm_before(x)
        x = self.norm(through(self.blocks, x, self.remat))
        x = x[:, 0] if self.pooling == "class" else jnp.mean(x[:, len(first) :], axis=1)
        if self.projection is not None:
            x = self.projection(x)
        return x if self.head is None else self.head(x)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
