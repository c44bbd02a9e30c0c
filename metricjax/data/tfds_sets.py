"""Sets of photographs that TensorFlow Datasets prepares, downloaded on first use: ORL, LFW, and any other builder."""

import contextlib
import io
import logging
import pathlib
import socket
import sys
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image
from tqdm import tqdm

from metricjax.data.decoder import decoded, fitted
from metricjax.data.faces import Faces, faces_of
from metricjax.data.listing import photographs_of_people
from metricjax.data.people import with_several
from metricjax.data.photographs import Photographs
from metricjax.ground.extras import extra

with extra("faces"):
    import tensorflow_datasets as tfds

    from metricjax.data.orl_faces import OrlFaces

__all__ = ["TfdsSource", "lfw", "omniglot_archive", "orl", "prepared"]


def orl(size: tuple[int, int] = (112, 92), data_dir: str | None = None) -> Faces:
    """The ORL "Database of Faces": 40 people (s1 to s40), 10 photographs each, in order. No download is needed."""
    with _silenced():
        builder = OrlFaces(data_dir=data_dir, file_format="array_record")
    _tell_where(builder)
    with _silenced():
        builder.download_and_prepare()
        records = list(builder.as_data_source(split="train"))
    records.sort(key=lambda r: (r["label"], r["photograph"]))
    images = [fitted(Image.fromarray(r["image"][..., 0]), size) for r in records]
    labels = np.array([r["label"] for r in records], np.int32)
    return Faces(
        np.stack(images), labels, builder.info.features["label"].names, [str(r["photograph"]) for r in records]
    )


def _tell_where(builder: tfds.core.DatasetBuilder) -> None:
    """Say once what is written outside of the folders that one has named."""
    if not builder.is_prepared():
        print(f"{builder.name} is written to {builder.data_path}, once", file=sys.stderr)


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


def lfw(size: tuple[int, int], data_dir: str | None = None, at_least: int = 2) -> Faces:
    """Labeled Faces in the Wild by TFDS, which downloads it on first use (180 MB): people with `at_least` images."""
    images, names = [], []
    for record in tqdm(prepared("lfw", data_dir).as_data_source(split="train"), "reading lfw", unit=" images"):
        images.append(fitted(Image.fromarray(record["image"]), size))
        names.append(record["label"].decode())
    return faces_of(images, names, [""] * len(images), at_least)


def omniglot_archive(split: str, data_dir: str | None = None) -> pathlib.Path:
    """The unpacked archive of one split of TFDS's builder `omniglot`, which itself would need TensorFlow to list it."""
    archives = {"train": "images_background", "test": "images_evaluation"}
    archives |= {f"small{i}": f"images_background_small{i}" for i in (1, 2)}
    if split not in archives:
        raise ValueError(f"split is {split!r}; wanted one of {', '.join(archives)}")
    builder = tfds.builder("omniglot", data_dir=data_dir, file_format="array_record")
    url = next(url for url in builder.url_infos if url.endswith(f"/{archives[split]}.zip"))
    downloads = pathlib.Path(builder.data_path).parents[1] / "downloads" / "omniglot" / split
    try:
        if not any(downloads.glob("extracted/*")):
            _reach(builder)
            print(f"omniglot is written to {downloads}, once", file=sys.stderr)
        with _silenced():
            manager = tfds.download.DownloadManager(download_dir=downloads, url_infos=builder.url_infos)
            return pathlib.Path(manager.download_and_extract(url))
    except Exception as error:  # whatever the network, the server or the archive did
        raise OSError(
            f"omniglot could not be downloaded ({type(error).__name__}: {error}). With the archive at hand, unpack it "
            "and give the folder instead."
        ) from error


def prepared(builder: str | tfds.core.DatasetBuilder, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """The TFDS builder of that name, in files that can be read at random, downloaded on first use."""
    if isinstance(builder, str):
        builder = tfds.builder(builder, data_dir=data_dir, file_format="array_record")
    if builder.name == "lfw":
        builder.path_maker = _people_and_files  # the builder's own lists folders by TensorFlow
    try:
        if not builder.is_prepared():
            _reach(builder)
            _tell_where(builder)
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


class TfdsSource(Photographs):
    """A split of any TFDS builder whose examples have an image and a label, downloaded on first use.

    Labels may be class labels, integers or names; they are read beforehand, without decoding an image, and numbered
    anew in their order. OSError where the set is not here and cannot be downloaded; people with fewer than `at_least`
    images are left out with a warning.

    Args:
      builder: a builder, or its name, such as "lfw".
      split: name of the split.
      size: height and width, to which images are cropped around their centre and resized.
      at_least: images of each person.
      mode: "RGB" or, for grey, "L".
      image, label: names of the two features.
      data_dir: where TFDS keeps its files, for a builder given by name.
    """

    def __init__(
        self,
        builder: str | tfds.core.DatasetBuilder,
        split: str,
        size: tuple[int, int],
        at_least: int = 2,
        mode: str = "RGB",
        image: str = "image",
        label: str = "label",
        data_dir: str | None = None,
    ):
        self.size, self.mode, self.feature, self.split = size, mode, image, split
        builder = prepared(builder, data_dir)
        self.name = builder.name
        features = builder.info.features
        missing = {image, label} - set(features)
        if missing:
            raise ValueError(f"{self.name} has no feature {missing}; wanted one of {sorted(features)}")
        self.records = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
        values = np.array([self.records[i][label] for i in range(len(self.records))])
        found, labels = np.unique(values, return_inverse=True)
        name = getattr(features[label], "int2str", lambda value: value.decode() if isinstance(value, bytes) else value)
        names = [str(name(value)) for value in found.tolist()]
        self.places, labels, people = with_several(labels, names, at_least, stacklevel=2)
        if not people:
            raise ValueError(f"{self.name}, split {split}, holds no people with {at_least} images or more")
        super().__init__(labels, people)

    def _image(self, index: int) -> np.ndarray:
        return decoded(self.records[int(self.places[index])][self.feature], self.size, self.mode)

    def _place(self, index: int) -> str:
        return f"{self.name}, split {self.split}, example {self.places[index]}"
