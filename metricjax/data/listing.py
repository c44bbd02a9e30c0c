"""Which photographs a folder holds, and what is passed over: one answer for every reader of folders."""

import os
import pathlib
import warnings
from typing import NamedTuple

from metricjax.ground.names import some
from metricjax.ground.one_line import one_line

__all__ = [
    "SUFFIXES",
    "Listing",
    "photographs_in",
    "photographs_in_or_of_people",
    "photographs_of_classes",
    "photographs_of_people",
    "reported",
]

SUFFIXES = (
    ".pgm", ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pbm", ".pnm",
)  # fmt: skip
HIDDEN, SUFFIX, DEEPER = "hidden", "of another suffix", "a folder deeper"
SPECIAL, CLOSED, NOBODY = "not a regular file", "not readable", "not in a person's folder"


class Listing(NamedTuple):
    """The photographs of a folder, in order, and what is not one of them.

    passed_over: names in the folder ("Ann/notes.txt") by the reason.
    without: people without files, or all of whose files are passed over.
    """

    folder: pathlib.Path
    files: list[pathlib.Path]
    passed_over: dict[str, list[str]]
    without: list[str]

    def __repr__(self) -> str:
        return one_line(self)

    def report(self) -> str:
        """One line about what is passed over: reasons, numbers and the first names; empty if nothing is."""
        parts = [f"{len(names)} {reason} ({some(names)})" for reason, names in self.passed_over.items()]
        told = [f"passed over: {', '.join(parts)}"] if parts else []
        if self.without:
            told.append(f"{len(self.without)} people without any photograph: {some(self.without)}")
        return f"{self.folder}: {'; '.join(told)}" if told else ""


def reported(listing: Listing, stacklevel: int) -> list[pathlib.Path]:
    """The files, once a warning has told what is passed over."""
    if report := listing.report():
        warnings.warn(report, stacklevel=stacklevel + 1)
    return listing.files


def photographs_in(folder: str | pathlib.Path) -> Listing:
    """The photographs in a folder itself.

    These are the regular files, and links to such, with one of SUFFIXES in any case, whose name does not begin with a
    dot. OSError for what is not a folder, ValueError for a folder without photographs.
    """
    folder, over = _folder(folder, "one of images"), _Over()
    files = [folder / name for name in _photographs(folder, "", over)]
    return _not_empty(Listing(folder, files, over, []), f"wanted files {', '.join(SUFFIXES)}")


def photographs_of_people(folder: str | pathlib.Path) -> Listing:
    """The photographs in a folder with a sub-folder for each person, in order of people and then of files.

    They are those of `photographs_in` of each sub-folder whose name does not begin with a dot.
    """
    folder = _folder(folder, "one with a sub-folder of images for each person")
    return _not_empty(_of_people(folder), f"wanted a sub-folder of images {', '.join(SUFFIXES)} for each person")


def _of_people(folder: pathlib.Path, prefix: str = "") -> Listing:
    """Those in a folder that may hold none; names in it begin with `prefix`."""
    files, over, without = [], _Over(), []
    for entry in _entries(folder):
        reason, name = _not_a_person(entry), prefix + entry.name
        if reason is not None:
            over.add(reason, name)
            continue
        try:
            names = _photographs(folder / entry.name, f"{name}/", over)
        except OSError:
            over.add(CLOSED, f"{name}/")
            names = []
        person = folder / entry.name
        files += [person / name for name in names]
        without += [] if names else [name]
    return Listing(folder, files, over, without)


def photographs_in_or_of_people(folder: str | pathlib.Path) -> Listing:
    """`photographs_in` of a folder that holds photographs itself, else `photographs_of_people`."""
    directly = _photographs(_folder(folder, "one of images"), "", _Over())
    return photographs_in(folder) if directly else photographs_of_people(folder)


def photographs_of_classes(folder: str | pathlib.Path) -> Listing:
    """`photographs_of_people` of a folder or, where more images are a folder deeper, in SUPER-CLASS/CLASS, those."""
    folder = _folder(folder, "one with a sub-folder of images for each class")
    files, over, without = [], _Over(), []
    for entry in _entries(folder):
        reason = _not_a_person(entry)
        if reason is not None:
            over.add(reason, entry.name)
            continue
        try:
            part = _of_people(folder / entry.name, f"{entry.name}/")
        except OSError:
            over.add(CLOSED, f"{entry.name}/")
            continue
        files += part.files
        without += part.without or ([] if part.files else [entry.name])
        for reason, names in part.passed_over.items():
            for name in names:
                over.add(reason, name)
    deep = len(files) > len(_of_people(folder).files)
    return Listing(folder, files, over, without) if deep else photographs_of_people(folder)


class _Over(dict[str, list[str]]):
    def add(self, reason: str, name: str) -> None:
        self.setdefault(reason, []).append(name)


def _folder(path: str | pathlib.Path, wanted: str) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder; wanted {wanted}")
    return path


def _not_empty(listing: Listing, wanted: str) -> Listing:
    if not listing.files:
        report = listing.report().removeprefix(f"{listing.folder}: ")
        raise ValueError(f"{listing.folder} holds no images; {wanted}" + (f" ({report})" if report else ""))
    return listing


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _photographs(folder: pathlib.Path, prefix: str, over: _Over) -> list[str]:
    names = []
    for entry in _entries(folder):
        reason = _not_a_photograph(entry)
        if reason is None:
            names.append(entry.name)
        else:
            over.add(reason, prefix + entry.name)
    return names


def _not_a_photograph(entry: os.DirEntry) -> str | None:
    """The reason to pass over an entry among photographs."""
    if entry.name.startswith("."):
        return HIDDEN
    try:
        if entry.is_dir():
            return DEEPER
        if not entry.is_file():
            return SPECIAL
    except OSError:  # such as a link that leads in a circle
        return CLOSED
    return None if os.path.splitext(entry.name)[1].lower() in SUFFIXES else SUFFIX


def _not_a_person(entry: os.DirEntry) -> str | None:
    """The reason to pass over an entry among people's folders."""
    reason = _not_a_photograph(entry)
    return None if reason == DEEPER else NOBODY if reason in (None, SUFFIX) else reason
