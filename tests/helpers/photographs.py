"""Photographs to write test files of: the ORL faces that a package ships, as RGB JPEG."""

import functools
import io

import numpy as np
from PIL import Image

from metricjax.data.orl_faces import packaged_folder, repair


@functools.cache
def photograph(person: int, number: int, size: tuple[int, int] = (112, 112)) -> Image.Image:
    """Face `number` of `person`, both from 1, in false colours: each channel differs, so that their order shows."""
    pgm = repair((packaged_folder() / f"s{person}" / f"{number}.pgm").read_bytes())
    grey = np.asarray(Image.open(io.BytesIO(pgm)).resize(size[::-1]), np.float64)
    return Image.fromarray(np.stack([grey, 0.6 * grey, 0.2 * grey], axis=2).astype(np.uint8))


@functools.cache
def jpeg(person: int, number: int, size: tuple[int, int] = (112, 112)) -> bytes:
    file = io.BytesIO()
    photograph(person, number, size).save(file, "JPEG", quality=95)
    return file.getvalue()


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))
