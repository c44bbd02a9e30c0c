"""Batches of photographs for training, by Grain: seeded, endless, split over processes, and part of a checkpoint."""

import threading
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import flags

from metricjax.data.photographs import Source

__all__ = ["batches"]


def batches(
    source: Source,
    sampler: Callable[..., np.ndarray],
    *,
    shard: int = 0,
    shards: int = 1,
    threads: int = 8,
    workers: int = 0,
) -> grain.DatasetIterator:
    """An endless iterator over {"images": [b, h, w, c] uint8, "labels": [b] int32}, epoch after epoch.

    Step t depends on nothing but the sampler and t. All shards together give the batch of a single one, in parts of
    equal size, in order. `get_state()` and `set_state(state)` are the position: after restoring it, with the same
    number of workers, the iterator goes on as if it had never stopped.

    Args:
      source: where images and labels come from.
      sampler: called with `epoch`, `shard` and `shards`, gives the indices [batches, b] of an epoch, with one number of
        batches in all epochs; such as `partial(mj.samplers.pk_batches, source.labels, 32, 4, seed=0)`.
      shard, shards: which part of each batch, of how many: `jax.process_index()`, `jax.process_count()`.
      threads: that decode, each one batch ahead; in each worker.
      workers: processes that decode, 0 for none. Each holds its own copy of the source; call `close()` in the end.
    """
    steps = grain.MapDataset.source(_Steps(sampler, shard, shards)).map(_Decoded(source))
    dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain asks for its flags, also in a program that has none
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(dataset)


class _Steps:
    """Item t is the indices of step t."""

    def __init__(self, sampler: Callable[..., np.ndarray], shard: int, shards: int):
        self.sampler = sampler
        self.part = {"shard": shard, "shards": shards}
        self.made = {0: sampler(epoch=0, **self.part)}
        self.per_epoch = len(self.made[0])
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return 2**48  # endless, for Grain

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.per_epoch)
        return self._epoch(epoch)[place]

    def _epoch(self, epoch: int) -> np.ndarray:
        with self.lock:
            if epoch not in self.made:
                indices = self.sampler(epoch=epoch, **self.part)
                if len(indices) != self.per_epoch:
                    wanted = f"{self.per_epoch}, as for epoch 0"
                    raise ValueError(f"sampler gave {len(indices)} batches for epoch {epoch}; wanted {wanted}")
                self.made = {e: earlier for e, earlier in self.made.items() if e == epoch - 1} | {epoch: indices}
            return self.made[epoch]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "made": {}, "lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.Lock())


class _Decoded:
    """Indices to images and labels."""

    def __init__(self, source: Source):
        self.source = source

    def __call__(self, index: np.ndarray) -> dict[str, np.ndarray]:
        return {"images": np.stack([self.source[i] for i in index.tolist()]), "labels": self.source.labels[index]}
