"""Folders of people to train on, in LFW's layout."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


def write_people(folder: pathlib.Path, photographs: Sequence[int], size: tuple[int, int], noise: float) -> pathlib.Path:
    """So many photographs of each person: a few patches of grey, and noise of this standard deviation."""
    rng = np.random.default_rng(0)
    for person, count in enumerate(photographs):
        face = np.asarray(Image.fromarray(rng.integers(40, 215, (4, 3), dtype=np.uint8)).resize(size), np.float64)
        (folder / f"Person_{person}").mkdir()
        for i in range(count):
            pixels = np.clip(face + rng.normal(0, noise, face.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"Person_{person}" / f"Person_{person}_{i + 1:04d}.png")
    return folder
