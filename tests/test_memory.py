"""What compiled programs keep: read from XLA, without running them."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from tests.cases import PAIRS

D = 128


def compiled(case, n):
    z, y = jax.ShapeDtypeStruct((n, D), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    return jax.jit(jax.value_and_grad(lambda z, y: case(z, y))).lower(z, y).compile()


@pytest.mark.parametrize("name", PAIRS)
def test_temporaries_are_linear_in_the_batch(name):
    """At most three arrays of the size of the embeddings and 32 MiB, at most 2.2 times as much for twice the batch."""
    used = {}
    for n in (4096, 32768, 65536):
        program = compiled(PAIRS[name], n)
        used[n] = program.memory_analysis().temp_size_in_bytes
        assert used[n] <= 3 * n * D * 4 + 32 * 2**20
        shapes = re.findall(r"[a-z]+[0-9]*\[([0-9,]+)\]", program.as_text())
        most = max(math.prod(map(int, shape.split(","))) for shape in shapes)
        assert most <= max(n * n / 64, 2**20)  # no more than a panel
    assert used[65536] <= 2.2 * used[32768]
