"""The data of `metricjax train --task retrieval`: images of classes, and which classes train, choose and test."""

import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import metricjax as mj
from metricjax.commands.retrieval_arguments import PRODUCTS, SAMPLERS
from metricjax.commands.train_data import in_memory
from metricjax.trained import people_of_run

__all__ = ["FOLDS", "Collection", "Parts", "of_published", "opened", "parts", "settings"]

BY_HALVES = ("caltech_birds2011", "cars196")  # the first half of the classes trains; TFDS's own splits tear classes
PRODUCT: dict[str, Any] = {
    "label": "class_id",
    "superlabel": "super_class_id",
}  # what the products' features are called
FOLDS = 4  # of the reality check
LOOKED_AT = 20  # images of a folder, to see whether it has colour, and how large they are
USUAL, PUBLISHED = 64, 224  # height and width of images, for networks of one's own and for published weights
MOST_HELD = 2**30  # bytes of images that are kept in memory, and not read again for each search


class Collection(NamedTuple):
    """Images of classes; how many of the classes train (a share or a number), the first ones or with a seed others."""

    source: mj.data.Source
    train: float
    seed: int | None


class Parts(NamedTuple):
    """Classes to train on, to choose the checkpoint by, and to test on, which have none in common; their record."""

    train: mj.data.Source
    validation: mj.data.Source | None
    test: mj.data.Source
    record: dict[str, Any]


def opened(args) -> Collection:
    """All images of --dataset; super-classes are what stands before the "/" of a class's name."""
    name = args.dataset.removeprefix("tfds:")
    size = USUAL if not of_published(args) else PUBLISHED
    at = lambda size: tuple(args.image_size or (size, size))
    if args.dataset == "orl":
        return Collection(mj.data.ArraySource(mj.data.orl(at(size))), 0.5, 0)
    if name == "omniglot":
        return _after_another([_characters(at(size), split) for split in ("train", "test")])
    if name in BY_HALVES:
        return Collection(mj.data.TfdsSource(name, "train+test", at(size)), 0.5, None)
    if name == PRODUCTS:
        return _after_another([mj.data.TfdsSource(name, split, at(size), **PRODUCT) for split in ("train", "test")])
    if args.dataset.startswith("tfds:"):
        return Collection(mj.data.TfdsSource(name, "train", at(size)), 0.5, 0)
    mode, largest = _looked_at(args.dataset)
    seen = at(size if of_published(args) else min(size, largest))
    return Collection(mj.data.FolderSource(args.dataset, seen, mode=mode, superclasses=True), 0.5, 0)


def of_published(args) -> bool:
    """Whether --weights are of a network for any images, rather than of an encoder that metricjax trained."""
    return args.weights is not None and args.weights.suffix != ".npz" and not args.weights.is_dir()


def _after_another(sources: list[mj.data.Source]) -> Collection:
    return Collection(mj.data.joined(sources), len(sources[0].people), None)


def _characters(size: tuple[int, int], split: str) -> mj.data.Source:
    found = mj.data.omniglot(size=size, split=split)
    return mj.data.ArraySource(mj.data.Faces(found.images, found.labels, found.characters, [""] * len(found.labels)))


def _looked_at(folder: str) -> tuple[str, int]:
    """Of a few images, spread over the folder: "L" where all are grey, and the longest side of any."""
    files = mj.data.photographs_of_classes(folder).files
    modes, sides = set(), []
    for place in np.unique(np.linspace(0, len(files) - 1, LOOKED_AT).astype(int)):
        try:
            with Image.open(files[place]) as image:
                modes.add(image.mode)
                sides.append(max(image.size))
        except mj.data.UNREADABLE:
            continue  # the source says so, when it comes to it
    return ("L" if modes <= {"1", "L", "LA", "I;16"} else "RGB"), max(sides, default=USUAL)


def parts(args, collection: Collection) -> list[Parts]:
    """One training's classes, or those of each fold of the reality check, with the same to test on."""
    source, labels = collection.source, collection.source.labels
    seed = collection.seed if args.split_seed is None else args.split_seed
    train = _training(args, collection, seed)
    if args.reality_check and len(np.unique(labels[train])) >= 2 * FOLDS:
        fold = mj.samplers.class_folds(labels[train], FOLDS, seed=seed)
        held = [fold == number for number in range(FOLDS)]
    elif args.reality_check:
        raise ValueError(f"--reality-check has {len(np.unique(labels[train]))} classes to train on; wanted {2 * FOLDS}")
    else:
        held = [_held(labels[train], args.validation, seed)]
    test = _kept(_of(source, ~train), "the test")
    found = []
    for each in held:
        back = np.zeros(len(labels), bool)
        back[train] = each
        trained = _of(source, train & ~back)
        validation = _kept(_of(source, back), "--validation") if back.any() else None
        found.append(Parts(trained, validation, test, people_of_run.record(trained, validation, test.people)))
    return found


def _training(args, collection: Collection, seed: int | None) -> np.ndarray:
    """Which images are of classes that train."""
    labels = collection.source.labels
    classes = len(np.unique(labels))
    if classes < 4:
        raise ValueError(f"--dataset {args.dataset} has {classes} classes; wanted 4 at least, in two halves")
    if not args.by_superclass:
        return mj.samplers.class_split(labels, collection.train, seed=seed)
    above = mj.data.superlabels(collection.source)
    if above is None or len(np.unique(above)) < 2:
        raise ValueError(f"--by-superclass: --dataset {args.dataset} has no super-classes; wanted 2 at least")
    return mj.samplers.class_split(above, seed=seed)


def _held(labels: np.ndarray, share: float, seed: int | None) -> np.ndarray:
    """Of the training images those of classes to choose the checkpoint by: two at least, or none for a share of 0."""
    if not share:
        return np.zeros(len(labels), bool)
    classes = len(np.unique(labels))
    count = max(2, round(share * classes))
    if classes - count < 2:
        raise ValueError(f"--validation {share:g} of {classes} training classes leaves fewer than 2 to train on")
    return ~mj.samplers.class_split(labels, classes - count, seed=seed)


def _of(source: mj.data.Source, rows: np.ndarray) -> mj.data.Source:
    """The classes that have these rows."""
    return mj.data.of_people(source, np.bincount(source.labels[rows], minlength=len(source.people)) > 0)


def _kept(source: mj.data.Source, what: str) -> mj.data.Source:
    """What is to be searched, in memory where that is affordable."""
    if len(source.people) < 2 or np.bincount(source.labels).max() < 2:
        raise ValueError(f"{what} has {len(source.people)} classes; wanted 2, and 2 images of one, to search among")
    affordable = len(source) * math.prod(source[0].shape) <= MOST_HELD
    return mj.data.ArraySource(in_memory(source)) if affordable else source


def settings(args, train: mj.data.Source) -> dict[str, Any]:
    """Settings that fit the images to train on.

    Seen on Omniglot's small sets and on ORL, but for those of published weights, which are what papers have.
    """
    published, height, grey = of_published(args), train[0].shape[0], train[0].shape[-1] == 1
    batch = SAMPLERS[args.sampler]
    if args.sampler in ("pk", "weighted"):
        batch = (min(batch[0], len(train.people)), batch[1])
    return {
        "encoder": "resnet50" if published else "small_resnet",
        "image_size": (height, train[0].shape[1]),
        "pixels": "imagenet" if published else "standardised",
        "mirror": "none" if grey else "random",
        "augment": 0.5,
        "batch": batch,
        "steps": int(np.clip(40 * len(train) // math.prod(args.batch or batch), 400, 20_000)),
        "learning_rate": 1e-4 if published else 2e-3,
    }
