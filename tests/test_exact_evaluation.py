"""Whoever evaluates, searches or clusters gets exact products, on any platform, without asking for them.

Each public function of these modules that takes embeddings runs on rows of a shape that nothing else has, so that all
of it is traced here, and every product of floats that is traced has to be exact. One product is of rows that are
rounded on purpose: that of the candidates of a search, whose error is bounded.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import metricjax as mj
from metricjax import clusters, metrics, search
from metricjax.search import Gallery
from tests.helpers.batches import slow_unless

D = 11
EXACT = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
OF_EMBEDDINGS = {"embeddings", "queries", "templates", "x"}
enrolled = lambda z, y: Gallery.empty(len(z), D).enrol(z, y)
templates = lambda z, y: metrics.templates(np.asarray(z), y, np.arange(len(y)))
halves = lambda z, y: [(z[start::2], y[start::2]) for start in (0, 1)]

RUNS = {  # of embeddings and labels
    "search.top_k": lambda z, y: search.top_k(z, z, 3),
    "search.top_k, by distance": lambda z, y: search.top_k(z, z, 3, distance=mj.distances.euclidean),
    "search.top_k, among codes": lambda z, y: search.top_k(z, search.compact(z), 3, coarse=search.compact(z, "binary")),
    "search.compact": lambda z, y: search.compact(z).decoded,
    "search.CompactGallery.identify": lambda z, y: enrolled(z, y).compact().identify(z),
    "search.Gallery.identify": lambda z, y: enrolled(z, y).identify(z),
    "search.Gallery.verify": lambda z, y: enrolled(z, y).verify(z, y),
    "clusters.k_means": lambda z, y: clusters.k_means(jax.random.key(0), z, 3),
    "clusters.connected_components": lambda z, y: clusters.connected_components(z, 0.5),
    "clusters.threshold_clusters": lambda z, y: clusters.threshold_clusters(z, 0.5),
    "metrics.retrieval": lambda z, y: metrics.retrieval(z, y),
    "metrics.compact_retrieval": lambda z, y: metrics.compact_retrieval(z, y, prefixes=(4, D)),
    "metrics.both_ways": lambda z, y: metrics.both_ways(z, z),
    "metrics.retrieval_means": lambda z, y: metrics.retrieval_means(z, y),
    "metrics.pair_scores": lambda z, y: metrics.pair_scores(z, y),
    "metrics.group_pair_rates": lambda z, y: metrics.group_pair_rates(z, y, np.asarray(y) // 2, 0.5),
    "metrics.roc_bands": lambda z, y: metrics.roc_bands(z, y, [0.1], resamples=5),
    "metrics.calibrated_pair_threshold": lambda z, y: metrics.calibrated_pair_threshold(z, y, 0.1, resamples=5),
    "metrics.identification": lambda z, y: metrics.identification(z, y, z, y),
    "metrics.identification_over_galleries": lambda z, y: metrics.identification_over_galleries(
        z, y, halves(z, y), fpirs=()
    ),
    "metrics.templates": templates,
    "metrics.pair_similarities": lambda z, y: metrics.pair_similarities(templates(z, y), [[0, 1], [1, 2]]),
    "metrics.hardest_pairs": lambda z, y: metrics.hardest_pairs(z, y),
    "metrics.health": lambda z, y: metrics.health(z, y),
    "metrics.embedding_health": lambda z, y: metrics.embedding_health(z, y),
}


def test_every_public_function_of_embeddings_is_here():
    for module in (search, clusters, metrics):
        for name in module.__all__:
            f = getattr(module, name)
            takes = set(inspect.signature(f).parameters) if inspect.isfunction(f) else set()
            if takes & OF_EMBEDDINGS:
                assert f"{module.__name__.removeprefix('metricjax.')}.{name}" in RUNS


OFTEN = ("search.top_k", "search.Gallery.identify", "metrics.retrieval", "metrics.pair_scores", "metrics.health")


@pytest.mark.parametrize("name", slow_unless(OFTEN, RUNS))
def test_all_products_are_exact(name, monkeypatch):
    seen, bind = [], lax.dot_general_p.bind

    def spy(x, y, **how):
        if jnp.issubdtype(jnp.result_type(x), jnp.floating) and jnp.result_type(x) != jnp.bfloat16:
            seen.append((how["precision"], np.shape(x), np.shape(y)))
        return bind(x, y, **how)

    monkeypatch.setattr(lax.dot_general_p, "bind", spy)
    n = 41 + list(RUNS).index(name)  # another shape for each, as JAX traces no product of two shapes twice
    z = np.random.default_rng(0).standard_normal((n, D)).astype(np.float32)
    RUNS[name](jnp.asarray(z), jnp.arange(n) // 4)
    assert all(precision == EXACT for precision, *_ in seen), seen
