"""Batches of the losses' tests, and how near results have to be."""

from functools import partial

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import oracle
from tests.helpers.cases import CLASS_PATHS, CLASSES, OFTEN, PAIRS, PATHS, VIEWS

N, D, C = 14, 6, 5


def batch(seed=0, n=N, dtype=np.float32):
    """Embeddings of uneven lengths, labels of uneven frequency (one occurs once), and prototypes."""
    rng = np.random.default_rng(seed)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4])[rng.permutation(N)][:n]
    middle = rng.standard_normal((C, D))
    embeddings = middle[labels] + 0.8 * rng.standard_normal((n, D))
    prototypes = rng.standard_normal((C, D))
    return jnp.asarray(embeddings, dtype), jnp.asarray(labels), jnp.asarray(prototypes, dtype)


def close(actual, wanted, rtol=2e-5, atol=2e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(wanted, np.float64), rtol=rtol, atol=atol)


def assert_finite(tree):
    chex.assert_tree_all_finite(tree)


def inputs(case, seed=0, **options):
    z, y, prototypes = batch(seed, **options)
    if case not in CLASSES.values():
        return z, y
    turned = jnp.stack([prototypes, prototypes[::-1], prototypes[:, ::-1]], axis=1)
    return z, y, turned if case.several else prototypes


def masks(labels):
    positives, negatives = oracle.neighbours(labels)
    dense = lambda lists: jnp.asarray([[j in row for j in range(len(labels))] for row in lists])
    return positives, negatives, dense(positives), dense(negatives)


def slow_unless(ways, cases):
    """The names of all cases, of which those that take the way of another are slow."""
    return [name if name in ways else pytest.param(name, marks=pytest.mark.slow) for name in cases]


def each_of(names, often=None):
    """Run a test for the losses of these names, of which those that are not among `often`, if given, are slow."""
    cases = {**PAIRS, **CLASSES, **VIEWS}
    slow = lambda name: [pytest.mark.slow] if often is not None and name not in often else []
    return pytest.mark.parametrize("case", [pytest.param(cases[name], id=name, marks=slow(name)) for name in names])


pairs, classes = each_of(PAIRS), each_of(CLASSES)
paths, class_paths = each_of(PATHS, OFTEN), each_of(CLASS_PATHS, OFTEN)


def pairs_with(option, often=OFTEN, names=PAIRS):
    """The losses over pairs that take `option`."""
    return each_of([name for name in names if option not in PAIRS[name].lacks], often)


paths_with = partial(pairs_with, names=PATHS)
