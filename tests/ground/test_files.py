"""Files that are written whole or not at all, and archives of arrays that are damaged, hostile or merely unusual."""

import errno
import os
import pathlib
import resource
import stat
import tracemalloc
import zipfile

import numpy as np
import pytest

from metricjax.ground import files
from metricjax.ground.files import read_arrays, replacing, write_arrays
from tests.helpers.damage import altered, damaged, npz


def header(shape, descr="<f4", order=False):
    """What begins a member of an npz file that says to hold such an array."""
    text = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("where", ("writing", "syncing", "replacing", "interrupted"))
def test_replaces_whole_or_not_at_all(where, tmp_path, monkeypatch):
    path = tmp_path / "people.npz"
    path.write_text("old")
    wanted, limit = OSError, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "syncing":
        monkeypatch.setattr(files.os, "fsync", full)
    elif where == "replacing":
        monkeypatch.setattr(files.os, "replace", full)
    elif where == "interrupted":
        wanted = KeyboardInterrupt
        monkeypatch.setattr(files.np, "savez", lambda file, **_: file.write(b"half") and signalled())
    try:
        if where == "writing":  # as a full disk would: the system takes no more
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
        with pytest.raises(wanted) as caught:
            write_arrays(path, {"a": np.ones(2**16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert where == "interrupted" or str(caught.value).endswith(f": '{path}'")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_arrays(path, {"a": np.ones(2)})
    assert read_arrays(path)["a"].tolist() == [1, 1] and list(tmp_path.iterdir()) == [path]


def signalled():
    raise KeyboardInterrupt


def test_links_permissions_and_names(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "people.npz", tmp_path / "link.npz"
    link.symlink_to("folder/people.npz")
    write_arrays(link, {"a": np.zeros(1)})  # to where it points, though nothing is there
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    target.chmod(0o604)
    write_arrays(link, {"a": np.ones(1)})
    assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o604
    assert read_arrays(target)["a"].tolist() == [1]
    with monkeypatch.context() as patched, pytest.raises(PermissionError, match=r"write-protected: '.*link\.npz'"):
        patched.setattr(files.os, "access", lambda *_: False)  # as root, nothing is protected
        write_arrays(link, {"a": np.zeros(1)})
    assert read_arrays(target)["a"].tolist() == [1]
    monkeypatch.chdir(tmp_path / "folder")
    for name in ("plain", pathlib.Path("é" * 120 + ".npz"), "\u202ea\nb", "\U0001f600" * 60, os.fsdecode(b"\xff.npz")):
        for value in (1, 2):
            write_arrays(name, {"a": np.array(value)})
            assert read_arrays(name)["a"] == value
    assert len(list((tmp_path / "folder").iterdir())) == 6
    with pytest.raises(FileNotFoundError, match=r"nowhere/people\.npz"):
        write_arrays("nowhere/people.npz", {})


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is a folder or a device"), replacing(path):
            pass
        with pytest.raises(ValueError, match="is a folder or a device"):
            read_arrays(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "nowhere")


ARRAYS = {
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other order": np.arange(3, dtype=">i4"),
    "names": np.array(["Zoë", "\udcff", "\u200fא", ""]),
    "other names": np.array([["a"], ["b"]], ">U3"),
    "scalar": np.array(np.nan),
    "flags": np.array([True, False]),
    "when": np.array("2026-01-01", "datetime64[D]"),
    "pairs": np.array([(1, 2.0)], [("a", "<i2"), ("b", ">f8")]),
    "nothing": np.zeros((0, 3), np.float16),
}


def test_arrays_come_back(tmp_path):
    path = tmp_path / "some.npz"
    for write in (lambda: write_arrays(path, ARRAYS), lambda: np.savez(path, **ARRAYS), compressed(path, ARRAYS)):
        write()
        found = read_arrays(path)
        assert list(found) == list(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype.newbyteorder("=") and found[name].dtype.isnative


def compressed(path, arrays):
    return lambda: np.savez_compressed(path, **arrays)


@pytest.mark.parametrize(
    "members, message",
    [
        ({"a.npy": header((10**12,)) + bytes(64)}, r"a\.npy has 64 bytes for float32\[1000000000000\]"),
        ({"a.npy": header((2**62, 4)) + bytes(64)}, r"a\.npy has 64 bytes"),
        ({"a.npy": header((-2, -8)) + bytes(64)}, r"has 64 bytes for float32\[-2, -8\]"),
        ({"a.npy": header((2,)) + bytes(64)}, r"a\.npy has 64 bytes for float32\[2\]"),
        ({"a.npy": header((4,), "<U0")}, r"a\.npy has 0 bytes"),
        ({"a.npy": header((1,), "<U1") + b"\x00\x00\x11\x00"}, "text that is not Unicode"),
        ({"a.npy": header((1,), "|O") + bytes(8)}, "a.npy holds Python objects"),
        ({"a.npy": header((1,), "no dtype") + bytes(8)}, "descr is not a valid dtype"),
        ({"a.npy": header(3) + bytes(8)}, "shape is not valid"),
        ({"a.npy": b"\x93NUMPY\x03\x00" + header((1,))[8:] + bytes(4)}, r"of version \(3, 0\)"),
        ({"a.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}, ""),
        ({"a.npy": b"nothing"}, "magic string"),
        ({"a.npy": b""}, "magic string"),
        ({"a.txt": b"text"}, "a.txt is not what NumPy writes"),
        ({"a.npy": np.array([None])}, "a.npy holds Python objects"),
    ],
)
def test_what_is_no_array_is_refused_before_memory_is_taken(members, message, tmp_path):
    path = tmp_path / "bad.npz"
    path.write_bytes(npz({"good.npy": np.zeros(2), **members}))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"bad\.npz is not an npz file .* damaged one \(.*(?:{message})"):
            read_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_archives_that_are_refused(tmp_path, monkeypatch):
    path, whole = tmp_path / "bad.npz", npz({"a.npy": np.zeros(3)})
    encrypted = bytearray(whole)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[whole.index(signature) + at] |= 1
    with pytest.warns(UserWarning, match="Duplicate name"):
        path.write_bytes(b"")
        with zipfile.ZipFile(path, "w") as archive:
            for value in (1, 2):
                archive.writestr("a.npy", header((1,)) + bytes(4 * [value]))
    cases = {
        path.read_bytes(): "two arrays have one name",
        bytes(encrypted): "encrypted",
        npz({"a.npy": np.zeros(3)}, zipfile.ZIP_LZMA): "not what NumPy writes",
        whole.replace(bytes(24), b"\x01" + bytes(23)): "CRC",
        b"": "not a zip file",
        b"PK\x05\x06" + b"\xff" * 18: "central directory",
    }
    monkeypatch.setattr(files, "_PLENTY", 2**16)  # of which a test can afford more
    cases[npz({"a.npy": np.zeros(2**16)}, zipfile.ZIP_DEFLATED)] = r"bytes would unpack to 524\d\d\d"
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"bad\.npz is not an npz file .* damaged one \(.*(?:{message})"):
            read_arrays(path)


def test_the_digest_knows_other_arrays(tmp_path):
    path = tmp_path / "some.npz"
    write_arrays(path, {"a": np.zeros(3), "b": np.ones(3)})
    with np.load(path) as stored:
        held = dict(stored)
    wrong = [
        {"a": np.ones(3)},
        {"a": held["b"], "b": held["a"]},
        {"a": np.zeros(3, np.int64)},
        {"a": np.zeros((3, 1))},
        {"c": np.zeros(3)},
        {files.DIGEST: np.zeros(3)},
        {files.DIGEST: np.array("x")},
    ]
    for change in wrong:
        np.savez(path, **(held | change))
        with pytest.raises(ValueError, match=r"some\.npz .*its digest is that of other arrays"):
            read_arrays(path)
    del held[files.DIGEST]
    write_arrays(path, held)
    path.write_bytes(without_last_entry(path.read_bytes()))  # the digest's
    with pytest.raises(ValueError, match=r"some\.npz .*its list of arrays ends after 2"):
        read_arrays(path)
    np.savez(path, **held)
    assert sorted(read_arrays(path)) == ["a", "b"]


def without_last_entry(data):
    """An archive whose list of members is shorter by one, though not by what it says of its length."""
    last, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    size = int.from_bytes(data[end + 12 : end + 16], "little") - (end - last)
    return data[:last] + data[end : end + 12] + size.to_bytes(4, "little") + data[end + 16 :]


def test_damaged_files_are_refused_by_name_or_are_whole(fuzz, tmp_path):
    path = tmp_path / "some.npz"
    write_arrays(path, ARRAYS)
    whole, refused = path.read_bytes(), 0
    for seed in fuzz:
        rng = np.random.default_rng(seed)
        path.write_bytes(damaged(whole, rng) if seed % 4 else npz(members(altered(ARRAYS, rng))))
        try:
            found = read_arrays(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} is not an npz file of arrays, or a damaged one (")
            assert "\n" not in str(error)
            refused += 1
        else:
            if seed % 4:  # what was flipped means nothing: a date, say
                assert all(np.array_equal(found[name], a, equal_nan=name == "scalar") for name, a in ARRAYS.items())
    assert refused > len(fuzz) / 2


def members(arrays):
    return {f"{name}.npy": array for name, array in arrays.items()}
