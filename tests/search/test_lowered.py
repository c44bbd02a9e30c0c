"""What a search becomes on each platform, read from the lowered program, for which no device is needed."""

import re
from math import ceil

import jax
import jax.numpy as jnp
import pytest

import metricjax as mj
from metricjax.engine.sizes import BUDGET

M = 10**6


def lowered(platform, n, d, k=10, **options):
    shapes = (jax.ShapeDtypeStruct((rows, d), jnp.float32) for rows in (n, M))
    search = lambda x, y: mj.search.top_k(x, y, k, **options)
    return jax.jit(search).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def products(text):
    """Operands' type and (queries, references) of each panel of scores."""
    found = re.findall(r"dot_general.*: \(tensor<\d+x\d+x(\w+)>, .* -> tensor<(\d+)x(\d+)xf32>", text)
    return {(kind, int(n), int(m)) for kind, n, m in found if m != "1"}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    "n, d, k, steps",
    [(64, 128, 10, 1), (64, 1024, 10, 8), (4096, 128, 10, 16), (1024, 128, 100, 4), (4096, 1024, 10, 24)],
)
def test_accelerators_take_few_large_panels(platform, n, d, k, steps):
    panels = products(lowered(platform, n, d, k))
    assert {kind for kind, _, _ in panels} == ({"f32"} if n < 512 else {"bf16", "f32"})
    queries = {queries for _, queries, _ in panels}
    height, width = max(queries), max(references for _, _, references in panels)
    assert queries == {height}
    assert height == n or height % 128 == 0
    assert width == M or width % 128 == 0
    assert ceil(n / height) * ceil(M / width) == steps
    assert 4 * height * width + 8 * d * width <= BUDGET


@pytest.mark.parametrize("n, k, panel", [(64, 10, (64, 8192)), (4096, 10, (128, 16384)), (1024, 100, (128, 2**17))])
def test_cpus_take_panels_that_fit_a_cache_or_need_few_sorts(n, k, panel):
    height, width = panel
    assert products(lowered("cpu", n, 128, k)) == {("f32", height, width), ("f32", height, M % width)}


def test_less_memory_for_those_who_want_less():
    for budget in (2**26, 2**29):
        for _, queries, references in products(lowered("cuda", 4096, 128, memory_budget=budget)):
            assert queries % 128 == 0 and 4 * queries * references + 8 * 128 * references <= budget
    with pytest.raises(ValueError, match="memory_budget is 0; wanted"):
        lowered("cpu", 3, 2, memory_budget=0)


@pytest.mark.parametrize("k", [1, 10, 100])
def test_accelerators_sort_short_rows_only(k):
    text = lowered("cuda", 1024, 128, k)
    sorted_rows = [int(width) for width in re.findall(r"chlo\.top_k\(.*: tensor<\d+x(\d+)xf32>", text)]
    assert sorted_rows and max(sorted_rows) <= 4096


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_exact_unless_asked_otherwise(platform):
    own = lambda x, y: x @ y.T
    for options in ({}, {"similarity": own}, {"distance": mj.distances.euclidean}):
        text = lowered(platform, 64, 8, **options)
        assert {kind for kind, _, _ in products(text)} == {"f32"} and "DEFAULT" not in text
        fast = lowered(platform, 4096, 8, precision="default", **options)
        assert "DEFAULT" in fast and {kind for kind, _, _ in products(fast)} == {"f32"}
    with pytest.raises(ValueError, match="precision is 'exakt'; wanted None, \"exact\", a name"):
        lowered(platform, 3, 2, precision="exakt")


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_a_gallery_is_exact(platform):
    gallery, queries, ids = mj.search.Gallery.empty(5000, 32), jnp.ones((7, 32)), jnp.arange(7)
    identify = jax.jit(lambda queries: gallery.identify(queries)).trace(queries)
    verify = jax.jit(lambda queries: gallery.verify(queries, ids)).trace(queries)
    for traced in (identify, verify):
        assert "DEFAULT" not in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("n, d, k", [(64, 128, 10), (4096, 128, 10), (1024, 128, 100), (4096, 1024, 10)])
def test_panels_of_accelerators_stay_within_their_budget(n, d, k, accelerator_sizes):
    """In the sizes that a GPU gets, compiled for a CPU, which keeps more than a GPU does."""
    shapes = (jax.ShapeDtypeStruct((rows, d), jnp.float32) for rows in (n, M + 1))  # which no other test has traced
    program = jax.jit(lambda x, y: mj.search.top_k(x, y, k)).lower(*shapes).compile()
    assert BUDGET / 8 < program.memory_analysis().temp_size_in_bytes <= BUDGET
