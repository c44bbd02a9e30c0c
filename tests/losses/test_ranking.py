"""What is particular to the losses on ranks; the rest is in test_every_loss.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests.helpers import oracle, oracle_ranking

RNG = np.random.default_rng(0)
Y = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4])
Z = jnp.asarray(RNG.standard_normal((5, 6))[Y] + RNG.standard_normal((14, 6)), jnp.float32)
SCORES, LISTS = oracle.matrix("cosine_similarity", np.asarray(Z), np.asarray(Z)), oracle.neighbours(Y)
LABELS = jnp.asarray(Y)


@pytest.mark.parametrize("variant", oracle_ranking.PENALTIES)
@pytest.mark.parametrize("hyper", [{}, {"temperature": 0.2, "alpha": 1.0, "b": 0.5}], ids=["defaults", "others"])
def test_variants_of_pnp_equal_the_oracle(variant, hyper):
    expected = oracle_ranking.pnp(SCORES, *LISTS, variant=variant, **hyper)
    np.testing.assert_allclose(mj.losses.pnp(Z, LABELS, variant=variant, **hyper), expected, rtol=2e-5)


@pytest.mark.parametrize("ks", [(1,), (3, 100)])
def test_ks_equal_the_oracle(ks):
    expected = oracle_ranking.recall_at_k(SCORES, *LISTS, ks=ks)
    np.testing.assert_allclose(mj.losses.recall_at_k(Z, LABELS, ks=ks), expected, rtol=2e-5)


@pytest.mark.parametrize("bins", [1, 3, 50])
def test_bins_equal_the_oracle(bins):
    d = oracle.matrix("squared_chord", np.asarray(Z), np.asarray(Z))
    expected = oracle_ranking.fast_ap(d, *LISTS, bins=bins)
    np.testing.assert_allclose(mj.losses.fast_ap(Z, LABELS, bins=bins), expected, rtol=2e-5, atol=1e-6)


def test_losses_are_near_what_they_smooth():
    """At a low temperature, and bounded from above by ROADMAP's at any."""
    misses = []
    for i, ps in enumerate(LISTS[0]):
        ahead = lambda p, js, i=i: sum(SCORES[i, j] > SCORES[i, p] for j in js)
        if ps:
            precisions = [(1 + ahead(p, ps)) / (1 + ahead(p, ps) + ahead(p, LISTS[1][i])) for p in ps]
            misses.append(1 - np.mean(precisions))
    exact = np.mean(misses)
    np.testing.assert_allclose(mj.losses.smooth_ap(Z, LABELS, temperature=1e-5), exact, rtol=1e-3)
    np.testing.assert_allclose(mj.losses.fast_ap(Z, LABELS, bins=2000), exact, rtol=0.05)
    for temperature in (1e-4, 0.01, 1.0):
        assert mj.losses.roadmap(Z, LABELS, temperature=temperature, calibration=0.0) >= exact


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth_ap", "recall_at_k", "roadmap", "pnp"])
def test_gradient_in_the_temperature_equals_differences(name, x64):
    z = Z.astype(jnp.float64)
    for size in (None, 4):
        f = lambda t, size=size: getattr(mj.losses, name)(z, LABELS, temperature=t, block_size=size)
        slope = jax.jit(jax.grad(f))(0.3)
        np.testing.assert_allclose(slope, (f(0.3 + 1e-5) - f(0.3 - 1e-5)) / 2e-5, rtol=1e-6)


def test_what_does_not_fit_is_refused(unchecked):
    with pytest.raises(ValueError, match="bins is 0; wanted at least 1"):
        mj.losses.fast_ap(Z, LABELS, bins=0)
    with pytest.raises(ValueError, match="ks is empty; wanted at least one k"):
        mj.losses.recall_at_k(Z, LABELS, ks=())
    with pytest.raises(ValueError, match="variant is 'Dx'; wanted one of"):
        mj.losses.pnp(Z, LABELS, variant="Dx")
