"""Pairs of images that belong together, as sources: two files each, or the halves of one photograph."""

import csv
import pathlib
import warnings
from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np

from metricjax.data.decoder import decoded
from metricjax.data.listing import photographs_in_or_of_people, reported
from metricjax.data.photographs import Photographs, Source
from metricjax.ground.names import printable, some
from metricjax.ground.one_line import one_line

__all__ = ["Couples", "FileViews", "HalfViews", "couples_of_folders", "read_couples"]


class Couples(NamedTuple):
    """Files that belong together.

    files: [n] pairs of paths.
    groups: [n] names; pairs of one group belong together too (photographs of one person, captions of one picture), so
        that none is a negative of another, and all are on one side of a split.
    """

    files: list[tuple[pathlib.Path, pathlib.Path]]
    groups: list[str]

    def __repr__(self) -> str:
        return one_line(self)


def read_couples(table: str | pathlib.Path) -> Couples:
    """A table of two columns of paths, relative to its folder, and perhaps a third of groups.

    Columns are separated by tabs in a `.tsv` file and by commas elsewhere. A first line that names no file is taken for
    a header. Without a third column every pair is a group of its own.

    Raises:
      ValueError: a line has neither 2 nor 3 columns, or names a file that is not there; the table is empty.
    """
    table = pathlib.Path(table)
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter="\t" if table.suffix == ".tsv" else ",") if row]
    wide = [number for number, row in enumerate(rows, 1) if len(row) not in (2, 3) or len(row) != len(rows[0])]
    if wide:
        raise ValueError(
            f"{table}: row {wide[0]} has {len(rows[wide[0] - 1])} columns; wanted two paths each, or a group too"
        )
    place = lambda name: table.parent / name
    if rows and not any(place(name).exists() for name in rows[0][:2]):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{table} names no pairs of files that exist; paths are relative to {table.parent}")
    missing = [name for row in rows for name in row[:2] if not place(name).is_file()]
    if missing:
        raise ValueError(f"{table} names {len(missing)} files that are not there: {some(missing)}")
    groups = [row[2] if len(row) == 3 else row[0] for row in rows]
    return Couples([(place(row[0]), place(row[1])) for row in rows], groups)


def couples_of_folders(first: str | pathlib.Path, second: str | pathlib.Path) -> Couples:
    """The images of two folders that have one name but for their suffix, in order of names.

    Where folders have sub-folders, names are "Ann/1", and sub-folders are the groups. Images without a partner are left
    out with a warning.
    """
    found = []
    for folder in (pathlib.Path(first), pathlib.Path(second)):
        files = reported(photographs_in_or_of_people(folder), stacklevel=2)
        found.append({file.relative_to(folder).with_suffix("").as_posix(): file for file in files})
        if len(found[-1]) < len(files):
            raise ValueError(f"{folder} has images of one name but for their suffix; wanted one of each name")
    names = [name for name in found[0] if name in found[1]]
    if not names:
        raise ValueError(f"{first} and {second} have no two images of one name")
    if alone := [*(found[0].keys() ^ found[1].keys())]:
        warnings.warn(f"{len(alone)} images without a partner are left out: {some(sorted(alone))}", stacklevel=2)
    return Couples(
        [(found[0][name], found[1][name]) for name in names], [name.rpartition("/")[0] or name for name in names]
    )


class FileViews(Photographs):
    """A source of couples: `source[i]` is [2, height, width, channels] of uint8, both images cropped to one shape.

    labels, people: the number of the group, and its name. A pair of which an image cannot be read is reported, and the
    next one of its group stands in for it.
    """

    def __init__(self, couples: Couples, size: tuple[int, int], mode: str = "RGB"):
        people, labels = np.unique(couples.groups, return_inverse=True)
        first = np.full(len(people), len(labels))
        np.minimum.at(first, labels, np.arange(len(labels)))
        order = np.argsort(first)  # groups in the order in which they come
        super().__init__(np.argsort(order)[labels].astype(np.int32), [str(people[i]) for i in order])
        self.couples, self.size, self.mode = couples, size, mode
        self.files = [printable(first.stem) for first, _ in couples.files]

    def _image(self, index: int) -> np.ndarray:
        return np.stack([decoded(file, self.size, self.mode) for file in self.couples.files[index]])

    def _place(self, index: int) -> str:
        return " and ".join(map(str, self.couples.files[index]))


class HalfViews:
    """The left half of each photograph of a source, and the right half mirrored: [2, height, width, channels].

    So the outer side of a face is at the left of either. What stands in the middle column of an odd width is in both.
    """

    def __init__(self, source: Source):
        self.source, self.labels, self.people = source, source.labels, source.people
        self.files: Sequence[str] = getattr(source, "files", [""] * len(source))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        image = self.source[index]
        width = -(-image.shape[1] // 2)
        return np.stack([image[:, :width], image[:, ::-1][:, :width]])
