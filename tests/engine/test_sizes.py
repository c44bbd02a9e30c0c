"""Sizes of panels, blocks and tiles: within their limits at every shape, where other tests set them by hand."""

import pytest

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
        (sizes.queries_in_panel(n, m, 128, 10).cpu, 2**21),
        (sizes.rows_in_panel(n, m), 2**21),
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
def test_groups_are_taken_where_they_save_half_of_the_candidates(k):
    width = sizes.references_in_block(10**6, 128, k).cpu
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
            references = sizes.references_in_block(m, d, k, budget).accelerator
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
    assert side & (side - 1) == 0 and 8 <= side <= 2048
    assert side >= min(n, 2048)


def test_a_calibration_holds_all_impostors_where_they_are_few():
    assert [sizes.impostors_held(wanted, 5000) for wanted in (1, 2000, 9000)] == [1024, 2000, 5000]
    assert sizes.impostors_held(1, 7) == 7
