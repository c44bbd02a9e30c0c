"""Lists of pairs and of landmarks as people have them: editors, systems and formats differ, names hold anything."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

import metricjax as mj
from metricjax.data import files
from metricjax.data.alignment import TEMPLATE

NUMBERS = [f"{n:g}" for n in TEMPLATE.ravel()]
SPELLINGS = {  # of a text, as bytes
    "plain": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "Windows": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
    "blank lines and comments": lambda text: b"# a list\n \n\n" + text.replace("\n", "  \n\n \t\n# x\n").encode(),
    "no end of line": lambda text: text.removesuffix("\n").encode(),
}
spelled = pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)

VIEW_2 = "2 2\nAnn 1 2\nBob 1 3\nAnn 1 Bob 2\nBob 3 Cy 1\nDee 1 2\nDee 2 3\nDee 1 Eve 1\nEve 2 Dee 3\n"
VIEW_1 = "3\nAnn 1 2\nBob 1 3\nCy 10 2\nAnn 1 Bob 2\nBob 3 Cy 1\nCy 1 Ann 1\n"
NAMED = "Ann/1.jpg Ann/2.png 1\nlfw/Ann/1.jpg ./Bob/1 0\nCy\\\\1.webp Bob/2.JPG 0\n".replace("\\\\", "\\")
LFW = np.array([True, True, False, False] * 2)


@pytest.fixture
def listed(tmp_path):
    def write(content):
        path = tmp_path / "list.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
        return path

    return write


# --- pairs ------------------------------------------------------------------------------------------------------------


@spelled
@pytest.mark.parametrize("tabs", [False, True])
def test_pairs_of_every_format(listed, spelling, tabs):
    read = lambda text: mj.data.read_pairs(listed(spelling(text.replace(" ", "\t") if tabs else text)))
    pairs = read(VIEW_2)
    assert (pairs.first[1], pairs.second[1], pairs.second[3]) == ("Bob_0001", "Bob_0003", "Cy_0001")
    np.testing.assert_array_equal(pairs.same, LFW)
    np.testing.assert_array_equal(pairs.fold, [1] * 4 + [2] * 4)
    pairs = read(VIEW_1)
    assert pairs.first == ["Ann_0001", "Bob_0001", "Cy_0010", "Ann_0001", "Bob_0003", "Cy_0001"]
    assert pairs.second == ["Ann_0002", "Bob_0003", "Cy_0002", "Bob_0002", "Cy_0001", "Ann_0001"]
    np.testing.assert_array_equal(pairs.same, [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(pairs.fold, 0)
    pairs = read(NAMED)
    assert pairs.first == ["Ann/1", "Ann/1", "Cy/1"]
    assert pairs.second == ["Ann/2", "Bob/1", "Bob/2"]
    np.testing.assert_array_equal(pairs.same, [1, 0, 0])
    np.testing.assert_array_equal(pairs.fold, 0)
    assert pairs.people() == {"Ann", "Bob", "Cy"}


def test_names_with_blanks_and_of_any_bytes(listed):
    odd = "Ren\udce9 d' Arc"
    text = f"1\t1\nAnn Lee\t1\t2\nAnn Lee\t1\t{odd}\t2\n"
    pairs = mj.data.read_pairs(listed(text))
    assert (pairs.first, pairs.second) == (["Ann Lee_0001"] * 2, ["Ann Lee_0002", f"{odd}_0002"])
    assert pairs.people() == {"Ann Lee", odd}
    pairs = mj.data.read_pairs(listed(f"Ann Lee/a b.jpg\t{odd}/1.v2\t0\n"))
    assert (pairs.first, pairs.second) == (["Ann Lee/a b"], [f"{odd}/1.v2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "the first line is not the number of folds"),
        ("-1 5\n", "the first line is not the number of folds"),
        ("1 2 3 4\n", "the first line is not the number of folds"),
        ("3\n" + VIEW_2[4:], r"2 × 3 pairs need 6 lines, found 8"),
        ("0 5\n", "0 folds of 2 × 5 pairs need 0 lines, found 0"),
        ("999999999 999999999\nAnn 1 2\n", "999999999 folds of 2 × 999999999 pairs need"),
        (VIEW_2.replace("Eve 2", "Eve"), "line 9: pair 8 has 3 fields, wanted 4"),
        (
            VIEW_2.replace("Bob 1 3", "Bob\udce9 L 1 3"),
            r"line 3: pair 2 has 4 fields, wanted 3, with tab.*Bob\\xe9",
        ),
        (VIEW_2.replace("Bob 1 3", "Bob -1 3"), "line 3: pair 2 does not number its photographs"),
        (VIEW_2.replace("Bob 1 3", "Bob 1 ²"), "line 3: pair 2 does not number its photographs"),
        (NAMED.replace("2.png 1", "2.png 2"), "line 1 is not two files and 0 or 1: Ann/1.jpg Ann/2.png 2"),
        (NAMED + "\n\nAnn/1.jpg Bob/1.jpg\n", "line 6 is not two files and 0 or 1: Ann/1.jpg Bob/1.jpg"),
        (NAMED + "Ann/1.jpg\t\t1\n", "line 4 is not two files and 0 or 1"),
        (VIEW_2.encode("utf-16"), "is UTF-16 or not a text; wanted UTF-8"),
        (VIEW_2.encode("utf-16-be"), "is UTF-16 or not a text; wanted UTF-8"),
        (bytes(range(256)), "is UTF-16 or not a text"),
    ],
)
def test_pairs_that_are_none(listed, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        mj.data.read_pairs(listed(text))
    assert "list.txt" in str(caught.value) and "\n" not in str(caught.value)


def test_pairs_are_found_by_folder_and_file(listed):
    pairs = mj.data.read_pairs(listed("Ann/1.jpg Ann/2.jpg 1\nAnn/1.jpg Bob/1.jpg 0\nAnn/2.jpg Cy/2.jpg 0\n"))
    z = np.eye(4) + np.eye(4, k=1)
    files, people = ["1", "2", "1", "3"], ["Ann", "Ann", "Bob", "Bob"]
    kept, similarity = pairs.similarities(z, files, people)
    assert (kept.first, kept.second) == (["Ann/1", "Ann/1"], ["Ann/2", "Bob/1"])  # Cy's is not here, whoever has a 2
    np.testing.assert_allclose(similarity, [0.5, 0], atol=1e-12)
    np.testing.assert_allclose(pairs.similarities(z, ["Ann/1", "Ann/2", "Bob/1", "3"])[1], [0.5, 0], atol=1e-12)
    assert not len(pairs.found(["1", "2", "4"])[1])  # whose they are is not said
    unique = mj.data.read_pairs(listed("lfw/Ann/Ann_1.jpg lfw/Bob/Bob_1.jpg 0\n"))
    assert unique.found(["Bob_1", "Ann_1"])[1].tolist() == [[1, 0]]
    assert not len(unique.found(["Bob_1", "Ann_1"], ["Bob", "Cy"])[1])
    assert not len(unique.found(["", ""])[1])
    numbered = mj.data.read_pairs(listed("1\nAnn 1 2\nAnn 1 Bob 1\n"))
    found, places = numbered.found(["Bob_0001", "Ann_0002", "Ann_0001"], ["Bob", "Ann", "Ann"])
    assert (places.tolist(), found.same.tolist()) == ([[2, 1], [2, 0]], [True, False])
    with pytest.raises(ValueError, match="files holds Ann_0001 more than once"):
        numbered.found(["Ann_0001", "Ann_0002", "Ann_0001", "Bob_0001"], ["Ann", "Ann", "Ann", "Bob"])


def test_a_list_without_folds_gets_some(listed):
    rows = [f"A/{i} B/{i} {int(i < 23)}" for i in range(37)]
    pairs = mj.data.read_pairs(listed("\n".join(rows)))
    folded = pairs.folded()
    for kind, sizes in ((True, {2, 3}), (False, {1, 2})):
        fold = folded.fold[folded.same == kind]
        assert np.all(np.diff(fold) >= 0)
        counts = np.bincount(fold, minlength=11)[1:]
        assert len(counts) == 10 and set(counts.tolist()) == sizes
    assert folded.folded(3) is folded
    with pytest.raises(ValueError, match="same is False for 14 pairs; wanted 15 at least"):
        pairs.folded(15)


# --- folds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 37, 11, 10])
def test_folds_of_nearly_equal_size(n, rng):
    scores, same = rng.normal(size=n), np.arange(n) % 2 == 0
    fold = np.concatenate([np.full(len(part), i) for i, part in enumerate(np.array_split(np.arange(n), 10))])
    assert mj.metrics.k_fold_accuracy(scores, same, 10) == mj.metrics.k_fold_accuracy(scores, same, fold)


def test_folds_that_cannot_be_judged():
    scores = np.arange(6.0)
    with pytest.raises(ValueError, match="folds is 7; wanted 2 at least, and at most one for each of 6 pairs"):
        mj.metrics.k_fold_accuracy(scores, scores > 2, 7)
    with pytest.raises(ValueError, match="folds is 1; wanted 2 at least"):
        mj.metrics.k_fold_accuracy(scores, scores > 2, 1)
    with pytest.raises(ValueError, match="same has one value in all folds but one"):
        mj.metrics.k_fold_accuracy(scores, scores > 2, 2)
    assert mj.metrics.k_fold_accuracy(scores, scores > 2, 3) == (1, 0)  # folds of one kind, between others


# --- landmarks --------------------------------------------------------------------------------------------------------

HEADER = ["file", *(f"{axis}{i}" for i in range(1, 6) for axis in "xy")]
CELEBA = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
FORMATS = {
    "tabs": (
        "\t".join(["A/1 a.jpg", *NUMBERS]) + "\n" + "\t".join(["b, c.jpg", *NUMBERS]),
        ["A/1 a.jpg", "b, c.jpg"],
    ),
    "tabs and column names": ("\t".join(HEADER) + "\n" + "\t".join(["Ann\\1.jpg", *NUMBERS]), ["Ann/1.jpg"]),
    "commas": (
        ",".join(["Ann L/1.jpg", *NUMBERS]) + "\n" + ", ".join(['"a, b"', *NUMBERS]),
        ["Ann L/1.jpg", "a, b"],
    ),
    "blanks": (
        " ".join(["./A/1.jpg", *NUMBERS]) + "\n" + "   ".join(["a b.jpg", *NUMBERS]),
        ["A/1.jpg", "a b.jpg"],
    ),
    "CelebA": (f"2\n{CELEBA}\n000001.jpg  {'  '.join(NUMBERS)}\n2.jpg {' '.join(NUMBERS)} ", ["000001.jpg", "2.jpg"]),
    "CelebA's own columns as CSV": (
        f"image_id,{CELEBA.replace(' ', ',')}\n000001.jpg,{','.join(NUMBERS)}",
        ["000001.jpg"],
    ),
    "VGGFace2": (
        f"NAME_ID,{','.join(f'P{i}{axis}' for i in range(1, 6) for axis in 'XY')}\n"
        f'"n000002/0001_01",{",".join(NUMBERS)}\n"n000002/0002_01",{",".join(NUMBERS)}',
        ["n000002/0001_01", "n000002/0002_01"],
    ),
}


@spelled
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_landmarks_of_every_format(listed, spelling, form):
    text, names = form
    read = mj.data.read_landmarks(listed(spelling(text + "\n")))
    assert list(read) == names
    for points in read.values():
        np.testing.assert_array_equal(points, TEMPLATE)


@pytest.mark.parametrize("mark", ["\t", ",", " "])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["Ann/a.jpg", "1", *NUMBERS], "not a file name and five points"),  # an eleventh number
        (["Ann/a.jpg", *NUMBERS, "1"], "not a file name and five points"),
        (["Ann/a.jpg", *NUMBERS[:-1]], "not a file name and five points"),
        (["\xa0"], "not a file name and five points"),
        ([*NUMBERS], "not a file name and five points"),
        (["Ann/a.jpg", *NUMBERS[:-1], "1O"], "not a file name and five points"),
        (["Ann/a.jpg", *NUMBERS[:-1], "nan"], "holds a point that is not finite"),
        (["Ann/a.jpg", *NUMBERS[:-1], "-inf"], "holds a point that is not finite"),
        (["Ann/a.jpg", *NUMBERS[:-1], "1e999"], "holds a point that is not finite"),
        (["b.jpg", *NUMBERS[::-1]], "has other points for b.jpg than a line before"),
    ],
)
def test_a_line_that_does_not_fit_is_named(listed, mark, fields, message):
    path = listed(f"# points\n{mark.join(['b.jpg', *NUMBERS])}\n{mark.join(fields)}\n")
    with pytest.raises(ValueError, match=rf"list\.txt: line 3 .*{message}|list\.txt: line 3 {message}"):
        mj.data.read_landmarks(path)


def test_landmarks_that_are_cut_off_or_no_text(listed):
    with pytest.raises(ValueError, match=r"list\.txt holds 2 lines; wanted 3"):
        mj.data.read_landmarks(listed("3" + FORMATS["CelebA"][0][1:]))
    with pytest.raises(ValueError, match="is UTF-16 or not a text"):
        mj.data.read_landmarks(listed(FORMATS["tabs"][0].encode("utf-16")))
    assert mj.data.read_landmarks(listed("")) == {}


@pytest.fixture
def three(tmp_path):
    """Photographs of two people, in which a file's name tells of whom it is, or not."""
    for name in ("ann/1.png", "ann/2.png", "bob/1.png", "bob/3.png"):
        (tmp_path / "people" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (112, 112), 100).save(tmp_path / "people" / name)
    return tmp_path / "people"


def test_landmarks_find_files_without_suffix_and_without_folder(three):
    size = (112, 112)
    made = lambda *names: mj.data.FolderSource(three, size, 1, landmarks=dict.fromkeys(names, TEMPLATE))
    assert made("ann/1", "ann/2", "bob/1", "bob/3").names == ["ann/1.png", "ann/2.png", "bob/1.png", "bob/3.png"]
    with pytest.warns(UserWarning, match=r"2 images without landmarks are left out: ann/1\.png, bob/1\.png"):
        assert made("1.png", "2.png", "3.png").names == ["ann/2.png", "bob/3.png"]  # whose 1.png is not said


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_named_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (mj.data.read_pairs, mj.data.read_landmarks, mj.data.verification_set):
        with pytest.raises(OSError, match=r"pipe is not a regular file"):
            read(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nowhere")


def test_lines_and_their_numbers(tmp_path):
    path = pathlib.Path(tmp_path / "text")
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n #\xff\rt\xe9wo \x0c x\t\n\xe2\x80\xa8three")
    assert list(files.lines(path)) == [(1, "one"), (4, "t\udce9wo \x0c x"), (5, "\u2028three")]
