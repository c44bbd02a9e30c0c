"""Trained encoders: photographs in, embeddings out, on all devices.

encoder = mj.load("runs/20261122-093000")    # a run of `metricjax train`, or a file that `save` or `mj.export` wrote
z = encoder("door.jpg")                      # a photograph: a path, a Pillow image, an array, the bytes of a file
z = encoder("FOLDER")                        # or many: a folder, a list, an array of images
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageOps
from tqdm import tqdm

from metricjax import sphere
from metricjax.data.decoder import UNREADABLE, decoded, fitted
from metricjax.data.listing import photographs_in_or_of_people, reported
from metricjax.ground.names import printable
from metricjax.trained import mesh as meshes
from metricjax.trained.design import Design
from metricjax.trained.people_of_run import trained_on

__all__ = ["Encoder", "NetworkEncoder", "embedded"]

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow has it
ROWS = (1, 16, 128)  # of a batch, filled up to one of these: nothing is compiled for other numbers

FEW = 10  # batches of images that take no time to speak of

Photograph = str | os.PathLike | bytes | Image.Image | np.ndarray


class Encoder:
    """Photographs to embeddings of length 1. `metricjax.load` gives one; it is called on whatever holds photographs.

    name: of the network. digest: a text that differs between any two encoders, whose embeddings do not compare.
    photograph: height and width at which photographs are read; channels: 3, or 1 for grey. embedding_size: d.
    record: whom it was trained on (see `trained_on`), as `metricjax.trained.people_of_run` has it; None if unknown.
    """

    name: str
    digest: str
    photograph: tuple[int, int]
    channels: int
    embedding_size: int

    def __init__(self, record: dict[str, Any] | None, mesh: Mesh | None):
        self.record, self.mesh = record, mesh or meshes.data_mesh()

    def __repr__(self) -> str:
        height, width = self.photograph
        seen = f"{height} × {width} × {self.channels} pixels to {self.embedding_size} numbers"
        people = "unknown people" if self.trained_on is None else f"{len(self.trained_on)} people"
        return f"<encoder {self.name}, {seen}, trained on {people}, digest {self.digest[:12]}>"

    @property
    def trained_on(self) -> list[str] | None:
        """Names of the people it was trained on, or chosen by; None where that is not known."""
        return trained_on(self.record)

    def __call__(self, photographs: "Photograph | Sequence[Photograph]") -> np.ndarray:
        """The embedding [d] of one photograph, or those [n, d] of several.

        A photograph is the path of a file, the bytes of one, a Pillow image, or an array of uint8, [height, width] or
        with 1 or 3 channels; several are a list of these, an array [n, height, width, channels], or a folder: of
        photographs, in the order of `mj.data.photographs_in`, or of people, as in `mj.data.photographs_of_people`.
        Each is turned upright, cropped around its centre to the shape of `photograph` and resized.

        Of several, one that cannot be read becomes a row of NaN, and a warning names it; a single one raises the error,
        one of `mj.data.UNREADABLE`. NaN is what `Gallery.enrol` passes over, and `Gallery.identify` finds nobody for.
        """
        if isinstance(photographs, str | os.PathLike) and os.path.isdir(photographs):
            return self.of_several(reported(photographs_in_or_of_people(pathlib.Path(photographs)), stacklevel=2))
        if isinstance(photographs, str | os.PathLike | bytes | Image.Image):
            return self.embed(self.read(photographs)[None])[0]
        if not isinstance(photographs, np.ndarray | jax.Array):
            return self.of_several(photographs)
        images = np.asarray(photographs)
        if images.dtype != np.uint8 or images.ndim not in (2, 3, 4):
            raise ValueError(
                f"photographs is {images.dtype}{list(images.shape)}; wanted uint8, [h, w, c] or [n, h, w, c]"
            )
        if images.ndim < 4:
            return self.embed(self.read(images)[None])[0]
        if images.shape[1:3] == self.photograph:
            return self.embed(images)
        return self.of_several(list(images))

    def read(self, photograph: "Photograph") -> np.ndarray:
        """A photograph as `embed` takes it, uint8 [height, width, 1 or 3]; raises one of `mj.data.UNREADABLE`."""
        if isinstance(photograph, np.ndarray):
            wanted = photograph.ndim == 2 or (photograph.ndim == 3 and photograph.shape[-1] in (1, 3))
            if photograph.dtype != np.uint8 or not wanted or not photograph.size:
                got = f"{photograph.dtype}{list(photograph.shape)}"
                raise ValueError(f"a photograph is {got}; wanted uint8, [height, width] or [height, width, 1 or 3]")
            photograph = Image.fromarray(photograph[..., 0] if photograph.shape[2:] == (1,) else photograph)
        if not isinstance(photograph, Image.Image):
            return decoded(
                pathlib.Path(photograph) if isinstance(photograph, os.PathLike) else photograph, self.photograph
            )
        image = ImageOps.exif_transpose(photograph)
        return fitted(image if image.mode in ("L", "RGB") else image.convert("RGB"), self.photograph)

    def of_several(self, photographs: "Sequence[Photograph]") -> np.ndarray:
        """Embeddings [n, d], read in threads while those before are embedded; of what cannot be read NaN."""
        found = np.full((len(photographs), self.embedding_size), np.nan, np.float32)
        batches = [range(len(photographs))[i : i + ROWS[-1]] for i in range(0, len(photographs), ROWS[-1])]
        with (
            ThreadPoolExecutor() as threads,
            tqdm(total=len(found), desc="photographs", unit=" images", disable=len(batches) < 2) as bar,
        ):
            read = lambda batch: threads.map(self._read_or_error, [photographs[i] for i in batch])
            coming = read(batches[0]) if batches else iter(())
            for number, batch in enumerate(batches, 1):
                came = dict(zip(batch, coming, strict=True))
                coming = read(batches[number]) if number < len(batches) else iter(())
                images = {index: image for index, image in came.items() if isinstance(image, np.ndarray)}
                for index in came.keys() - images.keys():
                    name = _name(photographs[index], index)
                    warnings.warn(printable(f"{name} is left out: it cannot be read ({came[index]})"), stacklevel=3)
                if images:
                    found[list(images)] = self.embed(np.stack(list(images.values())))
                bar.update(len(batch))
        return found

    def _read_or_error(self, photograph: "Photograph") -> np.ndarray | Exception:
        try:
            return self._with_channels(self.read(photograph)[None])[0]
        except UNREADABLE as error:
            return error

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeddings [n, d] of images [n, height, width, 1 or 3] of uint8 that have the shape of `photograph`.

        ValueError for images of another shape or dtype, and where an embedding is not finite.
        """
        images = self._with_channels(np.asarray(images))
        if images.shape[1:3] != tuple(self.photograph):
            raise ValueError(f"images are {images.shape[1:3]} in height and width; wanted {tuple(self.photograph)}")
        found = np.zeros((len(images), self.embedding_size), np.float32)
        starts = range(0, len(images), ROWS[-1])
        for start in tqdm(starts, "embedding", unit=" batches", leave=False, disable=len(starts) < FEW):
            found[start : start + ROWS[-1]] = self._padded(images[start : start + ROWS[-1]])
        if not np.all(np.isfinite(found)):
            raise ValueError(f"the encoder {self.name} makes embeddings that are not finite")
        return found

    def _padded(self, images: np.ndarray) -> np.ndarray:
        size = next(rows for rows in ROWS if rows >= len(images))
        size += -size % self.mesh.size
        padded = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), images.dtype)])
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        placed = jax.make_array_from_callback(padded.shape, rows, lambda index: padded[index])
        return np.asarray(self.apply(placed))[: len(images)]

    def _with_channels(self, images: np.ndarray) -> np.ndarray:
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
            raise ValueError(f"images is {images.dtype}{list(images.shape)}; wanted uint8 [n, height, width, 1 or 3]")
        if images.shape[-1] == self.channels:
            return images
        if self.channels == 3:
            return np.broadcast_to(images, (*images.shape[:-1], 3))
        return np.round(images @ np.array(LUMINANCE))[..., None].astype(np.uint8)

    def apply(self, images: jax.Array) -> jax.Array:
        """Embeddings of images on the devices."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike) -> None:
        """To one file that `metricjax.load` reads, whole or not at all."""
        raise NotImplementedError


def _name(photograph: Photograph, index: int) -> str:
    return str(photograph) if isinstance(photograph, str | os.PathLike) else f"photograph {index}"


class NetworkEncoder(Encoder):
    """An encoder whose network and weights are at hand."""

    def __init__(
        self, design: Design, structure: nnx.GraphDef, weights, record=None, mesh: Mesh | None = None, mirrored=True
    ):
        super().__init__(record, mesh)
        self.mirrored = mirrored  # whether an embedding is the sum of the image's and its mirror image's
        self.design, self.structure, self.weights = design, structure, weights
        self.name, self.photograph, self.channels = design.name, design.photograph, design.channels
        self.embedding_size = design.embedding_size

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        digest = hashlib.sha256(json.dumps(self.description).encode())
        for path, leaf in jax.tree.leaves_with_path(self.weights):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """The design, and how it is used, in words of JSON."""
        return dataclasses.asdict(self.design) | ({} if self.mirrored else {"mirrored": False})

    def apply(self, images: jax.Array) -> jax.Array:
        whole = NamedSharding(self.mesh, PartitionSpec())
        return _embedded(self.design, self.structure, whole, self.mirrored, self.weights, images)

    def save(self, path: str | os.PathLike) -> None:
        from metricjax.trained import saved

        saved.write(path, self)


def embedded(design: Design, structure: nnx.GraphDef, weights, images, mirrored=True, project=sphere.project):
    """Embeddings of images: with `mirrored`, the sum of those of each photograph and of its mirror image, projected."""
    network = nnx.merge(structure, weights["params"], weights["rest"])
    network.eval()
    images = design.seen(images)
    one = lambda images: project(network.features(images))
    return project(one(images) + one(images[:, :, ::-1])) if mirrored else one(images)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _embedded(design: Design, structure, whole: NamedSharding, mirrored: bool, weights, images):
    return jax.lax.with_sharding_constraint(embedded(design, structure, weights, images, mirrored), whole)
