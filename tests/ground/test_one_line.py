"""Results print in one line, whatever they hold."""

import importlib
import inspect
import pathlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.ground.one_line import one_line

NATURAL = {"Calibration", "ErrorRates", "Pixels", "PrecisionRecall", "Variant"}  # a few numbers each
SLOW = {"data", "Characters", "Couples", "Faces", "Listing", "PairImages", "Pairs"}  # to import
ROOMS = ("anchors", "clusters", "data", "memory", "metrics", "mining", "search", "variants")
N, D = 10_000, 512
z, on_host = partial(jax.ShapeDtypeStruct, dtype=jnp.float32), partial(np.zeros, dtype=np.float32)
whole, flags, pairs = np.zeros(N, int), np.zeros(N, bool), np.zeros((99, 2), int)
curve = mj.metrics.Roc(on_host(N), np.arange(N) * 1000, np.arange(N))
images, names = np.zeros((N, 1, 1, 3), np.uint8), ["Ann Björk"] * N
RESULTS = {
    "Bank": lambda: mj.memory.Bank.empty(N, 8),
    "Bands": lambda: mj.metrics.Bands(on_host(N), on_host(N), on_host(N)),
    "Characters": lambda: mj.data.Characters(images, whole, whole, whole, names, names),
    "Clusters": lambda: mj.clusters.Clusters(whole, z((N, D)), jnp.float32(0.5), jnp.int32(20)),
    "Couples": lambda: mj.data.Couples([(pathlib.Path(name), pathlib.Path(name)) for name in names], names),
    "ErrorVersusReject": lambda: mj.metrics.ErrorVersusReject(on_host(N), on_host(N), 0.123456789),
    "Faces": lambda: mj.data.Faces(images, whole, names, names),
    "Gallery": lambda: mj.search.Gallery.empty(N, 8),
    "HardNegatives": lambda: mj.mining.HardNegatives(z((N, 10)), z((N, 10)), z((N,))),
    "HardestPairs": lambda: mj.metrics.HardestPairs(pairs, on_host(99), pairs, on_host(99)),
    "LeaderClusters": lambda: mj.clusters.LeaderClusters(whole, z((N, D)), whole, jnp.int32(0)),
    "Listing": lambda: mj.data.Listing(pathlib.Path("/a" * 200), [pathlib.Path(name) for name in names], {}, names),
    "Matches": lambda: mj.search.Matches(z((N, 10)), z((N, 10))),
    "Mean": lambda: mj.Mean(z((N,)), z((N,))),
    "Codes": lambda: mj.search.compact(jnp.zeros((N, 8))),
    "CompactGallery": lambda: mj.search.Gallery.empty(N, 8).compact(),
    "Neighbours": lambda: mj.search.Neighbours(z((N, 10)), z((N, 10))),
    "PairImages": lambda: mj.data.PairImages(images, flags),
    "PairScores": lambda: mj.metrics.PairScores(curve, on_host(101), whole[:100], whole[:100]),
    "Pairs": lambda: mj.data.Pairs(names, names, flags, whole),
    "Roc": lambda: curve,
    "Searches": lambda: mj.metrics.Searches(whole, on_host(N), on_host(N)),
    "SubCenters": lambda: importlib.import_module("metricjax.losses.margin_softmax").SubCenters(whole, flags),
    "Templates": lambda: mj.metrics.Templates(z((N, D)), whole),
    "Trained": lambda: mj.variants.Trained({"w": z((N, D))}, whole, {"loss": whole}, 8, {"training": 1 / 3}),
    "Triplets": lambda: mj.mining.Triplets(z((N, 10)), z((N, 10)), z((N, 10)), z((N, 10))),
}


def each(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", each(RESULTS))
def test_a_large_result_prints_in_a_line(name):
    result = RESULTS[name]()
    assert type(result).__name__ == name
    line = repr(result)
    assert len(line) < 120 and line.isprintable(), line
    assert "Ann" not in line and "..." not in line  # what NumPy and JAX put where there is too much


@pytest.mark.parametrize("room", each(ROOMS))
def test_every_result_is_tried(room):
    kinds = vars(getattr(mj, room)).items()
    found = {name for name, kind in kinds if inspect.isclass(kind) and issubclass(kind, tuple) and name[0] != "_"}
    assert found & set(vars(getattr(mj, room))["__all__"]) <= RESULTS.keys() | NATURAL


def test_what_results_say():
    curve = mj.metrics.roc([0.9, 0.5, 0.5, 0.1], [True, True, False, False])
    assert repr(curve) == "<ROC of 2 genuine and 2 impostor pairs, 4 points>"
    scores = mj.metrics.PairScores(curve, np.linspace(-1, 1, 6), np.ones(5, int), np.ones(5, int))
    assert repr(scores) == "<scores of 2 genuine and 2 impostor pairs, 5 bins>"
    found = mj.metrics.searches(np.eye(3, 2), np.array([0, 1, 2]), np.array([0, 1]))
    assert repr(found) == "<searches: 2 queries with a mate, 1 without>"
    assert repr(mj.Mean(jnp.float32(1.5), jnp.int32(3))) == "Mean(total=1.5, count=3)"


def test_what_jax_puts_into_results_prints_too():
    printed = []

    @jax.jit
    def traced(curve, mean, gallery):
        printed.extend(map(repr, (curve, mean, gallery)))
        return mean

    curve, gallery = mj.metrics.roc([0.9, 0.1], [True, False]), mj.search.Gallery.empty(4, 2)
    assert repr(curve).startswith("<ROC")
    traced(curve, mj.Mean(jnp.ones(3), jnp.float32(1)), gallery)
    assert printed[0].startswith("Roc(thresholds=float") and "false_accepts=int" in printed[0]
    assert printed[1] == "Mean(total=float32[3], count=float32[])"
    assert printed[2] == "Gallery(sums=float32[4, 2], ids=int32[4], overflow=int32[])"
    assert "PRNG" not in repr(mj.Mean(jax.random.key(0), jax.random.key(0)))
    for leaf, shown in {None: "None", 0: "0", object(): "object"}.items():
        tree = jax.tree.map(lambda _, leaf=leaf: leaf, mj.Mean(jnp.ones(3), jnp.ones(3)))
        assert repr(tree) == f"Mean(total={shown}, count={shown})"
    assert repr(jax.tree.map(lambda a: a[:0], curve)).startswith("Roc(")  # has no pairs to count
    given_away = jnp.float32(1)
    given_away.delete()
    assert repr(mj.Mean(given_away, given_away)) == "Mean(total=float32[], count=float32[])"


def test_a_line_of_other_values():
    class Held(NamedTuple):
        value: object

    lines = {"a\nb": "'a\\nb'", "x" * 99: f"'{'x' * 39}…'", 0.5: "0.5", True: "True", (1, 2): "tuple[2]"}
    for value, shown in lines.items():
        assert one_line(Held(value)) == f"Held(value={shown})"
