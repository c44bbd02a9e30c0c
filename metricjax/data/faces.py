"""Sets of face photographs, read whole into memory at one size."""

import collections
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
from PIL import Image, ImageOps
from tqdm import tqdm

from metricjax.data.orl_faces import OrlFaces

SUFFIXES = (".pgm", ".png", ".jpg", ".jpeg")


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
        keep = chosen[self.labels]
        number = np.cumsum(chosen, dtype=np.int32) - 1
        people = [name for name, kept in zip(self.people, chosen, strict=True) if kept]
        files = [file for file, kept in zip(self.files, keep, strict=True) if kept]
        return Faces(self.images[keep], number[self.labels[keep]], people, files)


def orl(size: tuple[int, int] = (112, 92), data_dir: str | None = None) -> Faces:
    """The ORL "Database of Faces": 40 people (s1 to s40), 10 photographs each, in order. No download is needed."""
    with _silenced():
        builder = OrlFaces(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        records = list(builder.as_data_source(split="train"))
    records.sort(key=lambda r: (r["label"], r["photograph"]))
    images = [_fitted(Image.fromarray(r["image"][..., 0]), size, "L") for r in records]
    labels = np.array([r["label"] for r in records], np.int32)
    return Faces(
        np.stack(images), labels, builder.info.features["label"].names, [str(r["photograph"]) for r in records]
    )


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without what TFDS and the packages it reads with say of themselves while they prepare a second's work."""
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
    builder = tfds.builder("lfw", data_dir=data_dir, file_format="array_record")
    builder.path_maker = _people_and_files  # the builder's own lists folders by TensorFlow
    try:
        if not builder.is_prepared():
            _reach(builder)
            builder.download_and_prepare()
    except Exception as error:  # whatever the network, the server or the archive did
        raise OSError(
            f"Labeled Faces in the Wild could not be downloaded ({type(error).__name__}: {error}). With the archive "
            "at hand, unpack it and give the folder of people instead."
        ) from error
    images, names = [], []
    for record in tqdm(builder.as_data_source(split="train"), "reading lfw", unit=" images"):
        images.append(_fitted(Image.fromarray(record["image"]), size, "RGB"))
        names.append(record["label"].decode())
    return _numbered(images, names, [""] * len(images))


def _reach(builder: tfds.core.DatasetBuilder) -> None:
    """Fail at once, not after minutes of TFDS's retries, where the server's name does not even resolve."""
    if not urllib.request.getproxies():
        for url in builder.url_infos:
            socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, 443)


def _people_and_files(path: str) -> list[list[str]]:
    return [[file.parent.name, str(file)] for file in sorted(pathlib.Path(path).glob("*/*"))]


def folder(path: str | pathlib.Path, size: tuple[int, int], at_least: int = 2) -> Faces:
    """A folder with one sub-folder of images for each person (the layout of LFW): PGM, PNG or JPEG of any size.

    Images are cropped around their centre to the shape of `size` (height, width) and resized; RGB if any has colour.
    Unreadable images, and people with fewer than `at_least` images, are left out with a warning that names them.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder; wanted one with a sub-folder of images for each person")
    files = sorted(f for f in path.glob("*/*") if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(
            f"{path} holds no images: wanted a sub-folder for each person, with files {', '.join(SUFFIXES)}"
        )
    images, kept = [], []
    for file in tqdm(files, f"reading {path.name}", unit=" images"):
        try:
            with Image.open(file) as image:
                mode = "L" if image.mode in ("1", "L", "LA", "I;16") else "RGB"
                images.append(_fitted(image, size, mode))
        except (OSError, ValueError, SyntaxError) as error:
            warnings.warn(f"{file} is left out: it cannot be read ({error})", stacklevel=2)
        else:
            kept.append(file)
    if len({image.shape[-1] for image in images}) > 1:
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    faces = _numbered(images, [file.parent.name for file in kept], [file.stem for file in kept], at_least)
    if len(faces.people) < 2:
        raise ValueError(
            f"{path} holds {len(faces.people)} people with {at_least} readable images or more; wanted at least 2"
        )
    return faces


def _fitted(image: Image.Image, size: tuple[int, int], mode: str) -> np.ndarray:
    height, width = size
    array = np.asarray(ImageOps.fit(image.convert(mode), (width, height), Image.Resampling.BICUBIC))
    return array[..., None] if array.ndim == 2 else array


def _numbered(images: list[np.ndarray], names: list[str], files: list[str], at_least: int = 2) -> Faces:
    counts = collections.Counter(names)
    few = sorted(name for name, count in counts.items() if count < at_least)
    if few:
        some = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
        warnings.warn(f"{len(few)} people with fewer than {at_least} images are left out: {some}", stacklevel=3)
    people = sorted(name for name, count in counts.items() if count >= at_least)
    number = {name: i for i, name in enumerate(people)}
    keep = sorted((i for i, name in enumerate(names) if name in number), key=lambda i: (number[names[i]], files[i]))
    if not keep:
        return Faces(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.int32), [], [])
    labels = np.array([number[names[i]] for i in keep], np.int32)
    return Faces(np.stack([images[i] for i in keep]), labels, people, [files[i] for i in keep])
