"""A gallery of people with names, in one file.

with gallery_file.alone(path):                                      # or another process's change might be lost
    people = gallery_file.read(path).enrol(["Ada"], embeddings)
    gallery_file.write(path, people)                                # all of it, or nothing
gallery_file.change(path, lambda people: people.remove("Ada"))      # the same in one call
"""

import contextlib
import dataclasses
import pathlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import filelock
import jax.numpy as jnp
import numpy as np

from metricjax.ground.files import beside, read_arrays, remove_parts, write_arrays
from metricjax.ground.names import printable
from metricjax.prototypes import add_classes
from metricjax.search.gallery import ARRAYS, Gallery, of_arrays

__all__ = ["UNKNOWN", "People", "alone", "change", "check", "check_folder", "name_of", "read", "write"]

CAPACITY = 64  # places of a new gallery
FEWEST = 16  # rows enrolled at a time: batches are filled up to this, or to a power of 2, so that few sizes compile
PATIENCE = 60  # seconds to wait for another process that changes the gallery
UNKNOWN = "unknown"  # what nobody may be called


def name_of(text: str) -> str:
    """The name as it is kept and printed: in one spelling, on one line, with escapes for what cannot be shown."""
    name = printable(unicodedata.normalize("NFC", text).strip())  # file systems write é in two ways
    if not name or name == UNKNOWN:
        raise ValueError(f"{text!r} is not a name for a person; wanted one that is not empty, and not {UNKNOWN!r}")
    return name


@dataclasses.dataclass(frozen=True)
class People:
    """A gallery and the meaning of its numbers.

    names, photographs: of each id, the person ("" where it is free) and the number of photographs enrolled.
    encoder: the digest of the encoder that made the embeddings.
    threshold: a face with at least this score is known, NaN if not calibrated; calibrated: for which rate, in words.
    """

    gallery: Gallery
    encoder: str
    names: list[str] = dataclasses.field(default_factory=list)
    photographs: list[int] = dataclasses.field(default_factory=list)
    threshold: float = np.nan
    calibrated: str = ""

    def __repr__(self) -> str:
        photographs = f"{sum(self.photographs):,} photographs"
        return f"<gallery of {len(self.enrolled):,} people, {photographs}, of encoder {self.encoder[:12]}>"

    @classmethod
    def nobody(cls, features: int, encoder: str) -> "People":
        return cls(Gallery.empty(CAPACITY, features), encoder)

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
            more = Gallery.empty(2 * len(gallery.ids), embeddings.shape[1])
            gallery = add_classes(gallery, more)
        rows = max(FEWEST, 1 << (len(ids) - 1).bit_length()) - len(ids)
        filled = np.pad(embeddings, ((0, rows), (0, 0))), np.pad(ids, (0, rows), constant_values=-1)
        gallery = gallery.enrol(*map(jnp.asarray, filled))
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
    """The people that `write` wrote; ValueError that names the file and what is wrong with it."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; `enrol` makes a gallery")
    try:
        held = read_arrays(path)
        gallery = of_arrays({name: held.pop(name) for name in ARRAYS if name in held})
        check(held, np.asarray(gallery.ids))
    except ValueError as error:
        why = str(error).removeprefix(f"{path} ")
        raise ValueError(f"{path} is not a gallery of `metricjax recognize`, or a damaged one ({why})") from None
    return People(gallery, **{name: value.tolist() for name, value in held.items()})


def check(held: dict[str, np.ndarray], ids: np.ndarray) -> None:
    """The arrays of a file beside those of the gallery have to fit each other, and the ids."""
    wanted = {"encoder": ("U", 0), "names": ("U", 1), "photographs": ("i", 1), "threshold": ("f", 0)}
    wanted |= {"calibrated": ("U", 0)}
    if {name: (value.dtype.kind, value.ndim) for name, value in held.items()} != wanted:
        got = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in sorted(held.items()))
        raise ValueError(f"holds {got or 'nothing'} beside the gallery")
    names, photographs = held["names"], held["photographs"]
    who = np.flatnonzero(names != "")
    if len(names) != len(photographs) or np.any((photographs > 0) != (names != "")) or np.any(photographs < 0):
        raise ValueError(f"holds {len(names)} names that do not fit {len(photographs)} numbers of photographs")
    if not np.array_equal(who, np.sort(ids[ids >= 0])) or len(np.unique(names[who])) < len(who):
        raise ValueError(f"holds {len(who)} names that are not those of {np.sum(ids >= 0)} people")
    if np.isnan(held["threshold"]) == bool(held["calibrated"]):
        raise ValueError(f"holds the threshold {held['threshold']}, calibrated {str(held['calibrated'])!r}")


def write(path: pathlib.Path, people: People) -> None:
    """The old file stays as it is until the new one is on the disk."""
    held = {name: getattr(people.gallery, name) for name in ARRAYS}
    held |= {"names": np.array(people.names, str), "photographs": np.array(people.photographs, int)}  # typed, if empty
    held |= {name: getattr(people, name) for name in ("encoder", "threshold", "calibrated")}
    write_arrays(path, held)


def check_folder(path: pathlib.Path) -> None:
    """ValueError where the folder that the file, or what it is a link to, lies in does not exist."""
    if not beside(path, "lock").parent.is_dir():
        raise ValueError(f"{path} is in no folder; wanted one that exists")


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
    """Hold the gallery between reading and writing: other processes that ask for the same have to wait.

    The lock is one of the operating system on a file beside the gallery, .NAME.lock, which stays there empty. It ends
    with its process, however that dies. Processes of several hosts exclude each other where their shared folder has
    such locks (`flock`: NFS 4 and CephFS do, unless they are mounted without).
    """
    check_folder(path)
    at = beside(path, "lock")  # one lock, whatever link leads to the file
    lock = filelock.FileLock(at, timeout=PATIENCE)
    try:
        lock.acquire()
    except filelock.Timeout:
        waited = f"waited {PATIENCE} s for another process that changes it, and holds {at}"
        raise ValueError(f"{path} is as it was: {waited}") from None
    try:
        remove_parts(path)
        yield
    finally:
        lock.release()


def change(path: pathlib.Path, to: Callable[[People], People], nobody: People | None = None) -> tuple[People, People]:
    """Replace the people in the file, as they are when nobody else changes them, by what `to` makes of them.

    Returns who was there before and who is there now. Where there is no file yet, it begins with `nobody`, if given.
    """
    with alone(path):
        before = read(path) if nobody is None or path.exists() else nobody
        after = to(before)
        write(path, after)
    return before, after
