"""A convolutional network for training many variants at once: its convolutions are matrix products."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from metricjax import sphere

__all__ = ["SmallConvNet", "conv_by_products"]


def conv_by_products(
    images: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c o"], strides, padding, **settings
) -> Float[Array, "n h2 w2 o"]:
    """`lax.conv_general_dilated` for channels-last images, as one product of all patches with the kernel.

    For `nnx.Conv(..., conv_general_dilated=conv_by_products)`. Under `jax.vmap` over kernels it is a batched product,
    where JAX makes a grouped convolution, and inside loops on a CPU it is not slow, as XLA's gradient of a convolution
    is; it holds the patches, kh × kw times the images. Dilation and groups are a ValueError.
    """
    plain = {"lhs_dilation": 1, "rhs_dilation": 1, "feature_group_count": 1, "batch_group_count": 1}
    for name, value in plain.items():
        if any(given != value for given in jax.tree.leaves(settings.get(name))):
            raise ValueError(f"conv_by_products: {name} is {settings[name]}; wanted {value}")
    *size, channels, out = kernel.shape
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], size, strides, padding)
    x = jnp.pad(images, [(0, 0), *padding, (0, 0)])
    (height, width), (down, right) = ((x.shape[1 + i] - size[i]) // strides[i] + 1 for i in (0, 1)), strides
    rows, columns = down * (height - 1) + 1, right * (width - 1) + 1
    places = [(i, j) for i in range(size[0]) for j in range(size[1])]
    patches = [x[:, i : i + rows : down, j : j + columns : right] for i, j in places]
    flat = kernel.reshape(len(places) * channels, out)
    return jnp.matmul(jnp.concatenate(patches, axis=-1), flat, precision=settings.get("precision"))


class SmallConvNet(nnx.Module):
    """A convolutional network that trains fast under `jax.vmap`, many at once.

    Images [n, height, width, channels] to embeddings [n, embedding_size] of length 1; `features` has any length.

    Convolutions of stride 2, one for each of `widths`, then a linear map of all positions. All of it is matrix products
    (`conv_by_products`), so that many of these networks train at once under `jax.vmap` at little more than the cost of
    one after the other.

    Args:
      embedding_size: length of the embedding.
      image_shape: (height, width, channels) of the images, which this network is then tied to.
      widths: channels of each convolution.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        embedding_size: int,
        image_shape: tuple[int, int, int],
        *,
        widths: Sequence[int] = (16, 32),
        rngs: nnx.Rngs,
    ):
        height, width, before = image_shape
        conv = partial(nnx.Conv, strides=2, conv_general_dilated=conv_by_products, rngs=rngs)
        convs = []
        for i, after in enumerate(widths):
            convs.append(conv(before, after, (5, 5) if i == 0 else (3, 3)))
            height, width, before = -(-height // 2), -(-width // 2), after
        self.convs = nnx.List(convs)
        self.head = nnx.Linear(height * width * before, embedding_size, rngs=rngs)

    def features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Embeddings before they are projected, for losses that look at their length."""
        x = images
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.head(x.reshape(x.shape[0], -1))

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        return sphere.project(self.features(images))
