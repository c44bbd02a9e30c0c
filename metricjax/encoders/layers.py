"""What the encoders are made of: normalisation in float32, a learned slope, blocks that are computed twice."""

from collections.abc import Iterable
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from metricjax.ground.numerics import computing_dtype

__all__ = ["PReLU", "batch_norm", "group_norm", "in_float32", "through"]


def in_float32(arrays, /, *, dtype=None, inexact=True):
    """As `promote_dtype` of Flax's normalisations: only their result is rounded to `dtype`.

    Flax's own rounds the statistics and parameters to bfloat16 before it uses them.
    """
    kind = computing_dtype(arrays[0].dtype)
    return tuple(None if a is None else a.astype(kind) for a in arrays)


# The average keeps 0.9 of its past: PyTorch calls that a momentum of 0.1.
batch_norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, promote_dtype=in_float32)
group_norm = partial(nnx.GroupNorm, promote_dtype=in_float32)


class PReLU(nnx.Module):
    """x where it is positive, a slope learned for each channel times x elsewhere (He et al. 2015, arXiv:1502.01852)."""

    def __init__(self, channels: int):
        self.slope = nnx.Param(jnp.full(channels, 0.25, jnp.float32))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return jnp.where(x >= 0, x, self.slope[...].astype(x.dtype)[None, None, None] * x)


def through(blocks: Iterable[nnx.Module], x: Float[Array, "n ..."], remat: bool) -> Float[Array, "n ..."]:
    """`x` after all blocks; with `remat` the backward pass computes the inside of each block again, to store less.

    On a CPU nothing is saved: there XLA merges the two computations.
    """
    for block in blocks:
        x = nnx.remat(lambda block, x: block(x))(block, x) if remat else block(x)
    return x
