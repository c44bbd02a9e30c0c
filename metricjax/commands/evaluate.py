"""Evaluate embeddings of faces: a table, metrics.json, and a page to look at (report.html).

metricjax evaluate EMBEDDINGS.npz                          # arrays embeddings, labels (images, people)
metricjax evaluate --checkpoint runs/NAME FOLDER_OF_PEOPLE # or orl: photographs, and a trained encoder
metricjax evaluate --checkpoint runs/NAME lfw_folder --pairs pairs.txt
"""

import argparse
import pathlib
import sys
import time
import warnings
from typing import NamedTuple

import numpy as np

import metricjax as mj
from metricjax.commands import command_line, tables
from metricjax.ground import json_files
from metricjax.ground.files import read_arrays as arrays_of
from metricjax.trained import people_of_run

__all__ = [
    "Embedded",
    "accuracy_over_pairs",
    "arguments",
    "checked",
    "from_npz",
    "from_photographs",
    "main",
    "read_arrays",
]

FARS = (0.1, 0.01, 0.001, 0.0001)


def arguments(argv=None) -> argparse.Namespace:
    parser = command_line.parser("evaluate", __doc__)
    add = parser.add_argument
    add("source", help="an .npz file of embeddings; with --checkpoint a folder with a sub-folder per person, or orl")
    add("--checkpoint", type=pathlib.Path, metavar="RUN", help="run, or file of an encoder: embeds photographs")
    add("--pairs", type=pathlib.Path, help="pairs in the format of LFW's pairs.txt: adds the accuracy over its folds")
    add("--far", type=float, nargs="+", default=FARS, help="false accept rates to tell the true accept rate at")
    add("--resamples", type=int, default=200, help="of the people, for confidence bands; 0 for none (large sets)")
    add("--title", help="of the page; default the name of the source")
    add("--out", type=pathlib.Path, help="folder of results; default runs/DATE-TIME")
    args = parser.parse_args(argv)
    if not all(0 < far <= 1 for far in args.far):
        parser.error(f"--far is {' '.join(map(str, args.far))}; wanted rates above 0, up to 1")
    if args.checkpoint is None and not args.source.endswith(".npz"):
        parser.error(f"{args.source} is not an .npz file of embeddings; give --checkpoint to embed photographs")
    if args.checkpoint is not None and args.source.endswith(".npz"):
        parser.error(f"{args.source} holds embeddings already; --checkpoint is for photographs")
    if args.pairs is not None and args.source == "orl":
        parser.error("--pairs names files: give the folder that holds them, not orl")
    args.out = args.out or command_line.dated_folder()
    args.title = args.title or f"Evaluation of {pathlib.Path(args.source).name}"
    return args


class Embedded(NamedTuple):
    """Embeddings [n, d], labels [n] that number `people`, and what there is beside them."""

    embeddings: np.ndarray
    labels: np.ndarray
    people: list[str]
    images: np.ndarray | None
    files: list[str] | None
    seen: str = people_of_run.EMBEDDINGS  # whether the encoder was trained on them, in a sentence


# --- what is evaluated ----------------------------------------------------------------------------------------------


def from_npz(path: str) -> Embedded:
    """The arrays of a file, checked; `labels` may be any integers, or names."""
    arrays = read_arrays(path)
    for name in ("embeddings", "labels"):
        if name not in arrays:
            raise ValueError(f"{path} has no array {name!r}; it holds {', '.join(arrays) or 'nothing'}")
    try:
        return checked(**{name: arrays.get(name) for name in ("embeddings", "labels", "people", "images", "files")})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def checked(embeddings, labels, people, images, files) -> Embedded:
    shown = lambda array: f"{array.dtype}{list(array.shape)}"
    if embeddings.ndim != 2 or embeddings.dtype not in (np.float16, np.float32, np.float64) or not embeddings.shape[1]:
        raise ValueError(f"embeddings is {shown(embeddings)}; wanted floats [n, d]")
    if labels.shape != embeddings.shape[:1] or labels.dtype.kind not in "iuU":
        got = f"{shown(labels)}; wanted an integer or a name for each of {len(embeddings)} embeddings"
        raise ValueError(f"labels is {got}")
    with np.errstate(over="ignore"):  # a number that is finite in 64 bits may not be so in 32
        broken = np.flatnonzero(~np.all(np.isfinite(embeddings.astype(np.float32)), axis=1))
    if len(broken):
        raise ValueError(f"embeddings holds NaN or infinity in {len(broken)} rows, the first of which is {broken[0]}")
    if people is not None and (people.ndim != 1 or people.dtype.kind != "U" or labels.dtype.kind == "U"):
        raise ValueError(f"people is {shown(people)}; wanted names that integer labels number")
    if people is not None and len(labels) and not 0 <= labels.min() <= labels.max() < len(people):
        raise ValueError(f"people has {len(people)} names; labels go from {labels.min()} to {labels.max()}")
    if images is not None:
        n, got = len(labels), shown(images)
        images = images[..., None] if images.ndim == 3 else images
        fitting = images.ndim == 4 and len(images) == n and images.shape[-1] in (1, 3) and 0 not in images.shape[1:3]
        if not fitting or images.dtype != np.uint8:
            raise ValueError(f"images is {got}; wanted uint8[{n}, height, width] or one with 1 or 3 channels")
    if files is not None and (files.shape != labels.shape or files.dtype.kind != "U"):
        raise ValueError(f"files is {shown(files)}; wanted a name for each of {len(labels)} rows")
    values, labels = np.unique(labels, return_inverse=True)
    names = [str(value) if people is None else str(people[value]) for value in values]
    return Embedded(embeddings, labels, names, images, None if files is None else files.tolist())


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; nothing in it is executed, and damage is a ValueError that names the file."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file")
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            raise ValueError(f"{path} is not an .npz file; write one with numpy.savez(path, embeddings=…, labels=…)")
    return arrays_of(path)


def from_photographs(source: str, checkpoint: pathlib.Path, pairs: bool) -> Embedded:
    """Photographs of people, embedded by a trained encoder; for a list of pairs also of people with one photograph.

    People that the encoder was trained on would flatter it: they are left out, by name (see `people_of_run`).
    """
    encoder = mj.load(checkpoint)
    if source == "orl":
        faces = mj.data.orl(encoder.photograph)
    else:
        faces = mj.data.folder(source, encoder.photograph, at_least=1 if pairs else 2)
    new, sentence = people_of_run.new_to(encoder.record, checkpoint, faces)
    faces = faces if new.all() else faces.of_people(new)
    return Embedded(encoder.embed(faces.images), faces.labels, faces.people, faces.images, faces.files, sentence)


# --- evaluation -----------------------------------------------------------------------------------------------------


def accuracy_over_pairs(given: Embedded, path: pathlib.Path) -> dict[str, float | int | str]:
    """LFW's protocol: each fold of the pairs is judged at the threshold that is best for the others."""
    if given.files is None:
        raise ValueError("--pairs names files: the .npz file needs an array `files` of their names without suffix")
    pairs = mj.data.read_pairs(path)
    who = [given.people[label] for label in given.labels]
    kept, similarity = pairs.similarities(given.embeddings, given.files, who)
    if not len(kept.same):
        raise ValueError(f"none of the {len(pairs.same)} pairs of {path} has both of its photographs here")
    if len(kept.same) < len(pairs.same):
        left = len(pairs.same) - len(kept.same)
        warnings.warn(f"{left} pairs are left out: a photograph of each is missing", stacklevel=1)
    folded = kept.folded()
    mean, deviation = mj.metrics.k_fold_accuracy(similarity, folded.same, folds=folded.fold)
    sizes = np.unique(folded.fold, return_counts=True)[1]
    notes: dict[str, float | int | str] = {f"{len(sizes)}-fold accuracy": mean, "deviation over folds": deviation}
    notes["pairs of the list"] = len(kept.same)
    if not kept.fold.any():
        each = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else f"{sizes.max()}"
        notes["Folds"] = f"the list has none; {len(sizes)} of {each} pairs were made of it, in its order"
    return notes


def main(argv=None) -> dict[str, float | int | None]:
    args = arguments(argv)
    started = time.perf_counter()
    try:
        if args.checkpoint is None:
            given = from_npz(args.source)
        else:
            given = from_photographs(args.source, args.checkpoint, args.pairs is not None)
        print(given.seen)
        if len(given.people) < 2:
            raise ValueError(f"{args.source} holds {len(given.people)} people; wanted 2 to tell apart")
        over_pairs = {} if args.pairs is None else accuracy_over_pairs(given, args.pairs)
        notes = {"Trained on": given.seen.removesuffix("."), **over_pairs}
        args.out.mkdir(parents=True, exist_ok=True)
        numbers = mj.plots.report(
            args.out / "report.html",
            given.embeddings,
            given.labels,
            images=given.images,
            people=given.people,
            title=args.title,
            fars=args.far,
            notes=notes,
            resamples=args.resamples,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"metricjax evaluate: {error}")
    json_files.write(args.out / "metrics.json", numbers)
    seconds = time.perf_counter() - started
    table = "\n".join(tables.line(name, value, digits=4) for name, value in numbers.items())
    print(f"{table}\n\n{seconds:.0f} s; report.html and metrics.json are in {args.out}")
    return numbers
