"""Photographs of faces, drawings of characters: sets in memory, sources of any size, pairs, alignment, batches."""

import importlib
from typing import TYPE_CHECKING

from metricjax.data.augmentation import (
    CLIP_PIXELS,
    IMAGENET_PIXELS,
    Pixels,
    augmented,
    centred,
    normalised,
    resized,
    scaled,
    standardised,
)
from metricjax.ground.extras import extra
from metricjax.ground.names import printable

with extra("images"):
    from metricjax.data.alignment import aligned, read_landmarks, similarity_transform
    from metricjax.data.batches import batches
    from metricjax.data.characters import Characters, omniglot
    from metricjax.data.decoder import UNREADABLE, decoded, upright
    from metricjax.data.faces import Faces, folder
    from metricjax.data.listing import Listing, photographs_in, photographs_of_people
    from metricjax.data.pairs import Pairs, read_pairs
    from metricjax.data.photographs import Source
    from metricjax.data.record_io import RecordSource
    from metricjax.data.sources import ArraySource, FolderSource
    from metricjax.data.subsets import mirrored, of_people
    from metricjax.data.verification_set import PairImages, verification_set

__all__ = [
    "CLIP_PIXELS",
    "IMAGENET_PIXELS",
    "UNREADABLE",
    "ArraySource",
    "Characters",
    "Faces",
    "FolderSource",
    "Listing",
    "PairImages",
    "Pairs",
    "Pixels",
    "RecordSource",
    "Source",
    "TfdsSource",
    "aligned",
    "augmented",
    "batches",
    "centred",
    "decoded",
    "folder",
    "lfw",
    "mirrored",
    "normalised",
    "of_people",
    "omniglot",
    "orl",
    "photographs_in",
    "photographs_of_people",
    "printable",
    "read_landmarks",
    "read_pairs",
    "resized",
    "scaled",
    "similarity_transform",
    "standardised",
    "upright",
    "verification_set",
]

if TYPE_CHECKING:
    from metricjax.data.tfds_sets import TfdsSource as TfdsSource
    from metricjax.data.tfds_sets import lfw as lfw
    from metricjax.data.tfds_sets import orl as orl
else:  # they need TFDS, of the extra `faces`: imported on first use

    def __getattr__(name):
        if name not in ("TfdsSource", "lfw", "orl"):
            raise AttributeError(f"module 'metricjax.data' has no attribute {name!r}")
        return getattr(importlib.import_module("metricjax.data.tfds_sets"), name)


def __dir__() -> list[str]:
    return __all__
