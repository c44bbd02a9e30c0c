"""Searches and galleries exported with a free number of queries: the answers are those of any number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import metricjax as mj

RNG = np.random.default_rng(0)
(N,) = export.symbolic_shape("n")
QUERIES = jax.ShapeDtypeStruct((N, 6), jnp.float32)


def rows(n):
    return jnp.asarray(RNG.standard_normal((n, 6)), jnp.float32)


def exported(f, *shapes, platforms=None):
    return export.export(jax.jit(f), platforms=platforms)(*shapes)


REFERENCES = rows(300)
SEARCHES = {
    "cosine": lambda q: mj.search.top_k(q, REFERENCES, 3),
    "euclidean": lambda q: mj.search.top_k(q, REFERENCES, 3, distance=mj.distances.euclidean),
    "blocks": lambda q: mj.search.top_k(q, REFERENCES, 3, block_size=64, where=jnp.arange(300) % 3 > 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_search(search):
    searched = exported(search, QUERIES)
    for n in (1, 5, 300):
        queries = rows(n)
        scores, indices = searched.call(queries)
        wanted = search(queries)
        np.testing.assert_array_equal(indices, wanted.indices)
        np.testing.assert_allclose(scores, wanted.scores, rtol=1e-5, atol=1e-6)


def test_it_exports_for_gpus_and_tpus():
    big = jnp.ones((20_000, 6))
    assert exported(lambda q: mj.search.top_k(q, big, 10), QUERIES, platforms=("cpu", "cuda", "tpu")).platforms


@pytest.mark.slow
def test_a_gallery():
    gallery = mj.search.Gallery.empty(50, 6).enrol(rows(40), jnp.arange(40, dtype=jnp.int32) // 2)
    identify = lambda gallery, q: tuple(gallery.identify(q, 0.3, k=2))
    verify = lambda gallery, q, ids: gallery.verify(q, ids)
    leaves, structure = jax.tree.flatten(gallery)
    given = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    of_leaves = lambda f: lambda leaves, *a: f(jax.tree.unflatten(structure, leaves), *a)
    identified = exported(of_leaves(identify), given, QUERIES)
    verified = exported(of_leaves(verify), given, QUERIES, jax.ShapeDtypeStruct((N,), jnp.int32))
    for n in (1, 7, 50):
        queries, ids = rows(n), jnp.asarray(RNG.integers(-1, 30, n), jnp.int32)
        for found, wanted in zip(identified.call(leaves, queries), identify(gallery, queries), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
        np.testing.assert_allclose(verified.call(leaves, queries, ids), verify(gallery, queries, ids), rtol=1e-5)
