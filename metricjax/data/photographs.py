"""Photographs that are decoded when they are asked for: what the sources on disk have in common."""

import io
import pathlib
import struct
import warnings
from collections.abc import Iterator
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


@runtime_checkable
class Source(Protocol):
    """Photographs by number, as Grain reads them: `source[i]` is an image [height, width, channels] of uint8.

    labels: [n] int32, the person in each, known without decoding any.
    people: names; person `labels[i]` is `people[labels[i]]`.
    """

    labels: np.ndarray
    people: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> np.ndarray: ...


def fitted(image: Image.Image, size: tuple[int, int], mode: str) -> np.ndarray:
    """Upright (as its EXIF says), cropped around the centre to the shape of `size` (height, width) and resized."""
    height, width = size
    upright = ImageOps.exif_transpose(image).convert(mode)
    array = np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC))
    return array[..., None] if array.ndim == 2 else array


def decoded(photograph: pathlib.Path | bytes, size: tuple[int, int], mode: str = "RGB") -> np.ndarray:
    """The photograph in a file or in the bytes of one, `fitted`; one of UNREADABLE is raised where there is none."""
    with Image.open(io.BytesIO(photograph) if isinstance(photograph, bytes) else photograph) as image:
        return fitted(image, size, mode)


class Photographs:
    """A source that reads one photograph at a time.

    One that cannot be read is reported once, by a warning that names its place, and the next readable one of the same
    person stands in for it: so batches keep their shape, and P × K batches their people. ValueError where a person has
    none that can be read.
    """

    def __init__(self, labels: np.ndarray, people: list[str]):
        self.labels, self.people = labels, people
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        wanted = range(len(self))[index]
        for candidate in self._of_the_same_person(wanted):
            try:
                return self._image(candidate)
            except UNREADABLE as error:
                if candidate not in self._reported:
                    self._reported.add(candidate)
                    place = self._place(candidate)
                    warnings.warn(f"{place} is skipped: it cannot be read ({error})", stacklevel=2)
        raise ValueError(f"no photograph of {self.people[self.labels[wanted]]} can be read, such as {place}")

    def _of_the_same_person(self, index: int) -> Iterator[int]:
        yield index
        same = np.flatnonzero(self.labels == self.labels[index])
        yield from np.roll(same, -np.searchsorted(same, index))[1:].tolist()

    def _image(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def _place(self, index: int) -> str:
        raise NotImplementedError
