"""Omniglot: handwritten characters of many alphabets, each drawn once by the same number of people."""

import pathlib
import re
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from metricjax.data.decoder import UNREADABLE, decoded
from metricjax.data.listing import photographs_of_people, reported
from metricjax.data.people import of_chosen

__all__ = ["Characters", "omniglot"]

_LAYOUT = "ALPHABET/characterNN/*.png"


class Characters(NamedTuple):
    """Drawings of characters, in order of alphabets, characters and drawers.

    images: [n, height, width, 1] uint8; ink is 255 and paper 0, so that what is padded with 0 is paper.
    labels: [n] int32, the character in each: `characters[labels[i]]`, named "Greek/character01".
    alphabet: [n] int32, the alphabet of each, a super-class of its label: `alphabets[alphabet[i]]`.
    drawer: [n] int32, who has drawn it, numbered from 1 within an alphabet; -1 where the file's name does not say.
    """

    images: np.ndarray
    labels: np.ndarray
    alphabet: np.ndarray
    drawer: np.ndarray
    characters: list[str]
    alphabets: list[str]

    def __repr__(self) -> str:
        of = f"{len(self.characters)} characters of {len(self.alphabets)} alphabets"
        return f"<{len(self.labels)} drawings of {of}, {self.images.shape[1]} × {self.images.shape[2]}>"

    def of_alphabets(self, chosen: np.ndarray) -> "Characters":
        """The characters of some alphabets only (a mask over alphabets); both are then numbered from 0."""
        places, alphabet, alphabets = of_chosen(self.alphabet, self.alphabets, np.asarray(chosen))
        found, labels = np.unique(self.labels[places], return_inverse=True)
        names = [self.characters[i] for i in found]
        return Characters(self.images[places], labels.astype(np.int32), alphabet, self.drawer[places], names, alphabets)


def omniglot(
    folder: str | pathlib.Path | None = None,
    size: tuple[int, int] = (105, 105),
    split: str = "small2",
    data_dir: str | None = None,
) -> Characters:
    """Omniglot (Lake, Salakhutdinov and Tenenbaum 2015, Science 350), whole in memory at one size.

    Without a folder, the archive of a split is downloaded on first use, as TFDS's builder `omniglot` has it.

    Args:
      folder: one of alphabets, ALPHABET/characterNN/NNNN_DD.png with DD the drawer, or the folder that holds it, such
        as the one that an archive was unpacked into.
      size: height and width, to which drawings of 105 × 105 are resized.
      split: "train" (the background set, 30 alphabets), "test" (20 others), "small1" or "small2" (5 of the 30 each);
        for what is downloaded.
      data_dir: where TFDS keeps its files.

    Raises OSError where a set is not here and cannot be downloaded, ValueError for a folder that holds no alphabets or
    several folders of them, or for a drawing that cannot be read.
    """
    if folder is None:
        from metricjax.data.tfds_sets import omniglot_archive  # it needs TFDS, of the extra `faces`

        folder = omniglot_archive(split, data_dir)
    folder = _of_alphabets(pathlib.Path(folder))
    alphabets = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [file for name in alphabets for file in reported(photographs_of_people(folder / name), stacklevel=2)]
    names = [f"{file.parent.parent.name}/{file.parent.name}" for file in files]
    characters = sorted(set(names), key=names.index)
    labels = np.array([characters.index(name) for name in names], np.int32)
    alphabet = np.array([alphabets.index(file.parent.parent.name) for file in files], np.int32)
    numbers = [re.search(r"_(\d+)$", file.stem) for file in files]
    drawer = np.array([-1 if number is None else int(number[1]) for number in numbers], np.int32)
    images = np.stack([_ink(file, size) for file in tqdm(files, f"reading {folder.name}", unit=" images")])
    return Characters(images, labels, alphabet, drawer, characters, alphabets)


def _of_alphabets(folder: pathlib.Path) -> pathlib.Path:
    """The folder itself or the one folder in it that has characters two levels below."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; wanted one of alphabets, {_LAYOUT}")
    inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = [one for one in (folder, *inner) if any(one.glob("*/character*/*.png"))]
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} folders of alphabets, {_LAYOUT}; wanted one")
    return found[0]


def _ink(file: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    try:
        return 255 - decoded(file, size, "L")
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
