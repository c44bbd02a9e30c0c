import pathlib
import socket

import numpy as np
import pytest
from PIL import Image

import metricjax as mj
from metricjax.data import tfds_sets as readers
from metricjax.data.orl_faces import packaged_folder, repair

pytestmark = pytest.mark.filterwarnings("default")  # TFDS and the packages it reads with warn about each other
ORIGINALS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "orl_faces" / "orl_faces.npz"


@pytest.fixture(scope="session")
def orl(tmp_path_factory):
    return mj.data.orl(data_dir=str(tmp_path_factory.mktemp("tfds")))


def test_orl_is_forty_people_ten_times(orl):
    assert orl.images.shape == (400, 112, 92, 1)
    assert orl.images.dtype == np.uint8
    np.testing.assert_array_equal(orl.labels, np.repeat(np.arange(40), 10))
    assert orl.people[0] == "s1"
    assert orl.people[39] == "s40"
    assert orl.files[:10] == [str(i) for i in range(1, 11)]
    assert len({image.tobytes() for image in orl.images}) == 400


@pytest.mark.skipif(not ORIGINALS.exists(), reason="the undamaged originals are not here")
def test_orl_repaired_files_are_nearly_the_originals(orl):
    originals = np.load(ORIGINALS)["images"]
    damaged = []
    for person in range(40):
        for photograph in range(10):
            raw = (packaged_folder() / f"s{person + 1}" / f"{photograph + 1}.pgm").read_bytes()
            damaged.append(raw.startswith(b"P5\r\n"))
    damaged = np.array(damaged)
    assert damaged.sum() == 152
    difference = np.abs(orl.images[..., 0].astype(int) - originals)
    pixels, levels = np.sum(difference > 0, axis=(1, 2)), np.max(difference, axis=(1, 2))
    assert not np.any(pixels[~damaged])
    assert np.sum(pixels[damaged] == 0) == 47
    slight = damaged & (pixels > 0) & (pixels <= 13) & (levels <= 3)
    assert slight.sum() == 103
    shifted = np.flatnonzero(damaged & (pixels > 13))
    assert [(i // 10 + 1, i % 10 + 1) for i in shifted] == [(8, 10), (9, 8)]  # one byte short


def test_orl_resized(orl, tmp_path, capsys):
    small = mj.data.orl((28, 23), data_dir=str(tmp_path))
    assert f"orl_faces is written to {tmp_path}" in capsys.readouterr().err
    assert small.images.shape == (400, 28, 23, 1)
    np.testing.assert_allclose(small.images.mean(), orl.images.mean(), atol=1)


def test_repair_undoes_the_newline_conversion():
    pixels = bytes([10, 13, 7] * 3434 + [1, 2])
    original = b"P5\n92 112\n255\n" + pixels
    assert repair(original) == original
    assert repair(original.replace(b"\n", b"\r\n")) == original
    lost = b"P5\n92 112\n255\n" + b"\r\n" + bytes([5] * 10302)
    fixed = repair(lost.replace(b"\n", b"\r\n").replace(b"\r\r\n", b"\r\n"))
    assert len(fixed) == len(lost)
    assert fixed.endswith(b"\x05")


def test_of_people_numbers_anew(orl):
    chosen = np.zeros(40, bool)
    chosen[[3, 7]] = True
    some = orl.of_people(chosen)
    assert some.people == ["s4", "s8"]
    np.testing.assert_array_equal(some.labels, np.repeat([0, 1], 10))
    np.testing.assert_array_equal(some.images[10:], orl.images[70:80])


def write(path, color=False, size=(20, 16), seed=0, format=None):
    rng = np.random.default_rng(seed)
    shape = (*size, 3) if color else size
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path, format)


def test_folder_reads_formats_and_sizes(tmp_path):
    write(tmp_path / "ann" / "ann_0001.pgm", size=(30, 40))
    write(tmp_path / "ann" / "ann_0002.png", size=(16, 12), seed=1)
    write(tmp_path / "bob" / "b1.JPG", size=(50, 50), seed=2, format="JPEG")
    write(tmp_path / "bob" / "b2.jpeg", size=(9, 8), seed=3)
    (tmp_path / "bob" / "notes.txt").write_text("not an image")
    faces = mj.data.folder(tmp_path, (16, 12))
    assert faces.images.shape == (4, 16, 12, 1)
    assert faces.people == ["ann", "bob"]
    assert faces.files == ["ann_0001", "ann_0002", "b1", "b2"]
    np.testing.assert_array_equal(faces.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(faces.images[1, :, :, 0], np.asarray(Image.open(tmp_path / "ann" / "ann_0002.png")))


def test_folder_with_colour_is_rgb_throughout(tmp_path):
    for i in range(2):
        write(tmp_path / "a" / f"{i}.png", seed=i)
        write(tmp_path / "b" / f"{i}.png", color=True, seed=i)
    faces = mj.data.folder(tmp_path, (20, 16))
    assert faces.images.shape == (4, 20, 16, 3)
    np.testing.assert_array_equal(faces.images[0, ..., 0], faces.images[0, ..., 2])


def test_folder_reports_what_it_leaves_out(tmp_path):
    for person in "abc":
        for i in range(1 if person == "c" else 2):
            write(tmp_path / person / f"{i}.png")
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG nothing more")
    full = (tmp_path / "b" / "0.png").read_bytes()
    (tmp_path / "b" / "cut.png").write_bytes(full[: len(full) // 2])
    with pytest.warns(UserWarning) as caught:
        faces = mj.data.folder(tmp_path, (20, 16))
    messages = [str(w.message) for w in caught]
    assert any("broken.png is left out: it cannot be read" in m for m in messages)
    assert any("cut.png is left out: it cannot be read" in m for m in messages)
    assert "1 people with fewer than 2 images are left out: c" in messages
    assert len(faces.images) == 4
    assert len(mj.data.folder(tmp_path, (20, 16), at_least=1).people) == 3
    (tmp_path / "c" / "0.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="1 people are left out: none of their images can be read: c"):
        assert mj.data.folder(tmp_path, (20, 16)).people == ["a", "b"]


def test_folder_errors(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        mj.data.folder(tmp_path / "nowhere", (8, 8))
    with pytest.raises(ValueError, match="holds no images"):
        mj.data.folder(tmp_path, (8, 8))
    for i in range(2):
        write(tmp_path / "only" / f"{i}.png")
    with pytest.raises(ValueError, match="holds 1 people with 2 readable images or more; wanted at least 2"):
        mj.data.folder(tmp_path, (8, 8))


def test_lfw_offline_says_so_at_once(tmp_path, monkeypatch):
    def offline(*_):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(readers.socket, "getaddrinfo", offline)
    with pytest.raises(OSError, match=r"could not be downloaded .*Name or service not known.*give the folder"):
        mj.data.lfw((8, 8), data_dir=str(tmp_path))


def test_lfw_from_a_downloaded_archive(tmp_path, monkeypatch):
    """TFDS's own builder on a small archive in LFW's layout, as if it had been downloaded and unpacked."""
    for person, count in (("Ann_A", 2), ("Bob_B", 3), ("Cy_C", 1)):
        for i in range(count):
            write(
                tmp_path / "archive" / "lfw" / person / f"{person}_{i + 1:04d}.jpg", color=True, size=(250, 250), seed=i
            )
    monkeypatch.setattr(readers, "_reach", lambda builder: None)
    manager = readers.tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda self, url: str(tmp_path / "archive"))
    with pytest.warns(UserWarning, match="1 people with fewer than 2 images are left out: Cy_C"):
        faces = mj.data.lfw((32, 28), data_dir=str(tmp_path / "tfds"))
    assert faces.people == ["Ann_A", "Bob_B"]
    assert faces.images.shape == (5, 32, 28, 3)
    np.testing.assert_array_equal(faces.labels, [0, 0, 1, 1, 1])


PAIRS = """2 2
Ann_A 1 2
Bob_B 1 3
Ann_A 1 Bob_B 2
Bob_B 3 Cy_C 1
Dee_D 1 2
Dee_D 2 3
Dee_D 1 Eve_E 1
Eve_E 2 Dee_D 3
"""


def test_pairs(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text(PAIRS)
    pairs = mj.data.read_pairs(file)
    assert pairs.first[:4] == ["Ann_A_0001", "Bob_B_0001", "Ann_A_0001", "Bob_B_0003"]
    assert pairs.second[:4] == ["Ann_A_0002", "Bob_B_0003", "Bob_B_0002", "Cy_C_0001"]
    np.testing.assert_array_equal(pairs.same, [1, 1, 0, 0] * 2)
    np.testing.assert_array_equal(pairs.fold, [1] * 4 + [2] * 4)
    assert pairs.of_folds([1]).people() == {"Ann_A", "Bob_B", "Cy_C"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line is not the number of folds"),
        ("a b\n", "first line is not the number of folds"),
        (PAIRS.replace("2 2\n", "2 3\n", 1), r"2 folds of 2 × 3 pairs need 12 lines, found 8"),
        (PAIRS.replace("Ann_A 1 2\n", "Ann_A 1 2 3\n", 1), "pair 1 has 4 fields, wanted 3"),
        (PAIRS.replace("Ann_A 1 2\n", "Ann_A 1 x\n", 1), "pair 1 does not number its photographs"),
    ],
)
def test_pairs_that_are_not(tmp_path, text, message):
    file = tmp_path / "pairs.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        mj.data.read_pairs(file)


def test_photographs_of_a_phone_are_turned_upright(tmp_path):
    pixels = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (20, 1))  # dark on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    for person in "ab":
        (tmp_path / person).mkdir()
        for i in range(2):
            Image.fromarray(pixels).save(tmp_path / person / f"{i}.jpg", exif=exif)
    for images in (mj.data.folder(tmp_path, (40, 20)).images, mj.data.FolderSource(tmp_path, (40, 20))[0][None]):
        assert images.shape[1:3] == (40, 20)
        column = images[0, :, 10, 0].astype(int)
        assert column[0] < 30 and column[-1] > 225  # dark on top
