"""LFW's `pairs.txt`: which pairs of photographs are compared, in ten folds."""

import pathlib
from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Pairs of file names without suffix ("Name_0001"), whether the person is the same, and the fold, from 1."""

    first: list[str]
    second: list[str]
    same: np.ndarray
    fold: np.ndarray

    def of_folds(self, folds: list[int]) -> "Pairs":
        """The pairs of some folds only."""
        return self._at(np.flatnonzero(np.isin(self.fold, folds)))

    def similarities(self, embeddings: np.ndarray, files: list[str]) -> tuple["Pairs", np.ndarray]:
        """The pairs whose files are both among `files`, and their cosines; `embeddings[i]` belongs to `files[i]`."""
        place = {file: i for i, file in enumerate(files)}
        there = [i for i, ends in enumerate(zip(self.first, self.second, strict=True)) if set(ends) <= place.keys()]
        kept = self._at(np.array(there, int))
        unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        first, second = (unit[[place[file] for file in side]] for side in (kept.first, kept.second))
        return kept, np.sum(first * second, axis=1)

    def _at(self, index: np.ndarray) -> "Pairs":
        first, second = ([side[i] for i in index] for side in (self.first, self.second))
        return Pairs(first, second, self.same[index], self.fold[index])

    def people(self) -> set[str]:
        """Names of everyone in these pairs."""
        return {name.rsplit("_", 1)[0] for name in (*self.first, *self.second)}


def read_pairs(path: str | pathlib.Path) -> Pairs:
    """Read a file in the format of LFW's `pairs.txt`.

    The first line holds the number of folds and n; each fold has n lines "name i j" of one person, then n lines
    "name i other j" of two.
    """
    lines = [line.split() for line in pathlib.Path(path).read_text().splitlines() if line.strip()]
    try:
        folds, size = (int(number) for number in lines[0])
    except (ValueError, IndexError):
        raise ValueError(
            f"{path}: the first line is not the number of folds and of pairs, as in LFW's pairs.txt"
        ) from None
    if len(lines) != 1 + 2 * folds * size:
        raise ValueError(
            f"{path}: {folds} folds of 2 × {size} pairs need {2 * folds * size} lines, found {len(lines) - 1}"
        )
    first, second = [], []
    for number, line in enumerate(lines[1:]):
        wanted = 3 if number // size % 2 == 0 else 4
        if len(line) != wanted:
            raise ValueError(f"{path}: pair {number + 1} has {len(line)} fields, wanted {wanted}: {' '.join(line)}")
        try:
            first.append(f"{line[0]}_{int(line[1]):04d}")
            second.append(f"{line[-2] if wanted == 4 else line[0]}_{int(line[-1]):04d}")
        except ValueError:
            raise ValueError(f"{path}: pair {number + 1} does not number its photographs: {' '.join(line)}") from None
    index = np.arange(len(first)) // size
    return Pairs(first, second, index % 2 == 0, 1 + index // 2)
