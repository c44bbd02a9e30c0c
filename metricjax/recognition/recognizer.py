"""An encoder and a gallery file, both kept in memory to be asked often, while others change the file.

recognizer = Recognizer(mj.load(RUN), pathlib.Path("staff.npz"), RUN)
answer = recognizer.identify(recognizer.embedding(bytes_of_a_photograph))
"""

import pathlib
import threading
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from metricjax.recognition import gallery_file
from metricjax.recognition.gallery_file import People
from metricjax.search.gallery import Gallery
from metricjax.trained import Encoder

__all__ = ["Answer", "Recognizer", "check_encoder"]

_identified = jax.jit(Gallery.identify)  # in one program: a search takes a fifth of what it takes eagerly


class Answer(NamedTuple):
    """Who is on a photograph.

    name: the person whose template is closest, None where that one scores below the threshold.
    score: the cosine with that template; threshold: what it was compared with, None where there is no threshold.
    """

    name: str | None
    score: float
    threshold: float | None


def check_encoder(gallery: pathlib.Path, people: People, encoder: Encoder, checkpoint: pathlib.Path) -> None:
    if people.encoder != encoder.digest:
        raise ValueError(f"{gallery} was made by another encoder than that of {checkpoint}; enrol anew")


class Recognizer:
    """Whom an encoder knows by the gallery in a file, which is the truth: other processes may change it at any time.

    A change is made to what the file holds by then, and noticed by whoever asks next. Threads may share a recognizer.

    gallery: the file, which the first enrolment makes; checkpoint: where the encoder comes from, for messages.
    threshold: takes the place of the calibrated one.
    """

    def __init__(
        self, encoder: Encoder, gallery: pathlib.Path, checkpoint: pathlib.Path, threshold: float | None = None
    ):
        if threshold is not None and not np.isfinite(threshold):
            raise ValueError(f"threshold is {threshold}; wanted a finite number")
        self.encoder, self.gallery, self.checkpoint, self.given = encoder, gallery, checkpoint, threshold
        self._device = threading.Lock()
        self._read: tuple[tuple[int, ...], People] | None = None

    def ready(self) -> None:
        """Compile what a question takes, so that the first one is answered as fast as all others."""
        height, width = self.encoder.photograph
        embedding = self.encoder.embed(np.zeros((1, height, width, self.encoder.channels), np.uint8))[0]
        self._search(self.people(), embedding)

    @property
    def nobody(self) -> People:
        return People.nobody(self.encoder.embedding_size, self.encoder.digest)

    def people(self) -> People:
        """Those in the file now, which is read again only where it has changed; ValueError of another encoder's."""
        try:
            now = self.gallery.stat()
        except FileNotFoundError:
            return self.nobody
        seen = (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)  # before reading: a later change shows
        if self._read is None or self._read[0] != seen:
            people = gallery_file.read(self.gallery)
            check_encoder(self.gallery, people, self.encoder, self.checkpoint)
            self._read = seen, people
            return people
        return self._read[1]

    def threshold(self, people: People) -> float | None:
        """The given one, else the one that `people` is calibrated for, else none. It is finite: cosines are below 2."""
        if self.given is not None:
            return self.given
        return min(max(people.threshold, -2.0), 2.0) if people.calibrated else None

    def embedding(self, photograph: bytes) -> np.ndarray:
        """[d] of the bytes of a file; raises one of `mj.data.UNREADABLE`."""
        image = self.encoder.read(photograph)
        with self._device:  # programs over several devices wait for each other for ever if two threads start them
            return self.encoder.embed(image[None])[0]

    def identify(self, embedding: np.ndarray) -> Answer:
        """The closest person; ValueError where nobody is enrolled."""
        people = self.people()
        if not any(people.names):
            raise ValueError(f"{self.gallery} holds nobody; enrol somebody first")
        return self._search(people, embedding)

    def _search(self, people: People, embedding: np.ndarray) -> Answer:
        threshold = self.threshold(people)
        least = np.float32(-np.inf if threshold is None else threshold)
        found = jax.device_get(_identified(people.gallery, embedding[None], least))
        who = int(found.ids[0, 0])
        return Answer(people.names[who] if who >= 0 else None, float(found.scores[0, 0]), threshold)

    def enrol(self, names: Sequence[str], embeddings: np.ndarray) -> tuple[People, People]:
        """One more photograph of each of these people; who was enrolled before, and who is now."""
        return gallery_file.change(self.gallery, partial(self._with, names, embeddings), self.nobody)

    def _with(self, names: Sequence[str], embeddings: np.ndarray, before: People) -> People:
        check_encoder(self.gallery, before, self.encoder, self.checkpoint)
        return before.enrol(names, embeddings)

    def remove(self, name: str) -> None:
        gallery_file.change(self.gallery, lambda people: people.remove(name))
