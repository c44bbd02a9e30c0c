"""Pairs of images from tables, folders and halves of photographs."""

import pickle

import numpy as np
import pytest
from PIL import Image

import metricjax as mj


def grey(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path)
    return path


def values(source, index):
    """The grey value of each image of a pair."""
    assert source[index].shape == (2, 4, 4, 3) and source[index].dtype == np.uint8
    return source[index][:, 2, 2, 0].tolist()


@pytest.mark.parametrize("suffix, between", [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("header", [True, False])
def test_tables_of_paths(tmp_path, suffix, between, header):
    rows = [("a/1.png", "b/x.png", "red"), ("a/2.png", "b/y.png", "blue"), ("a/3.png", "b/x.png", "red")]
    for value, name in enumerate(sorted({name for row in rows for name in row[:2]}), 1):
        grey(tmp_path / name, 10 * value)
    lines = [between.join(row) for row in rows]
    (tmp_path / f"t.{suffix}").write_text(
        "\n".join(["first,second,kind".replace(",", between)] * header + lines) + "\n"
    )
    couples = mj.data.read_couples(tmp_path / f"t.{suffix}")
    assert couples.groups == ["red", "blue", "red"]
    source = pickle.loads(pickle.dumps(mj.data.FileViews(couples, (4, 4))))  # as processes that decode get it
    assert [values(source, i) for i in range(3)] == [[10, 40], [20, 50], [30, 40]]
    assert source.people == ["red", "blue"] and source.labels.tolist() == [0, 1, 0]
    (tmp_path / "two.csv").write_text("a/1.png,b/x.png\na/1.png,b/y.png\na/2.png,b/y.png\n")
    assert mj.data.read_couples(tmp_path / "two.csv").groups == ["a/1.png", "a/1.png", "a/2.png"]


def test_folders_of_equal_names(tmp_path):
    for value, name in enumerate(("Ann/1", "Ann/2", "Bo/1"), 1):
        grey(tmp_path / "left" / f"{name}.png", 10 * value)
        grey(tmp_path / "right" / f"{name}.bmp", 100 + value)
    grey(tmp_path / "right" / "Bo" / "7.png", 7)
    with pytest.warns(UserWarning, match="1 images without a partner are left out: Bo/7"):
        couples = mj.data.couples_of_folders(tmp_path / "left", tmp_path / "right")
    assert couples.groups == ["Ann", "Ann", "Bo"]
    source = mj.data.FileViews(couples, (4, 4))
    assert [values(source, i) for i in range(3)] == [[10, 101], [20, 102], [30, 103]]
    couples = mj.data.couples_of_folders(tmp_path / "left" / "Ann", tmp_path / "right" / "Ann")
    assert couples.groups == ["1", "2"]  # without sub-folders each pair is a group


def test_a_pair_that_cannot_be_read_is_stood_in_for_by_one_of_its_group(tmp_path):
    for side in ("left", "right"):
        for i in (1, 2):
            grey(tmp_path / side / "Ann" / f"{i}.png", 10 * i)
    (tmp_path / "right" / "Ann" / "1.png").write_bytes(b"no picture")
    source = mj.data.FileViews(mj.data.couples_of_folders(tmp_path / "left", tmp_path / "right"), (4, 4))
    with pytest.warns(UserWarning, match="1.png is skipped: it cannot be read"):
        assert values(source, 0) == [20, 20]


def test_halves_meet_in_the_middle():
    images = np.arange(2 * 2 * 5, dtype=np.uint8).reshape(2, 2, 5, 1)
    faces = mj.data.Faces(images, np.array([0, 1], np.int32), ["Ann", "Bo"], ["a", "b"])
    halves = mj.data.HalfViews(mj.data.ArraySource(faces))
    assert halves[1][..., 0].tolist() == [[[10, 11, 12], [15, 16, 17]], [[14, 13, 12], [19, 18, 17]]]
    assert halves.people == ["Ann", "Bo"] and halves.files == ["a", "b"] and len(halves) == 2


def test_what_is_no_list_of_pairs_is_refused(tmp_path):
    grey(tmp_path / "a.png", 1)
    tables = {
        "t.csv: row 2 has 1 columns; wanted two paths each": "a.png,a.png\na.png\n",
        "t.csv names no pairs of files that exist": "x,y\n",
        "t.csv names 1 files that are not there: b.png": "a.png,a.png\na.png,b.png\n",
    }
    for message, text in tables.items():
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            mj.data.read_couples(tmp_path / "t.csv")
    grey(tmp_path / "left" / "a.png", 1)
    grey(tmp_path / "right" / "b.png", 1)
    with pytest.raises(ValueError, match="have no two images of one name"):
        mj.data.couples_of_folders(tmp_path / "left", tmp_path / "right")
    grey(tmp_path / "left" / "a.bmp", 1)
    with pytest.raises(ValueError, match="left has images of one name but for their suffix"):
        mj.data.couples_of_folders(tmp_path / "left", tmp_path / "right")
