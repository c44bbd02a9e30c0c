"""InsightFace's `.bin` verification sets: lfw.bin, cfp_fp.bin, agedb_30.bin and the like.

Such a file is a pickle of encoded images, two for each pair, and of a list of booleans. A pickle can name any function
for its reader to call; here each of the few that NumPy and Python 2 leave in such files becomes a note of the call,
which is interpreted afterwards; any other is an error: nothing that a file names is ever run.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from metricjax.data.decoder import UNREADABLE, decoded
from metricjax.data.files import opened
from metricjax.data.pairs import cosines
from metricjax.ground.names import printable
from metricjax.ground.one_line import one_line
from metricjax.ground.pickles import InertUnpickler, Named, Note

__all__ = ["PairImages", "verification_set"]


class PairImages(NamedTuple):
    """Images [2 pairs, height, width, 3] uint8, those of pair i at 2 i and 2 i + 1, and whether each is one person."""

    images: np.ndarray
    same: np.ndarray

    def __repr__(self) -> str:
        return one_line(self)

    def similarities(self, embeddings: np.ndarray) -> np.ndarray:
        """The cosine of each pair, given the embeddings of all images."""
        if len(embeddings) != len(self.images):
            raise ValueError(f"embeddings has {len(embeddings)} rows; wanted one for each of {len(self.images)} images")
        return cosines(embeddings[0::2], embeddings[1::2])


def verification_set(path: str | pathlib.Path, size: tuple[int, int] = (112, 112)) -> PairImages:
    """Read a `.bin` verification set; images of another shape are cropped around their centre and resized.

    Score pair i by the cosine of its two embeddings (`metricjax.data.alignment` has the protocol) and give the scores
    to `metricjax.metrics.k_fold_accuracy(scores, same, 10)`. ValueError for a file that is something else, that names
    anything to be called, or that holds an image that cannot be decoded: a protocol with pairs missing is another one.
    """
    path = pathlib.Path(path)
    try:
        with opened(path) as file:
            content = _Reader(file, encoding="bytes").load()
        encoded, answers = content
        same = _booleans(answers)
        count = sum(1 for item in encoded if _bytes(item, "u1") is not None)  # ValueError for one of something else
    except _Refused as error:
        named = printable(str(error))
        raise ValueError(f"{path} is not a verification set: it names {named}, which such a file never does") from None
    except OSError:
        raise
    except Exception as error:  # whatever a broken pickle, or one of something else, leads to
        wanted, why = "a pickle of encoded images and a list of booleans", printable(str(error)) or type(error).__name__
        raise ValueError(f"{path} is not a verification set ({why}); wanted {wanted}") from None
    if count != 2 * len(same) or not count:
        raise ValueError(f"{path} holds {count} images and {len(same)} answers; wanted two for each")
    try:
        images = np.empty((count, *size, 3), np.uint8)
    except MemoryError:
        raise ValueError(f"{path} holds {count} images, more than there is memory for") from None
    for i, item in enumerate(tqdm(encoded, f"reading {path.name}", unit=" images")):
        try:
            images[i] = decoded(_bytes(item, "u1"), size)
        except UNREADABLE as error:
            raise ValueError(f"{path}: image {i % 2} of pair {i // 2} cannot be decoded ({error})") from None
    return PairImages(images, same)


class _Refused(Exception):
    """The pickle names a global that is not one of those below."""


# Arrays (of cv2.imencode) and booleans as all versions of NumPy pickle them; bytes as Python 3 writes them for 2.
_NUMPY = {"numpy.core", "numpy._core"}
_GLOBALS = {f"{core}.multiarray.{name}" for core in _NUMPY for name in ("_reconstruct", "scalar")}
_GLOBALS |= {f"{core}.numeric._frombuffer" for core in _NUMPY} | {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}


class _Reader(InertUnpickler):
    def named(self, name: str) -> Named:
        if name not in _GLOBALS:
            raise _Refused(name)
        return Named(name.rpartition(".")[2])


def _bytes(item: Any, kind: str) -> bytes:
    """The bytes of an item: as they are, as text that Python 2 would encode, or of an array of the dtype `kind`."""
    if isinstance(item, bytes | bytearray):
        return bytes(item)
    name = item.name if isinstance(item, Note) else None
    if name == "encode":
        text, encoding = item.arguments
        if encoding == "latin1":
            return text.encode("latin-1")
    elif name == "_reconstruct":
        _, _, dtype, _, raw = item.state
        if _is_dtype(dtype, kind):
            return _bytes(raw, kind)
    elif name == "_frombuffer":
        raw, dtype, _, _ = item.arguments
        if _is_dtype(dtype, kind):
            return _bytes(raw, kind)
    raise ValueError(f"it holds {name or type(item).__name__} where bytes or an array of {kind} should be")


def _is_dtype(item: Any, kind: str) -> bool:
    return isinstance(item, Note) and item.name == "dtype" and item.arguments[0] in (kind, kind.encode())


def _booleans(items: Any) -> np.ndarray:
    """A list of booleans or of NumPy's, or an array of them."""
    if not isinstance(items, list | tuple):
        return np.frombuffer(_bytes(items, "b1"), np.bool_)
    return np.array([_boolean(item) for item in items], np.bool_)


def _boolean(item: Any) -> bool:
    if isinstance(item, Note) and item.name == "scalar":
        dtype, raw = item.arguments
        if _is_dtype(dtype, "b1"):
            return _bytes(raw, "b1") != b"\0"
    if isinstance(item, bool) or (type(item) is int and item in (0, 1)):
        return bool(item)
    raise ValueError(f"it holds {type(item).__name__} where a boolean should be")
