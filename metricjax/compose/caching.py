"""Gradient caching: batches of any size for the loss, in the memory that an encoder needs for a few images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["cached"]


def cached(encode: Callable[..., Any], chunk_size: int, *, has_aux: bool = False) -> Callable[..., Any]:
    """`encode(params, inputs)`, a chunk of rows at a time, going forwards and backwards.

    A loss of the embeddings of a batch compares all of them, so that summing gradients over smaller batches would lose
    negatives. Here the loss sees them all and gives the gradient of each embedding once; then each chunk is encoded
    again, and its part of that gradient is followed back to the parameters. Activations are those of one chunk, the
    gradient is that of the whole batch, and an encoder's forward pass is paid for twice. Differentiate any loss
    as usual, by reverse mode. Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited
    setup", arXiv:2101.06983.

    Args:
      encode: from parameters and inputs (pytrees of arrays) to embeddings, row by row: what it computes of one row must
        not depend on others. (Batch normalisation does: its statistics become those of a chunk.)
      chunk_size: rows at a time, a divisor of their number n. Chunk j has rows j, j + n / size, j + 2 n / size, …;
        where rows are split over devices, each device has its share of every chunk.
      has_aux: `encode` returns embeddings and something else (say, new batch statistics); that of all chunks comes
        stacked, along one more leading axis.

    >>> import jax, jax.numpy as jnp, metricjax as mj
    >>> encode = lambda w, x: jnp.tanh(x @ w)
    >>> loss = lambda w, encode: mj.losses.supcon(encode(w, jnp.eye(8)), jnp.arange(8) // 2)
    >>> w = jax.random.normal(jax.random.key(0), (8, 4))
    >>> whole, parts = (jax.grad(loss)(w, f) for f in (encode, mj.cached(encode, 2)))
    >>> bool(jnp.allclose(whole, parts, atol=1e-6))
    True
    """
    if not (isinstance(chunk_size, int) and chunk_size > 0):
        raise ValueError(f"chunk_size is {chunk_size!r}; wanted a positive int")

    @functools.wraps(encode)
    def in_chunks(params, inputs):
        rows = {len(a) for a in jax.tree.leaves(inputs)}
        if len(rows) != 1:
            raise ValueError(f"inputs have {sorted(rows)} rows; wanted the same number in each array")
        (n,) = rows
        if n % chunk_size:
            raise ValueError(f"chunk_size is {chunk_size}; wanted a divisor of the {n} rows of the inputs")
        split = lambda a: jnp.swapaxes(a.reshape(chunk_size, n // chunk_size, *a.shape[1:]), 0, 1)
        joined = lambda a: jnp.swapaxes(a, 0, 1).reshape(n, *a.shape[2:])
        # In a loop XLA never merges the two computations, so there is no need to prevent it.
        again = jax.checkpoint(lambda params, chunk: encode(params, chunk), prevent_cse=False)
        made = lax.map(lambda chunk: again(params, chunk), jax.tree.map(split, inputs))
        embeddings, aux = made if has_aux else (made, None)
        embeddings = jax.tree.map(joined, embeddings)
        return (embeddings, aux) if has_aux else embeddings

    return in_chunks
