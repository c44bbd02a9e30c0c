"""Faces brought to one position by five landmarks, and the usual protocol of face verification.

The protocol that published numbers of ArcFace and its successors follow (InsightFace, `arcface_torch`):
1. each face is warped by a similarity transform of its five landmarks to 112 × 112 pixels (`aligned`, `TEMPLATE`);
2. channels in the order red, green, blue, as every reader here gives them;
3. pixels become (x − 127.5) / 127.5 (`metricjax.data.centred`);
4. embeddings of the image and of its mirror image are added, then normalised;
5. pairs are scored by the cosine and judged in ten folds (`metricjax.metrics.k_fold_accuracy`).
Models trained on another template, channel order or scale lose accuracy silently.
"""

import csv
import pathlib
import re

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from metricjax.data.files import fields, file_name, lines
from metricjax.ground.names import printable

__all__ = ["TEMPLATE", "TEMPLATE_SIZE", "aligned", "read_landmarks", "similarity_transform"]

# Left and right eye, tip of the nose, left and right corner of the mouth, as seen in the image: x, y in 112 × 112
# pixels. From InsightFace, `insightface/utils/face_align.py`; Deng et al. 2019, "ArcFace", arXiv:1801.07698.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE_SIZE = 112


def similarity_transform(landmarks: ArrayLike, template: ArrayLike = TEMPLATE) -> np.ndarray:
    """The turn, scale and shift that brings landmarks closest to a template, in least squares; never a reflection.

    With points as complex numbers z, and w those of the template, both less their means: a = Σ z̄ w / Σ |z|², and a
    point goes to a z + mean of the template − a · mean of the landmarks. In two dimensions this is the closed form of
    Umeyama 1991 ("Least-squares estimation of transformation parameters between two point patterns", IEEE TPAMI 13).

    Args:
      landmarks, template: [points, 2] x and y.

    Returns:
      [2, 3] matrix M: a point (x, y) goes to M (x, y, 1).

    >>> similarity_transform([[0, 0], [1, 0]], [[3, 0], [3, 2]])
    array([[ 0., -2.,  3.],
           [ 2.,  0.,  0.]])
    """
    points, wanted = np.asarray(landmarks, np.float64), np.asarray(template, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or points.shape != wanted.shape:
        raise ValueError(f"landmarks has shape {points.shape}, template {wanted.shape}; wanted [points, 2] of both")
    z, w = points @ [1, 1j], wanted @ [1, 1j]
    centred = z - z.mean()
    spread = np.sum(np.abs(centred) ** 2)
    if not 0 < spread < np.inf or not np.all(np.isfinite(wanted)):
        raise ValueError(f"landmarks {points.tolist()} are one point, or not finite; wanted different, finite points")
    a = np.sum(np.conj(centred) * (w - w.mean())) / spread
    shift = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, shift.real], [a.imag, a.real, shift.imag]]) + 0.0  # no −0


def aligned(image: Image.Image | np.ndarray, landmarks: ArrayLike, size: int = TEMPLATE_SIZE) -> np.ndarray:
    """The face at `landmarks`, warped to size × size pixels so that they lie on `TEMPLATE`, bilinearly; black outside.

    Args:
      image: a Pillow image, or [height, width, 3] or [height, width] uint8; of a file, as `upright` gives it.
      landmarks: [5, 2] x and y in pixels, (0, 0) at the middle of the first; in the order of `TEMPLATE`. They are
        points of the photograph as it stands upright, as people see it and detectors find them: where a phone has
        stored it lying and notes so in its EXIF, not of the pixels as they are stored.
      size: height and width; the template is scaled with it.

    Returns:
      [size, size, channels] uint8.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    forward = similarity_transform(landmarks, TEMPLATE * (size / TEMPLATE_SIZE))
    if np.linalg.det(forward[:, :2]) == 0:
        raise ValueError(f"landmarks {np.asarray(landmarks).tolist()} cannot be brought to the template")
    back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    back[:, 2] += 0.5 - back[:, :2] @ [0.5, 0.5]  # Pillow counts from the corner of the first pixel, not its middle
    warped = image.transform((size, size), Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BILINEAR)
    array = np.asarray(warped)
    return array[..., None] if array.ndim == 2 else array


def read_landmarks(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Read five points for each of many files: file name to [5, 2], points of the upright photograph (see `aligned`).

    Each line holds a name and ten numbers, x and y of the points in the order of `TEMPLATE`, between them tabs, commas
    or blanks; with tabs, or quoted between commas, the name may hold what else would separate. What is read:

    - "file x1 y1 … x5 y5", with or without a first line of column names;
    - CelebA's `list_landmarks_align_celeba.txt`, whose first two lines are the number of files and ten column names;
    - VGGFace2's `loose_landmark_train.csv` (NAME_ID, P1X, P1Y, …), whose names have no suffix.

    The text is UTF-8 with or without a byte order mark; empty lines, and lines that begin with "#", are passed over.
    ValueError, by its number, for a line that does not fit, or with one number more or less, or one that is not finite.
    """
    landmarks: dict[str, np.ndarray] = {}
    found = list(lines(path))
    count = found.pop(0)[1] if found and re.fullmatch("[0-9]{1,9}", found[0][1]) else None
    if found and _is_header(_columns(found[0][1])):
        del found[0]
    if count is not None and int(count) != len(found):
        raise ValueError(f"{path} holds {len(found)} lines; wanted {count}, as its first line says")
    for number, line in found:
        name, points = _named_points(f"{path}: line {number}", line)
        if not np.array_equal(landmarks.setdefault(name, points), points):
            raise ValueError(f"{path}: line {number} has other points for {printable(name)} than a line before")
    return landmarks


def _named_points(place: str, line: str) -> tuple[str, np.ndarray]:
    name, *values = _columns(line)
    one_more = "\t" not in line and "," not in line and " " in name and _is_number(name.split()[-1])
    if len(values) != TEMPLATE.size or not name or one_more or not all(map(_is_number, values)):
        raise ValueError(f"{place} is not a file name and five points x y: {printable(line)}")
    points = np.array([float(value) for value in values]).reshape(TEMPLATE.shape)
    if not np.all(np.isfinite(points)):
        raise ValueError(f"{place} holds a point that is not finite: {printable(line)}")
    return file_name(name), points


def _columns(line: str) -> list[str]:
    if "\t" not in line and "," in line:
        try:
            return [field.strip() for field in next(csv.reader([line], skipinitialspace=True))]
        except csv.Error:
            return [""]
    if "\t" in line:
        return fields(line)
    return line.rsplit(None, TEMPLATE.size) or [""]


def _is_header(columns: list[str]) -> bool:
    return len(columns) >= TEMPLATE.size and not any(map(_is_number, columns))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
