"""Which files of a folder are photographs, and that nothing vanishes without a word."""

import os
import pathlib
import shutil

import pytest

import metricjax as mj
from metricjax.data import listing
from tests.helpers.photographs import jpeg, photograph

SUFFIXES = ("jpg", "JPG", "jpeg", "jfif", "png", "PNG", "webp", "bmp", "tif", "TIFF", "pgm", "ppm")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(found):
    return [file.relative_to(found.folder).as_posix() for file in found.files]


@pytest.fixture
def odd(tmp_path):
    """Two people, and everything that is not one of their photographs."""
    touch(tmp_path, *(f"bob/{i:02d}.{suffix}" for i, suffix in enumerate(SUFFIXES)), "ann/2.jpg", "ann/10.jpg")
    touch(tmp_path, "ann/notes.txt", "ann/face.heic", "ann/x.jpg~", "ann/jpg", "ann/.x.jpg", "ann/._2.jpg")
    touch(tmp_path, ".ipynb_checkpoints/a.jpg", "__MACOSX/ann/._2.jpg", ".hidden.jpg", "lone.jpg", "pairs.txt")
    touch(tmp_path, "ann/2019/a.jpg", "cy/one.heic", "dee/2019/a.jpg")
    (tmp_path / "eve").mkdir()
    os.mkfifo(tmp_path / "ann" / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ann" / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "ann" / "circle.jpg").symlink_to(tmp_path / "ann" / "circle.jpg")
    (tmp_path / "ann" / "self").symlink_to(tmp_path / "ann")
    (tmp_path / "ann" / "link.jpg").symlink_to(tmp_path / "ann" / "2.jpg")
    return tmp_path


def test_people(odd):
    found = mj.data.photographs_of_people(odd)
    bob = [f"bob/{i:02d}.{suffix}" for i, suffix in enumerate(SUFFIXES)]
    assert names(found) == ["ann/10.jpg", "ann/2.jpg", "ann/link.jpg", *bob]
    over = {reason: sorted(names) for reason, names in found.passed_over.items()}
    assert over == {
        "hidden": [".hidden.jpg", ".ipynb_checkpoints", "ann/._2.jpg", "ann/.x.jpg"],
        "of another suffix": ["ann/face.heic", "ann/jpg", "ann/notes.txt", "ann/x.jpg~", "cy/one.heic"],
        "a folder deeper": ["__MACOSX/ann", "ann/2019", "ann/self", "dee/2019"],
        "not a regular file": ["ann/dangling.jpg", "ann/pipe.jpg", "pipe"],
        "not readable": ["ann/circle.jpg"],
        "not in a person's folder": ["lone.jpg", "pairs.txt"],
    }
    assert found.without == ["__MACOSX", "cy", "dee", "eve"]
    report = found.report()
    assert "\n" not in report and report.startswith(f"{odd}: passed over: ")
    assert "5 of another suffix (ann/face.heic, ann/jpg, ann/notes.txt, ann/x.jpg~, cy/one.heic)" in report
    assert report.endswith("4 people without any photograph: __MACOSX, cy, dee, eve")


def test_one_folder(odd):
    found = mj.data.photographs_in(odd / "ann")
    assert names(found) == ["10.jpg", "2.jpg", "link.jpg"]
    assert found.passed_over["not a regular file"] == ["dangling.jpg", "pipe.jpg"]
    assert found.without == []
    assert mj.data.photographs_in(odd / "bob").report() == ""


def test_the_report_names_the_first_few_of_thousands(tmp_path):
    touch(tmp_path, "ann/a.jpg", *(f"ann/{i:04d}.heic" for i in range(2000)), *(f"p{i:04d}/.x" for i in range(500)))
    report = mj.data.photographs_of_people(tmp_path).report()
    first = ", ".join(f"ann/000{i}.heic" for i in range(5))
    assert f"2000 of another suffix ({first}, …)" in report
    assert report.endswith("500 people without any photograph: p0000, p0001, p0002, p0003, p0004, …")
    assert len(report) < 500


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    touch(tmp_path, "ann/a.jpg", "bob/b.jpg")
    real = os.scandir

    def scandir(path):
        if pathlib.Path(path).name == "bob":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    found = mj.data.photographs_of_people(tmp_path)
    assert (names(found), found.passed_over, found.without) == (["ann/a.jpg"], {"not readable": ["bob/"]}, ["bob"])


def test_names_of_any_bytes(tmp_path):
    name = os.fsencode(tmp_path) + b"/Ren\xe9\x1b[2J"
    os.mkdir(name)
    for file in (b"\xff.jpg", b"\xfe.txt", b"line\nbreak.txt"):
        with open(name + b"/" + file, "wb") as made:
            made.write(jpeg(1, 1, (20, 16)))
    found = mj.data.photographs_of_people(tmp_path)
    assert names(found) == ["Ren\udce9\x1b[2J/\udcff.jpg"]
    assert r"(Ren\xe9\x1b[2J/line\nbreak.txt, Ren\xe9\x1b[2J/\xfe.txt)" in found.report()
    with pytest.warns(UserWarning, match="passed over"):
        source = mj.data.FolderSource(tmp_path, (20, 16), at_least=1)
    assert source.people == ["Ren\udce9\x1b[2J"]
    assert source[0].shape == (20, 16, 3)


def test_folders_without_photographs(tmp_path):
    touch(tmp_path, "ann/a.heic", "lone.jpg")
    wanted = r"holds no images; wanted a sub-folder of images .*1 of another suffix \(ann/a\.heic\)"
    with pytest.raises(ValueError, match=wanted):
        mj.data.photographs_of_people(tmp_path)
    with pytest.raises(ValueError, match=r"holds no images; wanted files \.pgm"):
        mj.data.photographs_in(tmp_path / "ann")
    for function in (mj.data.photographs_in, mj.data.photographs_of_people):
        with pytest.raises(NotADirectoryError, match=r"lone\.jpg is not a folder"):
            function(tmp_path / "lone.jpg")


def test_every_reader_of_folders_lists_alike_and_says_so(tmp_path, capsys):
    from metricjax.commands import recognize

    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        for i, kind in enumerate(("webp", "bmp", "tiff", "JPG", "png")):
            photograph(1, i + 1, (20, 16)).save(tmp_path / person / f"{i}.{kind}")
    (tmp_path / "ann" / "0.heic").touch()
    shutil.copytree(tmp_path / "ann", tmp_path / ".ipynb_checkpoints")
    (tmp_path / "cy").mkdir()
    (tmp_path / "cy" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"1 hidden \(\.ipynb_checkpoints\), 2 of another suffix.*1 people .*: cy"):
        faces = mj.data.folder(tmp_path, (20, 16))
    with pytest.warns(UserWarning, match=r"1 hidden \(\.ipynb_checkpoints\), 2 of another suffix.*1 people .*: cy"):
        source = mj.data.FolderSource(tmp_path, (20, 16))
    assert faces.people == source.people == ["ann", "bob"]
    assert faces.files == source.files == ["0", "1", "2", "3", "4"] * 2
    of, files = recognize.of_people(tmp_path)
    assert of == ["ann"] * 5 + ["bob"] * 5
    assert files == [source.path / name for name in source.names]
    assert "recognize: " in (said := capsys.readouterr().err) and "without any photograph: cy" in said
    assert recognize.photographs([tmp_path / "ann", tmp_path / "ann" / "0.heic", files[0]]) == [
        *files[:5],
        tmp_path / "ann" / "0.heic",  # named by hand: it is tried
    ]
    assert "1 of another suffix (0.heic)" in capsys.readouterr().err


def test_classes_may_be_in_super_classes(tmp_path, odd):
    touch(
        tmp_path / "deep", "greek/alpha/1.png", "greek/alpha/2.png", "latin/a/1.png", "latin/b/x.heic", "latin/no.png"
    )
    touch(tmp_path / "deep", "empty/none/x.txt", ".hidden/a/1.png", "read.txt")
    found = mj.data.photographs_of_classes(tmp_path / "deep")
    assert names(found) == ["greek/alpha/1.png", "greek/alpha/2.png", "latin/a/1.png"]
    assert {reason: sorted(names) for reason, names in found.passed_over.items()} == {
        "hidden": [".hidden"],
        "of another suffix": ["empty/none/x.txt", "latin/b/x.heic"],
        "not in a person's folder": ["latin/no.png", "read.txt"],
    }
    assert found.without == ["empty/none", "latin/b"]
    flat = tmp_path / "flat"
    touch(flat, "ann/1.png", "ann/2019/2.png", "bob/1.png")  # images in folders, and a folder deeper in one
    assert names(mj.data.photographs_of_classes(flat)) == names(mj.data.photographs_of_people(flat))
    touch(tmp_path / "nothing", "a/b/x.txt")
    with pytest.raises(ValueError, match="holds no images; wanted a sub-folder"):
        mj.data.photographs_of_classes(tmp_path / "nothing")
