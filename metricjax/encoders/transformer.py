"""What vision transformers are made of."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jax.typing import DTypeLike
from jaxtyping import Array, Float

__all__ = ["ACTIVATIONS", "Block", "gelu", "layer_norm", "quick_gelu", "sized"]

layer_norm = partial(nnx.LayerNorm, use_fast_variance=False)  # or the variance of large numbers cancels


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Φ(x), without the usual approximation (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x · sigmoid(1.702 x), the approximation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "relu6": jax.nn.relu6}


def sized(size: str | tuple[int, int, int], known: Mapping[str, tuple[int, int, int]]) -> tuple[int, int, int]:
    """Width, depth and heads, given or by one of the `known` names."""
    if isinstance(size, str) and size not in known:
        raise ValueError(f"size is {size!r}; wanted one of {', '.join(known)}, or (width, depth, heads)")
    wide, depth, heads = known[size] if isinstance(size, str) else size
    if wide % heads:
        raise ValueError(f"size is {size}; wanted a width that {heads} heads divide, not {wide}")
    return wide, depth, heads


class Block(nnx.Module):
    """Attention and a two-layer network, each behind a norm and around a shortcut; the shortcut stays float32.

    With `layer_scale`, its first value, what is added to the shortcut is scaled for each channel (Touvron et al. 2021,
    arXiv:2103.17239).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        activation: str,
        epsilon: float,
        attention_bias: bool = True,
        layer_scale: float | None = None,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        linear = partial(nnx.Linear, kernel_init=normal(0.02), dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(width, epsilon=epsilon, rngs=rngs)
        self.queries_keys_values = linear(width, 3 * width, use_bias=attention_bias)
        self.attended = linear(width, width)
        self.norm2 = layer_norm(width, epsilon=epsilon, rngs=rngs)
        self.inner = linear(width, 4 * width)
        self.outer = linear(4 * width, width)
        scale = lambda: None if layer_scale is None else nnx.Param(jnp.full(width, layer_scale, jnp.float32))
        self.scale1, self.scale2 = scale(), scale()
        self.activation = ACTIVATIONS[activation]
        self.heads = heads

    def attention(self, x: Float[Array, "n t w"]) -> Float[Array, "n t w"]:
        n, tokens, width = x.shape
        apart = self.queries_keys_values(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        together = jax.nn.dot_product_attention(*jnp.moveaxis(apart, 2, 0))  # softmax in float32
        return self.attended(together.reshape(n, tokens, width))

    def __call__(self, x: Float[Array, "n t w"]) -> Float[Array, "n t w"]:
        x = x + _scaled(self.attention(self.norm1(x)).astype(x.dtype), self.scale1)
        return x + _scaled(self.outer(self.activation(self.inner(self.norm2(x)))).astype(x.dtype), self.scale2)


def _scaled(x: Float[Array, "n t w"], scale: nnx.Param | None) -> Float[Array, "n t w"]:
    return x if scale is None else x * scale[...][None, None]
