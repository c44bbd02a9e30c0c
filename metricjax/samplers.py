"""Which images go into which batch: host-side, seeded, and a pure function of the epoch."""

import heapq

import numpy as np

__all__ = ["pk_batches", "uniform_batches"]


def __dir__() -> list[str]:
    return __all__


def pk_batches(
    labels: np.ndarray, classes: int, per_class: int, *, seed: int, epoch: int = 0, shard: int = 0, shards: int = 1
) -> np.ndarray:
    """Indices of one epoch of P × K batches: P different classes (people) in each, K images of each class.

    Every image comes at least once. A class with fewer than K images repeats some; what is missing to fill the last
    group of a class, or the last batches of the epoch, is drawn again at random. The order depends on nothing but
    the arguments. With `shards`, every shard gets its own P / shards classes of each batch.

    Args:
      labels: [n] integers, the class of each image.
      classes: P, classes per batch over all shards.
      per_class: K, images of each class.
      seed, epoch: a different order for each.
      shard, shards: which part of each batch to return, of how many.

    Returns:
      [batches, P × K / shards] indices into `labels`, K neighbours for each class.

    >>> pk_batches(np.array([0, 0, 1, 1, 2, 2]), classes=3, per_class=2, seed=0).shape
    (1, 6)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels has shape {labels.shape} and dtype {labels.dtype}; wanted one integer per image")
    found, inverse = np.unique(labels, return_inverse=True)
    if not 1 <= classes <= len(found):
        raise ValueError(f"classes is {classes}; wanted 1 to {len(found)}, the number of different labels")
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; wanted at least 1")
    if classes % shards or not 0 <= shard < shards:
        raise ValueError(
            f"shard {shard} of {shards} with {classes} classes per batch; wanted equal parts, 0 to shards-1"
        )
    rng = np.random.default_rng([seed, epoch])
    counts = np.bincount(inverse)
    starts = np.cumsum(counts) - counts
    order = rng.permutation(len(labels))
    order = order[np.argsort(inverse[order], kind="stable")]  # class after class, each in random order
    members, first = _groups(rng, counts, classes, per_class)
    part = slice(shard * (classes // shards), (shard + 1) * (classes // shards))
    batches = rng.permutation(len(members))
    members, first = members[batches, part, None], first[batches, part, None]
    index = order[starts[members] + (first + np.arange(per_class)) % counts[members]]
    return index.reshape(len(batches), -1)


def _groups(
    rng: np.random.Generator, counts: np.ndarray, classes: int, per_class: int
) -> tuple[np.ndarray, np.ndarray]:
    """[batches, P] classes of each batch, and which of the class's images is the first of K neighbours, round its end.

    A class with more groups left goes first: so the fewest batches need a class that has none left.
    """
    left = -(-counts // per_class)
    heap = list(zip((-left).tolist(), rng.random(len(counts)).tolist(), range(len(counts)), strict=True))
    heapq.heapify(heap)
    members, first = [], []
    while heap:
        picked = [heapq.heappop(heap) for _ in range(min(classes, len(heap)))]
        for (negative, _, c), tie in zip(picked, rng.random(len(picked)).tolist(), strict=True):
            if negative + 1 < 0:
                heapq.heappush(heap, (negative + 1, tie, c))
        batch = np.array([c for _, _, c in picked])
        begin = np.array([-negative - 1 for negative, _, _ in picked]) * per_class
        if len(picked) < classes:
            others = rng.choice(len(counts), classes, replace=False)
            others = others[~np.isin(others, batch)][: classes - len(picked)]
            batch, begin = np.append(batch, others), np.append(begin, rng.integers(counts[others]))
        places = rng.permutation(classes)
        members.append(batch[places])
        first.append(begin[places])
    return np.stack(members), np.stack(first)


def uniform_batches(
    images: int, size: int, *, seed: int, epoch: int = 0, shard: int = 0, shards: int = 1
) -> np.ndarray:
    """Indices of one epoch of batches in which every image comes once, in random order.

    The last batch is filled up with images from the beginning of that order, so that all have the same size. The order
    depends on nothing but the arguments. With `shards`, every shard gets its own part of each batch.

    Args:
      images: how many there are.
      size: of a batch over all shards.
      seed, epoch: a different order for each.
      shard, shards: which part of each batch to return, of how many.

    Returns:
      [batches, size / shards] indices from 0 to images − 1.

    >>> uniform_batches(10, 4, seed=0).shape
    (3, 4)
    """
    if images < 1 or size < 1:
        raise ValueError(f"images is {images} and size {size}; wanted at least 1 of each")
    if size % shards or not 0 <= shard < shards:
        raise ValueError(f"shard {shard} of {shards} with batches of {size}; wanted equal parts, 0 to shards-1")
    order = np.random.default_rng([seed, epoch]).permutation(images)
    batches = np.resize(order, (-(-images // size), size))
    part = size // shards
    return batches[:, shard * part : (shard + 1) * part]
