"""Inputs on which the result of PyTorch Metric Learning 2.9.0 is wrong, and ours is the oracle's.

Skipped without it (`python -m pip install torch pytorch-metric-learning`); "there" is that library.
"""

import math
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from pytorch_metric_learning import losses, reducers  # noqa: E402

import metricjax as mj  # noqa: E402
from tests.helpers import oracle, oracle_pairs  # noqa: E402
from tests.helpers.cases import PAIRS  # noqa: E402
from tests.helpers.pytorch_metric_learning import (  # noqa: E402
    ALL,
    EUCLIDEAN,
    SNR,
    SQUARED_CHORD,
    SQUARED_EUCLIDEAN,
    D,
    HeldHistogram,
    M,
    N,
    agree,
    batch,
    first_step,
    pytestmark,  # noqa: F401
)


def right(name, z, y, *references, rtol=1e-6, **settings):
    """Our result, once it equals the oracle's."""
    z, y, *references = (jnp.asarray(a) for a in (z, y, *references))
    given = dict(zip(("references", "reference_labels"), references, strict=False))
    value, gradient = jax.value_and_grad(lambda z: PAIRS[name](z, y, **given, **settings))(z)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(value, PAIRS[name].expected(z, y, **given, **settings), rtol=rtol, atol=1e-7)
    return float(value)


def wrong(loss, z, y, *references):
    """Its result, with the gradient."""
    z, y, *references = (torch.tensor(np.asarray(a)) for a in (z, y, *references))
    z.requires_grad_()
    value = loss(z, y, None, *references)
    return value.item(), torch.autograd.grad(value, z)[0].numpy()


ONE_OF_EACH = np.array([[0.0, 1], [0.6, 0.8]]), np.array([0, 1])  # one positive and one negative of the anchor (1, 0)


def test_nt_xent_saturates_there_and_loses_its_gradient():
    """At −log of the smallest float32, where similarities are −0.9 and 0.9."""
    anchor, columns = np.array([[1, 0]], np.float32), np.array([[-0.9, 0.19**0.5], [0.9, 0.19**0.5]], np.float32)
    settings = anchor, np.array([0]), columns[[0, 1, 1]], np.array([0, 1, 1])
    value, gradient = wrong(losses.NTXentLoss(0.01), *settings)
    assert value == pytest.approx(87.34, abs=0.01)
    assert not np.any(gradient)
    assert right("nt_xent", *settings, temperature=0.01) == pytest.approx(180 + math.log(2), rel=1e-5)


def test_nca_drops_the_hardest_rows_there():
    z, y = np.array([[0, 0], [0, 0.5], [1, 0], [30, 0]], np.float32), np.array([0, 0, 1, 1])
    value, _ = wrong(losses.NCALoss(distance=SQUARED_EUCLIDEAN), z, y)
    assert value < 10 < 100 < right("nca", z, y)


@pytest.mark.parametrize("name, theirs", [("nt_xent", losses.NTXentLoss(0.1)), ("circle", losses.CircleLoss())])
def test_one_positive_and_one_negative_pair_are_nothing_there(name, theirs):
    anchor = np.array([[1.0, 0]]), np.array([0])
    value, gradient = wrong(theirs, *anchor, *ONE_OF_EACH)
    assert value == 0
    assert not np.any(gradient)
    assert right(name, *anchor, *ONE_OF_EACH) > 5


def test_supcon_without_a_negative_in_the_batch_is_nothing_there():
    z, y = batch()[0], np.zeros(N, int)
    assert wrong(losses.SupConLoss(), z, y)[0] == 0
    assert right("supcon", z, y) > 1


def test_class_weights_have_no_effect_there():
    """Losses [n, 1] times weights [n] is [n, n], whose mean is the product of two means."""
    z, y = batch()
    weights = np.array([1.0, 2, 3, 4, 5])[y]
    theirs = losses.MultiSimilarityLoss(reducer=reducers.ClassWeightedReducer(torch.tensor([1.0, 2, 3, 4, 5])))
    s, (positives, negatives) = oracle.matrix("cosine_similarity", z, z), oracle.neighbours(y)
    anchors = zip(s, positives, negatives, strict=True)
    terms = [oracle.multi_similarity(row[None], [p], [n]) for row, p, n in anchors]
    assert wrong(theirs, z, y)[0] == pytest.approx(np.mean(terms) * np.mean(weights))
    ours = mj.losses.multi_similarity(jnp.asarray(z), jnp.asarray(y), weights=jnp.asarray(weights))
    assert ours == pytest.approx(np.average(terms, weights=weights))
    assert abs(ours - np.mean(terms)) > 1e-3


def test_a_row_without_positives_is_a_row_without_a_side():
    """There it counts, with its negatives alone."""
    z, y = np.array([[1.0, 0], [0, 1]]), np.array([0, 1])
    assert wrong(losses.GeneralizedLiftedStructureLoss(2, distance=EUCLIDEAN), z, y)[0] == pytest.approx(2 - 2**0.5)
    assert right("generalized_lifted_structure", z, y, margin=2.0) == 0


def test_signal_to_noise_is_infinite_there_without_a_signal():
    z, y = batch()
    z[3] = 1.0
    assert np.isinf(wrong(losses.SignalToNoiseRatioContrastiveLoss(distance=SNR), z, y)[0])
    right("signal_to_noise", z, y, average="valid")  # other rows are 1 from it, at the margin, or almost


OF_REFERENCES = {
    "lifted_structure": (losses.LiftedStructureLoss(distance=EUCLIDEAN), {}),
    "triplet-swap-all": (losses.TripletMarginLoss(0.2, swap=True, distance=SQUARED_CHORD), {}),
    "threshold_consistent_margin": (losses.ThresholdConsistentMarginLoss(), {}),
    "angular": (losses.AngularLoss(), {"angle": math.radians(40)}),
}


@pytest.mark.parametrize("name", OF_REFERENCES)
def test_references_are_mistaken_there(name):
    """For rows of the batch, and by the angular loss for normalised ones."""
    theirs, settings = OF_REFERENCES[name]
    few, many = (*batch(), *batch(1, n=M)), (*batch(1, n=M), *batch())
    assert abs(wrong(theirs, *few)[0] - right(name, *few, **settings)) > 1e-2
    if name in ("triplet-swap-all", "threshold_consistent_margin"):
        with pytest.raises(IndexError):
            wrong(theirs, *many)
        right(name, *many, **settings)


def test_angular_does_not_normalise_negatives_there():
    z, y = batch()
    assert wrong(losses.AngularLoss(), z, y)[0] > 1.5 * right("angular", z, y, angle=math.radians(40))


def test_tuplet_margin_is_nan_there_where_rounding_exceeds_one():
    z = np.repeat(np.random.default_rng(0).standard_normal((20, D)), 2, axis=0).astype(np.float32)
    y = np.arange(40) // 2
    value, gradient = wrong(losses.TupletMarginLoss(), z, y)
    assert np.isnan(value)
    assert np.all(np.isnan(gradient))
    right("tuplet_margin", z, y, rtol=1e-2)  # √(1 − s²) magnifies the rounding of s = 1


def test_histogram_fails_there_at_similarity_one():
    z, y = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]]), np.array([0, 0, 1, 1])
    with pytest.raises(RuntimeError, match="out of bounds"):
        wrong(losses.HistogramLoss(20), z, y)
    assert right("histogram", z, y) == 0


def test_ranked_list_drops_negatives_at_distance_zero_there():
    """The hardest ones."""
    z, y = np.array([[1.0, 0], [1, 0], [0, 1]]), np.array([0, 1, 1])
    theirs = losses.RankedListLoss(margin=0.4, Tn=5)
    apart = np.array([[1.0, 0], [-1, 0], [0, 1]])
    assert wrong(theirs, z, y)[0] == pytest.approx(wrong(theirs, apart, y)[0], rel=1e-4)
    assert right("ranked_list", z, y, temperature=5.0) > right("ranked_list", apart, y, temperature=5.0) + 0.3


def test_dynamic_soft_margin_fails_there_in_the_last_bin():
    z, y = np.array([[1.0, 0], [-0.96, 0.28], [1, 0]]), np.array([0, 0, 1])
    with pytest.raises(RuntimeError, match="out of bounds"):
        wrong(losses.DynamicSoftMarginLoss(), z, y)
    far = math.sqrt(2 + 2 * 0.96)  # from the first row to its positive; to its negative it is 0
    expected, _ = oracle_pairs.dynamic_soft_margin([far, 0], np.zeros(11))
    np.testing.assert_allclose(first_step(jnp.asarray(z), jnp.asarray(y)), expected)


def test_dynamic_soft_margin_has_no_second_step_there():
    """Its histogram keeps the graph of the first. With that cut off, a batch weighs as much as it has triplets."""
    (z, y), (later, later_y) = batch(), batch(1)
    theirs, held = losses.DynamicSoftMarginLoss(), HeldHistogram(momentum=0.01)
    run = lambda z, y: theirs(torch.tensor(z, requires_grad=True), torch.tensor(y)).backward()
    run(z, y)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        run(later, later_y)
    wrong(held, z, y)
    triplets = sum(len(p) * len(n) for p, n in zip(*oracle.neighbours(later_y), strict=True))
    momentum = 0.01 * triplets / (0.99 + 0.01 * triplets)
    assert momentum > 0.7
    state = mj.losses.dynamic_soft_margin(jnp.asarray(z), jnp.asarray(y), jnp.zeros(11), **ALL)[1]
    step = partial(mj.losses.dynamic_soft_margin, momentum=momentum, **ALL)
    agree(lambda z: step(z, jnp.asarray(later_y), state)[0], lambda z: held(z, torch.tensor(later_y)), later)
