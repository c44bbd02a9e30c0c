"""MXNet's RecordIO, the format of InsightFace's training sets: `train.rec`, `train.idx` and `property`.

A record is the magic number, a word with the length in its lower 29 bits, the bytes, and zeros up to a multiple of 4.
Where the magic number occurs in the bytes themselves, the record is split there, the number is left out, and the upper
3 bits of the word say so: 0 whole, 1 first part, 2 middle part, 3 last part (dmlc-core, `recordio.h`). The bytes begin
with a header: flag, label, id, second id; a flag above 0 is the number of labels that follow and replace the header's
(MXNet, `recordio.py`). Then comes the image. InsightFace adds records without image (`face2rec2.py`): key 0 holds the
keys [first, last + 1] of identity records, each of which holds the keys [first, last + 1] of a person's images.
"""

import array
import contextlib
import mmap
import os
import pathlib
import re
import struct
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from metricjax.data.decoder import UNREADABLE, decoded, upright
from metricjax.data.files import opened
from metricjax.data.photographs import Photographs
from metricjax.ground.names import printable

__all__ = ["HEADER", "LARGEST", "LENGTH", "MAGIC", "MOST_DAMAGED", "REASONS", "RecordSource"]

MAGIC = struct.pack("<I", 0xCED7230A)
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
LENGTH = 2**29 - 1
IMAGE, IDENTITY, UNMARKED, CUT, SHORT, EMPTY, UNLABELLED, UNALIGNED, OVERLONG = range(9)  # what a record is
REASONS = {
    UNMARKED: "the magic number is missing",
    CUT: "it runs past the end of the file",
    SHORT: "it is shorter than its header",
    EMPTY: "it holds no image",
    UNLABELLED: "its label is not a whole number",
    UNALIGNED: "its position is not a multiple of 4",
    OVERLONG: "it runs into the next record",
}
MOST_DAMAGED = 100_000  # records that are told one by one
LARGEST = 4096  # height or width that `property` may ask for
# A whole record's beginning, as far as two labels after the header.
_BEGINNING = np.dtype(
    [("magic", "<u4"), ("word", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("labels", "<f4", 2)]
)


class RecordSource(Photographs):
    """The images of a RecordIO file, in any order, RGB.

    The header of every record is read when the set is opened. Records that do not fit the format or run past the end
    of the file are left out with a warning of their positions, and listed in `left_out` (key, byte, reason); an image
    that cannot be decoded shows only when it is asked for (see `Photographs`).

    Args:
      path: the folder that holds `train.rec`, or a .rec file. Its .idx file gives keys and positions; without one the
        file is scanned. Header records and identity records are read too, but are not images.
      size: height and width; those in `property` if not given, else those of the first image that can be read.

    A person's name is the number in the records; labels number the people from 0 in that order. `ranges` [people, 2]
    are the keys in the identity records, empty where there are none.
    """

    def __init__(self, path: str | pathlib.Path, size: tuple[int, int] | None = None):
        path = pathlib.Path(path)
        self.path = path / "train.rec" if path.is_dir() else path
        if not self.path.is_file() or not self.path.stat().st_size:
            raise FileNotFoundError(f"{self.path} is not there or empty; wanted a RecordIO file")
        with opened(self.path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            keys, offsets = _indexed(self.path.with_suffix(".idx")) or _scanned(data)
            records = _headers(data, offsets)
        kind = records["kind"]
        bad = np.flatnonzero(kind > IDENTITY)
        if len(bad) > MOST_DAMAGED:
            first = f"the first at byte {offsets[bad[0]]} ({REASONS[int(kind[bad[0]])]})"
            raise ValueError(f"{self.path}: {len(bad)} of {len(kind)} records are damaged, {first}")
        self.left_out = [(int(keys[i]), int(offsets[i]), REASONS[int(kind[i])]) for i in bad]
        if self.left_out:
            some = ", ".join(f"key {key} at byte {byte} ({reason})" for key, byte, reason in self.left_out[:5])
            more = ", …" if len(self.left_out) > 5 else ""
            warnings.warn(f"{self.path}: {len(bad)} records are left out: {some}{more}", stacklevel=2)

        image, identity = kind == IMAGE, (kind == IDENTITY) & (keys > 0)
        self.ranges = records["labels"][identity].astype(np.int64)
        self.keys, self.offsets, self.spans = keys[image], offsets[image], records["span"][image]
        if not len(self.keys):
            raise ValueError(f"{self.path} holds no image records")
        expected, found = int(np.sum(self.ranges[:, 1] - self.ranges[:, 0])), len(self.keys)
        if found + len(bad) < expected < 2**24:  # above, the keys in records are rounded to float32
            warnings.warn(f"{self.path} holds {found} images; its identity records name {expected}", stacklevel=2)
        numbers, labels = np.unique(records["labels"][image, 0].astype(np.int64), return_inverse=True)
        super().__init__(labels.astype(np.int32), [str(number) for number in numbers])
        self._open()
        self.size = size or _property(self.path.with_name("property")) or self._size_of_an_image()

    def encoded(self, index: int) -> bytes:
        """The image as it is in the file, not decoded."""
        content = _content(os.pread(self._file, int(self.spans[index]), int(self.offsets[index])), 0)
        return content[HEADER.size + 4 * HEADER.unpack_from(content)[0] :]

    def _image(self, index: int) -> np.ndarray:
        return decoded(self.encoded(index), self.size)

    def _place(self, index: int) -> str:
        return f"{self.path}: key {self.keys[index]} at byte {self.offsets[index]}"

    def _size_of_an_image(self) -> tuple[int, int]:
        for index in range(len(self)):
            with contextlib.suppress(*UNREADABLE):
                image = upright(self.encoded(index))
                return image.height, image.width
        raise ValueError(f"none of the {len(self)} images in {self.path} can be read, the first at {self._place(0)}")

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY)  # read at positions: threads do not disturb each other
        weakref.finalize(self, os.close, self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class _Damaged(ValueError):
    def __init__(self, kind: int):
        super().__init__(REASONS[kind])
        self.kind = kind


def _property(path: pathlib.Path) -> tuple[int, int] | None:
    """Height and width in a file "people,height,width"."""
    if not path.is_file():
        return None
    with opened(path) as file:
        text = file.read(100).decode("utf-8-sig", "replace").strip()
    if not re.fullmatch(r"[0-9]+ *, *[0-9]+ *, *[0-9]+", text):
        raise ValueError(f"{path} does not hold people,height,width: {printable(text)}")
    _, height, width = map(int, text.split(","))
    if not 0 < min(height, width) <= max(height, width) <= LARGEST:
        raise ValueError(f"{path} has height {height} and width {width}; wanted 1 to {LARGEST}")
    return height, width


def _indexed(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and positions in lines "key, tab, byte"; ValueError where one is not a whole number, or occurs twice.

    Whether there is a record at a position, only the file of records tells.
    """
    if not path.is_file():
        return None
    try:
        table = np.loadtxt(path, np.float64, ndmin=2, encoding="utf-8-sig")  # whole numbers below 2⁵³ are exact
        keys, offsets = table.T
    except (ValueError, UserWarning) as error:
        why = printable(str(error))
        raise ValueError(f"{path} does not hold lines of a key, a tab and a position: {why}") from None
    for name, values in (("key", keys), ("position", offsets)):
        wrong = np.flatnonzero(~((values >= 0) & (values < 2**53) & (values == np.floor(values))))
        if len(wrong):
            raise ValueError(f"{path}: entry {wrong[0] + 1} has the {name} {values[wrong[0]]:g}; wanted a whole number")
        order = np.argsort(values, kind="stable")
        again = order[1:][np.diff(values[order]) == 0]
        if len(again):
            raise ValueError(f"{path}: entry {again.min() + 1} has the {name} {values[again.min()]:.0f} of one before")
    return keys.astype(np.int64), offsets.astype(np.int64)


def _scanned(data: mmap.mmap) -> tuple[np.ndarray, np.ndarray]:
    """Keys and positions without an index: a key is the record's id, or its number in the file if it has no id."""
    offsets, offset = array.array("q"), 0
    while 0 <= offset <= len(data) - 8:
        offsets.append(offset)
        try:
            *_, (_, end) = _parts(data, offset)
            offset = end + -end % 4
        except _Damaged:  # go on at the next magic number
            offset = data.find(MAGIC, offset + 4)
    keys = (_key(data, offset, number) for number, offset in enumerate(offsets))
    return np.fromiter(keys, np.int64, len(offsets)), np.array(offsets, np.int64)


def _key(data: mmap.mmap, offset: int, number: int) -> int:
    whole = data[offset : offset + 4] == MAGIC and offset + 8 + HEADER.size <= len(data)
    key = HEADER.unpack_from(data, offset + 8)[2] if whole else number
    return key if key < 2**63 else number


def _parts(data: bytes | mmap.mmap, offset: int) -> Iterator[tuple[int, int]]:
    """Beginning and end of the bytes of each part of the record at `offset`; _Damaged where it breaks off."""
    expected = (0, 1)
    while True:
        if offset + 8 > len(data):
            raise _Damaged(CUT)
        magic, word = data[offset : offset + 4], struct.unpack_from("<I", data, offset + 4)[0]
        part, begin = word >> 29, offset + 8
        end = begin + (word & LENGTH)
        if magic != MAGIC or part not in expected:
            raise _Damaged(UNMARKED)
        if end > len(data):
            raise _Damaged(CUT)
        yield begin, end
        if part in (0, 3):
            return
        offset, expected = end + -end % 4, (2, 3)


def _content(data: bytes | mmap.mmap, offset: int) -> bytes:
    """The bytes of a record, put together where it is split."""
    return MAGIC.join(data[begin:end] for begin, end in _parts(data, offset))


def _headers(data: mmap.mmap, offsets: np.ndarray) -> np.ndarray:
    """Of each record at `offsets`: two labels, the bytes it takes up, and what kind it is."""
    records = np.zeros(len(offsets), [("labels", "<f4", 2), ("span", np.int64), ("kind", np.int8)])
    view = np.frombuffer(data, np.uint8)
    for start in range(0, len(offsets), 2**16):
        some, at = records[start : start + 2**16], offsets[start : start + 2**16]
        places = np.clip(at[:, None] + np.arange(_BEGINNING.itemsize), 0, len(view) - 1)
        found = view[places].view(_BEGINNING)[:, 0]
        flag, length = found["flag"].astype(np.int64), (found["word"] & LENGTH).astype(np.int64)
        some["labels"] = np.where(flag[:, None] > 0, found["labels"], found["label"][:, None])
        some["span"] = 8 + length
        part = found["word"] >> 29
        outside = at > len(view) - 8
        unmarked = (found["magic"] != int.from_bytes(MAGIC, "little")) | (part > 1)
        some["kind"] = np.select(
            [outside, unmarked, at + 8 + length > len(view)], [CUT, UNMARKED, CUT], _kind(flag, length)
        )
        for i in np.flatnonzero(~outside & ~unmarked & (part == 1)):
            some[i] = _split_header(data, int(at[i]))
    del view  # so that the map can be closed
    labels, kind = records["labels"], records["kind"]
    with np.errstate(invalid="ignore"):  # of NaN
        whole = (labels >= 0) & (labels < 2**31) & (labels == np.floor(labels))
    kind[((kind == IMAGE) & ~whole[:, 0]) | ((kind == IDENTITY) & ~whole.all(axis=1))] = UNLABELLED
    kind[(kind != CUT) & (offsets % 4 != 0)] = UNALIGNED
    there = np.flatnonzero(~np.isin(kind, (CUT, UNMARKED, UNALIGNED)))
    kind[there[_overlong(offsets[there], records["span"][there])]] = OVERLONG
    return records


def _overlong(offsets: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Which records end after the beginning of the next."""
    order = np.argsort(offsets, kind="stable")
    return order[:-1][(offsets + spans)[order[:-1]] > offsets[order[1:]]]


def _split_header(data: mmap.mmap, offset: int) -> tuple[tuple[float, float], int, int]:
    try:
        *_, (_, end) = _parts(data, offset)
        content = _content(data, offset)
        flag, label, *_ = HEADER.unpack_from(content)
        labels = np.frombuffer(content, "<f4", flag, HEADER.size) if flag else [label]
    except _Damaged as error:
        return (0, 0), 0, error.kind
    except (struct.error, ValueError):
        return (0, 0), 0, SHORT
    return (float(labels[0]), float(labels[-1])), end - offset, int(_kind(flag, len(content)))


def _kind(flag: np.ndarray | int, length: np.ndarray | int) -> np.ndarray:
    """Of a record that is whole, by the number of labels after its header and the length of all."""
    image = length - HEADER.size - 4 * np.asarray(flag)
    return np.select([image < 0, image > 0, np.asarray(flag) == 2], [SHORT, IMAGE, IDENTITY], EMPTY)
