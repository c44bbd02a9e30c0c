import itertools
import math
import tracemalloc
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.metrics import clustering
from tests.helpers.refusals import refuses

AVERAGES = ("arithmetic", "geometric", "min", "max")
NAMES = ("nmi", "ami", "ari", "v_measure", "pairwise_f1", "bcubed_f1")


def labels_and_clusters(kind, rng, n=300):
    labels = rng.integers(0, 8, n)
    noise = rng.integers(0, 8, n)
    return {
        "independent": (labels, noise),
        "noisy": (labels, np.where(rng.random(n) < 0.3, noise, labels)),
        "split": (labels, labels * 3 + noise % 3),
        "merged": (labels, labels // 2),
        "many small": (np.arange(n) // 3, (np.arange(n) + noise % 2) // 4),
        "unequal sizes": (np.floor(np.sqrt(np.arange(n))).astype(int), rng.zipf(1.6, n) % 40),
        "negative and large": (labels * 10**12 - 5, noise - 2**40),
        "halves": (np.arange(n) % 2, (np.arange(n) < n // 2).astype(int)),
        "two rows": (np.array([0, 1]), np.array([3, 3])),
    }[kind]


KINDS = (
    *("independent", "noisy", "split", "merged", "many small", "unequal sizes", "negative and large", "halves"),
    "two rows",
)


@pytest.fixture
def sklearn():
    return pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_those_of_scikit_learn(kind, rng, sklearn):
    pair = labels_and_clusters(kind, rng)
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    for average in AVERAGES:
        close(
            mj.metrics.nmi(*pair, average=average), sklearn.normalized_mutual_info_score(*pair, average_method=average)
        )
        close(mj.metrics.ami(*pair, average=average), sklearn.adjusted_mutual_info_score(*pair, average_method=average))
    for beta in (0, 0.5, 1, 3.0):
        close(mj.metrics.v_measure(*pair, beta), sklearn.v_measure_score(*pair, beta=beta))
    close(mj.metrics.ari(*pair), sklearn.adjusted_rand_score(*pair))
    pairwise = mj.metrics.pairwise(*pair)
    close(math.sqrt(pairwise.precision * pairwise.recall), sklearn.fowlkes_mallows_score(*pair))


@pytest.mark.parametrize("kind", KINDS)
def test_pairwise_and_bcubed_equal_loops(kind, rng):
    labels, clusters = labels_and_clusters(kind, rng, n=60)
    rows = range(len(labels))
    same = lambda groups, i, j: groups[i] == groups[j]
    pairs = [(same(labels, i, j), same(clusters, i, j)) for i in rows for j in range(i)]
    of_class, of_cluster = ([a and b for a, b in pairs if (a, b)[given]] for given in (0, 1))
    pairwise = mj.metrics.pairwise(labels, clusters)
    assert pairwise.precision == (np.mean(of_cluster) if of_cluster else 1)
    assert pairwise.recall == (np.mean(of_class) if of_class else 1)
    found, wrong = sum(a and b for a, b in pairs), sum(a != b for a, b in pairs)
    expected = 2 * found / (2 * found + wrong) if found or wrong else 1
    np.testing.assert_allclose(mj.metrics.pairwise_f1(labels, clusters), expected, rtol=1e-14)

    together = lambda i, j: same(labels, i, j) and same(clusters, i, j)
    share = lambda groups, i: np.mean([together(i, j) for j in rows if same(groups, i, j)])
    precision, recall = (np.mean([share(groups, i) for i in rows]) for groups in (clusters, labels))
    np.testing.assert_allclose(mj.metrics.bcubed(labels, clusters), (precision, recall), rtol=1e-13)
    expected = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(mj.metrics.bcubed_f1(labels, clusters), expected, rtol=1e-13)


def test_adjusted_scores_take_the_mean_over_all_ways_of_dealing():
    """AMI and ARI of a small set, with the chance taken from every permutation."""
    labels, clusters = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 1, 2, 0])

    def mutual_and_agreeing(found):
        joint = {(a, b): np.mean((labels == a) & (found == b)) for a in set(labels) for b in set(found)}
        mutual = sum(p * np.log(p / np.mean(labels == a) / np.mean(found == b)) for (a, b), p in joint.items() if p)
        together = sum(labels[i] == labels[j] and found[i] == found[j] for i in range(7) for j in range(i))
        return mutual, together

    by_chance = np.mean([mutual_and_agreeing(clusters[list(p)]) for p in itertools.permutations(range(7))], axis=0)
    entropy = lambda groups: -sum(np.mean(groups == g) * np.log(np.mean(groups == g)) for g in set(groups))
    pairs = lambda groups: sum(groups[i] == groups[j] for i in range(7) for j in range(i))
    most = [(entropy(labels) + entropy(clusters)) / 2, (pairs(labels) + pairs(clusters)) / 2]
    expected = (np.array(mutual_and_agreeing(clusters)) - by_chance) / (most - by_chance)
    got = mj.metrics.ami(labels, clusters), mj.metrics.ari(labels, clusters)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("classes", "clusters"),
    [
        ([5, 5], [9, 1]),
        ([400, 300, 1, 1], [1, 1, 700]),
        ([1000, 1000], [700, 1300]),
        ([900, 50, 50], [3] * 300 + [100]),
    ],
)
def test_expected_information_is_exact(classes, clusters):
    """Against rational numbers: neither the window around the mean nor the running sum of logarithms loses digits."""
    n = sum(classes)
    terms = []
    for a, b in itertools.product(classes, clusters):
        for k in range(max(1, a + b - n), min(a, b) + 1):
            probability = Fraction(math.comb(a, k) * math.comb(n - a, b - k), math.comb(n, b))
            terms.append(float(probability * k / n) * math.log(n * k / (a * b)))
    got = clustering._expected_information(np.array(classes), np.array(clusters))
    np.testing.assert_allclose(got, math.fsum(terms), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ("noisy", "many small", "unequal sizes"))
def test_neither_names_nor_order_nor_kind_of_labels_count(name, kind, rng):
    score = getattr(mj.metrics, name)
    labels, clusters = labels_and_clusters(kind, rng)
    expected = score(labels, clusters)
    assert isinstance(expected, float)
    names = rng.permutation(10**4)
    order = rng.permutation(len(labels))
    np.testing.assert_allclose(score(names[labels][order], clusters[order]), expected, rtol=1e-12)
    np.testing.assert_allclose(score(clusters, labels), expected, rtol=1e-12)
    for other in (labels.astype(str), labels.astype(str).astype(object), labels.tolist(), labels.astype(np.uint8)):
        np.testing.assert_allclose(score(other, jnp.asarray(clusters)), expected, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ("independent", "many small", "unequal sizes", "halves"))
def test_the_same_groups_score_one(name, kind, rng):
    labels, _ = labels_and_clusters(kind, rng)
    assert getattr(mj.metrics, name)(labels, rng.permutation(10**4)[labels]) == 1


SCORES = ("nmi", "ami", "ari", "v_measure", "pairwise", "bcubed")
ONE, SINGLE, TWO = np.zeros(4, int), np.arange(4), np.array([0, 0, 1, 1])
DEGENERATE = {
    "one row": ([5], [7], (1, 1, 1, 1, (1, 1), (1, 1))),
    "one of each": (ONE, ONE, (1, 1, 1, 1, (1, 1), (1, 1))),
    "all single": (SINGLE, SINGLE[::-1], (1, 1, 1, 1, (1, 1), (1, 1))),
    "one cluster": (TWO, ONE, (0, 0, 0, 0, (1 / 3, 1), (1 / 2, 1))),
    "one class": (ONE, TWO, (0, 0, 0, 0, (1, 1 / 3), (1, 1 / 2))),
    "single clusters": (TWO, SINGLE, (2 / 3, 0, 0, 2 / 3, (1, 0), (1, 1 / 2))),
    "single classes": (SINGLE, TWO, (2 / 3, 0, 0, 2 / 3, (0, 1), (1 / 2, 1))),
    "one class, single clusters": (ONE, SINGLE, (0, 0, 0, 0, (1, 0), (1, 1 / 4))),
    "independent": (TWO, TWO[[0, 2, 1, 3]], (0, -0.5, -0.5, 0, (0, 0), (1 / 2, 1 / 2))),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_groups(case):
    labels, clusters, expected = DEGENERATE[case]
    for name, value in zip(SCORES, expected, strict=True):
        np.testing.assert_allclose(getattr(mj.metrics, name)(labels, clusters), value, rtol=1e-14, err_msg=name)
    harmonic = lambda p, r: 2 * p * r / (p + r) if p + r else 0
    for name, value in zip(("pairwise_f1", "bcubed_f1"), expected[4:], strict=True):
        np.testing.assert_allclose(getattr(mj.metrics, name)(labels, clusters), harmonic(*value), rtol=1e-14)


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_groups_are_those_of_scikit_learn(case, sklearn):
    labels, clusters, _ = DEGENERATE[case]
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-9)
    close(mj.metrics.ari(labels, clusters), sklearn.adjusted_rand_score(labels, clusters))
    close(mj.metrics.v_measure(labels, clusters), sklearn.v_measure_score(labels, clusters))
    for average in AVERAGES:
        theirs = sklearn.normalized_mutual_info_score(labels, clusters, average_method=average)
        close(mj.metrics.nmi(labels, clusters, average=average), theirs)
    close(mj.metrics.ami(labels, clusters), sklearn.adjusted_mutual_info_score(labels, clusters))


@pytest.mark.parametrize("average", AVERAGES)
def test_single_rows_are_no_better_than_chance(average):
    """With "min" the chance leaves nothing to win, and 0 / 0 is 0."""
    assert mj.metrics.ami(TWO, SINGLE, average=average) == 0


def test_v_measure_weighs_homogeneity_alone_where_beta_is_zero():
    np.testing.assert_allclose(mj.metrics.v_measure(TWO, SINGLE, beta=0), 1)
    np.testing.assert_allclose(mj.metrics.v_measure(SINGLE, TWO, beta=0), 1 / 2)


def test_large_integers_and_strings_are_compared_exactly():
    labels = np.array([2**53, 2**53 + 1, 2**53, 2**53 + 1])
    assert mj.metrics.ari(labels, ["a", "b", "a", "b"]) == 1


def test_a_million_rows_take_memory_of_their_own_size(rng):
    labels = rng.integers(0, 50_000, 10**6).astype(np.int32)
    clusters = np.where(rng.random(10**6) < 0.5, labels, labels + 10**6)
    tracemalloc.start()
    precision, recall = mj.metrics.pairwise(labels, clusters)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert precision == 1
    assert 0.49 < recall < 0.51
    assert peak < 200 * 10**6


WRONG = {
    "lengths": (
        lambda: mj.metrics.nmi([0, 1], [0]),
        ValueError,
        r"labels has shape \(2,\), clusters \(1,\); wanted \[n",
    ),
    "rank": (
        lambda: mj.metrics.ari(np.eye(2, dtype=int), np.eye(2, dtype=int)),
        ValueError,
        r"labels has shape \(2, 2",
    ),
    "scalar": (lambda: mj.metrics.bcubed(1, 1), ValueError, r"labels has shape \(\)"),
    "empty": (lambda: mj.metrics.pairwise_f1([], []), ValueError, "labels is empty"),
    "floats": (lambda: mj.metrics.ami([0, 1], [0.0, 1.0]), TypeError, "clusters has dtype float64; wanted integers or"),
    "objects": (
        lambda: mj.metrics.v_measure(["a", None], [0, 1]),
        TypeError,
        "labels has dtype object; wanted integers",
    ),
    "average": (
        lambda: mj.metrics.nmi([0], [0], average="mean"),
        ValueError,
        "average is 'mean'; wanted one of 'arith",
    ),
    "ami's average": (lambda: mj.metrics.ami([0], [0], average="sum"), ValueError, "average is 'sum'"),
    "beta": (lambda: mj.metrics.v_measure([0], [0], beta=-1.0), ValueError, r"beta is -1\.0; wanted"),
    "nan beta": (lambda: mj.metrics.v_measure([0], [0], beta=np.nan), ValueError, "beta is nan; wanted"),
}


test_wrong_arguments = refuses(WRONG)
