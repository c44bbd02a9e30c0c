"""Clustering: do the clusters group the rows as their labels do? Only groups count, not their names.

Every function takes (labels, clusters): the true class and the found cluster of each row, both [n], integers or
strings. A label such as −1 for noise is a cluster like any other. All start from the counts of the pairs (class,
cluster) that occur, so memory is linear in n; counts are integers.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "Average",
    "PrecisionRecall",
    "ami",
    "ari",
    "bcubed",
    "bcubed_f1",
    "nmi",
    "pairwise",
    "pairwise_f1",
    "v_measure",
]

Average = Literal["arithmetic", "geometric", "min", "max"]


class PrecisionRecall(NamedTuple):
    """How much of what was put together belongs together, and how much of what belongs together was put together."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2PR / (P + R); 0 where both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


class _Counts(NamedTuple):
    """Sizes |C_i| of classes, |K_j| of clusters; for each pair that occurs, its rows |C_i ∩ K_j|, |C_i| and |K_j|."""

    classes: np.ndarray
    clusters: np.ndarray
    common: np.ndarray
    of_class: np.ndarray
    of_cluster: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.classes.sum())

    def pairs(self) -> tuple[int, int, int]:
        """Ordered pairs of different rows that share class and cluster, class only, cluster only."""
        both, in_class, in_cluster = (int(sizes @ sizes) for sizes in (self.common, self.classes, self.clusters))
        return both - self.rows, in_class - both, in_cluster - both

    def information(self) -> tuple[float, float, float]:
        """Mutual information of classes and clusters, and the entropy of each, in nats."""
        n = self.rows
        mean = lambda sizes, ratios: math.fsum(sizes * np.log(ratios)) / n
        mutual = mean(self.common, n * self.common / (self.of_class * self.of_cluster))
        return max(mutual, 0.0), mean(self.classes, n / self.classes), mean(self.clusters, n / self.clusters)


def nmi(labels: ArrayLike, clusters: ArrayLike, *, average: Average = "arithmetic") -> float:
    """Normalised mutual information: I(C; K) / mean(H(C), H(K)), from 0 to 1.

    The mean is that of `average`: "arithmetic" (equal to the V-measure), "geometric" (what scikit-learn took before
    0.22, and papers that used it), "min" or "max". 1 if there is one class and one cluster, 0 if there is one of
    either and several of the other. It grows with the number of clusters even where they are random; `ami` does not.

    Strehl and Ghosh 2002, "Cluster Ensembles" (geometric); Vinh et al. 2010, "Information Theoretic Measures for
    Clusterings Comparison" (all).

    >>> nmi([0, 0, 1, 1], [0, 0, 1, 2])
    0.8
    >>> nmi([0, 0, 1, 1], [0, 0, 1, 2], average="geometric")
    0.816
    """
    _check_average(average)
    mutual, *entropies = _counts(labels, clusters).information()
    if not any(entropies):
        return 1.0
    return mutual / _mean(entropies, average) if mutual else 0.0


def ami(labels: ArrayLike, clusters: ArrayLike, *, average: Average = "arithmetic") -> float:
    """Mutual information adjusted for chance: (I − E) / (mean(H(C), H(K)) − E), at most 1 and 0 on average by chance.

    E is the mean of I(C; K) over all ways of dealing the rows to classes and clusters of the same sizes, each overlap
    hypergeometric; it is exact, not sampled. 1 if classes and clusters are the same groups. Else 0 if there is one
    class or one cluster, or if either holds single rows only: then all ways of dealing give the same I.

    Args:
      labels: [n] classes.
      clusters: [n] clusters.
      average: the mean of the entropies, as in `nmi`.

    Vinh et al. 2010, "Information Theoretic Measures for Clusterings Comparison".

    >>> ami([0, 0, 1, 1], [0, 0, 1, 2])
    0.571
    """
    _check_average(average)
    counts = _counts(labels, clusters)
    if len(counts.classes) == len(counts.clusters) == len(counts.common):
        return 1.0
    if any(len(sizes) in (1, counts.rows) for sizes in (counts.classes, counts.clusters)):
        return 0.0
    mutual, *entropies = counts.information()
    expected = _expected_information(counts.classes, counts.clusters)
    return (mutual - expected) / (_mean(entropies, average) - expected)


def ari(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Rand index adjusted for chance: (agreeing pairs − E) / (pairs − E), at most 1 and 0 on average by chance.

    A pair of rows agrees if it shares both class and cluster or neither; E is the mean under the chance of `ami`. 1 if
    classes and clusters are the same groups; else 0 if there is one of either or either holds single rows only.

    Hubert and Arabie 1985, "Comparing Partitions".

    >>> ari([0, 0, 1, 1], [0, 0, 1, 2])
    0.571
    """
    counts = _counts(labels, clusters)
    both, class_only, cluster_only = counts.pairs()
    if not class_only and not cluster_only:
        return 1.0
    neither = counts.rows * (counts.rows - 1) - both - class_only - cluster_only
    in_class, in_cluster = both + class_only, both + cluster_only
    above = 2 * (both * neither - class_only * cluster_only)
    return above / (in_class * (class_only + neither) + in_cluster * (cluster_only + neither))


def v_measure(labels: ArrayLike, clusters: ArrayLike, beta: float = 1.0) -> float:
    """V-measure: (1 + β) h c / (β h + c), of homogeneity h = I / H(C) and completeness c = I / H(K).

    β above 1 weighs completeness more. With one class h is 1, with one cluster c is 1; 0 where either is 0.

    Rosenberg and Hirschberg 2007, "V-Measure: A Conditional Entropy-Based External Cluster Evaluation Measure" (β = 1).

    >>> v_measure([0, 0, 1, 1], [0, 0, 1, 2])
    0.8
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta is {beta}; wanted a number that is not negative")
    mutual, *entropies = _counts(labels, clusters).information()
    homogeneity, completeness = (mutual / entropy if entropy else 1.0 for entropy in entropies)
    if not homogeneity or not completeness:
        return 0.0
    return (1 + beta) * homogeneity * completeness / (beta * homogeneity + completeness)


def pairwise(labels: ArrayLike, clusters: ArrayLike) -> PrecisionRecall:
    """Over pairs of rows: the share of those in one cluster that are of one class, and the reverse.

    Large groups weigh most: s rows make s(s − 1)/2 pairs. Precision is 1 if no two rows share a cluster, recall is 1 if
    no two share a class.

    >>> pairwise([0, 0, 1, 1], [0, 0, 1, 2])
    PrecisionRecall(precision=1.0, recall=0.5)
    """
    both, class_only, cluster_only = _counts(labels, clusters).pairs()
    share = lambda rest: both / (both + rest) if both + rest else 1.0
    return PrecisionRecall(share(cluster_only), share(class_only))


def pairwise_f1(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Harmonic mean of the precision and recall of `pairwise`.

    0 if no pair shares both class and cluster, but 1 if all classes and all clusters are single rows.

    >>> pairwise_f1([0, 0, 1, 1], [0, 0, 1, 2])
    0.667
    """
    return pairwise(labels, clusters).f1


def bcubed(labels: ArrayLike, clusters: ArrayLike) -> PrecisionRecall:
    """BCubed: mean over rows of |C ∩ K| / |K| (precision) and of |C ∩ K| / |C| (recall), C and K being the row's own.

    Each row counts itself, so neither is ever 0 and both are 1 where all classes and clusters are single rows. Rows
    weigh the same, so a group weighs by its rows, not by its pairs.

    Bagga and Baldwin 1998, "Entity-Based Cross-Document Coreferencing Using the Vector Space Model"; Amigó et al. 2009,
    "A comparison of extrinsic clustering evaluation metrics based on formal constraints".

    >>> bcubed([0, 0, 1, 1], [0, 0, 1, 2])
    PrecisionRecall(precision=1.0, recall=0.75)
    """
    counts = _counts(labels, clusters)
    share = lambda sizes: math.fsum(counts.common**2 / sizes) / counts.rows
    return PrecisionRecall(share(counts.of_cluster), share(counts.of_class))


def bcubed_f1(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Harmonic mean of the precision and recall of `bcubed`, themselves means over rows.

    >>> bcubed_f1([0, 0, 1, 1], [0, 0, 1, 2])
    0.857
    """
    return bcubed(labels, clusters).f1


def _mean(entropies: list[float], average: Average) -> float:
    first, second = entropies
    means = {"arithmetic": (first + second) / 2, "geometric": math.sqrt(first * second)}
    return {**means, "min": min(entropies), "max": max(entropies)}[average]


def _expected_information(classes: np.ndarray, clusters: np.ndarray) -> float:
    """E Σ_ij k/n log(n k / (a_i b_j)), k the overlap of class and cluster of sizes a_i, b_j; equal sizes taken once.

    For one size a, the probabilities of k lie end to end for all b. They follow from P(k) / P(k − 1) and are divided by
    their sum: the logarithms of factorials of n would cost half of the digits. Where k is so far from its mean μ = ab/n
    that Bernstein's bound gives the rest a probability below e⁻⁴⁵, it is left out.
    """
    n = int(classes.sum())
    b, number = np.unique(clusters, return_counts=True)
    total = 0.0
    for a, times in zip(*np.unique(classes, return_counts=True), strict=True):
        mean = a * b / n
        low = np.maximum(np.maximum(0, a + b - n), np.floor(mean - np.sqrt(90 * mean)).astype(np.int64))
        high = np.minimum(np.minimum(a, b), np.ceil(mean + 15 + np.sqrt(225 + 90 * mean)).astype(np.int64))
        width = high - low + 1
        first = np.cumsum(width) - width
        spread = lambda per_size, width=width: np.repeat(per_size, width)
        k, sizes = np.arange(width.sum()) + spread(low - first), spread(b)
        step = np.log((a - k + 1) * (sizes - k + 1) / np.maximum(k * (n - a - sizes + k), 1))
        step[first] = 0
        step[first[1:]] = -np.add.reduceat(step, first)[:-1]  # back to 0 at the next b
        logarithm = np.cumsum(step)
        probability = np.exp(logarithm - spread(np.maximum.reduceat(logarithm, first)))
        term = k * np.log(n * np.maximum(k, 1) / (a * sizes))
        total += times * np.sum(
            number * np.add.reduceat(probability * term, first) / np.add.reduceat(probability, first)
        )
    return float(total / n)


def _counts(labels: ArrayLike, clusters: ArrayLike) -> _Counts:
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if labels.ndim != 1 or clusters.shape != labels.shape:
        raise ValueError(f"labels has shape {labels.shape}, clusters {clusters.shape}; wanted [n] and [n]")
    if not len(labels):
        raise ValueError("labels is empty; there is nothing to compare")
    for name, groups in (("labels", labels), ("clusters", clusters)):
        strings = groups.dtype.kind in "SUT" or (groups.dtype == object and all(isinstance(g, str) for g in groups))
        if not strings and groups.dtype.kind not in "biu":
            raise TypeError(f"{name} has dtype {groups.dtype}; wanted integers or strings, which compare exactly")
    _, row, classes = np.unique(labels, return_inverse=True, return_counts=True)
    _, column, found = np.unique(clusters, return_inverse=True, return_counts=True)
    pair, common = np.unique(row * len(found) + column, return_counts=True)
    row, column = np.divmod(pair, len(found))
    return _Counts(classes, found, common, classes[row], found[column])


def _check_average(average: str) -> None:
    if average not in get_args(Average):
        raise ValueError(f"average is {average!r}; wanted one of {', '.join(map(repr, get_args(Average)))}")
