"""Sets of face photographs, read whole into memory at one size."""

import contextlib
import io
import logging
import pathlib
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from metricjax.data.decoder import UNREADABLE, decoded, fitted
from metricjax.data.listing import photographs_of_people, reported
from metricjax.data.orl_faces import OrlFaces
from metricjax.data.people import numbered, of_chosen
from metricjax.ground.names import printable, some

__all__ = ["Faces", "folder", "lfw", "orl", "prepared"]


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

    def of_people(self, chosen: np.ndarray) -> "Faces":
        """The photographs of some people only (a mask over people), who are then numbered from 0."""
        places, labels, people = of_chosen(self.labels, self.people, np.asarray(chosen))
        return Faces(self.images[places], labels, people, [self.files[i] for i in places])


def orl(size: tuple[int, int] = (112, 92), data_dir: str | None = None) -> Faces:
    """The ORL "Database of Faces": 40 people (s1 to s40), 10 photographs each, in order. No download is needed."""
    with _silenced():
        builder = OrlFaces(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        records = list(builder.as_data_source(split="train"))
    records.sort(key=lambda r: (r["label"], r["photograph"]))
    images = [fitted(Image.fromarray(r["image"][..., 0]), size) for r in records]
    labels = np.array([r["label"] for r in records], np.int32)
    return Faces(
        np.stack(images), labels, builder.info.features["label"].names, [str(r["photograph"]) for r in records]
    )


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without the messages of TFDS, and of the packages it reads with, about a second's work."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def lfw(size: tuple[int, int], data_dir: str | None = None) -> Faces:
    """Labeled Faces in the Wild by TFDS, which downloads it on first use (180 MB): people with two images or more."""
    images, names = [], []
    for record in tqdm(prepared("lfw", data_dir).as_data_source(split="train"), "reading lfw", unit=" images"):
        images.append(fitted(Image.fromarray(record["image"]), size))
        names.append(record["label"].decode())
    return _numbered(images, names, [""] * len(images))


def prepared(builder: str | tfds.core.DatasetBuilder, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """The TFDS builder of that name, in files that can be read at random, downloaded on first use."""
    if isinstance(builder, str):
        builder = tfds.builder(builder, data_dir=data_dir, file_format="array_record")
    if builder.name == "lfw":
        builder.path_maker = _people_and_files  # the builder's own lists folders by TensorFlow
    try:
        if not builder.is_prepared():
            _reach(builder)
            builder.download_and_prepare()
    except Exception as error:  # whatever the network, the server or the archive did
        name = "Labeled Faces in the Wild" if builder.name == "lfw" else builder.name
        raise OSError(
            f"{name} could not be downloaded ({type(error).__name__}: {error}). With the archive at hand, unpack it "
            "and give the folder of people instead."
        ) from error
    return builder


def _reach(builder: tfds.core.DatasetBuilder) -> None:
    """Fail at once, not after minutes of TFDS's retries, where the server's name does not even resolve."""
    if not urllib.request.getproxies():
        for url in builder.url_infos or ():
            socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, 443)


def _people_and_files(path: str) -> list[list[str]]:
    return [[file.parent.name, str(file)] for file in photographs_of_people(path).files]


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
    faces = _numbered(images, [file.parent.name for file in kept], [file.stem for file in kept], at_least)
    if len(faces.people) < 2:
        raise ValueError(
            f"{path} holds {len(faces.people)} people with {at_least} readable images or more; wanted at least 2"
        )
    return faces


def _numbered(images: list[np.ndarray], names: list[str], files: list[str], at_least: int = 2) -> Faces:
    places, labels, people = numbered(names, files, at_least, stacklevel=3)
    if not places:
        return Faces(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.int32), [], [])
    return Faces(np.stack([images[i] for i in places]), labels, people, [files[i] for i in places])
