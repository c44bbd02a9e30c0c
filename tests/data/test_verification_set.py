import builtins
import io
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

import metricjax as mj
from tests.helpers.photographs import jpeg, photograph, pixels

JPEGS = [jpeg(1, 1), jpeg(1, 2), jpeg(2, 1), jpeg(3, 1)]
SAME = [True, False]


def check(path):
    images, same = mj.data.verification_set(path)
    assert same.dtype == np.bool_
    np.testing.assert_array_equal(same, SAME)
    for image, encoded in zip(images, JPEGS, strict=True):
        np.testing.assert_array_equal(image, pixels(encoded))


def arrays(column=True):
    """As cv2.imencode gives them: a column of bytes, later a row."""
    return [np.frombuffer(j, np.uint8).reshape((-1, 1) if column else -1).copy() for j in JPEGS]


@pytest.mark.parametrize("protocol", range(6))
def test_bytes_and_arrays_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "set.bin"
    for encoded, same in (
        (JPEGS, SAME),
        (arrays(), SAME),
        (arrays(column=False), [np.bool_(s) for s in SAME]),
        (JPEGS, np.array(SAME)),
    ):
        path.write_bytes(pickle.dumps((encoded, same), protocol))
        check(path)


def test_as_numpy_1_named_its_modules(tmp_path):
    for protocol in (2, 4, 5):
        content = pickle.dumps((arrays(), [np.bool_(s) for s in SAME]), protocol)
        for new in (b"numpy._core.multiarray", b"numpy._core.numeric"):
            old = new.replace(b"_core", b"core")
            content = content.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
            content = content.replace(b"c" + new, b"c" + old)
        if protocol > 2:  # the frame is shorter now: leave frames out
            content = bytes([0x80, protocol]) + content[11:] if content[2:3] == b"\x95" else content
        assert b"numpy.core" in content
        path = tmp_path / "set.bin"
        path.write_bytes(content)
        check(path)


def string(text):
    """A str of Python 2: opcode T, which Python 3 does not write."""
    return b"T" + struct.pack("<i", len(text)) + text


def test_as_python_2_wrote_them(tmp_path):
    """lfw.bin holds strings, cfp_fp.bin and agedb_30.bin arrays with strings inside, both in protocol 2."""
    path = tmp_path / "set.bin"
    answers = b"]q\x02(\x88\x89e\x86."
    path.write_bytes(b"\x80\x02]q\x01(" + b"".join(string(j) for j in JPEGS) + b"e" + answers)
    check(path)

    def array(data):
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + string(b"b") + b"\x87R"
        dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\0K\1\x87R(K\3" + string(b"|") + b"NNNJ\xff\xff\xff\xff"
        dtype += b"J\xff\xff\xff\xffK\0tb"
        return made + b"(K\1M" + struct.pack("<H", len(data)) + b"K\1\x86" + dtype + b"\x89" + string(data) + b"tb"

    path.write_bytes(b"\x80\x02](" + b"".join(array(j) for j in JPEGS) + b"e" + answers)
    check(path)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_hostile_pickle_runs_nothing(tmp_path):
    path, trace = tmp_path / "set.bin", tmp_path / "trace"
    hostile = [
        (Calls(os.system, f"touch {trace}"), "posix.system"),
        (Calls(builtins.eval, f"open({str(trace)!r}, 'w')"), "builtins.eval"),
        (Calls(builtins.getattr, np, "save"), "builtins.getattr"),
        (Calls(np.save, str(trace), np.zeros(1)), "numpy.save"),
        (Calls(np.fromfile, str(trace)), "numpy.fromfile"),
    ]
    for protocol in (0, 2, 5):
        for call, name in hostile:
            try:
                content = pickle.dumps(([call, *JPEGS], SAME), protocol)
            except TypeError:  # a module is not pickled
                continue
            path.write_bytes(content)
            with pytest.raises(ValueError, match=rf"not a verification set: it names \S*{name.split('.')[1]}"):
                mj.data.verification_set(path)
    touch = f"touch {trace}".encode()
    for content in (
        b"cos\nsystem\n(S'" + touch + b"'\ntR.",
        b"(S'" + touch + b"'\nios\nsystem\n.",
        b"(cos\nsystem\nS'" + touch + b"'\no.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.names\x93.",  # a name with a dot
        b"\x80\x04\x8c\x05numpy\x8c\x12lib.npyio.savetxt\x00\x93.",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a verification set"):
            mj.data.verification_set(path)
    assert not trace.exists()


def test_admitted_names_do_nothing_either(tmp_path):
    """What the file may name is noted, not called: no array of NumPy is built from its state."""
    path = tmp_path / "set.bin"
    for function, arguments in ((np.ndarray, ((2,), "O")), (np.dtype, ("O",)), (bytes.fromhex, ("00",))):
        path.write_bytes(pickle.dumps(([Calls(function, *arguments)] * 4, SAME), 4))
        with pytest.raises(ValueError, match="not a verification set"):
            mj.data.verification_set(path)
    objects = np.array([b"a", None], object)
    path.write_bytes(pickle.dumps(([objects] * 4, SAME), 2))
    with pytest.raises(ValueError, match="it holds _reconstruct where bytes or an array of u1 should be"):
        mj.data.verification_set(path)
    # State set on what stands for a name, so that a later call would be another one.
    path.write_bytes(b"\x80\x02cnumpy\ndtype\n}X\x04\0\0\0nameX\x06\0\0\0systemsb.")
    with pytest.raises(ValueError, match="not a verification set"):
        mj.data.verification_set(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a verification set"),
        (b"not a pickle", "not a verification set"),
        (pickle.dumps((JPEGS, SAME))[:-100], "not a verification set"),
        (pickle.dumps({"a": 1}), "not a verification set"),
        (pickle.dumps((JPEGS, ["yes", "no"])), "it holds str where a boolean should be"),
        (pickle.dumps((["text"] * 4, SAME)), "it holds str where bytes"),
        (pickle.dumps((JPEGS[:3], SAME)), "holds 3 images and 2 answers; wanted two for each"),
        (pickle.dumps(([], [])), "holds 0 images and 0 answers"),
        (pickle.dumps(([*JPEGS[:3], b"none"], SAME)), "image 1 of pair 1 cannot be decoded"),
        (pickle.dumps(([*JPEGS[:3], JPEGS[3][:500]], SAME)), "image 1 of pair 1 cannot be decoded"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message):
    path = tmp_path / "set.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mj.data.verification_set(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        mj.data.verification_set(tmp_path / "none.bin")


def test_images_of_another_size(tmp_path):
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps((JPEGS, SAME)))
    images, _ = mj.data.verification_set(path, (56, 48))
    assert images.shape == (4, 56, 48, 3)
    middle = pixels(JPEGS[0]).astype(float)[:, 8:104].reshape(56, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.mean(np.abs(images[0] - middle)) < 2


def test_the_usual_evaluation(tmp_path):
    """Scores of pairs by mean pixels, in folds: the protocol from the file to the number."""
    people = np.repeat(np.arange(1, 11), 2)
    encoded = [jpeg(p, k) for p in people for k in (1, 2)]  # pair 2 i is one person's, 2 i + 1 is made of two
    for i in range(3, 40, 4):
        encoded[i] = jpeg((people[i // 2] % 10) + 1, 3)
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps((encoded, [True, False] * 10)))
    images, same = mj.data.verification_set(path)
    flat = images.reshape(40, -1).astype(float) - images.reshape(40, -1).mean(axis=0)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    mean, _ = mj.metrics.k_fold_accuracy(np.sum(flat[0::2] * flat[1::2], axis=1), same, 10)
    assert mean > 0.7


def test_lengths_that_a_file_only_claims_take_no_memory(tmp_path):
    """The peak of a process that reads them, over that of one that reads a small set."""
    claims = (
        b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"x",
        b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x",
        b"\x80\x04\x95" + struct.pack("<Q", 2**33) + b"N.",
        b"T" + struct.pack("<i", 2**31 - 1) + b"x",
    )
    for i, content in enumerate(claims):
        (tmp_path / f"{i}.bin").write_bytes(content)
    (tmp_path / "small.bin").write_bytes(pickle.dumps((JPEGS, SAME)))
    code = (
        "import resource, sys; from metricjax.data.verification_set import verification_set\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "verification_set(sys.argv[1]); before = peak()\n"
        "for path in sys.argv[2:]:\n"
        "    try: verification_set(path)\n"
        "    except ValueError: pass\n"
        "print(peak() - before)"
    )
    files = [tmp_path / "small.bin", *(tmp_path / f"{i}.bin" for i in range(len(claims)))]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, "MiB"


def test_images_of_any_format_whose_pixels_are_few(tmp_path):
    """The decoder is that of all readers."""
    path = tmp_path / "set.bin"
    file = io.BytesIO()
    photograph(1, 1).save(file, "WEBP", lossless=True)
    path.write_bytes(pickle.dumps(([file.getvalue()] * 4, SAME)))
    np.testing.assert_array_equal(mj.data.verification_set(path).images[3], photograph(1, 1))
    for bad in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P5 1000000 1000000 255\n"):
        path.write_bytes(pickle.dumps(([*JPEGS[:3], bad], SAME)))
        with pytest.raises(ValueError, match=r"set\.bin: image 1 of pair 1 cannot be decoded"):
            mj.data.verification_set(path)
