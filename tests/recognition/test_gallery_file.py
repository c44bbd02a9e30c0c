"""The file of recognize.py: changed by several processes, damaged, and with whatever people are called."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers.damage import spoiled

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
D = 8
NAMES = ["Zoë", "Zoe\u0308", "\u200fאדה", "Ada\tL", "\udcff\udc80", "x" * 300, "😀", "unknown"]  # any text that comes


@pytest.fixture(scope="module")
def gallery_file():
    from metricjax.recognition import gallery_file

    return gallery_file


@pytest.fixture
def people(gallery_file):
    embeddings = np.random.default_rng(0).normal(size=(len(NAMES), D)).astype(np.float32)
    return gallery_file.People.nobody(D, "an encoder").enrol(NAMES, embeddings)


def assert_same(found, people):
    for field in dataclasses.fields(people):
        if field.name != "gallery":
            a, b = getattr(found, field.name), getattr(people, field.name)
            assert a == b or (field.name == "threshold" and np.isnan(a) and np.isnan(b))
    for name in ("sums", "ids", "overflow"):
        np.testing.assert_array_equal(getattr(found.gallery, name), getattr(people.gallery, name))


def test_any_name_survives(gallery_file, people, tmp_path):
    path = tmp_path / "staff.npz"
    gallery_file.write(path, people)
    assert_same(gallery_file.read(path), people)
    assert gallery_file.read(path).enrolled == sorted(NAMES)
    for name in NAMES:
        people = people.remove(name)
        gallery_file.write(path, people)
        assert_same(gallery_file.read(path), people)
    assert gallery_file.read(path).enrolled == []
    gallery_file.write(path, gallery_file.People.nobody(D, "e"))
    assert gallery_file.read(path).names == []


CHANGES = """
import pathlib, sys
import numpy as np
import dataclasses
from metricjax.recognition import gallery_file

path, process = pathlib.Path(sys.argv[1]), int(sys.argv[2])
embeddings = np.random.default_rng(process).normal(size=(1, 8)).astype(np.float32)
print("ready", flush=True)
sys.stdin.readline()
for i in range(25):
    with gallery_file.alone(path):
        people = gallery_file.read(path).enrol([f"{process}-{i}"], embeddings)
        if i == 7:
            people = people.remove(f"old-{process}")
        if i == 11 and process == 2:
            people = dataclasses.replace(people, threshold=0.25, calibrated="by process 2")
        gallery_file.write(path, people)
"""
HOLDS = """
import pathlib, sys, time
from metricjax.recognition import gallery_file

with gallery_file.alone(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""


def started(gallery_file, program, *arguments):
    places = [os.path.dirname(gallery_file.__file__), str(pathlib.Path(__file__).parents[2])]
    settings = {"PYTHONPATH": os.pathsep.join(places), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    settings["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **settings}, **pipes)


def test_changes_of_four_processes_are_all_kept(gallery_file, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_file, "CAPACITY", 128)  # it grows elsewhere: here each process would compile
    path, link = tmp_path / "staff.npz", tmp_path / "link.npz"
    link.symlink_to(path)
    people = gallery_file.People.nobody(D, "an encoder").enrol([f"old-{i}" for i in range(4)], np.eye(4, D))
    gallery_file.write(path, people)
    processes = [started(gallery_file, CHANGES, link if i % 2 else path, i) for i in range(4)]
    assert all(process.stdout.readline() == "ready\n" for process in processes)
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] or process.returncode for process in processes] == [0] * 4
    found = gallery_file.read(link)
    assert found.enrolled == sorted(f"{process}-{i}" for process in range(4) for i in range(25))
    assert (found.threshold, found.calibrated) == (0.25, "by process 2")
    assert link.is_symlink() and sorted(os.listdir(tmp_path)) == [".staff.npz.lock", "link.npz", "staff.npz"]


def test_a_lock_ends_with_its_process(gallery_file, tmp_path, monkeypatch):
    path = tmp_path / "staff.npz"
    process = started(gallery_file, HOLDS, path)
    try:
        assert process.stdout.readline() == "ready\n"
        monkeypatch.setattr(gallery_file, "PATIENCE", 0.2)
        message = r"staff\.npz is as it was: waited 0\.2 s for another process .* holds .*\.staff\.npz\.lock$"
        with pytest.raises(ValueError, match=message), gallery_file.alone(path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (tmp_path / ".staff.npz.0123abcd.part").touch()  # as a process leaves it that was killed while it wrote
    (tmp_path / ".other.npz.0123abcd.part").touch()
    with gallery_file.alone(path):
        assert sorted(os.listdir(tmp_path)) == [".other.npz.0123abcd.part", ".staff.npz.lock"]
    with pytest.raises(ValueError, match="is in no folder"), gallery_file.alone(tmp_path / "nowhere" / "staff.npz"):
        pass


@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": np.array(NAMES[:-1])}, "7 names that do not fit 8 numbers"),
        ({"names": np.array(NAMES[:-1] + NAMES[:1])}, "8 names that are not those of 8 people"),
        ({"names": np.array([*NAMES[:-1], ""])}, "do not fit"),
        ({"names": np.array([b"Ada"] * 8)}, r"names \|S3\[8\]"),
        ({"photographs": np.full(8, -1)}, "do not fit"),
        ({"photographs": np.ones(8)}, r"photographs float64\[8\]"),
        ({"threshold": np.array("0.5")}, r"threshold <U3\[\]"),
        ({"threshold": np.array(0.5)}, "threshold 0.5, calibrated ''"),
        ({"calibrated": np.array("for a FAR of 0.1")}, "threshold nan, calibrated 'for a FAR"),
        ({"encoder": np.array(["a", "b"])}, r"encoder <U1\[2\]"),
        ({"more": np.zeros(1)}, r"more float64\[1\]"),
        ({"ids": np.arange(64, dtype=np.int32)}, "8 names that are not those of 64 people"),
        ({"ids": np.full(64, -1, np.int32)}, "sums in free places"),
    ],
)
def test_what_does_not_fit_together_is_refused(gallery_file, people, tmp_path, change, message):
    path = tmp_path / "staff.npz"
    held = stored(gallery_file, people, path)
    np.savez(path, **held)
    assert_same(gallery_file.read(path), people)  # as before there was a digest
    np.savez(path, **(held | change))
    message = rf"staff\.npz is not a gallery of `metricjax recognize`, or a damaged one \(holds .*{message}"
    with pytest.raises(ValueError, match=message):
        gallery_file.read(path)


def stored(gallery_file, people, path):
    gallery_file.write(path, people)
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "metricjax_digest"}


def test_damaged_files_are_refused_by_name(gallery_file, people, fuzz, tmp_path):
    """Or they are what was written; whole files of other arrays are refused, or work."""
    path = tmp_path / "staff.npz"
    held, refused = stored(gallery_file, people, path), 0
    for is_damaged in spoiled(path, held, fuzz):
        try:
            found = gallery_file.read(path)
        except ValueError as error:
            assert "staff.npz is not a gallery of `metricjax recognize`, or a damaged one (" in str(error)
            assert "\n" not in str(error)
            refused += 1
        else:
            if is_damaged:
                assert_same(found, people)
    assert refused > len(fuzz) / 2
