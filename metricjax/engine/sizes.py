"""How much is worked on at a time: the one file that knows sizes of panels, blocks, tiles and lists."""

LIST = 64  # positives of an anchor that are listed, and looked at one by one; with more, all columns are


def anchors_in_panel(n: int, m: int) -> int | None:
    """Anchors at a time of n, with scores against m columns; None for all, the dense form, which compiles faster."""
    if n * m <= 2**16:
        return None
    return min(n, max(8, min(512, 2**20 // m // 8 * 8)))


def classes_in_block(n: int, d: int, c: int) -> int | None:
    """Classes at a time of c, with scores of n rows; None for all, the dense form, which is faster while it fits.

    The dense form holds a copy of the prototypes [c, d] too.
    """
    if max(n, d) * c <= 2**22:
        return None
    return min(c, max(64, 2**21 // n // 64 * 64))
