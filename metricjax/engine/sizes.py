"""How much is worked on at a time: the one file that knows sizes of panels, blocks, tiles and lists.

A CPU wants a panel in its cache. GPUs and TPUs want few panels, each of which fills the chip, within a budget of
memory. Which of the two a program gets is chosen when it is lowered: `of_platform`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

from jax import lax

from metricjax.ground.numerics import computing_dtype

__all__ = [
    "BUDGET",
    "CANDIDATES_FROM",
    "COUNTED_DISTANCES",
    "COUNTED_LIMITS",
    "LIST",
    "LISTS_OF_MATCHES",
    "LISTS_OF_ROWS",
    "QUERIES_IF_UNKNOWN",
    "RANKED_TOGETHER",
    "ROWS_IN_TILE_OF_TPU",
    "SEARCHED_GROUP",
    "SORTED_ROW",
    "ByPlatform",
    "Size",
    "Tiling",
    "anchors_in_panel",
    "candidates",
    "classes_in_block",
    "columns_in_group",
    "features_in_tile_of_tpu",
    "gallery_in_block",
    "ids_to_compare",
    "impostors_held",
    "in_float32",
    "lanes",
    "leaders_at_once",
    "levels_and_buckets",
    "of_platform",
    "pairs_at_once",
    "panels_in_ranking",
    "parts_of",
    "queries_in_identification",
    "queries_in_panel",
    "queries_in_ranking",
    "queries_rescored_at_once",
    "references_in_block",
    "rows_in_double",
    "rows_in_joined_tile",
    "rows_in_panel",
    "rows_in_sorted_tile",
    "rows_in_summed_tile",
    "rows_in_swept_tile",
    "rows_in_table",
    "rows_in_tally",
    "rows_in_tile_of_positives",
    "rows_led_at_once",
    "rows_sorted_at_once",
    "rows_sorted_on_host",
    "scores_sorted_at_once",
    "seeds_at_once",
    "tiling_in_kernel",
]

LIST = 64  # positives of an anchor that are listed, and looked at one by one; with more, all columns are
LISTS_OF_ROWS = (4, 16, LIST)  # the same in finer steps, where each positive needs a row of its own
SEARCHED_GROUP = 64  # entries of a row in a group whose largest is looked at first
COUNTED_LIMITS, COUNTED_DISTANCES = 4, 32  # counted in one sum
SORTED_ROW = 4096  # entries of a row that accelerators sort at once in a search
CANDIDATES_FROM = 512  # queries for which a search finds candidates by rounded products first
_FEW_QUERIES = 64
QUERIES_IF_UNKNOWN = 128  # of a search that is exported for any number of them
BUDGET = 3 * 2**30  # bytes that a panel or block may take on accelerators
_OF_SCORE, _OF_POOLED = 24, 36  # bytes that go with a score: its gradient, masks, and what a loss makes of it
_OF_FEATURE = 12  # bytes of a feature of a prototype: a copy, its gradient, and that of the scores
ROWS_IN_TILE_OF_TPU = 512  # and columns, of a kernel
_TILE = 128  # rows and columns that matrix units take at once
_COPIED, _SEARCHED = 12, 6  # bytes that go with a feature of references, and with a score, in a search


class ByPlatform(NamedTuple):
    """A size on CPUs, and another on GPUs and TPUs."""

    cpu: int
    accelerator: int


Size: TypeAlias = int | ByPlatform
T = TypeVar("T")


def of_platform(size: Size, f: Callable[[int], T]) -> T:
    """`f(size)` for the platform that the program is lowered for. `f` may use traced values of its surroundings."""
    if isinstance(size, int) or size.cpu == size.accelerator:
        return f(size if isinstance(size, int) else size.cpu)
    return lax.platform_dependent(cpu=lambda: f(size.cpu), default=lambda: f(size.accelerator))


def in_float32(budget: int, dtype: Any) -> int:
    """The budget, as if numbers of this dtype took what those of float32 take, which sizes are made for."""
    return budget * 4 // computing_dtype(dtype).itemsize


def parts_of(size: Size, parts: int) -> Size:
    """The size for rows that take `parts` times the memory."""
    if isinstance(size, int):
        return max(1, size // parts)
    return ByPlatform(max(1, size.cpu // parts), _whole_tiles(size.accelerator // parts))


def anchors_in_panel(n: int, m: int, budget: int = BUDGET, heavy: bool = False) -> Size | None:
    """Anchors at a time of n, with scores against m columns; None for all, the dense form, which compiles faster.

    On accelerators four panels, of at least 1024 anchors, or as many as the budget asks for; a `heavy` loss holds up to
    three times as many arrays of scores.
    """
    if n * m <= 2**16:
        return None
    quarter = max(1024, math.ceil(n / (4 * _TILE)) * _TILE)
    affordable = _affordable(m * _OF_SCORE * (3 if heavy else 1), budget)
    return ByPlatform(min(n, max(8, min(512, 2**20 // m // 8 * 8))), _even_tiles(n, min(quarter, affordable)))


def classes_in_block(n: int, d: int, c: int, budget: int = BUDGET, pooled: int = 0) -> Size | None:
    """Classes at a time of c, with scores of n rows; None for all, the dense form, which is faster while it fits.

    The dense form holds a copy of the prototypes [c, d] too; a block on accelerators holds copies of its own, and of
    the scores of `pooled` prototypes of each class more of them.
    """
    if max(n, d) * c <= 2**22:
        return None
    of_class = pooled * (n + d) * _OF_POOLED or n * _OF_SCORE + d * _OF_FEATURE
    affordable = _affordable(of_class, budget)
    return ByPlatform(min(c, max(64, 2**20 // n // 64 * 64)), _even_tiles(c, affordable))


def _whole_tiles(rows: int) -> int:
    """As many rows, or fewer: a multiple of what matrix units take at once, or at least of 8."""
    return rows // _TILE * _TILE or max(8, rows // 8 * 8)


def _affordable(bytes_of_row: int, budget: int) -> int:
    """How many rows the budget allows."""
    return _whole_tiles(budget // bytes_of_row)


def _even_tiles(n: int, most: int) -> int:
    """The size of the fewest parts of n of at most `most` each, in whole tiles if it can be."""
    return n if n <= most else min(most, math.ceil(_even(n, most) / _TILE) * _TILE)


def rows_in_swept_tile(n: int) -> ByPlatform:
    """Rows, and columns, of a tile of scores above the diagonal, which fits a cache or fills the chip.

    At most some 256 tiles side by side: a program has a list of them.
    """
    return ByPlatform(math.ceil(_even(n, max(512, n // 256)) / 8) * 8, _even_tiles(n, max(2048, n // 256)))


class Tiling(NamedTuple):
    """Of a GPU's program: rows and columns of a tile, warps, stages, and whether columns are also read transposed.

    TF32 products want both operands contiguous along what is summed over.
    """

    height: int
    width: int
    warps: int
    stages: int
    transposed: bool = False


def tiling_in_kernel(operands: str, d: int, products: int, heavy: bool, small: bool) -> Tiling | None:
    """The tile of a sweep that takes so many products of d features; None where registers are too few for a kernel.

    The fastest of a prototype of these kernels on an H100, of 128 features, and smaller ones for a `heavy` loss, that
    holds more in registers. A `small` GPU has less than 160 KiB for a program.
    """
    parts = math.ceil(d / _TILE)
    if operands == "bfloat16" and parts <= (2 if small else 4):
        width = (64 if heavy else 128) // (1 if parts == 1 else 2 if parts == 2 else 4)
        return Tiling(64, width, 4 if parts <= 2 else 8, 2)
    if parts > 1:
        return None
    if operands == "exact":
        return Tiling(64, 16 if small else 32, 4, 2)
    if small:
        return Tiling(64, 32, 4, 2, transposed=products > 1)
    return Tiling(128, 64, 8, 3) if products == 1 else Tiling(128, 32, 8, 3, transposed=True)


def features_in_tile_of_tpu(heavy: bool) -> int:
    """The most that rows of a TPU's kernel may have, so that tiles of scores and embeddings fit into its memory."""
    return 512 if heavy else 1024


def rows_in_tile_of_positives(height: int) -> int:
    """The same where only positives are looked at: a quarter, if it can be, as small tiles hold little else."""
    return height // 4 if height % 4 == 0 else height


def rows_sorted_at_once() -> int:
    """Rows of scores that are sorted side by side."""
    return 8


# --- search and clusters --------------------------------------------------------------------------------------------


def references_in_block(n: int, m: int, d: int, k: int, budget: int = BUDGET) -> ByPlatform:
    """References at a time of m, in a search of n queries for k of them: each block costs each query a sort of k.

    On a CPU few queries are answered so fast that to get the memory of a large block takes longer than the sorts of
    many small ones. On accelerators blocks of one size, whose copies take half of the budget at most, and so do scores
    of 128 queries.
    """
    most = max(_TILE, budget // (2 * max(_COPIED * d, _SEARCHED * _TILE)) // _TILE * _TILE)
    each, least = (64, 2**13) if n <= _FEW_QUERIES and m > 2**14 else (1024, 2**14)
    return ByPlatform(min(2**17, max(least, 2 ** math.ceil(math.log2(each * k)))), _even_tiles(m, most))


def queries_in_panel(n: int, references: int, d: int, k: int, budget: int = BUDGET) -> ByPlatform:
    """Queries at a time of n, with scores of a block of references: panels of one size.

    On CPUs of at most 2²¹ scores, or 2²⁴ where that is fewer than 128 rows. On accelerators they take what the
    references leave of the budget, with a few maxima of scores and with candidates.
    """
    each = _SEARCHED * (references + references // 32 + candidates(n, references, k) * d)
    most = _whole_tiles(max(0, budget - _COPIED * d * references) // each)
    cpu = max(1, 2**21 // references, min(128, 2**24 // references))
    return ByPlatform(_even(n, cpu), _even_tiles(n, most))


def columns_in_group(columns: int, k: int) -> ByPlatform:
    """Columns in a group whose maximum is looked at first, in a search for k of them: 1 where groups save little.

    It is a power of two near √(columns / k), where groups and candidates together are fewest. Accelerators sort rows
    that one of their processors holds.
    """
    size = 2 ** round(math.log2(max(1, columns / k)) / 2)
    size = size if columns // size + k * size < columns // 2 and size > 3 else 1
    return ByPlatform(size, size if columns > SORTED_ROW else 1)


def candidates(n: int, references: int, k: int) -> int:
    """Candidates that each of n queries gets by rounded products, to be told apart by exact ones; 0 for none.

    Few queries do not make up for the rounding of all references.
    """
    many = 2 * k + 16
    return many if n >= CANDIDATES_FROM and columns_in_group(references, many).accelerator > 1 else 0


def queries_rescored_at_once(n: int, candidates: int, d: int) -> ByPlatform:
    """Queries at a time of n, with rows of d features of their candidates: 2²⁰ numbers, or 2²⁶ on accelerators."""
    at_once = lambda numbers: max(1, _even(n, max(1, numbers // max(1, candidates * d))))
    return ByPlatform(at_once(2**20), at_once(2**26))


def ids_to_compare() -> int:
    """Ids that are compared with a whole gallery one by one; more of them are sorted, which then takes less time."""
    return 32


def rows_in_panel(n: int, centers: int) -> ByPlatform:
    """Rows at a time of n, with scores against all centres.

    On CPUs at most 2¹⁹ scores, or 2²¹ where that is fewer than 64 rows; on accelerators at most 2²⁶.
    """
    cpu = min(n, max(1, min(64, 2**21 // centers), 2**19 // centers // 32 * 32))
    return ByPlatform(cpu, _even_tiles(n, _whole_tiles(2**26 // centers)))


def seeds_at_once() -> int:
    """Seeds of clusters that are drawn at a time: of more, more are drawn in vain."""
    return 128


def rows_led_at_once(n: int) -> int:
    """Rows of n whose scores with the centres so far are taken at a time, before each finds its leader."""
    return max(1, min(n, 64))


def leaders_at_once(capacity: int) -> int:
    """Centres at a time that are compared with these rows, of those in use."""
    return min(capacity, 512)


def rows_in_joined_tile(n: int) -> int:
    """Rows, and columns, of a tile of pairs whose clusters are joined: tiles of one size, of at most 1024 rows."""
    return max(1, _even(n, 1024))


# --- metrics --------------------------------------------------------------------------------------------------------

_LANES = 128
LISTS_OF_MATCHES = (4, 8, 16, 32)  # matches of a query that are counted one by one; more are sorted
RANKED_TOGETHER = 16  # columns counted side by side


def rows_in_table(columns: int) -> int:
    """Rows of a table of scores that goes to the host: at most 1024, and 2²² scores."""
    return min(1024, max(1, 2**22 // max(1, columns)))


def queries_in_ranking(n: int, references: int, matches: int) -> int:
    """Queries at a time of n, with their scores against all references: of one size, of 16 to 256.

    At most 2²³ scores, of which products are fast, or 2²¹ where they are looked at more than once or twice.
    """
    return _even(n, min(256, max(16, 2 ** (23 if matches <= 16 else 21) // references)))


def panels_in_ranking(n: int, height: int, matches: int) -> int:
    """Panels of `height` queries of n that are ranked before the host looks at them: at most 2²² matches."""
    return _even(math.ceil(n / height), max(1, 2**22 // (height * matches)))


def rows_sorted_on_host(columns: int) -> int:
    """Rows of scores that are sorted on the host at a time: 2¹⁷ scores, which fit into a cache."""
    return max(1, 2**17 // columns)


def queries_in_identification(n: int) -> int:
    """Queries at a time of n, with the blocks of a gallery: panels of one size, of at most 2048 queries."""
    return _even(n, 2**11)


def gallery_in_block(n: int, queries: int) -> int:
    """Rows at a time of a gallery of n, with scores of a panel of queries: at most 8192, and 2²¹ scores.

    Above 128, it is a multiple of 128: see `lanes`.
    """
    width = min(n, 2**13, max(1, 2**21 // queries))
    return width - width % _LANES if width > _LANES else width


def lanes(width: int) -> int:
    """Columns of a block that are reduced side by side, as wide registers do: they divide its width."""
    return math.gcd(width, _LANES)


def levels_and_buckets(n: int) -> tuple[int, int]:
    """Levels of a table for n of them, a power of two or the most that there are; and its buckets, up to 2²⁰.

    With 16 for each level, next to none has several; more buckets would not fit into a cache.
    """
    levels = 1 << min(18, max(12, (n - 1).bit_length()))
    return levels, min(2**20, 16 * levels)


def rows_in_tally(rows: int) -> int:
    """Rows of a tile of scores whose places are tallied at a time: an eighth, so that places take less memory."""
    return max(1, rows // 8)


def scores_sorted_at_once() -> int:
    """Scores on the host that wait for others to be sorted with."""
    return 2**20


def rows_in_sorted_tile(n: int) -> int:
    """Rows, and columns, of a tile of scores of all pairs: at most 1024 of each, or 512 for few rows.

    A power of two, so that sets of about one size share what is compiled.
    """
    return min(512 if n <= 2**13 else 1024, 1 << max(3, (n - 1).bit_length()))


def rows_in_summed_tile(n: int) -> int:
    """Rows, and columns, of a tile of distances that are summed: tiles of one size, of at most 512 rows."""
    return _even(n, 512)


def rows_in_double() -> int:
    """Rows at a time that are copied to float64 on the host."""
    return 8192


def pairs_at_once() -> int:
    """Pairs whose rows are gathered at a time."""
    return 2**12


def impostors_held(wanted: int, impostors: int) -> int:
    """Highest scores of impostors that a calibration holds: what it wants, but at least 1024 if there are that many."""
    return min(max(wanted, 1024), impostors)


def _even(n: int, most: int) -> int:
    """The size of the fewest parts of n of at most `most` each, all of one size but for padding."""
    return math.ceil(n / max(1, math.ceil(n / most)))
