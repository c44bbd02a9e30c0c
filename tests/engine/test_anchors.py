"""The anchor driver: what every-loss tests cannot see through one loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.anchors import Mean, over_anchors
from tests.helpers.refusals import refuses


def batch(n=12, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((n, d)), jnp.float32), jnp.asarray(rng.integers(0, 4, n))


def mean_rows(scores, positives, negatives, slope):
    """A user's own loss: the mean similarity of negatives, less a multiple of that of positives."""
    pull = jnp.where(positives, -slope * scores, 0)
    push = jnp.where(negatives, scores, 0)
    return Mean(jnp.sum(pull + push, axis=-1), jnp.sum(positives | negatives, axis=-1))


def test_a_loss_of_ones_own():
    z, y = batch()
    loss = lambda z, slope, **options: over_anchors(mean_rows, z, y, slope, similarity=mj.similarities.dot, **options)
    own = np.asarray(y)
    same = (own[:, None] == own[None]) & ~np.eye(12, dtype=bool)
    other = own[:, None] != own[None]
    s = np.asarray(z) @ np.asarray(z).T
    expected = (np.sum(s[other]) - 2 * np.sum(s[same])) / (same.sum() + other.sum())
    for size in (None, 5, "auto"):
        value, (dz, dslope) = jax.jit(jax.value_and_grad(lambda z, t, size=size: loss(z, t, block_size=size), (0, 1)))(
            z, 2.0
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(dslope, -np.sum(s[same]) / (same.sum() + other.sum()), rtol=1e-5)
        assert dz.shape == z.shape


def test_a_distance_of_ones_own():
    """Any function of two sets of rows serves as a distance; equal to the library's own."""
    z, y = batch()
    own = lambda x, y: jnp.sum(jnp.square(x[:, None] - y[None]), axis=-1)
    theirs = mj.losses.triplet(z, y, distance=own)
    np.testing.assert_allclose(theirs, mj.losses.triplet(z, y, distance=mj.distances.squared_euclidean), rtol=1e-5)


def test_auto_switches_to_panels_by_shape_alone():
    """Large batches keep neither n × n scores nor anything of their size."""
    y = jnp.arange(4096) // 4
    z = jax.ShapeDtypeStruct((4096, 32), jnp.float32)
    temporaries = lambda f: jax.jit(jax.value_and_grad(f)).lower(z).compile().memory_analysis().temp_size_in_bytes
    for loss in (mj.losses.supcon, mj.losses.contrastive):
        auto, dense = (temporaries(lambda z, s=s, loss=loss: loss(z, y, block_size=s)) for s in ("auto", None))
        assert dense >= 4 * 4096**2
        assert auto < 32 * 2**20


def test_forward_mode_in_panels_with_a_reduction_of_ones_own():
    z, y = batch()
    own = lambda size: lambda z: mj.losses.supcon(z, y, block_size=size, reduction=lambda mean: jnp.sum(mean.total**2))
    tangents = [jax.jvp(own(size), (z,), (z[::-1],))[1] for size in (None, 4)]
    np.testing.assert_allclose(*tangents, rtol=1e-5)


def test_numpy_arguments_work(unchecked):
    z, y = batch()
    mask = np.ones(12, bool)
    np.testing.assert_array_equal(
        mj.losses.supcon(np.asarray(z), np.asarray(y), where=mask), mj.losses.supcon(z, y, where=jnp.asarray(mask))
    )


Z, Y = batch()
PAIRS_WRONG = {
    "rank of embeddings": (lambda: mj.losses.supcon(Z[0], Y), ValueError, r"embeddings has shape \(4,\)"),
    "dtype of embeddings": (lambda: mj.losses.supcon(Y[:, None], Y), TypeError, "embeddings has dtype int32"),
    "list for embeddings": (lambda: mj.losses.supcon([[1.0]], Y), TypeError, "embeddings is a list"),
    "list for labels": (lambda: mj.losses.supcon(Z, [0] * 12), TypeError, "labels is a list"),
    "length of labels": (lambda: mj.losses.supcon(Z, Y[:5]), ValueError, r"labels has shape \(5,\).*12 rows"),
    "float labels": (
        lambda: mj.losses.supcon(Z, Y.astype(jnp.float32)),
        TypeError,
        "labels has dtype float32; wanted integers",
    ),
    "length of where": (lambda: mj.losses.supcon(Z, Y, where=Y[:5] > 0), ValueError, r"where has shape \(5,\)"),
    "dtype of where": (lambda: mj.losses.supcon(Z, Y, where=Y), TypeError, "where has dtype int32; wanted booleans"),
    "dtype of weights": (
        lambda: mj.losses.supcon(Z, Y, weights=Y),
        TypeError,
        "weights has dtype int32; wanted floats",
    ),
    "features of references": (
        lambda: mj.losses.supcon(Z, Y, references=Z[:, :3], reference_labels=Y),
        ValueError,
        "references has 3 features, the embeddings have 4",
    ),
    "references without labels": (lambda: mj.losses.supcon(Z, Y, references=Z), TypeError, "without reference_labels"),
    "labels without references": (lambda: mj.losses.supcon(Z, Y, reference_labels=Y), TypeError, "wanted references"),
    "length of reference_labels": (
        lambda: mj.losses.supcon(Z, Y, references=Z, reference_labels=Y[:5]),
        ValueError,
        r"reference_labels has shape \(5,\)",
    ),
    "block_size": (lambda: mj.losses.supcon(Z, Y, block_size=0), ValueError, "block_size is 0"),
    "block_size word": (lambda: mj.losses.supcon(Z, Y, block_size="big"), ValueError, "block_size is 'big'"),
    "average": (lambda: mj.losses.triplet(Z, Y, average="mean"), ValueError, "average is 'mean'"),
    "average of all triplets": (
        lambda: mj.losses.triplet(Z, Y, average="mean", triplets=mj.mining.all_triplets),
        ValueError,
        "average is 'mean'",
    ),
    "distance": (lambda: mj.losses.triplet(Z, Y, distance="chord"), TypeError, "distance is 'chord'"),
    "unknown hyper-parameter": (lambda: mj.losses.supcon(Z, Y, temprature=1.0), TypeError, "temprature"),
    "two scores": (
        lambda: over_anchors(mean_rows, Z, Y, 1.0, similarity=mj.similarities.dot, distance=mj.distances.cosine),
        TypeError,
        "exactly one of `similarity`",
    ),
    "rank of prototypes": (lambda: mj.losses.cosface(Z, Y, Z[0]), ValueError, r"prototypes has shape \(4,\)"),
    "features of prototypes": (lambda: mj.losses.cosface(Z, Y, Z[:, :2]), ValueError, "prototypes has 2 features"),
    "features of centers": (lambda: mj.losses.center(Z, Y, Z[:, :2]), ValueError, "centers has 2 features"),
    "rank of class labels": (lambda: mj.losses.cosface(Z, Y[:, None], Z), ValueError, r"labels has shape \(12, 1\)"),
    "float class labels": (
        lambda: mj.losses.cosface(Z, Y.astype(jnp.float32), Z),
        TypeError,
        "labels has dtype float32",
    ),
    "length of bias": (lambda: mj.losses.softmax(Z, Y, Z, bias=Z[0]), ValueError, r"bias has shape \(4,\)"),
}


test_wrong_arguments_are_named = refuses(PAIRS_WRONG)


def test_labels_that_jax_would_cut_are_refused(unchecked):
    z, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 3]) * 2**32
    with pytest.raises(ValueError, match="labels does not fit into int32; wanted labels that are numbered from 0"):
        mj.losses.supcon(z, y)
    with pytest.raises(ValueError, match="reference_labels does not fit into int32"):
        mj.losses.supcon(z, y // 2**32, references=z, reference_labels=y)
    with pytest.raises(ValueError, match="labels does not fit into int32"):
        mj.losses.cosface(z, y, z)
    with jax.enable_x64(True):
        assert float(mj.losses.supcon(z, y)) == 0  # no two are the same person
