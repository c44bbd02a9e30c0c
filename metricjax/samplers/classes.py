"""Batches of a few classes with a few images of each, so that there are pairs of both kinds."""

import heapq

import numpy as np

from metricjax.samplers.checks import check_shard, integers

__all__ = ["hierarchical_batches", "pk_batches"]


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
    labels = integers("labels", labels)
    found = len(np.unique(labels))
    if not 1 <= classes <= found:
        raise ValueError(f"classes is {classes}; wanted 1 to {found}, the number of different labels")
    if per_class < 1:
        raise ValueError(f"per_class is {per_class}; wanted at least 1")
    check_shard(shard, shards, classes, f"{classes} classes per batch")
    batches = _batches(np.random.default_rng([seed, epoch]), labels, classes, per_class)
    return _part(batches, shard, shards)


def hierarchical_batches(
    labels: np.ndarray,
    superlabels: np.ndarray,
    superclasses: int,
    classes: int,
    per_class: int,
    *,
    seed: int,
    epoch: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> np.ndarray:
    """Indices of one epoch of S × P × K batches: S different super-classes, P classes of each, K images of each class.

    Most negatives in a batch are then of the same super-class (kind of product, alphabet, make of car), and hard.
    What the P × K batches of each super-class by itself are, as `pk_batches` makes them, is a part of one of these
    batches, S of different super-classes together. So every image comes at least once, and repeated is what
    `pk_batches` repeats: images of small classes, classes at the end of a super-class, super-classes at the end of the
    epoch. A super-class with fewer than P classes gives further K images of the same ones, or the same images again
    where it has no others. The order depends on nothing but the arguments.

    The idea is that of PyTorch Metric Learning's `HierarchicalSampler` and of OML's `CategoryBalanceSampler` and
    `DistinctCategoryBalanceSampler`, which promise no image; the first has batches of several sizes.

    Args:
      labels: [n] integers, the class of each image.
      superlabels: [n] integers, the super-class of each image; all images of a class have the same.
      superclasses: S, super-classes per batch.
      classes: P, classes of each super-class.
      per_class: K, images of each class.
      seed, epoch: a different order for each.
      shard, shards: which part of each batch to return, of how many: S × P / shards of its classes.

    Returns:
      [batches, S × P × K / shards] indices into `labels`, K neighbours for each class, P × K for each super-class.

    >>> labels = np.arange(12) // 2
    >>> labels[hierarchical_batches(labels, labels // 3, superclasses=1, classes=3, per_class=2, seed=0)].tolist()
    [[0, 0, 2, 2, 1, 1], [3, 3, 4, 4, 5, 5]]
    """
    labels, superlabels = integers("labels", labels), integers("superlabels", superlabels)
    if len(superlabels) != len(labels):
        raise ValueError(f"superlabels has {len(superlabels)} images and labels {len(labels)}; they must agree")
    found = np.unique(superlabels)
    if not 1 <= superclasses <= len(found):
        raise ValueError(f"superclasses is {superclasses}; wanted 1 to {len(found)}, the number of different ones")
    if classes < 1 or per_class < 1:
        raise ValueError(f"classes is {classes} and per_class {per_class}; wanted at least 1 of each")
    check_shard(shard, shards, superclasses * classes, f"{superclasses} × {classes} classes per batch")
    pairs = np.unique(np.stack([labels, superlabels]), axis=1)
    if len(twice := pairs[0, 1:][pairs[0, 1:] == pairs[0, :-1]]):
        own = pairs[1, pairs[0] == twice[0]].tolist()
        raise ValueError(f"superlabels of class {twice[0]} are {own}; wanted one super-class for each class")

    rng = np.random.default_rng([seed, epoch])
    parts = []
    for one in np.split(np.argsort(superlabels, kind="stable"), np.searchsorted(np.sort(superlabels), found[1:])):
        groups = _batches(rng, labels[one], min(classes, len(np.unique(labels[one]))), per_class)
        groups = groups.reshape(-1, per_class)
        parts.append(one[np.resize(groups, (-(-len(groups) // classes), classes, per_class))])
    of_part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return _part(np.concatenate(parts)[_batches(rng, of_part, superclasses, 1)], shard, shards)


def _batches(rng: np.random.Generator, labels: np.ndarray, classes: int, per_class: int) -> np.ndarray:
    """[batches, P, K] indices into `labels`."""
    inverse = np.unique(labels, return_inverse=True)[1]
    counts = np.bincount(inverse)
    starts = np.cumsum(counts) - counts
    order = rng.permutation(len(labels))
    order = order[np.argsort(inverse[order], kind="stable")]  # class after class, each in random order
    members, first = _groups(rng, counts, classes, per_class)
    batches = rng.permutation(len(members))
    members, first = members[batches, :, None], first[batches, :, None]
    return order[starts[members] + (first + np.arange(per_class)) % counts[members]]


def _part(batches: np.ndarray, shard: int, shards: int) -> np.ndarray:
    """The part of one shard in each batch [batches, ..., K]; no group of K is torn."""
    return batches.reshape(len(batches), shards, -1)[:, shard]


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
