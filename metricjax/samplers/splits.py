"""Splits by classes: no class is in two parts, as what is learned should serve classes never seen.

Classes have the order of their labels. What else must not be torn apart is split in the same way: give super-classes
(alphabets, kinds of products) as labels, and all classes of one go together.
"""

import numpy as np

from metricjax.samplers.checks import integers

__all__ = ["class_folds", "class_split"]


def class_split(labels: np.ndarray, train: float = 0.5, *, seed: int | None = None) -> np.ndarray:
    """Which images are of the classes that train; the others are for the test.

    Without a seed those are the first classes. So `class_split(labels)` is the usual split of CUB-200-2011 (100 and 100
    classes) and Cars-196 (98 and 98), and `class_split(labels, 11_318)` that of Stanford Online Products, where the
    official lists are not quite halves (11,318 and 11,316). With a seed they are drawn at random.

    Args:
      labels: [n] integers, the class of each image.
      train: the share of classes that train, between 0 and 1 (rounded, half a class up), or how many, an int.
      seed: None for the first classes, else another draw for each.

    Returns:
      [n] booleans.

    >>> class_split(np.array([3, 3, 5, 7, 9, 9])).tolist()
    [True, True, True, False, False, False]
    """
    labels = integers("labels", labels)
    found, inverse = np.unique(labels, return_inverse=True)
    if isinstance(train, int | np.integer):
        count = int(train)
    elif 0 < train < 1:
        count = int(train * len(found) + 0.5)
    else:
        raise ValueError(f"train is {train}; wanted a share between 0 and 1, or how many classes as an int")
    if not 1 <= count < len(found):
        raise ValueError(f"train is {train}, {count} of {len(found)} classes; wanted at least 1, and 1 for the test")
    return (_ranks(len(found), seed) < count)[inverse]


def class_folds(labels: np.ndarray, folds: int, *, seed: int | None = None) -> np.ndarray:
    """Which of so many parts each image is in, of equal numbers of classes, for cross-validation over classes.

    `fold == i` are the images that validate in turn i, `fold != i` those that train. Without a seed each part is a run
    of classes in their order, the first parts one class longer where they do not divide (scikit-learn's `KFold`): with
    4 folds of the training half, those of "A Metric Learning Reality Check" (Musgrave et al. 2020, arXiv:2003.08505).

    Args:
      labels: [n] integers, the class of each image.
      folds: how many parts, 2 to the number of classes.
      seed: None for runs of classes, else another partition at random for each.

    Returns:
      [n] integers from 0 to folds − 1.

    >>> class_folds(np.array([3, 3, 5, 7, 9, 9, 11]), 2).tolist()
    [0, 0, 0, 0, 1, 1, 1]
    """
    labels = integers("labels", labels)
    found, inverse = np.unique(labels, return_inverse=True)
    if not 2 <= folds <= len(found):
        raise ValueError(f"folds is {folds}; wanted 2 to {len(found)}, the number of different labels")
    fold_of_rank = np.repeat(np.arange(folds), [len(part) for part in np.array_split(found, folds)])
    return fold_of_rank[_ranks(len(found), seed)][inverse]


def _ranks(classes: int, seed: int | None) -> np.ndarray:
    """The place of each class in their order, or in a random one."""
    return np.arange(classes) if seed is None else np.random.default_rng(seed).permutation(classes)
