"""A gallery of people with names, in one file: what recognize.py keeps.

people = gallery_file.read("staff.npz").enrol(["Ada"], embeddings)
gallery_file.write("staff.npz", people)                             # all of it, or nothing
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

import metricjax as mj

CAPACITY = 64  # places of a new gallery
ARRAYS = ("sums", "ids", "overflow")


@dataclasses.dataclass(frozen=True)
class People:
    """A gallery and what its numbers mean.

    names, photographs: of each id, who it is ("" where it is free) and how many photographs are enrolled.
    encoder: fingerprint of the one whose embeddings they are.
    threshold: score from which on a face is known, NaN if not calibrated; calibrated: for what it was, in words.
    """

    gallery: mj.search.Gallery
    encoder: str
    names: list[str] = dataclasses.field(default_factory=list)
    photographs: list[int] = dataclasses.field(default_factory=list)
    threshold: float = np.nan
    calibrated: str = ""

    @classmethod
    def nobody(cls, features: int, encoder: str) -> "People":
        return cls(mj.search.Gallery.empty(CAPACITY, features), encoder)

    @property
    def enrolled(self) -> list[str]:
        return sorted(filter(None, self.names))

    def enrol(self, names: Sequence[str], embeddings: np.ndarray) -> "People":
        """With one more photograph of each of these names; the gallery doubles until all have a place."""
        known = [*self.names]
        for name in dict.fromkeys(names):
            if name not in known:
                known += [] if "" in known else [""]
                known[known.index("")] = name
        number = {name: i for i, name in enumerate(known)}
        ids = np.array([number[name] for name in names], np.int32)
        count = np.bincount(ids, minlength=len(known))
        count[: len(self.photographs)] += np.array(self.photographs, int)
        gallery = self.gallery
        while len(gallery.ids) < len(known):
            more = mj.search.Gallery.empty(2 * len(gallery.ids), embeddings.shape[1])
            gallery = mj.classes.add_classes(gallery, more)
        gallery = gallery.enrol(jnp.asarray(embeddings), jnp.asarray(ids))
        return dataclasses.replace(self, gallery=gallery, names=known, photographs=count.tolist())

    def remove(self, name: str) -> "People":
        if name not in self.enrolled:
            raise ValueError(f"{name} is not enrolled")
        who = self.names.index(name)
        without = lambda values, nothing: [*values[:who], nothing, *values[who + 1 :]]
        gallery = self.gallery.remove(jnp.array([who], jnp.int32))
        names, photographs = without(self.names, ""), without(self.photographs, 0)
        return dataclasses.replace(self, gallery=gallery, names=names, photographs=photographs)


def read(path: pathlib.Path) -> People:
    if not path.exists():
        raise ValueError(f"{path} does not exist; `enrol` makes a gallery")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            held = {name: file[name] for name in file}
        gallery = mj.search.Gallery(*(jnp.asarray(held.pop(name)) for name in ARRAYS))
        return People(gallery, **{name: value.tolist() for name, value in held.items()})
    except Exception as error:  # whatever else a file may hold, or lack
        raise ValueError(f"{path} is no gallery of recognize.py, or a damaged one ({error})") from error


def write(path: pathlib.Path, people: People) -> None:
    """The old file stays as it is until the new one is on the disk."""
    held = {field.name: getattr(people, field.name) for field in dataclasses.fields(people)}
    held |= {name: getattr(held["gallery"], name) for name in ARRAYS}
    held["names"] = np.array(people.names, str)  # of nobody, too
    del held["gallery"]
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **held)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
