"""Sources made of sources: some people of one, their mirror images, and several in one."""

from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np

from metricjax.data.people import of_chosen
from metricjax.data.photographs import Source
from metricjax.ground.names import some

__all__ = ["joined", "mirrored", "of_people", "superlabels"]


def of_people(source: Source, chosen: np.ndarray) -> Source:
    """The photographs of some people only (a mask over people), who are then numbered from 0."""
    return _OfPeople(source, np.asarray(chosen))


def mirrored(source: Source) -> Source:
    """Twice the photographs, of twice the people: a mirrored face counts as somebody else's.

    With few people to learn from, that doubles what there is to tell apart.
    """
    return _Mirrored(source)


def joined(sources: Sequence[Source]) -> Source:
    """The photographs of several sources, whose people come one source after the other; ValueError if any has two."""
    return _Joined(sources)


def superlabels(source: Source) -> np.ndarray | None:
    """The super-class of each image, where classes are named "SUPER-CLASS/CLASS"; None where any has none."""
    above = [name.rpartition("/")[0] for name in source.people]
    return np.unique(above, return_inverse=True)[1][source.labels] if all(above) else None


class _OfPeople:
    def __init__(self, source: Source, chosen: np.ndarray):
        self.source = source
        self.places, self.labels, self.people = of_chosen(source.labels, source.people, chosen)
        files = getattr(source, "files", None)
        self.files = [""] * len(self.places) if files is None else [files[i] for i in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        return self.source[self.places[index]]


class _Joined:
    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        self.people = [name for source in self.sources for name in source.people]
        if len(set(self.people)) < len(self.people):
            twice = sorted({name for name in self.people if self.people.count(name) > 1})
            raise ValueError(f"sources have people in common: {some(twice)}; wanted each in one of them")
        first = np.cumsum([0, *(len(source.people) for source in self.sources)], dtype=np.int32)
        self.labels = np.concatenate(
            [source.labels + begin for source, begin in zip(self.sources, first, strict=False)]
        )
        files = [getattr(source, "files", None) or [""] * len(source) for source in self.sources]
        self.files = [name for own in files for name in own]
        self.ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        place = range(len(self))[index]
        number = int(np.searchsorted(self.ends, place, side="right"))
        return self.sources[number][place - int(self.ends[number]) + len(self.sources[number])]


class _Mirrored:
    def __init__(self, source: Source):
        self.source = source
        self.labels = np.concatenate([source.labels, source.labels + np.int32(len(source.people))])
        self.people = [*source.people, *(f"{name} mirrored" for name in source.people)]

    def __len__(self) -> int:
        return 2 * len(self.source)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        other, place = divmod(range(len(self))[index], len(self.source))
        image = self.source[place]
        return image[:, ::-1] if other else image
