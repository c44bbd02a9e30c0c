"""The reader of Omniglot, on small drawings in its layout."""

import socket

import numpy as np
import pytest
from PIL import Image, ImageDraw

import metricjax as mj

DRAWERS = (1, 2, 11)
ALPHABETS = {"Greek": 2, "Atlantean": 3}


def drawing(character, drawer):
    """Black ink on white paper, in one bit a pixel, as Omniglot has it."""
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).line([(10, 10 + 20 * character), (90, 30 + 5 * drawer)], fill=0, width=3)
    return image


@pytest.fixture
def folder(tmp_path):
    number = 0
    for alphabet, characters in ALPHABETS.items():
        for character in range(characters):
            number += 1
            place = tmp_path / "images" / alphabet / f"character{character + 1:02d}"
            place.mkdir(parents=True)
            for drawer in DRAWERS:
                drawing(character, drawer).save(place / f"{number:04d}_{drawer:02d}.png")
    return tmp_path


def test_what_a_folder_holds(folder):
    found = mj.data.omniglot(folder)
    assert found.alphabets == ["Atlantean", "Greek"]
    assert found.characters == [
        *(f"Atlantean/character{i:02d}" for i in (1, 2, 3)), *(f"Greek/character{i:02d}" for i in (1, 2))
    ]  # fmt: skip
    assert found.images.shape == (15, 105, 105, 1)
    assert {field.dtype for field in found[1:4]} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(found.drawer, 5 * DRAWERS)
    for i, (label, alphabet, drawer) in enumerate(zip(*found[1:4], strict=True)):
        name, character = found.characters[label].split("/character")
        assert name == found.alphabets[alphabet]
        paper = np.asarray(drawing(int(character) - 1, drawer))
        np.testing.assert_array_equal(found.images[i, ..., 0], np.where(paper, 0, 255))
    assert (
        repr(found)
        == f"<15 drawings of {len(found.characters)} characters of {len(found.alphabets)} alphabets, 105 × 105>"
    )


def test_smaller_and_from_the_folder_of_alphabets(folder):
    whole, small = mj.data.omniglot(folder), mj.data.omniglot(folder / "images", (21, 21))
    assert small.images.shape == (15, 21, 21, 1)
    blocks = whole.images.reshape(15, 21, 5, 21, 5).mean(axis=(2, 4))  # bicubic is about the mean of 5 × 5 pixels
    assert np.corrcoef(blocks.ravel(), small.images.ravel())[0, 1] > 0.97


def test_some_alphabets_only(folder):
    found = mj.data.omniglot(folder, (15, 15))
    greek = found.of_alphabets(np.array([False, True]))
    assert greek.alphabets == ["Greek"]
    assert greek.characters == ["Greek/character01", "Greek/character02"]
    np.testing.assert_array_equal(greek.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(greek.alphabet, 0)
    np.testing.assert_array_equal(greek.images, found.images[9:])
    with pytest.raises(ValueError, match="wanted 2 booleans"):
        found.of_alphabets(np.array([True]))


def test_files_that_say_no_drawer_and_what_is_passed_over(folder):
    place = folder / "images" / "Greek" / "character02"
    (place / "0002_11.png").rename(place / "mine.png")
    (place / "notes.txt").write_text("not a drawing")
    with pytest.warns(UserWarning, match=r"passed over: 1 of another suffix \(character02/notes\.txt\)"):
        found = mj.data.omniglot(folder, (8, 8))
    np.testing.assert_array_equal(found.drawer[-3:], [1, 2, -1])


def test_folders_that_are_not_omniglot(folder, tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder; wanted one of alphabets"):
        mj.data.omniglot(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Greek holds 0 folders of alphabets"):
        mj.data.omniglot(folder / "images" / "Greek")
    (folder / "images" / "Greek" / "character01" / "0004_01.png").write_bytes(b"\x89PNG nothing more")
    with pytest.raises(ValueError, match=r"0004_01\.png cannot be read"):
        mj.data.omniglot(folder)
    (folder / "more" / "Greek" / "character01").mkdir(parents=True)
    drawing(0, 1).save(folder / "more" / "Greek" / "character01" / "0001_01.png")
    with pytest.raises(ValueError, match="holds 2 folders of alphabets"):
        mj.data.omniglot(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_archive_by_tfds(folder, tmp_path, monkeypatch):
    from metricjax.data import tfds_sets

    asked = []
    fetched = lambda self, url: asked.append(url) or str(folder)
    monkeypatch.setattr(tfds_sets, "_reach", lambda builder: None)
    monkeypatch.setattr(tfds_sets.tfds.download.DownloadManager, "download_and_extract", fetched)
    found = mj.data.omniglot(split="small1", size=(8, 8), data_dir=str(tmp_path / "tfds"))
    assert len(found.labels) == 15
    assert asked[0].endswith("/omniglot/raw/master/python/images_background_small1.zip")
    with pytest.raises(ValueError, match="split is 'small3'; wanted one of train, test, small1, small2"):
        mj.data.omniglot(split="small3", data_dir=str(tmp_path / "tfds"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_archive_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def offline(*_):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(OSError, match=r"omniglot could not be downloaded .*not known.*give the folder"):
        mj.data.omniglot(data_dir=str(tmp_path))
