import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.data.alignment import TEMPLATE
from tests.helpers.photographs import photograph


def umeyama(x, y):
    """Equations 34 to 43 of Umeyama 1991, as they stand."""
    n = len(x)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    variance = sum(np.sum((a - mean_x) ** 2) for a in x) / n
    covariance = sum(np.outer(b - mean_y, a - mean_x) for a, b in zip(x, y, strict=True)) / n
    u, d, vt = np.linalg.svd(covariance)
    s = np.diag([1, 1 if np.linalg.det(u) * np.linalg.det(vt) > 0 else -1])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / variance
    return np.column_stack([scale * rotation, mean_y - scale * rotation @ mean_x])


def test_similarity_transform_is_umeyamas(rng):
    for _ in range(20):
        points = rng.normal(size=(5, 2)) * 30 + 100
        np.testing.assert_allclose(mj.data.similarity_transform(points), umeyama(points, TEMPLATE), atol=1e-9)
    mirrored = TEMPLATE * [-1, 1]  # the best similarity is not the reflection that would fit exactly
    matrix = mj.data.similarity_transform(mirrored)
    np.testing.assert_allclose(matrix, umeyama(mirrored, TEMPLATE), atol=1e-9)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_similarity_transform_undoes_one(rng):
    turn, scale, shift = 0.4, 2.5, np.array([30, -10])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = scale * TEMPLATE @ rotation.T + shift
    matrix = mj.data.similarity_transform(moved)
    np.testing.assert_allclose(np.column_stack([moved, np.ones(5)]) @ matrix.T, TEMPLATE, atol=1e-9)


def bilinear(image, x, y):
    """Between the four pixels around (x, y), whose middles have whole coordinates."""
    i, j = int(np.floor(y)), int(np.floor(x))
    u, v = y - i, x - j
    top = (1 - v) * image[i, j] + v * image[i, j + 1]
    return (1 - u) * top + u * ((1 - v) * image[i + 1, j] + v * image[i + 1, j + 1])


def test_aligned_is_the_bilinear_warp():
    image = np.asarray(photograph(1, 1, (160, 140)))
    turn, scale = 0.2, 1.1
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = (TEMPLATE - 56) @ rotation.T + [70, 80]
    face = mj.data.aligned(image, landmarks)
    assert face.shape == (112, 112, 3)
    assert face.dtype == np.uint8
    compared = 0
    for row in range(4, 112, 9):
        for column in range(4, 112, 9):
            x, y = rotation @ [column - 56, row - 56] + [70, 80]
            if 0 <= x < 139 and 0 <= y < 159:
                assert np.all(np.abs(face[row, column] - bilinear(image.astype(float), x, y)) <= 1)
                compared += 1
            elif not (-1 < x < 140 and -1 < y < 160):
                assert not face[row, column].any()
    assert compared > 100


def test_aligned_at_the_template_is_the_image():
    image = np.asarray(photograph(2, 1))
    np.testing.assert_allclose(mj.data.aligned(image, TEMPLATE), image, atol=1)  # Pillow rounds down
    half = mj.data.aligned(image[..., 0], TEMPLATE, 56)
    assert half.shape == (56, 56, 1)
    assert np.mean(np.abs(half[4:-4, 4:-4, 0] - image[8:-8:2, 8:-8:2, 0].astype(float))) < 2


def test_landmarks_from_a_file(tmp_path):
    numbers = [f"{n:g}" for n in TEMPLATE.ravel()]
    file = tmp_path / "landmarks"
    for mark in ("\t", ",", " "):
        name = "Ann B/Ann.jpg" if mark != " " else "Ann/Ann.jpg"
        header = mark.join(["file", *(f"{axis}{i}" for i in range(1, 6) for axis in "xy")])
        file.write_text(f"{header}\n{mark.join([name, *numbers])}\n\n")
        read = mj.data.read_landmarks(file)
        assert list(read) == [name]
        np.testing.assert_array_equal(read[name], TEMPLATE)
    for bad in (["a.jpg", *numbers[:-1]], ["a.jpg", *numbers[:-1], "x"]):
        file.write_text(" ".join(["b.jpg", *numbers]) + "\n" + " ".join(bad))
        with pytest.raises(ValueError, match="line 2 is not a file name and five points"):
            mj.data.read_landmarks(file)
    file.write_text(" ".join(["a.jpg", *numbers[:-1], "x"]))  # not a line of column names
    with pytest.raises(ValueError, match="line 1"):
        mj.data.read_landmarks(file)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.ones((5, 2)), "are one point, or not finite"),
        (np.full((5, 2), np.nan), "are one point, or not finite"),
        (np.ones((4, 2)), r"landmarks has shape \(4, 2\), template \(5, 2\)"),
        (TEMPLATE.ravel(), r"landmarks has shape \(10,\)"),
    ],
)
def test_landmarks_that_are_none(landmarks, message):
    with pytest.raises(ValueError, match=message):
        mj.data.similarity_transform(landmarks)


def test_centred_is_the_usual_scale():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_allclose(mj.data.centred(jnp.asarray(x)), (x / 255 - 0.5) / 0.5, atol=1e-6)
