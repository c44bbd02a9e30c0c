"""Batches of images, as many of each class as there are, or as weights of classes say."""

import math

import numpy as np

from metricjax.samplers.checks import check_shard, integers

__all__ = ["uniform_batches", "weighted_batches"]


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
    check_shard(shard, shards, size, f"batches of {size}")
    order = np.random.default_rng([seed, epoch]).permutation(images)
    batches = np.resize(order, (-(-images // size), size))
    part = size // shards
    return batches[:, shard * part : (shard + 1) * part]


def weighted_batches(
    labels: np.ndarray,
    size: int,
    *,
    power: float,
    per_class: int = 1,
    seed: int,
    epoch: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> np.ndarray:
    """Indices of one epoch of batches in which classes come in proportion to (their number of images)^power.

    With power 1 images are drawn as they are, and small classes seldom come; with power 0 every class comes equally
    often, and images of small ones again and again; 0.5 lies between (square-root sampling: Mikolov et al. 2013,
    arXiv:1310.4546; Mahajan et al. 2018, arXiv:1805.00932).

    An epoch is as long as that of `uniform_batches`: n images, rounded up to whole batches. In each epoch the number of
    times that a class comes is the one that is due, rounded up or down at random so that its mean is exact. The images
    of a class come in random order, each once before any comes again; those of large classes that found no place have
    the same chance in the next epoch. So with power 1 every image comes at least once.

    Args:
      labels: [n] integers, the class of each image.
      size: of a batch over all shards.
      power: of the number of images, 0 or more.
      per_class: images of a class that come together, so that a batch has pairs of the same class. A class may come
        more than once in a batch.
      seed, epoch: a different order for each.
      shard, shards: which part of each batch to return, of how many.

    Returns:
      [batches, size / shards] indices into `labels`, `per_class` neighbours of the same class.

    >>> labels = np.repeat([0, 1], [96, 4])
    >>> [np.bincount(labels[weighted_batches(labels, 100, power=p, seed=0)[0]]).tolist() for p in (1, 0)]
    [[96, 4], [50, 50]]
    """
    labels = integers("labels", labels)
    if not len(labels) or size < 1 or per_class < 1:
        raise ValueError(f"got {len(labels)} labels, size {size} and per_class {per_class}; wanted at least 1 of each")
    if size % per_class:
        raise ValueError(f"size is {size}; wanted a multiple of per_class, {per_class}")
    if not 0 <= power < math.inf:
        raise ValueError(f"power is {power}; wanted a number from 0")
    check_shard(shard, shards, size // per_class, f"{size // per_class} × {per_class} images per batch")
    rng = np.random.default_rng([seed, epoch])
    inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    batches = -(-len(labels) // size)
    draws = batches * size // per_class
    times = _rounded(rng, draws, (counts / counts.max()) ** power)
    order = rng.permutation(len(labels))
    order = order[np.argsort(inverse[order], kind="stable")]  # class after class, each in random order
    classes = np.repeat(np.arange(len(counts)), times)
    before = np.arange(draws) - np.repeat(np.cumsum(times) - times, times)  # how often the class has come
    places = (before[:, None] * per_class + np.arange(per_class)) % counts[classes, None]
    index = order[(np.cumsum(counts) - counts)[classes, None] + places]
    return rng.permutation(index).reshape(batches, shards, -1)[:, shard]


def _rounded(rng: np.random.Generator, total: int, weights: np.ndarray) -> np.ndarray:
    """Integers whose sum is `total`, each its share of it rounded up or down, and the share itself in the mean.

    Systematic sampling: equally spaced points, with one random offset, on a line that the shares divide.
    """
    shuffled = rng.permutation(len(weights))
    ends = np.cumsum(weights[shuffled])
    points = (np.arange(total) + rng.random()) * (ends[-1] / total)
    chosen = np.minimum(np.searchsorted(ends, points, side="right"), len(weights) - 1)
    return np.bincount(shuffled[chosen], minlength=len(weights))
