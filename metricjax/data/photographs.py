"""Photographs that are decoded when they are asked for: what the sources on disk have in common."""

import struct
import warnings
from collections.abc import Iterator
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np

from metricjax.ground.names import printable

__all__ = ["Photographs", "Source"]

_DAMAGED = (OSError, ValueError, struct.error)  # of the photograph, its landmarks or the record that holds it


@runtime_checkable
class Source(Protocol):
    """Photographs by number, as Grain reads them: `source[i]` is an image [height, width, channels] of uint8.

    labels: [n] int32, the person in each, known without decoding any.
    people: names; person `labels[i]` is `people[labels[i]]`.
    """

    labels: np.ndarray
    people: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> np.ndarray: ...


class Photographs:
    """A source that reads one photograph at a time.

    One that cannot be read is reported once, by a warning that names its place, and the next readable one of the same
    person stands in for it: so batches keep their shape, and P × K batches their people. ValueError if no
    photograph of that person can be read.
    """

    def __init__(self, labels: np.ndarray, people: list[str]):
        self.labels, self.people = labels, people
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        wanted = range(len(self))[index]
        for candidate in self._of_the_same_person(wanted):
            try:
                return self._image(candidate)
            except _DAMAGED as error:
                if candidate not in self._reported:
                    self._reported.add(candidate)
                    place = printable(self._place(candidate))
                    warnings.warn(f"{place} is skipped: it cannot be read ({error})", stacklevel=2)
        who, place = (printable(text) for text in (self.people[self.labels[wanted]], self._place(wanted)))
        raise ValueError(f"no photograph of {who} can be read, such as {place}")

    def _of_the_same_person(self, index: int) -> Iterator[int]:
        yield index
        same = np.flatnonzero(self.labels == self.labels[index])
        yield from np.roll(same, -np.searchsorted(same, index))[1:].tolist()

    def _image(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def _place(self, index: int) -> str:
        raise NotImplementedError
