"""Whom an encoder was trained on: people.json in the folder of a run, by names of people and of their photographs.

Neither paths nor contents of photographs count: a data set that was moved, or is spelled in another way, is the same
one, and a photograph that was replaced by another of its name goes unnoticed. Names compare in Unicode's form NFC.
"""

import hashlib
import json
import os
import pathlib
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from metricjax.data.faces import Faces
from metricjax.ground import json_files
from metricjax.ground.names import some

__all__ = ["among", "difference", "new_to", "read", "record", "trained_on"]

FILE = "people.json"
GROUPS = ("trained on", "validation")  # people that a checkpoint was made by, or chosen by
COVERED = ("named", *GROUPS, "validation set", "landmarks")  # by the digest
NOT_KNOWN = "It is not known whether anybody here was trained on"
EMBEDDINGS = f"{NOT_KNOWN}: embeddings do not tell."


def record(train, validation, tested: Iterable[str], landmarks=None) -> dict[str, Any]:
    """The people and photographs that a run is trained on; they are the same where `digest` is.

    train, validation: sources or sets of people; validation may be a verification set, or None.
    tested: names of the people to test on, which the digest does not cover.
    """
    by_people = hasattr(validation, "people")
    made = {
        "named": any(_files(train)) or not all(name.isdecimal() for name in train.people),
        "trained on": _photographs(train),
        "validation": _photographs(validation) if by_people else {},
        "validation set": None if by_people or validation is None else _digest(validation.images, validation.same),
        "landmarks": None if landmarks is None else _digest(*_in_order(landmarks)),
    }
    made |= {"digest": _digest(_text(made)), "tested on": [_normal(name) for name in tested]}
    return made | {"of all": _digest(_text(made))}  # by which damage is noticed


def read(run: pathlib.Path) -> dict[str, Any] | None:
    """The record of a run; None where it has none. A run of an older version that has ended gives the names alone."""
    path = run / FILE
    if not path.is_file():
        return _of_older_version(run)
    found = json_files.read(path)
    if found.pop("of all", None) != _digest(_text(found)):
        raise ValueError(f"{path} is damaged: it does not hold what was written")
    return found


def trained_on(record: dict[str, Any] | None) -> list[str] | None:
    """The names in a record of people whom an encoder was trained on, or chosen by; None where they are not known."""
    return None if record is None else [*record["trained on"], *record["validation"]]


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences, with the first few names of each."""
    found = []
    for group in GROUPS:
        old, new = before[group], now[group]
        other = [name for name in new if name in old and new[name] != old[name]]
        each = {
            f"missing ({group})": [name for name in old if name not in new],
            f"new ({group})": [name for name in new if name not in old],
            "with other photographs": [f"{name} (now {new[name][0]}, were {old[name][0]})" for name in other],
        }
        found += [f"{kind}: {some(names)}" for kind, names in each.items() if names]
        if not found and list(old) != list(new):
            found.append("the people are in another order")
    return "; ".join(
        found + [f"another {name}" for name in COVERED if name not in GROUPS and before[name] != now[name]]
    )


def new_to(known: dict[str, Any] | None, run: str | os.PathLike, faces: Faces) -> tuple[np.ndarray, str]:
    """The people of a set whom a run, or an encoder saved from it, never saw (a mask), and a sentence on what is known.

    People by whom the checkpoint was chosen count as seen.
    """
    everybody = np.ones(len(faces.people), bool)
    if known is None:
        return everybody, f"{NOT_KNOWN}: {run} holds no record of its people."
    if not known["named"]:
        return everybody, f"{NOT_KNOWN}: the people of {run} are numbers, not names."
    seen, here = known["trained on"] | known["validation"], _photographs(faces)
    new = ~among(faces.people, seen)
    if new.all():
        sentence = f"Nobody here was trained on, by name: the {len(seen)} people of {run} have other names."
    else:
        sentence = (
            f"{np.sum(~new)} of {len(new)} people are left out: the encoder was trained on them, or chosen by them."
        )
        differ = [name for name in here if name in seen and seen[name][1] not in ("", here[name][1])]
        if differ:
            sentence += f" Of {len(differ)} of these, photographs have other names here: {some(differ)}."
    if "digest" not in known:
        sentence += f" Whether the checkpoint was chosen by anybody here is not known: {run} holds no {FILE}."
    return new, sentence


def among(people: Iterable[str], names: Iterable[str]) -> np.ndarray:
    """The people (a mask) who have one of these names."""
    held = {_normal(name) for name in names}
    return np.array([_normal(name) in held for name in people], bool)


def _of_older_version(run: pathlib.Path) -> dict[str, Any] | None:
    path = run / "metrics.json"
    people = json_files.read(path).get("people", {}) if path.is_file() else {}
    if not isinstance(people, dict) or not all(_is_names(people.get(kind, [])) for kind in ("trained on", "tested on")):
        raise ValueError(f"{path} is damaged: its people are not lists of names")
    if "trained on" not in people:
        return None
    names = [_normal(name) for name in people["trained on"]]
    made = {"named": not all(name.isdecimal() for name in names), "trained on": {name: [0, ""] for name in names}}
    return made | {"validation": {}, "tested on": [_normal(name) for name in people.get("tested on", [])]}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _photographs(source) -> dict[str, list]:
    """For each person, in the order of labels, the number of photographs and a digest of their names."""
    files: dict[str, list[str]] = {_normal(name): [] for name in source.people}
    for label, file in zip(source.labels.tolist(), _files(source), strict=True):
        files[_normal(source.people[label])].append(_normal(file))
    return {name: [len(own), _digest(_text(sorted(own))) if any(own) else ""] for name, own in files.items()}


def _files(source) -> list[str]:
    """Names of photographs without folder and suffix, empty where the data set does not say."""
    return getattr(source, "files", None) or [""] * len(source.labels)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _in_order(landmarks) -> list:
    return [part for name in sorted(landmarks) for part in (name, landmarks[name])]


def _text(value: Any) -> str:
    return json.dumps(value)  # ASCII, also of names that are not valid Unicode


def _digest(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        held = part.encode(errors="surrogateescape") if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
        digest.update(f"{type(part).__name__} {len(held)} ".encode() + held)
    return digest.hexdigest()
