"""Lists of pairs to verify: which photographs are compared, whether they show one person, and in which fold."""

import collections
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metricjax.data.files import fields, file_name, lines
from metricjax.data.listing import SUFFIXES
from metricjax.ground.names import printable
from metricjax.ground.one_line import one_line

__all__ = ["Pairs", "cosines", "read_pairs"]

_MISSING, _SEVERAL = -1, -2  # instead of a place


class Pairs(NamedTuple):
    """Pairs of file names without suffix, whether the person is the same, and the fold, from 1; 0 without folds.

    A name is "Ann_0001" where the list numbers a person's photographs, and "Ann/1" where it names files in folders.
    """

    first: list[str]
    second: list[str]
    same: np.ndarray
    fold: np.ndarray

    def __repr__(self) -> str:
        return one_line(self)

    def of_folds(self, folds: list[int]) -> "Pairs":
        """The pairs of some folds only."""
        return self._at(np.flatnonzero(np.isin(self.fold, folds)))

    def folded(self, folds: int = 10) -> "Pairs":
        """As they are, if the list has folds; else in `folds`, in order, with as equal parts of each kind as can be."""
        if self.fold.any():
            return self
        fold = np.zeros(len(self.same), int)
        for kind in (True, False):
            of = np.flatnonzero(self.same == kind)
            if len(of) < folds:
                raise ValueError(f"same is {kind} for {len(of)} pairs; wanted {folds} at least, one for each fold")
            fold[of] = 1 + np.arange(len(of)) * folds // len(of)
        return self._replace(fold=fold)

    def found(self, files: Sequence[str], people: Sequence[str] | None = None) -> tuple["Pairs", np.ndarray]:
        """The pairs whose files are both among `files`, and [pairs, 2], where they are there.

        Args:
          files: names without folder and suffix, as `Faces` and the sources have them.
          people: the name of the person in each, which is the folder of a name like "Ann/1". Without them such a name
            is looked for as it is, then without its folder if no other name of the list ends so.

        ValueError for a name that two of the files have.
        """
        place = _places(files, people)
        bare: dict[str, str] = {} if people is not None else self._bare()
        here = lambda names: np.array(
            [place.get(name, place.get(bare.get(name, name), _MISSING)) for name in names], int
        )
        first, second = here(self.first), here(self.second)
        there = np.flatnonzero((first != _MISSING) & (second != _MISSING))
        kept, places = self._at(there), np.stack([first[there], second[there]], axis=1)
        if np.any(places == _SEVERAL):
            pair, end = np.argwhere(places == _SEVERAL)[0]
            name = printable((kept.first, kept.second)[end][pair])
            raise ValueError(f"files holds {name} more than once; wanted one photograph for each name in the pairs")
        return kept, places

    def similarities(
        self, embeddings: np.ndarray, files: Sequence[str], people: Sequence[str] | None = None
    ) -> tuple["Pairs", np.ndarray]:
        """The pairs that are `found`, and their cosines; `embeddings[i]` belongs to `files[i]`."""
        kept, places = self.found(files, people)
        return kept, cosines(embeddings[places[:, 0]], embeddings[places[:, 1]])

    def _bare(self) -> dict[str, str]:
        """Names without their folders, as far as this leaves them different."""
        whole = {*self.first, *self.second}
        ends = collections.Counter(name.rpartition("/")[2] for name in whole)
        return {name: end for name in whole if ends[end := name.rpartition("/")[2]] == 1}

    def _at(self, index: np.ndarray) -> "Pairs":
        first, second = ([side[i] for i in index] for side in (self.first, self.second))
        return Pairs(first, second, self.same[index], self.fold[index])

    def people(self) -> set[str]:
        """Names of everyone in these pairs."""
        person = lambda name: name.rpartition("/")[0] or name.rsplit("_", 1)[0]
        return {person(name) for name in (*self.first, *self.second)}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each row of `a` with that of `b`, in float64; 0 with a zero row."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    dot = lambda a, b: np.einsum("nd,nd->n", a, b)
    return dot(a, b) / np.maximum(np.sqrt(dot(a, a) * dot(b, b)), np.finfo(np.float64).tiny)


def _places(files: Sequence[str], people: Sequence[str] | None) -> dict[str, int]:
    """Where each name is in `files`, or _SEVERAL."""
    place: dict[str, int] = {}
    for i, file in enumerate(files):
        for name in (file,) if people is None else (file, f"{people[i]}/{file}"):
            place[name] = _SEVERAL if name in place else i
    return place


def read_pairs(path: str | pathlib.Path) -> Pairs:
    """Read a list of pairs, in one of three formats.

    - LFW's `pairs.txt` (View 2): the first line holds the number of folds and n; each fold has n lines "name i j" of
      one person, then n lines "name i other j" of two.
    - LFW's `pairsDevTrain.txt` and `pairsDevTest.txt` (View 1): the first line holds n alone, for there are no folds.
    - Lines "file file 1" of one person and "file file 0" of two, with the folder of each person. No folds; what stands
      before the person's folder, and the suffix, do not count.

    What is separated by tabs may hold blanks. The text is UTF-8 with or without a byte order mark; empty lines, and
    lines that begin with "#", are passed over. ValueError for a line that does not fit, by its number.
    """
    found = [(number, fields(line)) for number, line in lines(path)]
    head = found[0][1] if found else []
    if all(map(_is_number, head)) and len(head) in (1, 2):
        return _numbered_pairs(path, found[1:], [int(field) for field in head])
    if len(head) == 3:
        return _named_pairs(path, found)
    raise ValueError(
        f"{path}: the first line is not the number of folds and of pairs, as in LFW's pairs.txt, or of pairs alone, "
        "nor two files and 0 or 1"
    )


_Lines = list[tuple[int, list[str]]]


def _numbered_pairs(path: str | pathlib.Path, found: _Lines, head: list[int]) -> Pairs:
    folds, size = head if len(head) == 2 else (1, head[0])
    if len(found) != 2 * folds * size or not found:
        what = f"{folds} folds of 2 × {size}" if len(head) == 2 else f"2 × {size}"
        raise ValueError(f"{path}: {what} pairs need {2 * folds * size} lines, found {len(found)}")
    first, second = [], []
    for i, (number, line) in enumerate(found):
        wanted = 3 if i // size % 2 == 0 else 4
        place = f"{path}: line {number}: pair {i + 1}"
        if len(line) != wanted:
            shown = printable(" ".join(line))
            wanted_fields = f"wanted {wanted}, with tabs between where names hold blanks"
            raise ValueError(f"{place} has {len(line)} fields, {wanted_fields}: {shown}")
        if not _is_number(line[1]) or not _is_number(line[-1]):
            raise ValueError(f"{place} does not number its photographs: {printable(' '.join(line))}")
        first.append(f"{line[0]}_{int(line[1]):04d}")
        second.append(f"{line[-2] if wanted == 4 else line[0]}_{int(line[-1]):04d}")
    index = np.arange(len(first)) // size
    fold = 1 + index // 2 if len(head) == 2 else np.zeros(len(first), int)
    return Pairs(first, second, index % 2 == 0, fold)


def _named_pairs(path: str | pathlib.Path, found: _Lines) -> Pairs:
    for number, line in found:
        if len(line) != 3 or line[2] not in ("0", "1") or not all(line):
            raise ValueError(f"{path}: line {number} is not two files and 0 or 1: {printable(' '.join(line))}")
    first, second = ([_in_its_folder(line[side]) for _, line in found] for side in (0, 1))
    return Pairs(first, second, np.array([line[2] == "1" for _, line in found]), np.zeros(len(found), int))


def _in_its_folder(name: str) -> str:
    """ "lfw/Ann/1.jpg" as "Ann/1"."""
    path = pathlib.PurePosixPath(*pathlib.PurePosixPath(file_name(name)).parts[-2:])
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdecimal() and len(field) < 10
