"""Names of people and files, which may hold anything, as text that can be shown."""

import unicodedata
from collections.abc import Iterable
from itertools import islice

__all__ = ["printable", "some"]

_SPELLING = "\u200c\u200d"  # invisible, but Persian and Indic names are spelled with them


def printable(name: str) -> str:
    r"""The name with an escape in place of each character that is invisible, or would change how others look.

    Bytes that are not UTF-8, which Python reads as lone surrogates, become \xNN; what can be seen stays as it is. So a
    name is one line, can be encoded, and stays the same if this is done again.

    >>> print(printable("Ren\udce9\n"), printable("Zoë"))
    Ren\xe9\n Zoë
    """
    return "".join(map(_seen, name))


def _seen(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs" or character in _SPELLING:
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, for a message; "…" where there are more."""
    first = list(islice(names, most + 1))
    return ", ".join(map(printable, first[:most])) + (", …" if len(first) > most else "")
