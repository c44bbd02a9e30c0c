"""Known bugs of published metric-learning libraries, each shown to be absent here."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests.helpers import oracle, oracle_classes
from tests.helpers.batches import slow_unless
from tests.helpers.cases import PAIRS, PATHS

RNG = np.random.default_rng(0)
Y = jnp.array([0, 1, 2, 0, 1, 2, 0, 1])
Z = jnp.asarray(RNG.standard_normal((3, 4))[Y] + RNG.standard_normal((8, 4)), jnp.float32)
R = jnp.asarray(RNG.standard_normal((11, 4)), jnp.float32)
REFERENCES = {"references": R, "reference_labels": jnp.arange(11) % 4}
OVER_REFERENCES = [name for name, case in PAIRS.items() if "references" not in case.lacks]


@functools.cache
def over_references(name):
    """One program of a loss for all tests that vary its arguments only."""

    def loss(z, y, weights, where, references, reference_labels, reference_where):
        columns = {"references": references, "reference_labels": reference_labels, "reference_where": reference_where}
        return PAIRS[name](z, y, weights=weights, where=where, **columns)

    return jax.jit(loss)


ONES, ALL = jnp.ones(8), (jnp.ones(8, bool), *REFERENCES.values(), jnp.ones(11, bool))


def close(actual, wanted, rtol=2e-5, atol=2e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), wanted, rtol=rtol, atol=atol)


def assert_equals_oracle(case, z, y, rtol=2e-5, **hyper):
    """Value, and gradient against differences of the float64 oracle."""
    value, gradient = jax.value_and_grad(lambda z: case(z, y, **hyper))(z)
    close(value, case.expected(z, y, **hyper), rtol)
    exact, slopes = np.asarray(z, np.float64), np.zeros(z.shape)
    for i in np.ndindex(z.shape):
        step = np.zeros(z.shape)
        step[i] = 1e-6
        slopes[i] = (case.expected(exact + step, y, **hyper) - case.expected(exact - step, y, **hyper)) / 2e-6
    close(gradient, slopes, 10 * rtol, 10 * rtol * np.abs(slopes).max())
    return value, gradient


def test_nt_xent_beyond_87():
    """−log(ratio + tiny) saturates at −log(tiny), 87 in float32, and has no gradient from there on."""
    far = math.sqrt(1 - 0.9**2)
    z = jnp.array([[1.0, 0.0], [-0.9, far], [0.9, far]])  # s_ap = −0.9, s_an = 0.9
    value, gradient = assert_equals_oracle(PAIRS["nt_xent"], z, jnp.array([0, 0, 1]), temperature=0.01)
    close(mj.losses.nt_xent(z, jnp.array([0, 0, 1]), temperature=0.01, weights=jnp.array([1.0, 0, 0])), 180)
    assert value > 100 and np.abs(gradient).max() > 10


def test_nca_of_rows_far_from_their_positives():
    """Probabilities that underflow to 0 are dropped, and with them the hardest rows."""
    z = jnp.array([[0.0], [40.0], [1.0], [41.0], [0.5], [0.75]])  # e^−1600 for the first four, e^−0.06 for the others
    value, gradient = assert_equals_oracle(PAIRS["nca"], z, jnp.array([0, 0, 1, 1, 2, 2]))
    assert value > 1000 and np.all(np.abs(gradient[:4]) > 10)


def test_smooth_ap_goes_by_labels():
    """Positives are taken by position, as if the rows of a class stood together."""
    y = jnp.tile(jnp.arange(10), 6)
    close(mj.losses.smooth_ap(jnp.eye(10)[y], y), 0)  # every class is ranked first, whatever the order of the rows
    z = jnp.asarray(RNG.standard_normal((60, 8)), jnp.float32)
    order = jnp.argsort(y)
    close(mj.losses.smooth_ap(z[order], y[order]), mj.losses.smooth_ap(z, y))


def test_angular_loss_normalises_negatives():
    """Anchors and positives are normalised and negatives are not."""
    y = jnp.array([0, 0, 0, 1])
    loss = lambda z: mj.losses.angular(z, y, weights=jnp.array([1.0, 1.0, 1.0, 0.0]))
    (value, gradient), (longer, longer_gradient) = (
        jax.value_and_grad(loss)(Z[:4].at[3].multiply(length)) for length in (1.0, 100.0)
    )
    close(longer, value)
    close(longer_gradient[:3], gradient[:3])
    close(jnp.sum(gradient[3] * Z[3]), 0)


@pytest.mark.parametrize("name", ["lifted_structure", "angular", "triplet-swap", "triplet-swap-semi-hard",
                                  "triplet-swap-all", "quadruplet", "threshold_consistent_margin"])  # fmt: skip
def test_columns_are_references_and_not_rows_of_the_batch(name):
    """Indices of references are looked up in the batch: out of range if there are more, and wrong if there are not."""
    case, order = PAIRS[name], np.random.default_rng(1).permutation(11)
    y = REFERENCES["reference_labels"]
    loss = lambda r, y: case(Z, Y, references=r, reference_labels=y)
    value, gradient = jax.value_and_grad(loss)(R, y)
    close(value, case.expected(Z, Y, **REFERENCES))
    permuted, permuted_gradient = jax.value_and_grad(loss)(R[order], y[order])
    close(permuted, value)
    close(permuted_gradient, gradient[order])


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [0, 0, 1, 1]])
def test_scores_in_the_last_bin(labels, debug_nans):
    """Similarities of 1 and gaps of 2 stand in a bin beyond the last."""
    z, y = jnp.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]), jnp.array(labels)
    for name in ("histogram", "dynamic_soft_margin"):
        value, gradient = jax.value_and_grad(lambda z, case=PAIRS[name]: case(z, y))(z)
        close(value, PAIRS[name].expected(z, y))
        chex.assert_tree_all_finite(gradient)
    gap = 2.0 if labels[1] else -2.0
    loss, state = mj.losses.dynamic_soft_margin(z, y, jnp.zeros(5))
    np.testing.assert_array_equal(state, np.array([0, 0, 0, 0, 1.0])[:: int(gap / 2)])
    close(loss, gap)


@pytest.mark.parametrize("name", slow_unless(PATHS, OVER_REFERENCES))
def test_weights_give_the_weighted_mean(name):
    """[n] weights times [n, 1] losses broadcast to [n, n], whose mean is the mean loss times the mean weight."""
    row = jnp.array([0, 0, 0, 1, 2, 2, 3, 3])
    counts = jnp.array([3.0, 0, 0, 1, 2, 0, 0, 2])
    loss = over_references(name)
    close(loss(Z[row], Y[row], counts, *ALL), loss(Z[row], Y[row], ONES, *ALL))


@pytest.mark.parametrize("name", ["centroid_triplet", "centroid_triplet-hardest"])
def test_weights_give_the_weighted_mean_without_references(name):
    """The same, by a reduction of one's own."""
    weights = jnp.asarray(RNG.uniform(0.1, 2, 8), jnp.float32)
    by_hand = lambda mean: jnp.sum(weights * mean.total) / jnp.sum(weights * mean.count)
    close(PAIRS[name](Z, Y, weights=weights), PAIRS[name](Z, Y, reduction=by_hand))


@pytest.mark.parametrize("name", OVER_REFERENCES)
def test_one_positive_and_one_negative_pair(name):
    """A batch with a single pair of each kind is taken for an empty one, and its loss is 0."""
    z, references = Z.at[0].set(jnp.eye(4)[0]), R.at[:2].set(jnp.array([[-0.6, 0.8, 0, 0], [0.8, -0.6, 0, 0]]))
    where, there = jnp.arange(8) < 1, jnp.arange(11) < 2
    pairs = {"references": references, "reference_labels": REFERENCES["reference_labels"], "reference_where": there}
    value = over_references(name)(z, Y, ONES, where, *pairs.values())
    close(value, PAIRS[name].expected(z, Y, where, **pairs))
    assert value != 0


@pytest.mark.parametrize("loss", [mj.losses.circle, mj.losses.unified_pair])
def test_circle_pulls_positives_and_pushes_negatives(loss):
    """Without its softplus the loss is negative; with signs of α flipped it pushes positives away."""

    def of(positive, negative):
        pairs = jnp.stack([jnp.cos(jnp.stack([positive, negative])), jnp.sin(jnp.stack([positive, negative]))], axis=1)
        return loss(jnp.array([[1.0, 0.0]]), jnp.array([0]), references=pairs, reference_labels=jnp.arange(2))

    angles = jnp.linspace(0.1, 3.0, 12)
    grid = jax.vmap(jax.vmap(jax.value_and_grad(of, (0, 1)), (None, 0)), (0, None))
    values, (of_positives, of_negatives) = grid(angles, angles)
    assert np.all(values >= 0)
    assert np.all(of_positives >= 0) and np.any(of_positives > 0)  # a similarity falls where its angle rises
    assert np.all(of_negatives <= 0) and np.any(of_negatives < 0)
    assert np.all(np.diff(values, axis=0) >= 0)
    assert np.all(np.diff(values, axis=1)[:, angles[1:] < np.pi / 2] <= 0)  # α_n (s_n − m) is least at s_n = 0


@pytest.mark.parametrize("p", [1, 3])
def test_triplets_take_absolute_differences(p):
    """Σ (a − b)^p without an absolute value: wrong for p = 1, and a root of a negative number for p = 3."""
    z = jnp.array([[0.0, 0.0], [1.0, 2.0], [-0.5, -1.0], [-1.0, -2.5]])
    case = PAIRS["triplet"]._replace(measure=f"lp{p}", fixed={**PAIRS["triplet"].fixed, "distance": mj.distances.lp(p)})
    case = case._replace(
        oracle_fixed={"triplets": oracle.batch_hard}, oracle=lambda *a, distance, **h: oracle.triplet(*a, **h)
    )
    assert_equals_oracle(case, z, jnp.array([0, 0, 1, 1]), margin=5.0)


def test_cosines_above_one(debug_nans):
    """arccos of a cosine that rounding has brought above 1 is NaN."""
    z = jnp.asarray(np.random.default_rng(3).standard_normal((64, 512)) * 100, jnp.float32)
    itself = jnp.diagonal(mj.similarities.cosine(z, z))
    assert np.any(itself > 1)
    z = z[jnp.argsort(-itself)[:4]]
    z, y = jnp.concatenate([z, z]), jnp.tile(jnp.arange(4), 2)
    exact, case = np.asarray(z), PAIRS["tuplet_margin"]
    losses = {
        "tuplet_margin": (lambda z: case(z, y, scale=4.0), case.expected(z, y, scale=4.0)),
        "arcface": (
            lambda z: mj.losses.arcface(z, y, z[:4], scale=4.0),
            np.mean(oracle_classes.arcface(exact, np.asarray(y), exact[:4], scale=4.0)),
        ),
        "geodesic": (lambda z: jnp.sum(mj.distances.geodesic(z, z)), np.sum(oracle.matrix("geodesic", exact, exact))),
    }
    for loss, expected in losses.values():
        value, gradient = jax.value_and_grad(loss)(z)
        close(value, expected, rtol=1e-3)  # an angle near 0 is known to 3e-4
        chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("name", [name for name in OVER_REFERENCES if name not in ("margin-by-class", "log_ratio")])
def test_large_labels_of_references_do_not_collide(name):
    """Labels are cast to float, where neighbours above 2²⁴ are one."""
    loss, (where, references, labels, _) = over_references(name), ALL
    value = lambda start: loss(Z, Y + start, ONES, where, references, labels + start, jnp.arange(11) % 5 != 4)
    for start in (2**24, 2**31 - 4, -(2**31)):  # up to the ends of int32
        assert value(start) == value(0)


@pytest.mark.parametrize("name", ["supcon", "margin", "triplet-semi-hard", "lifted_structure", "centroid_triplet"])
def test_large_labels_do_not_collide(name):
    """The same within a batch."""
    for start in (2**24, 2**31 - 3, -(2**31)):
        assert PAIRS[name](Z, Y + start, block_size=3) == PAIRS[name](Z, Y, block_size=3)


@pytest.mark.parametrize("name", OVER_REFERENCES)
def test_a_batch_without_positives(name):
    """A mean over no pairs is NaN."""
    value = over_references(name)(Z, Y + 4, ONES, *ALL)
    assert np.isfinite(value)
    if not PAIRS[name].strangers and name != "log_ratio":
        assert value == 0


@pytest.mark.parametrize("name", ["supcon", "nca", "triplet-semi-hard", "triplet-all", "lifted_structure"])
def test_a_batch_without_positives_in_half_precision(name, debug_nans):
    """The same within a batch, and its gradient."""
    value, gradient = jax.value_and_grad(lambda z: PAIRS[name](z, jnp.arange(5)))(Z[:5].astype(jnp.bfloat16))
    assert value == 0
    assert not np.any(gradient)


def test_supcon_of_one_class():
    """Without a negative pair in the batch the whole loss is 0."""
    assert_equals_oracle(PAIRS["supcon"], Z[:3], jnp.zeros(3, int))
