"""Sets of face photographs as random-access sources: in memory, or in a folder of people."""

import collections
import pathlib
import warnings
from collections.abc import Mapping
from typing import SupportsIndex

import numpy as np

from metricjax.data.alignment import aligned
from metricjax.data.decoder import decoded, upright
from metricjax.data.faces import Faces
from metricjax.data.listing import photographs_of_classes, photographs_of_people, reported
from metricjax.data.people import numbered
from metricjax.data.photographs import Photographs
from metricjax.ground.names import some

__all__ = ["ArraySource", "FolderSource"]


class ArraySource:
    """Photographs in memory."""

    def __init__(self, faces: Faces):
        self.images, self.labels, self.people, self.files = faces

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        return self.images[index]


class FolderSource(Photographs):
    """A folder with one sub-folder of images for each person; only their names are read beforehand.

    Images are cropped around their centre to the shape of `size` and resized, or aligned by their landmarks. What is
    passed over (see `photographs_of_people`), people with fewer than `at_least` images, and images without landmarks
    where there are any, are left out with a warning.

    Args:
      path: the folder.
      size: height and width; equal with landmarks.
      at_least: images of each person.
      mode: "RGB" or, for grey, "L".
      landmarks: file names relative to `path` ("Ann/Ann_0001.jpg") to [5, 2], points of the photograph as it stands
        upright: see `read_landmarks` and `aligned`. A name may lack the suffix, as VGGFace2's do, and the folder, as
        CelebA's do, if no other file here is called so.
      superclasses: sub-folders may hold the folders of classes instead, whose names are then "SUPER-CLASS/CLASS".

    `files` are the names without folder and suffix, as `Pairs.similarities` wants them.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        size: tuple[int, int],
        at_least: int = 2,
        mode: str = "RGB",
        landmarks: Mapping[str, np.ndarray] | None = None,
        superclasses: bool = False,
    ):
        self.path, self.size, self.mode, self.landmarks = pathlib.Path(path), size, mode, landmarks
        listing = photographs_of_classes(path) if superclasses else photographs_of_people(path)
        names = [file.relative_to(path).as_posix() for file in reported(listing, stacklevel=2)]
        if landmarks is not None:
            if self.size[0] != self.size[1]:
                raise ValueError(f"size is {self.size}; wanted equal height and width with landmarks")
            self.landmarks = _of_files(landmarks, names)
            without = [name for name in names if name not in self.landmarks]
            if without:
                warnings.warn(f"{len(without)} images without landmarks are left out: {some(without)}", stacklevel=2)
            names = list(self.landmarks)
        places, labels, people = numbered([name.rpartition("/")[0] for name in names], names, at_least, stacklevel=2)
        if not people:
            raise ValueError(f"{path} holds no people with {at_least} images or more")
        super().__init__(labels, people)
        self.names = [names[i] for i in places]
        self.files = [pathlib.PurePosixPath(name).stem for name in self.names]

    def _image(self, index: int) -> np.ndarray:
        name = self.names[index]
        if self.landmarks is None:
            return decoded(self.path / name, self.size, self.mode)
        return aligned(upright(self.path / name, self.mode), self.landmarks[name], self.size[0])

    def _place(self, index: int) -> str:
        return str(self.path / self.names[index])


def _of_files(landmarks: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """The landmarks of each of these files, as far as there are any, however they name it."""
    files = collections.Counter(name.rpartition("/")[2] for name in names)
    found = {}
    for name in names:
        stem, file = name.rpartition(".")[0], name.rpartition("/")[2]
        spellings = [name, stem, *([file] if files[file] == 1 else [])]
        known = next((spelling for spelling in spellings if spelling in landmarks), None)
        if known is not None:
            found[name] = landmarks[known]
    return found
