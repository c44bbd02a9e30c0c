"""Losses over classes against PyTorch Metric Learning 2.9.0 ("there"), as in `test_pytorch_metric_learning.py`.

Skipped without it. At the end are the inputs on which its result is not that of its formula.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from pytorch_metric_learning import losses, miners, regularizers  # noqa: E402
from pytorch_metric_learning.utils import loss_and_miner_utils  # noqa: E402

import metricjax as mj  # noqa: E402
from tests.helpers import oracle_classes  # noqa: E402
from tests.helpers.pytorch_metric_learning import COSINE, D, L, agree, batch  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context"),  # LargeMarginSoftmaxLoss
]

C, K = 6, 3  # class 5 has no rows
SPARSE = regularizers.SparseCentersRegularizer(C, K)
DEGREES = math.degrees(0.5)


def prototypes(several=False, length=None):
    w = np.random.default_rng(5).standard_normal((C, K, D) if several else (C, D))
    return w if length is None else length * w / np.linalg.norm(w, axis=-1, keepdims=True)


def in_columns(w):
    """[d, c k], those of one class side by side."""
    return w.reshape(-1, w.shape[-1]).T


def with_weights(loss, w, layout=in_columns):
    """Their loss as a function of embeddings and labels, and of prototypes in place of its parameter."""
    ((name, _),) = loss.named_parameters()
    return lambda z, y, *mined: torch.func.functional_call(loss, {name: layout(w)}, (z, y, *mined))


class Same(NamedTuple):
    """Two losses that are one, theirs to be made: `several` prototypes of each class, `layout` of theirs."""

    ours: Any
    theirs: Any
    several: bool = False
    layout: Any = staticmethod(in_columns)


def as_they_are(w):
    return w


def regularized_cosface(z, y, w):
    return mj.losses.cosface(z, y, w) + mj.losses.regular_face(w)


def regularized_soft_triple(z, y, w):
    return mj.losses.soft_triple(z, y, w) + 0.2 * mj.losses.merged_centers(w)


MULTIPLIED = {"large_margin_softmax": losses.LargeMarginSoftmaxLoss, "sphereface": losses.SphereFaceLoss}
SAME = {
    "arcface": Same(L("arcface"), partial(losses.ArcFaceLoss, C, D, DEGREES)),
    "arcface, past π": Same(
        L("arcface", margin=1.5, scale=8.0), partial(losses.ArcFaceLoss, C, D, math.degrees(1.5), 8)
    ),
    "cosface": Same(L("cosface"), partial(losses.CosFaceLoss, C, D)),
    "cosface, regular_face": Same(
        regularized_cosface,
        partial(losses.CosFaceLoss, C, D, weight_regularizer=regularizers.RegularFaceRegularizer()),
    ),
    "normalized_softmax": Same(L("normalized_softmax"), partial(losses.NormalizedSoftmaxLoss, C, D)),
    "sub_center_arcface": Same(
        L("sub_center_arcface"), several=True,
        theirs=partial(losses.SubCenterArcFaceLoss, num_classes=C, embedding_size=D, margin=DEGREES),
    ),
    **{
        f"{name}, {m}": Same(L(name, margin=m), partial(theirs, C, D, m))
        for name, theirs in MULTIPLIED.items() for m in (1, 2, 3, 4)
    },
    "proxy_anchor": Same(L("proxy_anchor"), partial(losses.ProxyAnchorLoss, C, D), layout=as_they_are),
    "proxy_anchor, others": Same(
        L("proxy_anchor", margin=0.3, scale=4.0), partial(losses.ProxyAnchorLoss, C, D, 0.3, 4), layout=as_they_are
    ),
    "proxy_nca_pp": Same(L("proxy_nca_pp", temperature=1.0), partial(losses.ProxyNCALoss, C, D), layout=as_they_are),
    "proxy_nca_pp, 1/9": Same(
        L("proxy_nca_pp"), partial(losses.ProxyNCALoss, C, D, softmax_scale=9), layout=as_they_are
    ),
    "soft_triple": Same(L("soft_triple"), partial(losses.SoftTripleLoss, C, D, K), True),
    "soft_triple, merged_centers": Same(
        regularized_soft_triple, several=True,
        theirs=partial(losses.SoftTripleLoss, C, D, K, weight_regularizer=SPARSE, weight_reg_weight=0.2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_loss(name):
    """Values, and gradients with respect to embeddings and prototypes."""
    (z, y), case = batch(), SAME[name]
    theirs = lambda z, w: with_weights(case.theirs(), w, case.layout)(z, torch.tensor(y))
    agree(lambda z, w: case.ours(z, jnp.asarray(y), w), theirs, z, prototypes(case.several))


REGULARIZERS = {
    "merged_centers": (SPARSE, True),
    "regular_face": (regularizers.RegularFaceRegularizer(), False),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizer(name):
    theirs, several = REGULARIZERS[name]
    agree(L(name), lambda w: theirs(w.reshape(-1, D)), prototypes(several))


def test_p2s_grad():
    """There it is a mean over classes too, without the ½, and the gradient of prototypes is another (see below)."""
    (z, y), w = batch(), prototypes(length=1.0)
    ours = lambda z: 2 / C * mj.losses.p2s_grad(z, jnp.asarray(y), jnp.asarray(w))
    theirs = with_weights(losses.P2SGradLoss(D, C), torch.tensor(w))
    agree(ours, lambda z: theirs(z, torch.tensor(y)), z, rtol=1e-6)  # its prototypes have length 1 − 1e-7


def test_sub_center_outliers():
    z, y = batch()
    theirs, w = losses.SubCenterArcFaceLoss(num_classes=C, embedding_size=D), prototypes(several=True)
    theirs.W.data = in_columns(torch.tensor(w))
    for degrees in (60, 75, 90):
        wanted, centers = theirs.get_outliers(torch.tensor(z), torch.tensor(y), threshold=degrees)
        dominant, outliers = mj.losses.sub_center_outliers(*map(jnp.asarray, (z, y, w)), angle=math.radians(degrees))
        assert set(np.flatnonzero(outliers)) == set(wanted.tolist())
        assert 0 < len(wanted) < len(y)
        np.testing.assert_array_equal(w[range(5), dominant[:5]], centers.numpy().T[:5])


@pytest.mark.parametrize("name", ["cosface", "arcface", "normalized_softmax", "proxy_nca_pp", "soft_triple"])
def test_a_miner_weighs_rows_there(name):
    """By how often they are mined, for `proxy_nca_pp` as anchors.

    Their mean divides by all rows; ours, with the same weights, by the sum of these.
    """
    (z, y), case = batch(), SAME[name]
    own = torch.tensor(y)
    mined = miners.TripletMarginMiner(0.2, distance=COSINE)(torch.tensor(z), own)
    weights = loss_and_miner_utils.convert_to_weights(mined, own, torch.float64, name == "proxy_nca_pp")
    weights, share = weights.numpy(), float(torch.mean(weights))
    assert len(set(weights)) > 2
    theirs = lambda z, w: with_weights(case.theirs(), w, case.layout)(z, own, mined)
    ours = lambda z, w: share * case.ours(z, jnp.asarray(y), w, weights=jnp.asarray(weights))
    agree(ours, theirs, z, prototypes(case.several))


# --- where their result is not that of the formula ------------------------------------------------------------------


def right(name, z, y, w, rtol=1e-6, **settings):
    """Our value and gradients, which are finite, once the value equals the oracle's."""
    loss = lambda z, w: getattr(mj.losses, name)(z, jnp.asarray(y), w, **settings)
    value, gradients = jax.value_and_grad(loss, (0, 1))(jnp.asarray(z), jnp.asarray(w))
    assert all(np.all(np.isfinite(g)) for g in gradients)
    expected = getattr(oracle_classes, name)(z, y, w, **settings)
    np.testing.assert_allclose(value, np.mean(expected), rtol=rtol, atol=1e-12)
    return float(value), *map(np.asarray, gradients)


def wrong(loss, z, y, w, layout=in_columns):
    """Their value and gradients."""
    tensors = [torch.tensor(np.asarray(a), requires_grad=True) for a in (z, w)]
    value = with_weights(loss, tensors[1], layout)(tensors[0], torch.tensor(np.asarray(y)))
    return value.item(), *(g.numpy() for g in torch.autograd.grad(value, tensors))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_arcface_has_no_gradient_there_at_its_prototype(sign):
    """Nor opposite to it: the slope of arccos is infinite."""
    settings = sign * np.eye(2)[:1], np.array([0]), np.eye(2)
    value, to_z, _ = wrong(losses.ArcFaceLoss(2, 2, DEGREES, 1), *settings)
    assert np.all(np.isnan(to_z))
    assert right("arcface", *settings, scale=1.0)[0] == pytest.approx(value)


def test_one_row_at_its_prototype_spoils_a_batch_of_arcface_there():
    (z, y), w = batch(), prototypes(length=1.0)
    z[3] = w[y[3]] = np.eye(D)[0]
    _, to_z, to_w = wrong(losses.ArcFaceLoss(C, D), z, y, w)
    assert np.flatnonzero(np.isnan(to_z).any(axis=1)).tolist() == [3]
    assert np.flatnonzero(np.isnan(to_w).any(axis=1)).tolist() == [y[3]]
    right("arcface", z, y, w)


def test_p2s_grad_of_a_zero_row_is_nan_there():
    (z, y), w = batch(), prototypes(length=1.0)
    z[3] = 0
    value, to_z, to_w = wrong(losses.P2SGradLoss(D, C), z, y, w)
    assert np.isnan(value)
    assert np.all(np.isnan(to_w)) and np.all(np.isnan(to_z[3]))
    right("p2s_grad", z, y, w)


def test_p2s_grad_takes_the_length_of_prototypes_for_a_constant_there():
    """Its value does not change with that length, but its gradient says so; without that part it is ours."""
    (z, y), w = batch(), prototypes(length=1.0)
    loss = losses.P2SGradLoss(D, C)
    value, _, theirs = wrong(loss, z, y, w)
    _, _, ours = right("p2s_grad", z, y, w)
    assert wrong(loss, z, y, 2 * w)[0] == pytest.approx(value, rel=1e-6)
    along = lambda gradient: np.sum(gradient * w, axis=1, keepdims=True)
    assert np.max(np.abs(along(theirs))) > 0.03
    np.testing.assert_allclose(along(ours), 0, atol=1e-12)
    np.testing.assert_allclose(theirs - along(theirs) * w, 2 / C * ours, atol=1e-7)


def test_proxy_nca_drops_the_hardest_rows_there():
    """Those whose softmax underflows; without another row it is the mean of nothing."""
    z, w = np.array([[1, 0], [1, 0]], np.float32), np.array([[1, 0], [-1, 0]], np.float32)
    loss, settings = losses.ProxyNCALoss(2, 2, softmax_scale=100), {"temperature": 0.01}
    assert wrong(loss, z, [0, 1], w, as_they_are)[0] == 0
    assert right("proxy_nca_pp", z, [0, 1], w, **settings)[0] == pytest.approx(200)
    assert np.isnan(wrong(loss, z[1:], [1], w, as_they_are)[0])
    assert right("proxy_nca_pp", z[1:], [1], w, **settings)[0] == pytest.approx(400)


def test_the_dominant_centre_of_a_class_without_rows_is_whatever_was_in_memory_there():
    """Which PyTorch fills with NaN when asked to be deterministic."""
    z, y = batch()
    theirs, w = losses.SubCenterArcFaceLoss(num_classes=C, embedding_size=D), prototypes(several=True)
    theirs.W.data = in_columns(torch.tensor(w))
    try:
        torch.use_deterministic_algorithms(True)
        _, centers = theirs.get_outliers(torch.tensor(z), torch.tensor(y))
    finally:
        torch.use_deterministic_algorithms(False)
    assert np.flatnonzero(np.isnan(centers.numpy()).any(axis=0)).tolist() == [5]
    assert mj.losses.sub_center_outliers(*map(jnp.asarray, (z, y, w))).dominant[5] == 0
