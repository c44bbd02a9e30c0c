"""Sizes of panels, blocks and tiles: within their limits at every shape, where other tests set them by hand."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import sizes

ROWS = (1, 2, 7, 128, 1000, 2049, 10_000, 10**6)
EVEN = {
    sizes.rows_in_joined_tile: 1024,
    sizes.rows_in_summed_tile: 512,
    sizes.queries_in_identification: 2048,
}


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("size", EVEN)
def test_parts_are_few_and_of_one_size(size, n):
    height = size(n)
    parts = -(-n // height)
    assert height <= EVEN[size]
    assert parts == -(-n // EVEN[size])
    assert parts * height - n < parts


@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("m", (*ROWS, 2**23))
def test_panels_hold_no_more_scores_than_they_may(n, m):
    for height, most in (
        (sizes.queries_in_panel(n, m, 128, 10).cpu, 2**24),
        (sizes.rows_in_panel(n, m).cpu, 2**21),
        (sizes.rows_in_table(m), 2**22),
    ):
        assert height == 1 or height * m <= most
    queries = sizes.queries_in_identification(n)
    width = sizes.gallery_in_block(m, queries)
    assert 1 <= width <= m and width * queries <= 2**21
    assert width % sizes.lanes(width) == 0 and (width < 128 or sizes.lanes(width) == 128)


def test_without_rows():
    assert sizes.queries_in_panel(0, 5, 3, 1) == (0, 0)
    assert sizes.rows_in_joined_tile(0) == sizes.rows_in_table(0) // 1024 == 1


@pytest.mark.parametrize("k", [1, 10, 100, 1000, 5000])
@pytest.mark.parametrize("n", [1, 4096])
def test_groups_are_taken_where_they_save_half_of_the_candidates(n, k):
    width = sizes.references_in_block(n, 10**6, 128, k).cpu
    assert 2**13 <= width <= 2**17 and width & (width - 1) == 0
    for columns in (k, 2 * k, width, width - 1, 10**6):
        size, on_chip = sizes.columns_in_group(columns, k)
        assert size == 1 or (size & (size - 1) == 0 and columns // size + k * size < columns / 2)
        assert on_chip == (1 if columns <= 4096 else size)


@pytest.mark.parametrize("budget", [2**26, 2**28, 2**31])
@pytest.mark.parametrize("d", [2, 128, 1024])
@pytest.mark.parametrize("k", [1, 100])
def test_a_search_on_accelerators_stays_in_its_budget_in_whole_tiles(budget, d, k):
    for n in ROWS:
        for m in (*ROWS, 2**23):
            references = sizes.references_in_block(n, m, d, k, budget).accelerator
            queries = sizes.queries_in_panel(n, references, d, k, budget).accelerator
            assert references == m or references % 128 == 0
            assert queries == n or queries % 128 == 0 or (queries < 128 and queries % 8 == 0)
            candidates = sizes.candidates(n, references, k)
            assert candidates in (0, 2 * k + 16) and candidates < references
            used = 8 * d * references + 4 * queries * (references + candidates * d)
            assert used <= budget


@pytest.mark.parametrize("n", ROWS)
def test_sorted_tiles_are_powers_of_two_that_hold_small_sets_whole(n):
    side = sizes.rows_in_sorted_tile(n)
    assert side & (side - 1) == 0 and 8 <= side <= 1024
    assert side >= min(n, 512)


def test_a_calibration_holds_all_impostors_where_they_are_few():
    assert [sizes.impostors_held(wanted, 5000) for wanted in (1, 2000, 9000)] == [1024, 2000, 5000]
    assert sizes.impostors_held(1, 7) == 7


# --- by platform ----------------------------------------------------------------------------------------------------


def lowered(f, *shapes, platform: str) -> str:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32 if len(shape) > 1 else jnp.int32) for shape in shapes]
    return jax.jit(jax.value_and_grad(f)).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def products(program: str) -> set[tuple[int, ...]]:
    """Shapes of the matrix products in a program."""
    found = re.findall(r"dot_general.*-> tensor<([0-9x]+)xf32>", program)
    return {tuple(map(int, shape.split("x"))) for shape in found}


def loops(program: str) -> set[int]:
    """How many steps the loops of a program have, of those whose number is known."""
    steps = r"cond \{\s*%\S+ = stablehlo.constant dense<(\d+)> : tensor<i\d+>\s*%\S+ = stablehlo.compare +LT"
    return set(map(int, re.findall(steps, program)))


ROWS_OF_PANELS = {4096: (256, 1024), 65536: (16, 2048), 262144: (8, 512)}


@pytest.mark.parametrize("d", [128, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", ROWS_OF_PANELS)
def test_panels_fit_a_cache_on_cpus_and_are_few_on_accelerators(n, d):
    for loss in (partial(mj.losses.supcon, implementation="panels"), mj.losses.triplet):
        for platform, height in zip(("cpu", "cuda", "tpu"), (*ROWS_OF_PANELS[n], ROWS_OF_PANELS[n][1]), strict=True):
            program = lowered(loss, (n, d), (n,), platform=platform)
            assert {rows for rows, columns in (s for s in products(program) if len(s) == 2) if columns == n} == {height}
            assert n // height in loops(program)


@pytest.mark.parametrize(("n", "d", "c"), [(1024, 128, 10**6), (1024, 1024, 10**6), (512, 512, 10**5)])
def test_blocks_of_classes_fit_a_cache_on_cpus_and_are_few_on_accelerators(n, d, c):
    cpu, accelerator = sizes.classes_in_block(n, d, c)
    assert cpu * n <= 2**21 and (accelerator % 128 == 0 or accelerator == c)
    f = lambda z, y, w: mj.losses.arcface(z, y, w)
    for platform, width in (("cpu", cpu), ("cuda", accelerator), ("tpu", accelerator)):
        program = lowered(f, (n, d), (n,), (c, d), platform=platform)
        assert (n, width) in products(program)
        assert c // width in loops(program)
    assert math.ceil(c / accelerator) <= 16
    assert sizes.classes_in_block(n, d, 100) is None


def test_small_sets_are_dense_everywhere_and_little_memory_makes_more_panels():
    assert sizes.anchors_in_panel(256, 256) is None and sizes.classes_in_block(64, 64, 1000) is None
    assert sizes.anchors_in_panel(1000, 1000).accelerator == 1000
    heights = [sizes.anchors_in_panel(65536, 65536, budget).accelerator for budget in (2**31, 2**30, 2**28, 2**20)]
    assert heights == [1280, 640, 128, 8]
    program = lowered(lambda z, y: mj.losses.supcon(z, y, memory_budget=2**30), (65536, 64), (65536,), platform="cuda")
    assert (640, 65536) in products(program)


def test_a_program_for_two_platforms_has_both_sizes():
    arrays = jax.ShapeDtypeStruct((4096, 16), jnp.float32), jax.ShapeDtypeStruct((4096,), jnp.int32)
    traced = jax.jit(lambda z, y: mj.losses.supcon(z, y)).trace(*arrays)
    found = products(traced.lower(lowering_platforms=("cpu", "cuda")).as_text())
    assert {(256, 4096), (1024, 4096)} <= found


@pytest.mark.slow
def test_derivatives_and_vmap_go_through_the_choice_of_a_platform():
    z = jax.random.normal(jax.random.key(0), (1100, 4))
    w = jax.random.normal(jax.random.key(1), (60_000, 4))
    y = jnp.arange(1100) // 3

    mean_of_anchors = lambda mean: jnp.mean(mean.total / jnp.maximum(mean.count, 1))
    numbers = jnp.array([0.1, 0.5])

    def everything(block_size):
        of = {
            "supcon": lambda z, t: mj.losses.supcon(z, y, temperature=t, block_size=block_size),
            "triplet": lambda z, t: mj.losses.triplet(z, y, margin=t, block_size=block_size),
            "circle": lambda z, t: mj.losses.circle(z, y, scale=t, reduction=mean_of_anchors, block_size=block_size),
        }
        way = {name: jax.jit(jax.vmap(jax.value_and_grad(f), (None, 0)))(z, numbers) for name, f in of.items()}
        way["tangent"] = jax.jit(lambda z: jax.jvp(lambda z: of["supcon"](z, 0.1), (z,), (z + 1,)))(z)
        heads = jax.value_and_grad(lambda w: mj.losses.arcface(z, y, w, block_size=block_size))
        return way | {"arcface": jax.jit(heads)(w)}

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), everything("auto"), everything(None)
    )
