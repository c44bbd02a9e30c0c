"""Against the AccuracyCalculator of PyTorch Metric Learning 2.9.0.

Skipped without it (`python -m pip install torch pytorch-metric-learning`). Its neighbours come from one sorted row of
similarities, and not from faiss. What it calls precision_at_1 is recall@1, and its NMI and AMI are of cluster labels.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

import jax.numpy as jnp  # noqa: E402
from pytorch_metric_learning.distances import CosineSimilarity  # noqa: E402
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator  # noqa: E402
from pytorch_metric_learning.utils.inference import CustomKNN  # noqa: E402

import metricjax as mj  # noqa: E402

NAMES = {
    "precision_at_1": "recall@1",
    "r_precision": "r_precision",
    "mean_average_precision_at_r": "map@r",
    "mean_average_precision": "map",
    "mean_reciprocal_rank": "mrr",
}


def theirs(k, *args, **options):
    calculator = AccuracyCalculator(include=tuple(NAMES), k=k, knn_func=CustomKNN(CosineSimilarity()))
    found = calculator.get_accuracy(*(torch.asarray(np.array(a)) for a in args), **options)
    return {NAMES[name]: value for name, value in found.items()}


@pytest.mark.parametrize("references", [False, True])
def test_retrieval(references, rng):
    """Classes of different sizes, and queries without a match, which both leave out of the means."""
    y, v = np.r_[rng.integers(0, 5, 46) ** 2, 100, 101], rng.integers(0, 5, 60) ** 2
    x, z = (rng.standard_normal((len(labels), 6)) + labels[:, None] * 0.02 for labels in (y, v))
    args, options = [x, y], {}
    if references:
        args, options = [x, y, z, v], {"references": z, "reference_labels": v}
    expected = theirs(None if references else 47, *args)
    got = mj.metrics.retrieval(x, y, **options, ks=(1,))
    assert got["lone"] == 2
    means = mj.metrics.retrieval_means(
        *map(jnp.asarray, (x, y)), **{name: jnp.asarray(a) for name, a in options.items()}, ks=(1,), largest_class=60
    )
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)
        if name in means:
            np.testing.assert_allclose(means[name].total / means[name].count, value, rtol=1e-6, err_msg=name)


def test_clusterings(rng):
    labels, clusters = rng.integers(0, 6, (2, 80))
    calculator = AccuracyCalculator(include=(), knn_func=CustomKNN(CosineSimilarity()))
    np.testing.assert_allclose(mj.metrics.nmi(labels, clusters), calculator.calculate_NMI(labels, clusters), rtol=1e-9)
    np.testing.assert_allclose(mj.metrics.ami(labels, clusters), calculator.calculate_AMI(labels, clusters), rtol=1e-7)
