"""The data that `metricjax train` trains and tests on, as its command line names them."""

import pathlib
import warnings
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import metricjax as mj
from metricjax.commands import fitting
from metricjax.ground.names import some
from metricjax.losses.catalogue import CATALOGUE
from metricjax.trained import people_of_run
from metricjax.trained.design import Design
from metricjax.training import one_run

__all__ = [
    "Data",
    "Split",
    "check_folds",
    "check_names",
    "check_verifiable",
    "design",
    "fold_sizes",
    "in_memory",
    "is_a_number_of_people",
    "last",
    "learns_from_one",
    "load",
    "opened",
    "pairs_to_test",
    "split",
    "to_choose_by",
    "to_test_on",
    "verification_sets",
]

ORL = (112, 92)  # height and width of its photographs
USUAL = (112, 112)  # of all other data sets
COLOURED = ("imagenet", "clip")  # pixels that are something for each of red, green and blue
MOST_TESTED = 500  # people, unless the command line says otherwise
FOLDS = 10  # of verification sets


class Data(NamedTuple):
    """A source to train on; people never seen, pairs of their photographs, and verification sets to test on; people or
    pairs to choose the checkpoint by; and the record of all these people (`people_of_run`)."""

    train: mj.data.Source
    trained_on: list[str]
    tested: mj.data.Faces | None
    pairs: mj.data.Pairs | None
    sets: dict[str, mj.data.PairImages]
    validation: mj.data.Faces | mj.data.PairImages | None
    record: dict


def load(args) -> Data:
    """Read the images to test on; those to train on are read when they are needed."""
    usual, seen = ORL if args.dataset == "orl" else USUAL, tuple(args.image_size or (0, 0))
    photograph = seen if seen[0] > usual[0] or seen[1] > usual[1] else usual
    if args.pairs is not None and (args.dataset == "orl" or not pathlib.Path(args.dataset).is_dir()):
        raise ValueError("--pairs names files: give the folder that holds LFW's people as --dataset")
    sets = verification_sets(args, photograph)
    source = opened(args, photograph)
    pairs = None if args.pairs is None else pairs_to_test(args)
    trained, held, tested = split(args, source, pairs)
    validation = to_choose_by(args, source, held, photograph)
    if trained.sum() < 2:
        raise ValueError(f"--dataset {args.dataset} leaves {trained.sum()} people to train on; wanted 2 at least")
    if not tested.any() and not sets:
        raise ValueError("--test-people 0 without any --test leaves nothing to test on")
    train = mj.data.of_people(source, trained)
    counts = np.bincount(train.labels)
    fitted = fitting.fit(args, int(np.sum(counts > 1)), int(np.sum(counts == 1)), len(train))
    one_run.by_first(lambda: print(fitted))
    tested_on = [name for name, kept in zip(source.people, tested, strict=True) if kept]
    record = people_of_run.record(train, validation, tested_on, getattr(source, "landmarks", None))
    test = to_test_on(args, source, tested, pairs) if tested.any() else None
    if held.any():
        validation = in_memory(validation)
    mirrored = mj.data.mirrored(train) if args.mirror == "people" else train
    return Data(mirrored, train.people, test, pairs, sets, validation, record)


def verification_sets(args, photograph: tuple[int, int]) -> dict[str, mj.data.PairImages]:
    """The sets of --test, by their names."""
    sets = {path.stem: mj.data.verification_set(path, photograph) for path in args.test}
    for name, held in sets.items():
        check_folds(f"--test: {name}", held.same, FOLDS)
    return sets


class Split(NamedTuple):
    """Which people (masks) are trained on, held back to choose the checkpoint by, and tested on."""

    trained: np.ndarray
    held: np.ndarray
    tested: np.ndarray


def split(args, source: mj.data.Source, pairs: mj.data.Pairs | None) -> Split:
    """People of the pairs are tested on, or the last ones; of the others, the last ones are held back."""
    several = np.bincount(source.labels, minlength=len(source.people)) > 1
    if pairs is not None:
        named = pairs.people()
        tested = np.array([name in named for name in source.people])
    else:
        people = int(np.sum(several))
        count = min(people - people // 2, MOST_TESTED) if args.test_people is None else args.test_people
        tested = last(several, count)
    trained = ~tested if learns_from_one(args) else ~tested & several
    if left := np.sum(~tested & ~trained):
        told = f"{left} people with one photograph are left out: --loss {args.loss} compares photographs of one"
        warnings.warn(told, stacklevel=3)
    check_names(source, trained, tested)
    held = last(trained & several, int(args.validation) if is_a_number_of_people(args) else 0)
    return Split(trained & ~held, held, tested)


def last(people: np.ndarray, count: int) -> np.ndarray:
    """The last `count` of these people (masks)."""
    return people & (np.cumsum(people) > people.sum() - count)


def learns_from_one(args) -> bool:
    """Whether a loss learns from a person with one photograph, as those do that have a prototype for each person."""
    return any(CATALOGUE[name].kind == "classes" for name in args.losses)


def is_a_number_of_people(args) -> bool:
    """Whether --validation is a number of people."""
    return args.validation is not None and args.validation.isdigit()


def to_choose_by(args, source: mj.data.Source, held: np.ndarray, photograph: tuple[int, int]):
    """The people held back, not yet read, or the verification set of --validation; None without any."""
    if args.validation is None:
        return None
    if is_a_number_of_people(args):
        people = mj.data.of_people(source, held)
        check_verifiable(people, f"--validation {args.validation}")
        return people
    pairs = mj.data.verification_set(args.validation, photograph)
    if pairs.same.all() or not pairs.same.any():
        raise ValueError(f"--validation {args.validation} holds one kind of pair only; wanted genuine and impostor")
    return pairs


def to_test_on(args, source: mj.data.Source, tested: np.ndarray, pairs: mj.data.Pairs | None) -> mj.data.Faces:
    people = mj.data.of_people(source, tested)
    check_verifiable(people, f"--test-people {tested.sum()}" if pairs is None else f"--test-folds {args.test_folds}")
    test = in_memory(people)
    if pairs is not None:
        kept, _ = pairs.found(test.files, [test.people[label] for label in test.labels])
        check_folds(f"--pairs {args.pairs}", kept.same, kept.fold)
    return test


def check_names(source: mj.data.Source, trained: np.ndarray, tested: np.ndarray) -> None:
    """Two spellings of a name in Unicode are one person, who must not be both trained on and tested on."""
    twice = tested & people_of_run.among(source.people, np.array(source.people)[trained])
    if twice.any():
        names = some([source.people[i] for i in np.flatnonzero(twice)])
        raise ValueError(f"--dataset holds people in two spellings of Unicode, as if they were two: {names}")


def pairs_to_test(args) -> mj.data.Pairs:
    """The pairs of --test-folds, or all of a list without folds, in folds made here."""
    try:
        folds = [int(fold) for fold in args.test_folds.split(",")]
    except ValueError:
        raise ValueError(f"--test-folds is {args.test_folds}; wanted numbers with commas between them") from None
    pairs = mj.data.read_pairs(args.pairs)
    pairs = pairs.of_folds(folds) if pairs.fold.any() else pairs.folded(FOLDS)
    if len(np.unique(pairs.fold)) < 2:
        raise ValueError(f"--test-folds {args.test_folds} names fewer than 2 folds: thresholds come from the others")
    return pairs


def check_folds(argument: str, same: np.ndarray, folds: int | np.ndarray) -> None:
    """Pairs that cannot be judged in folds are an error before training, not after it."""
    try:
        mj.metrics.k_fold_accuracy(np.zeros(len(same)), same, folds)
    except ValueError as error:
        raise ValueError(f"{argument} cannot be evaluated in folds: {error}") from None


def fold_sizes(name: str, fold: np.ndarray) -> dict[str, int]:
    """The sizes of folds, where they are not all equal."""
    sizes = np.unique(fold, return_counts=True)[1]
    if sizes.min() == sizes.max():
        return {}
    return {f"{name} pairs, smallest fold": int(sizes.min()), f"{name} pairs, largest fold": int(sizes.max())}


def check_verifiable(source: mj.data.Source, argument: str) -> None:
    """People kept for verification who cannot be compared are an error before training, not after it."""
    if len(source.people) < 2 or np.bincount(source.labels).max() < 2:
        raise ValueError(f"{argument}: wanted 2 people at least, and 2 photographs of one, to compare")


def opened(args, photograph: tuple[int, int]) -> mj.data.Source:
    """All that --dataset holds."""
    of_a_folder = pathlib.Path(args.dataset).is_dir() and not (pathlib.Path(args.dataset) / "train.rec").is_file()
    if args.landmarks is not None and not of_a_folder:
        raise ValueError(f"--landmarks names files: wanted a folder of people as --dataset, not {args.dataset}")
    if args.dataset == "orl":
        return mj.data.ArraySource(mj.data.orl(photograph))
    if args.dataset == "lfw":
        return mj.data.ArraySource(mj.data.lfw(photograph, at_least=1))
    if args.dataset.startswith("tfds:"):
        return mj.data.TfdsSource(args.dataset.removeprefix("tfds:"), "train", photograph, at_least=1)
    if (pathlib.Path(args.dataset) / "train.rec").is_file():
        return mj.data.RecordSource(args.dataset, photograph)
    landmarks = None if args.landmarks is None else mj.data.read_landmarks(args.landmarks)
    return mj.data.FolderSource(args.dataset, photograph, at_least=1, landmarks=landmarks)


def in_memory(source: Any) -> mj.data.Faces:
    images = [source[i] for i in tqdm(range(len(source)), "reading", unit=" images", disable=len(source) < 1000)]
    return mj.data.Faces(np.stack(images), source.labels, source.people, source.files)


def design(args, data: Any) -> Design:
    """That of an encoder of images such as `data.train` has."""
    height, width, channels = data.train[0].shape
    if channels == 1 and args.pixels in COLOURED:
        raise ValueError(f"--pixels {args.pixels} is for colour; the photographs of --dataset {args.dataset} are grey")
    return Design(
        args.encoder,
        args.embedding_size,
        (height, width),
        tuple(args.image_size),
        channels,
        args.pixels,
        args.precision,
    )
