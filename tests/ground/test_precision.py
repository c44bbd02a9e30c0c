"""At which precision products are taken: what is asked for, what is left to JAX, and what is exact without asking."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metricjax as mj
from metricjax.ground import precision
from metricjax.ground.precision import EXACT, as_precision
from metricjax.losses.catalogue import CATALOGUE
from tests.helpers import precision_table
from tests.helpers.batches import slow_unless
from tests.helpers.cases import ALONE
from tests.helpers.rounding import BFLOAT16, TF32, compiled

X = jax.random.normal(jax.random.key(0), (9, 6))
Y = jnp.arange(9) // 3
W = jax.random.normal(jax.random.key(1), (40, 6))
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "precision.md"
SIX_PRODUCTS = "num_primitive_operations = 6"
MEASURES = {
    f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module in (mj.distances, mj.similarities)
    for name in module.__all__
    if name not in ("lp", "poincare")
} | {"distances.poincare(1)": mj.distances.poincare(1.0)}

measures = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def precisions(f, *arguments) -> set[str]:
    """Those of the matrix products in a program, but for products with a column of ones, which are sums of rows."""
    lines = [line for line in jax.jit(f).lower(*arguments).as_text().splitlines() if "dot_general" in line]
    lines = [line for line in lines if not re.search(r", tensor<\d+x1xf\d+>\) ->", line)]
    return {SIX_PRODUCTS if SIX_PRODUCTS in line else line.split("precision = [")[1].split(",")[0] for line in lines}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, None),
        ("highest", "highest"),
        ("exact", EXACT),
        ("tensorfloat32", "tensorfloat32"),
        (lax.Precision.HIGH, "high"),
        (lax.DotAlgorithmPreset.BF16_BF16_F32_X3, "BF16_BF16_F32_X3"),
        ("TF32_TF32_F32_X3", "TF32_TF32_F32_X3"),
    ],
)
def test_what_jax_calls_a_precision_is_one(given, name):
    assert as_precision(given) == name
    if name not in (None, EXACT):
        with jax.default_matmul_precision(name):  # knows it
            pass


@pytest.mark.parametrize("wrong", ["hihgest", "HIGHEST"])
@pytest.mark.parametrize(
    "take",
    [
        lambda p: mj.losses.supcon(X, Y, precision=p),
        lambda p: mj.losses.arcface(X, Y, W, precision=p),
        lambda p: mj.losses.koleo(X, precision=p),
        lambda p: mj.distances.euclidean(X, X, precision=p),
        lambda p: mj.similarities.cosine.at(p),
    ],
)
def test_another_precision_is_refused_by_name(take, wrong):
    with pytest.raises(ValueError, match=r"precision is '.*'; wanted None, \"exact\", a name"):
        take(wrong)


@measures
def test_called_directly_it_is_exact_unless_another_is_asked_for(measure):
    assert precisions(measure, X, X) == {"HIGHEST"}
    assert precisions(lambda x, y: measure(x, y, precision="high"), X, X) == {"HIGH"}
    assert precisions(lambda x, y: measure(x, y, precision=lax.Precision.DEFAULT), X, X) == {"DEFAULT"}
    with jax.default_matmul_precision("bfloat16"):
        assert precisions(measure, X, X) == {"HIGHEST"}


@measures
@pytest.mark.parametrize("bits", [TF32, BFLOAT16])
def test_called_directly_it_is_not_rounded_as_accelerators_round(measure, bits):
    f = lambda x, y: measure(x, y)
    np.testing.assert_array_equal(compiled(f, bits, X, X)(X, X), compiled(f, None, X, X)(X, X))
    hasty = lambda x, y: measure(x, y, precision="default")
    assert np.any(compiled(hasty, bits, X, X)(X, X) != compiled(hasty, None, X, X)(X, X))


def test_losses_take_the_default_for_similarities_and_exact_products_for_distances():
    gradient = lambda loss, **options: jax.value_and_grad(lambda z: loss(z, Y, **options))
    assert precisions(gradient(mj.losses.supcon), X) == {"DEFAULT"}
    assert precisions(gradient(mj.losses.contrastive), X) == {"HIGHEST"}
    assert precisions(gradient(mj.losses.contrastive, distance=mj.distances.euclidean), X) == {"HIGHEST"}
    own = mj.pairwise(kind="distance", exact=True)(lambda x, y: 1 - jnp.matmul(x, y.T))
    assert precisions(gradient(mj.losses.contrastive, distance=own), X) == {"HIGHEST"}
    for loss in (mj.losses.supcon, mj.losses.contrastive):
        for block_size in (None, 4):
            assert precisions(gradient(loss, precision="high", block_size=block_size), X) == {"HIGH"}
    assert precisions(gradient(mj.losses.supcon, precision=EXACT), X) == {"HIGHEST"}


@pytest.mark.parametrize("block_size", [None, 8])
def test_a_head_takes_one_precision_forwards_and_backwards(block_size):
    f = lambda loss, **how: jax.value_and_grad(lambda z, w: loss(z, Y, w, block_size=block_size, **how), (0, 1))
    for loss in (mj.losses.arcface, mj.losses.softmax, mj.losses.proxy_anchor):
        assert precisions(f(loss, precision="high"), X, W) <= {"HIGH"}
        assert "DEFAULT" in precisions(f(loss), X, W)


def test_on_tensor_cores_exact_products_are_six_of_bfloat16(monkeypatch):
    monkeypatch.setattr(precision, "_have_tensor_cores", lambda: True)
    x = X[:7]  # of a shape that nothing else has compiled
    assert precisions(lambda x: mj.distances.chord(x, x), x) == {SIX_PRODUCTS}
    assert precisions(jax.grad(lambda x: mj.losses.contrastive(x, Y[:7])), x) == {SIX_PRODUCTS}
    with jax.enable_x64(True):
        assert precisions(lambda x: mj.distances.chord(x, x), x.astype(jnp.float64)) == {"HIGHEST"}


@pytest.mark.parametrize(
    ("versions", "have"),
    [(["8.0", "9.0"], True), (["9.0", "7.5"], False), (["gfx90a"], False), ([], False)],
)
def test_tensor_cores_are_those_of_ampere_and_newer(monkeypatch, versions, have):
    class Device:
        platform = "gpu"

        def __init__(self, version):
            self.compute_capability = version

    monkeypatch.setattr(jax, "local_devices", lambda: list(map(Device, versions)))
    monkeypatch.setattr(precision, "compute_capabilities", precision.compute_capabilities.__wrapped__)
    assert precision._have_tensor_cores() is have


def test_one_distance_at_two_precisions_is_two_and_at_one_is_one():
    cosine = mj.similarities.cosine
    assert cosine.at("high") == cosine.at(lax.Precision.HIGH) != cosine == cosine.at(None)
    assert hash(cosine.at("high")) == hash(cosine.at("high"))
    assert cosine.at("high").at("highest") == cosine.at("highest")


def test_views_and_regularisers_have_it_too():
    f = lambda loss, **how: jax.value_and_grad(lambda x: loss(x, X + 0.1, **how))
    for loss in (mj.losses.info_nce, mj.losses.siglip, mj.losses.alignment_uniformity):
        assert precisions(f(loss, precision="high"), X) == {"HIGH"}
    assert precisions(f(mj.losses.barlow_twins), X) == precisions(f(mj.losses.vicreg), X) == {"HIGHEST"}
    assert precisions(lambda x: mj.losses.koleo(x, precision="high"), X) == {"HIGH"}
    lifted = lambda x: mj.losses.lifted_structure(x, Y, precision="high")
    assert precisions(lifted, X) == {"HIGH"}


# --- the errors that are documented ---------------------------------------------------------------------------------

DOCUMENTED = {
    name: [0.0 if cell == "–" else float(cell) for cell in cells.split(" | ")]
    for name, cells in re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
}


def test_errors_of_all_losses_are_documented():
    assert list(DOCUMENTED) == list(precision_table.CASES), "see tests.helpers.precision_table"
    assert set(CATALOGUE) - set(DOCUMENTED) == set(ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless(("supcon", "triplet", "arcface", "vicreg"), precision_table.CASES))
def test_errors_are_as_documented(name):
    """Errors of gradients to a factor of three; those of values, which may cancel, are not much larger."""
    documented = np.reshape(DOCUMENTED[name], (-1, 2))
    for (of_value, of_gradient), (value, gradient) in zip(precision_table.errors(name), documented, strict=True):
        assert of_value <= 10 * value + 3e-6
        assert of_gradient <= 3 * gradient + 1e-6
        assert gradient <= 3 * of_gradient
