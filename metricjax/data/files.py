"""Files as people have them: regular ones only, and lines of text however an editor wrote them."""

import codecs
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["fields", "file_name", "lines", "opened"]

_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # for a writer at a pipe's other end


def opened(path: str | pathlib.Path) -> BinaryIO:
    """A regular file, or a link to one, to read bytes from; OSError for anything else, such as a pipe or a device."""
    handle = os.open(path, os.O_RDONLY | _WITHOUT_WAITING)
    if stat.S_ISREG(os.fstat(handle).st_mode):  # of what was opened: the name may stand for something else by now
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise OSError(f"{path} is not a regular file; wanted one")


def lines(path: str | pathlib.Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 text with their numbers from 1, without blanks at both ends.

    A byte order mark, and empty lines and those that begin with "#", are passed over; a line ends as on any system.
    Bytes that are not UTF-8 are kept as Python keeps them in names of files (PEP 383), so that they name the same file.
    """
    with opened(path) as file:
        content = file.read().removeprefix(codecs.BOM_UTF8)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError(f"{path} is UTF-16 or not a text; wanted UTF-8")
    for number, raw in enumerate(re.split(rb"\r\n|\r|\n", content), 1):
        line = raw.decode("utf-8", "surrogateescape").strip(" \t")
        if line and not line.startswith("#"):
            yield number, line


def fields(line: str) -> list[str]:
    """The fields between tabs, if there are any, so that names may hold blanks; else those between blanks."""
    if "\t" in line:
        return [field.strip(" ") for field in line.split("\t")]
    return [field for field in line.split(" ") if field]


def file_name(name: str) -> str:
    """A relative name in a list as the readers of folders spell it, also where it was written on Windows."""
    return pathlib.PurePosixPath(name.replace("\\", "/")).as_posix()
