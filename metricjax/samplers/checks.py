"""Errors about arguments of samplers."""

import numpy as np

__all__ = ["check_shard", "integers"]


def integers(name: str, labels: np.ndarray) -> np.ndarray:
    """`labels`, which hold one integer for each image."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} has shape {labels.shape} and dtype {labels.dtype}; wanted one integer per image")
    return labels


def check_shard(shard: int, shards: int, parts: int, batch: str) -> None:
    """`shards` take equal numbers of a batch's `parts`, and `shard` is one of them."""
    if not 0 <= shard < shards or parts % shards:
        raise ValueError(f"shard {shard} of {shards} with {batch}; wanted equal parts, 0 to shards-1")
