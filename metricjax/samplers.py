"""Which images go into which batch: host-side, seeded, and a pure function of the epoch."""

import heapq

import numpy as np


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
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    groups = [_groups(rng.permutation(member), per_class, rng) for member in members]

    # A class with more groups left goes first: so the fewest batches need a class that has none left.
    heap = [(-len(group), rng.random(), c) for c, group in enumerate(groups)]
    heapq.heapify(heap)
    batches = []
    while heap:
        picked = [heapq.heappop(heap) for _ in range(min(classes, len(heap)))]
        chosen = [c for _, _, c in picked]
        batch = [groups[c].pop() for c in chosen]
        for c in rng.permutation(np.setdiff1d(np.arange(len(found)), chosen))[: classes - len(chosen)]:
            batch.append(_groups(rng.permutation(members[c]), per_class, rng)[0])
        batches.append([batch[i] for i in rng.permutation(classes)])
        for left, _, c in picked:
            if left + 1 < 0:
                heapq.heappush(heap, (left + 1, rng.random(), c))
    array = np.array(batches)[rng.permutation(len(batches))]
    part = classes // shards
    return array[:, shard * part : (shard + 1) * part].reshape(len(batches), part * per_class)


def _groups(members: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Members in groups of `size`; the last is filled up with others of the same class, repeated if it is small."""
    missing = -len(members) % size
    earlier = members[: len(members) - (size - missing)] if missing else members[:0]
    fill = rng.permutation(earlier) if len(earlier) >= missing else np.resize(members, missing)
    return np.split(np.concatenate([members, fill[:missing]]), (len(members) + missing) // size)
