"""Sets of face photographs, read whole into memory at one size."""

import pathlib
import warnings
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from metricjax.data.decoder import UNREADABLE, decoded
from metricjax.data.listing import photographs_of_people, reported
from metricjax.data.people import numbered, of_chosen
from metricjax.ground.names import printable, some
from metricjax.ground.one_line import one_line

__all__ = ["Faces", "faces_of", "folder"]


class Faces(NamedTuple):
    """Photographs of people.

    images: [n, height, width, channels] uint8, 1 channel for grey, 3 for RGB.
    labels: [n] int32, the person in each.
    people: names; person `labels[i]` is `people[labels[i]]`.
    files: [n] file names without folder and suffix; empty strings where unknown.
    """

    images: np.ndarray
    labels: np.ndarray
    people: list[str]
    files: list[str]

    def __repr__(self) -> str:
        return one_line(self)

    def of_people(self, chosen: np.ndarray) -> "Faces":
        """The photographs of some people only (a mask over people), who are then numbered from 0."""
        places, labels, people = of_chosen(self.labels, self.people, np.asarray(chosen))
        return Faces(self.images[places], labels, people, [self.files[i] for i in places])


def folder(path: str | pathlib.Path, size: tuple[int, int], at_least: int = 2) -> Faces:
    """A folder with one sub-folder of images for each person (the layout of LFW), of any size.

    Images are cropped around their centre to the shape of `size` (height, width) and resized; RGB if any has colour.
    What is passed over (see `photographs_of_people`), images that `decoded` cannot read, and people with fewer than
    `at_least` images, are left out with a warning that names them.
    """
    files, images, kept = reported(photographs_of_people(path), stacklevel=2), [], []
    for file in tqdm(files, f"reading {pathlib.Path(path).name}", unit=" images"):
        try:
            images.append(decoded(file, size, mode=None))
        except UNREADABLE as error:
            warnings.warn(printable(f"{file} is left out: it cannot be read ({error})"), stacklevel=2)
        else:
            kept.append(file)
    lost = sorted({file.parent.name for file in files} - {file.parent.name for file in kept})
    if lost:
        warnings.warn(f"{len(lost)} people are left out: none of their images can be read: {some(lost)}", stacklevel=2)
    if len({image.shape[-1] for image in images}) > 1:
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    faces = faces_of(images, [file.parent.name for file in kept], [file.stem for file in kept], at_least)
    if len(faces.people) < 2:
        raise ValueError(
            f"{path} holds {len(faces.people)} people with {at_least} readable images or more; wanted at least 2"
        )
    return faces


def faces_of(images: list[np.ndarray], names: list[str], files: list[str], at_least: int = 2) -> Faces:
    """Images with the person and the file of each, in order of people; those of fewer than `at_least` are left out."""
    places, labels, people = numbered(names, files, at_least, stacklevel=3)
    if not places:
        return Faces(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.int32), [], [])
    return Faces(np.stack([images[i] for i in places]), labels, people, [files[i] for i in places])
