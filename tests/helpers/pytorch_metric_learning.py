"""What the comparisons with PyTorch Metric Learning share: its settings, batches, and how results agree."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from pytorch_metric_learning import distances, losses, reducers  # noqa: E402

import metricjax as mj  # noqa: E402
from metricjax import mining  # noqa: E402

N, M, D = 14, 11, 6
COSINE, MEAN, ACTIVE = distances.CosineSimilarity(), reducers.MeanReducer(), reducers.AvgNonZeroReducer()
EUCLIDEAN, SQUARED_CHORD = distances.LpDistance(normalize_embeddings=False), distances.LpDistance(power=2)
SQUARED_EUCLIDEAN = distances.LpDistance(power=2, normalize_embeddings=False)
SNR = distances.SNRDistance(normalize_embeddings=False)


def batch(seed=0, n=N, alone=True):
    """Embeddings of uneven lengths and labels of uneven frequency; one occurs once (unless not `alone`)."""
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0, 2, 4 if alone else 3])[:n]
    middle = np.random.default_rng(9).standard_normal((5, D))
    return middle[labels] + rng.standard_normal((n, D)), labels


def agree(ours, theirs, *arrays, rtol=1e-11):
    """Values, and gradients with respect to each array."""
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    wanted = theirs(*tensors)
    wanted_gradients = torch.autograd.grad(wanted, tensors)
    argnums = tuple(range(len(arrays)))
    value, gradients = jax.value_and_grad(ours, argnums)(*(jnp.asarray(a) for a in arrays))
    assert value.dtype == jnp.float64
    assert abs(value) > 1e-3
    np.testing.assert_allclose(value, wanted.item(), rtol=rtol)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        scale = np.abs(wanted_gradient.numpy()).max()
        assert scale > 1e-4
        np.testing.assert_allclose(gradient, wanted_gradient.numpy(), rtol=rtol, atol=rtol * scale)


class HeldHistogram(losses.DynamicSoftMarginLoss):
    """Its histogram carries a gradient, which the paper's code does not give it."""

    def update_histogram(self, data):
        super().update_histogram(data.detach())


def L(name, **settings):
    return partial(getattr(mj.losses, name), **settings)


ALL = {"triplets": mining.all_triplets, "distance": mj.distances.chord}

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing"),  # HistogramLoss
]


def first_step(z, y, **options):
    """With 10 bins, which have 11 nodes."""
    loss = mj.losses.dynamic_soft_margin
    return loss(z, y, jnp.zeros(11), distance=mj.distances.chord, triplets=mining.all_triplets, **options)[0]
