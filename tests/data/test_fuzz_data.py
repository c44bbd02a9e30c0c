"""Every reader of files on hostile ones: a result, or the error it promises, which says in one line what file it is.

`--fuzz N` says how many; each is a valid file with a few bytes changed, cut out, repeated or put in.
"""

import contextlib
import io
import pathlib
import pickle
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

import metricjax as mj
from metricjax.data.alignment import TEMPLATE
from tests.helpers.photographs import jpeg, photograph
from tests.helpers.record_files import MAGIC, Writer

EXTREME = [struct.pack(order + kind, value) for order in "<>" for kind in "HIQ" for value in (0, 1, 2**15, 2**16 - 1)]
EXTREME += [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", struct.pack("<f", np.nan), struct.pack("<f", np.inf)]
WORDS = [b"\t", b",", b" ", b"\n", b"\r", b"#", b'"', b"-", b"nan", b"inf", b"1e999", b"0", b"99999999999999999999"]
WORDS += [b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9", b"\\", b"/", b"..", b"\x1b"]


def hostile(seed, valid, words=EXTREME):
    """One of the valid files, changed in one to four places."""
    rng = np.random.default_rng(seed)
    content = bytearray(valid[rng.integers(len(valid))])
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(content) + 1)) if rng.integers(2) else int(rng.integers(min(len(content), 64) + 1))
        length = int(rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                content[at : at + 1] = bytes([rng.integers(256)])
            case 1:
                word = words[rng.integers(len(words))]
                content[at : at + len(word)] = word
            case 2:
                content[at:at] = words[rng.integers(len(words))]
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = content[at : at + 4 * length]
            case _:
                del content[max(at, len(content) // 4) :]
    return bytes(content)


def shown(message):
    return mj.data.printable(str(message)) == str(message)


@contextlib.contextmanager
def refused(kinds, path):
    """Only such errors, of one line that can be printed and names the file; and warnings of ours only, likewise."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except kinds as error:
            assert str(path) in str(error), error
            assert shown(error), error
    for warning in caught:
        assert str(path.parent) in str(warning.message) and shown(warning.message), warning.message


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photographs():
    """One of each format and mode."""
    face, exif = photograph(1, 1, (20, 16)), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker" * 20
    found = [encoded(face, kind, exif=exif) for kind in ("JPEG", "PNG", "TIFF", "WEBP")]
    found += [encoded(face, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    found += [encoded(face, kind) for kind in ("BMP", "PPM")] + [encoded(face, "JPEG", progressive=True)]
    found += [encoded(face.convert(mode), "PNG") for mode in ("1", "P", "LA", "RGBA", "I;16")]
    found += [encoded(face.convert(mode), "TIFF") for mode in ("1", "L", "F", "I", "CMYK", "YCbCr")]
    found += [b"P2 4 2 65535\n0 1 2 3 4 5 6 65535\n", b"Pf 4 2 -1.0\n" + np.linspace(0, 1, 8, dtype="<f4").tobytes()]
    return [*found, encoded(face, "WEBP", lossless=True, save_all=True, append_images=[face.rotate(90)])]


def test_the_decoder(fuzz, photographs):
    read = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in fuzz:
            try:
                image = mj.data.decoded(hostile(seed, photographs), (16, 12), (None, "L", "RGB")[seed % 3])
            except mj.data.UNREADABLE as error:
                assert str(error) and shown(error)
            else:
                assert image.shape[:2] == (16, 12) and image.dtype == np.uint8
                read += 1
    assert len(fuzz) / 10 < read < len(fuzz)
    assert {w.category for w in caught} <= {Image.DecompressionBombWarning}


NUMBERS = [f"{n:g}" for n in TEMPLATE.ravel()]
LANDMARKS = [
    "\n".join(mark.join([f"Ann{mark != ' '}/{i}.jpg", *NUMBERS]) for i in range(3)).encode()
    for mark in ("\t", ",", " ")
]
LANDMARKS += [f"1\n{' '.join(f'x{i}' for i in range(10))}\n000001.jpg {' '.join(NUMBERS)}\n".encode()]
LANDMARKS += [f'NAME_ID,{",".join(f"P{i}" for i in range(10))}\r\n"n1/1",{",".join(NUMBERS)}\r\n'.encode("utf-8-sig")]
PAIRS = [
    b"2 2\nAnn 1 2\nBob 1 3\nAnn 1 Bob 2\nBob 3 Cy 1\nDee 1 2\nDee 2 3\nDee 1 Eve 1\nEve 2 Dee 3\n",
    b"2\r\nAnn A\t1\t2\r\nBob\t1\t3\r\nAnn A\t1\tBob\t2\r\nBob\t3\tCy\t1\r\n",
    b"# x\nAnn/1.jpg Bob/1.jpg 0\nAnn/1.jpg Ann/2.jpg 1\n",
]


def test_landmarks(fuzz, tmp_path):
    path = tmp_path / "landmarks"
    for seed in fuzz:
        path.write_bytes(hostile(seed, LANDMARKS, WORDS))
        with refused(ValueError, path):
            for name, points in mj.data.read_landmarks(path).items():
                assert name and points.shape == (5, 2) and np.all(np.isfinite(points))


def test_pairs(fuzz, tmp_path):
    path = tmp_path / "pairs"
    for seed in fuzz:
        path.write_bytes(hostile(seed, PAIRS, WORDS))
        with refused(ValueError, path):
            pairs = mj.data.read_pairs(path)
            assert len(pairs.first) == len(pairs.second) == len(pairs.same) == len(pairs.fold) > 0
            assert all((*pairs.first, *pairs.second)) and pairs.same.dtype == bool


def record_files():
    """Three files of a set: records (one of them split, with identities), index, property."""
    writer = Writer()
    for key in range(1, 7):
        content = jpeg(1, key, (20, 16))
        magic = bytes(-len(content) % 4) + MAGIC if key == 2 else b""
        writer.write(key, [key // 4, 1], content + magic)
    writer.write(0, [7, 9], b"")
    writer.write(7, [1, 4], b"")
    writer.write(8, [4, 7], b"")
    return writer


@pytest.mark.parametrize("kind", ["rec", "rec alone", "idx", "property"])
def test_record_io(fuzz, tmp_path, kind):
    writer = record_files()
    writer.save(tmp_path, size="20,16")
    name, words = {"idx": ("train.idx", WORDS), "property": ("property", WORDS)}.get(kind, ("train.rec", EXTREME))
    if kind == "rec alone":
        (tmp_path / "train.idx").unlink()
        (tmp_path / "property").unlink()
    path = tmp_path / name
    valid = [path.read_bytes()]
    for seed in fuzz:
        path.write_bytes(hostile(seed, valid, words))
        with refused((ValueError, FileNotFoundError), tmp_path):
            source = mj.data.RecordSource(tmp_path)
            for i in range(len(source)):
                with contextlib.suppress(ValueError):  # no photograph of this person can be read
                    assert source[i].dtype == np.uint8


def test_verification_sets(fuzz, tmp_path):
    path, images = tmp_path / "set.bin", [jpeg(1, i, (20, 16)) for i in (1, 2, 3, 4)]
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    valid = [pickle.dumps((images, [True, False]), protocol) for protocol in range(6)]
    valid += [pickle.dumps((arrays, [np.bool_(1), np.bool_(0)]), protocol) for protocol in (2, 5)]
    for seed in fuzz:
        path.write_bytes(hostile(seed, valid))
        with refused(ValueError, path):
            found = mj.data.verification_set(path, (16, 12))
            assert len(found.images) == 2 * len(found.same)


def test_names(fuzz):
    odd = "\u200b\u200e\u202e\u2028\u2066\ufeff\ud800\udce9\udfff\uffff日ש\U000e0001🙂"
    characters = [*map(chr, range(0x250)), *odd]
    for seed in fuzz:
        rng = np.random.default_rng(seed)
        name = "".join(characters[i] for i in rng.integers(len(characters), size=rng.integers(20)))
        shown = mj.data.printable(name)
        shown.encode("utf-8")
        assert mj.data.printable(shown) == shown and len(shown.splitlines()) < 2


def test_the_lister(fuzz, tmp_path):
    """Folders of odd names, files, links and folders: each entry is a photograph or passed over."""
    for seed in list(fuzz)[:200]:
        rng, folder = np.random.default_rng(seed), tmp_path / str(seed)
        stems, ends = ["a", ".a", "A b", "\udce9", "\n", "-", "..a"], ["", ".jpg", ".JPG", ".txt", ".jpg.", ".webp"]
        made = set()
        for _ in range(rng.integers(1, 12)):
            person = folder / stems[rng.integers(len(stems))]
            person.mkdir(parents=True, exist_ok=True)
            path = person / (stems[rng.integers(len(stems))] + ends[rng.integers(len(ends))])
            if path in made:
                continue
            made.add(path)
            match rng.integers(4):
                case 0:
                    path.mkdir()
                case 1:
                    path.symlink_to(pathlib.Path(stems[rng.integers(len(stems))]))
                case _:
                    path.touch()
        try:
            found = mj.data.photographs_of_people(folder)
        except ValueError as error:
            assert shown(error)
            continue
        assert shown(found.report())
        over = {folder / name for names in found.passed_over.values() for name in names}
        hidden = {path for path in over if path.parent == folder}
        assert {*found.files, *over} == {path for path in made if path.parent not in hidden} | hidden
        assert not over & {*found.files}
