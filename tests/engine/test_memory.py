"""What compiled programs keep: read from XLA, without running them."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from metricjax.engine.sizes import BUDGET
from tests.helpers.batches import slow_unless
from tests.helpers.cases import CLASSES, PAIRS, PATHS

D = 128


def compiled(case, n):
    z, y = jax.ShapeDtypeStruct((n, D), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    return jax.jit(jax.value_and_grad(lambda z, y: case(z, y))).lower(z, y).compile()


# Arrays of the size of the embeddings, and MiB, for losses that reach rows of columns, or make columns of their own.
ALLOWED = {
    **dict.fromkeys(("angular", "triplet-swap-all", "quadruplet", "quadruplet-valid"), (6, 48)),
    **dict.fromkeys(("lifted_structure", "histogram", "intra_pair_variance", "signal_to_noise"), (3, 48)),
    **dict.fromkeys(("centroid_triplet", "centroid_triplet-hardest"), (8, 48)),
}


OFTEN = ("triplet", "supcon")


@pytest.mark.parametrize("name", slow_unless(OFTEN, PAIRS))
def test_temporaries_are_linear_in_the_batch(name):
    """Mostly three arrays of the size of the embeddings and 32 MiB, at most 2.2 times as much for twice the batch."""
    arrays, rest = ALLOWED.get(name, (3, 32))
    used = {}
    for n in (32768, 65536):
        program = compiled(PAIRS[name], n)
        used[n] = program.memory_analysis().temp_size_in_bytes
        assert used[n] <= arrays * n * D * 4 + rest * 2**20
        shapes = re.findall(r"[a-z]+[0-9]*\[([0-9,]+)\]", program.as_text())
        most = max(math.prod(map(int, shape.split(","))) for shape in shapes)
        assert most <= max(n * n / 64, 2**20)  # no more than a panel
    assert used[65536] <= 2.2 * used[32768]


@pytest.mark.parametrize("name", slow_unless(("supcon", "triplet-swap-all", "histogram"), PATHS))
def test_panels_of_accelerators_stay_within_their_budget(name, accelerator_sizes):
    """In the sizes that a GPU gets, compiled for a CPU, which keeps more than a GPU does."""
    n = 40_000  # which no other test has: what was traced for it before would be taken
    used = compiled(partial(PAIRS[name], implementation="panels"), n).memory_analysis().temp_size_in_bytes
    assert used <= BUDGET + ALLOWED.get(name, (3, 0))[0] * n * D * 4
    assert used > BUDGET / 16  # these are not the panels of a CPU


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["arcface", "sphereface", "proxy_anchor", "sub_center_arcface", "soft_triple"])
def test_blocks_of_accelerators_stay_within_their_budget(name, dtype, accelerator_sizes):
    case, n, d, c = CLASSES[name], 1000, 64, 400_000
    shapes = ((n, d), (c, 5, d) if case.several else (c, d))
    with jax.enable_x64(dtype == jnp.float64):
        z, w = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
        y = jax.ShapeDtypeStruct((n,), jnp.int32)
        program = jax.jit(jax.value_and_grad(lambda z, w, y: case(z, y, w), (0, 1))).lower(z, w, y).compile()
    of_prototypes = 2 * math.prod(w.shape) * w.dtype.itemsize  # `proxy_anchor`, whose terms are those of proxies
    used = program.memory_analysis().temp_size_in_bytes
    assert used <= BUDGET + (of_prototypes if name == "proxy_anchor" else 0)
    assert used > BUDGET / 16
