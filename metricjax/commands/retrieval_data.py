"""The data of `metricjax train --task retrieval`: images of classes, and which classes train, choose and test."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import metricjax as mj
from metricjax.commands.train_data import in_memory
from metricjax.trained import people_of_run
from metricjax.trained.design import Design

__all__ = ["NAMED", "Collection", "Parts", "design", "opened", "parts", "settings"]

# Of known sets of TFDS: the first classes that train (a share, or how many), and features that have other names there.
# Their own splits tear classes apart, but for those of the products, so that both are joined.
NAMED: dict[str, tuple[float, dict[str, Any]]] = {
    "caltech_birds2011": (0.5, {}),
    "cars196": (0.5, {}),
    "stanford_online_products": (11_318, {"label": "class_id", "superlabel": "super_class_id"}),
}
LOOKED_AT = 20  # images of a folder, to see whether it has colour


class Collection(NamedTuple):
    """Images of classes, and the share of the classes (the first), or the number of them, that train."""

    source: mj.data.Source
    train: float


class Parts(NamedTuple):
    """Classes to train on, to choose the checkpoint by, and to test on, which have none in common."""

    train: mj.data.Source
    validation: mj.data.Faces | None
    test: mj.data.Faces
    record: dict[str, Any]


def opened(args) -> Collection:
    """All images of --dataset; super-classes are what stands before the "/" of a class's name."""
    size = tuple(args.image_size)
    name = args.dataset.removeprefix("tfds:")
    if args.dataset == "orl":
        return Collection(mj.data.ArraySource(mj.data.orl(size)), 0.5)
    if args.dataset == "omniglot":
        both = [mj.data.omniglot(size=size, split=split) for split in ("train", "test")]
        return Collection(_together(both), len(both[0].characters))
    if name in NAMED:
        train, features = NAMED[name]
        return Collection(mj.data.TfdsSource(name, "train+test", size, **features), train)
    if args.dataset.startswith("tfds:"):
        return Collection(mj.data.TfdsSource(name, "train", size), 0.5)
    return Collection(mj.data.FolderSource(args.dataset, size, mode=_mode(args.dataset), superclasses=True), 0.5)


def _together(sets: list) -> mj.data.Source:
    """Characters of several sets, in order."""
    first = np.cumsum([0, *(len(one.characters) for one in sets)])
    labels = np.concatenate([one.labels + np.int32(start) for one, start in zip(sets, first[:-1], strict=True)])
    names = [name for one in sets for name in one.characters]
    images = np.concatenate([one.images for one in sets])
    return mj.data.ArraySource(mj.data.Faces(images, labels, names, [""] * len(labels)))


def _mode(folder: str) -> str:
    """Grey where a few images, spread over the folder, all are."""
    files = mj.data.photographs_of_classes(folder).files
    some = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, LOOKED_AT).astype(int))]
    modes = set()
    for file in some:
        with Image.open(file) as image:
            modes.add(image.mode)
    return "L" if modes <= {"1", "L", "LA", "I;16"} else "RGB"


def parts(args, collection: Collection, fold: tuple[int, int] | None = None) -> Parts:
    """Train, validation and test; `fold` is (i, n): the i-th of n parts of the training classes validates."""
    source = collection.source
    labels = source.labels
    train = mj.samplers.class_split(labels, collection.train, seed=args.split_seed)
    if fold is not None:
        held = np.zeros(len(labels), bool)
        held[train] = mj.samplers.class_folds(labels[train], fold[1], seed=args.split_seed) == fold[0]
    else:
        held = _held(labels, train, args.validation)
    of = lambda rows: mj.data.of_people(source, np.bincount(labels[rows], minlength=len(source.people)) > 0)
    trained, validation, tested = of(train & ~held), of(held) if held.any() else None, of(~train)
    for name, some in (("--validation", validation), ("the test", tested)):
        if some is not None and (len(some.people) < 2 or np.bincount(some.labels).max() < 2):
            raise ValueError(f"{name} has {len(some.people)} classes; wanted 2, and 2 images of one, to search among")
    record = people_of_run.record(trained, validation, tested.people)
    read = lambda some: None if some is None else in_memory(some)
    return Parts(trained, read(validation), in_memory(tested), record)


def _held(labels: np.ndarray, train: np.ndarray, share: float) -> np.ndarray:
    """The last training classes, to choose the checkpoint by: at least two, or none for a share of 0."""
    classes = np.unique(labels[train])
    count = max(2, round(share * len(classes))) if share else 0
    if len(classes) - count < 2:
        raise ValueError(f"--validation {share:g} of {len(classes)} training classes leaves fewer than 2 to train on")
    return train & np.isin(labels, classes[len(classes) - count :])


def settings(args, images: int, grey: bool) -> dict[str, Any]:
    """Settings that fit so many images to train on.

    Seen on Omniglot's small sets and on ORL; large photographs want the encoder, the weights and the size of papers.
    """
    few = args.weights is None
    return {
        "encoder": "small_resnet" if few else "resnet50",
        "mirror": "none" if grey else "random",
        "augment": 0.5,
        "batch": (16, 4),
        "steps": int(np.clip(40 * images // 64, 400, 20_000)),
        "learning_rate": 2e-3 if few else 1e-4,
    }


def design(args, source: mj.data.Source) -> Design:
    height, width, channels = source[0].shape
    size = (height, width)
    if channels == 1 and args.pixels in ("imagenet", "clip"):
        raise ValueError(f"--pixels {args.pixels} is for colour; the images of --dataset {args.dataset} are grey")
    return Design(args.encoder, args.embedding_size, size, size, channels, args.pixels, args.precision)
