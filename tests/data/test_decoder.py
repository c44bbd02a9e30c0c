"""Every reader's decoder: which bytes become which pixels, and that bad ones cost one photograph and little memory."""

import concurrent.futures
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

import metricjax as mj
from metricjax.data.alignment import TEMPLATE
from metricjax.data.decoder import FORMATS, MOST_PIXELS, Unreadable, upright
from tests.helpers.photographs import jpeg, photograph

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
SAVED = {
    "BMP": {},
    "JPEG": {"quality": 95},
    "PNG": {},
    "PPM": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
}


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(content):
    """The pixels of a grey photograph, at its own size."""
    image = upright(content)
    assert image.mode == "L"
    return np.asarray(image).astype(float)


def png(width, height, rows=b"", chunks=b"", depth=8):
    """A grey PNG whose header says what it likes."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def text_chunk(size):
    data = b"note\0\0" + zlib.compress(bytes(size), 9)
    return struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_whatever_the_file_is_called(tmp_path, kind):
    content = encoded(photograph(1, 1, (20, 16)), kind, **SAVED[kind])
    (tmp_path / "face.jpg").write_bytes(content)
    for given in (tmp_path / "face.jpg", str(tmp_path / "face.jpg"), content):
        image = mj.data.decoded(given, (20, 16))
        difference = np.abs(image.astype(int) - np.asarray(photograph(1, 1, (20, 16))))
        assert difference.max() <= (40 if kind == "JPEG" else 0)
    for cut in (len(content) // 2, len(content) * 9 // 10):
        with pytest.raises(mj.data.UNREADABLE):
            mj.data.decoded(content[:cut], (20, 16))


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PDF", "ICNS", "TGA", "PCX", "JPEG2000", "AVIF"])
def test_other_formats_are_none(tmp_path, kind, monkeypatch):
    """Ghostscript above all is never started, whatever the file is called."""
    monkeypatch.setattr(subprocess, "check_call", None)
    try:
        content = encoded(photograph(1, 1, (32, 32)), kind)
    except (KeyError, OSError):
        pytest.skip(f"Pillow does not write {kind} here")
    (tmp_path / "face.jpg").write_bytes(content)
    with pytest.raises(Unreadable, match="it is not one of BMP, JPEG, PNG, PPM, TIFF, WEBP"):
        mj.data.decoded(tmp_path / "face.jpg", (8, 8))


def test_the_first_of_several_images():
    first, second = photograph(1, 1, (20, 16)), photograph(2, 1, (20, 16))
    for kind in ("TIFF", "WEBP", "PNG"):
        several = encoded(first, kind, save_all=True, append_images=[second], **SAVED[kind])
        np.testing.assert_array_equal(mj.data.decoded(several, (20, 16)), first)
    stereo = encoded(first, "MPO", save_all=True, append_images=[second])  # as some phones name .jpg
    assert np.abs(mj.data.decoded(stereo, (20, 16)).astype(int) - np.asarray(first)).mean() < 10


# --- more and less than 8 bits ----------------------------------------------------------------------------------------


def assert_ramp(content):
    assert np.max(np.abs(grey(content) - RAMP / 257)) <= 1


def test_16_bits_keep_their_range():
    assert_ramp(b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes())
    assert_ramp(b"P2 8 8 65535\n" + " ".join(map(str, RAMP.ravel())).encode())
    assert_ramp(b"P5 8 8 4095\n" + (RAMP // 16).astype(">u2").tobytes())
    image = Image.fromarray(RAMP)
    assert image.mode == "I;16"
    for kind, options in (("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})):
        assert_ramp(encoded(image, kind, **options))
    dark = np.minimum(RAMP, 200)  # the largest value tells nothing: 16 bits are 16 bits
    assert grey(b"P5 8 8 65535\n" + dark.astype(">u2").tobytes()).max() == 1
    example = mj.data.decoded(b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes(), (8, 8), "L")
    assert np.max(np.abs(example[..., 0] - RAMP / 257)) <= 1
    colour = mj.data.decoded(b"P6 8 8 65535\n" + np.repeat(RAMP.astype(">u2"), 3).tobytes(), (8, 8))
    assert np.max(np.abs(colour - RAMP[..., None] / 257)) <= 1


def tiff(values, order, bits, sample_format=1, photometric=1):
    """An uncompressed grey TIFF in either order of bytes."""
    mark, pack = {"<": (b"II*\0", "<"), ">": (b"MM\0*", ">")}[order]
    data = values if isinstance(values, bytes) else values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 8, 279: len(data)}
    tags |= {339: sample_format}
    directory = struct.pack(f"{pack}H", len(tags))
    for tag, value in tags.items():
        short = tag not in (273, 279)
        directory += struct.pack(f"{pack}HHI", tag, 3 if short else 4, 1)
        directory += struct.pack(f"{pack}HH" if short else f"{pack}I", *((value, 0) if short else (value,)))
    return mark + struct.pack(f"{pack}I", 8 + len(data)) + data + directory + bytes(4)


@pytest.mark.parametrize("order", "<>")
def test_tiffs_of_more_bits(order):
    assert_ramp(tiff(RAMP, order, 16))
    assert_ramp(tiff(RAMP.astype(np.int32), order, 32, sample_format=2))
    for full in (1, 255, 65535):
        assert_ramp(tiff((RAMP * (full / 65535)).astype(np.float32), order, 32, sample_format=3))
    eight = (RAMP // 257).astype(np.int32)
    assert_ramp(tiff(eight, order, 32, sample_format=2))
    over = np.linspace(-0.05, 1.05, 64, dtype=np.float32).reshape(8, 8)  # as resampling leaves it
    assert grey(tiff(over, order, 32, 3)).min() == 0 and grey(tiff(over, order, 32, 3)).max() == 255
    assert not grey(tiff(np.zeros((8, 8), np.float32), order, 32, 3)).any()


def test_tiffs_where_0_is_white_and_of_12_bits():
    assert np.max(np.abs(grey(tiff(RAMP, "<", 16, photometric=0)) - (255 - RAMP / 257))) <= 1
    twelve = (RAMP // 16).astype(int).ravel()
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(twelve[::2], twelve[1::2], strict=True)
    )
    assert_ramp(tiff(packed, "<", 12))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1, 1e9])
def test_values_of_no_range_are_refused(value):
    values = (RAMP / 65535).astype(np.float32)
    values[3, 3] = value
    with pytest.raises(Unreadable, match=r"its values go from \S+ to \S+; wanted 0 to 1, 255 or 65535"):
        upright(tiff(values, "<", 32, 3))


def test_modes_of_8_bits_and_less():
    face = photograph(3, 1, (20, 16))
    pixels = np.asarray(face)
    level = np.asarray(face.convert("L"))
    bits = face.convert("1")
    np.testing.assert_array_equal(upright(encoded(bits, "PNG")), np.asarray(bits) * 255)
    assert upright(encoded(face.convert("P"), "PNG")).mode == "RGB"
    difference = np.abs(np.asarray(upright(encoded(face.convert("CMYK"), "TIFF"))).astype(int) - pixels)
    assert difference.max() <= 1
    opaque = Image.new("L", face.size, 255)
    for image in (Image.merge("RGBA", (*face.split(), opaque)), Image.merge("LA", (face.convert("L"), opaque))):
        shown = upright(encoded(image, "PNG"))
        np.testing.assert_array_equal(shown, level if image.mode == "LA" else pixels)
    half = np.full((16, 20), 255, np.uint8)
    half[:, :10] = 0
    for image, wanted in ((face, pixels), (face.convert("L"), level)):
        image.putalpha(Image.fromarray(np.ascontiguousarray(half.T)))
        seen = np.asarray(upright(encoded(image, "PNG"))).astype(int)
        assert not seen[:10].any()
        np.testing.assert_array_equal(seen[10:], wanted[10:])


# --- which side is up -------------------------------------------------------------------------------------------------

STORED = {  # how an upright image is stored so that its orientation undoes it, by NumPy
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}


def stored(pixels, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels)))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else SAVED[kind]
    return encoded(lying, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_each_orientation_plainly_and_with_landmarks(tmp_path, orientation, kind):
    """The same face comes out, cropped or aligned by points of the upright photograph, however it is stored."""
    face = np.zeros((150, 130, 3), np.uint8)
    face[20:132, 10:122] = np.asarray(photograph(1, 1))
    content = stored(face, orientation, kind)
    tolerance = 8 if kind == "JPEG" else 1
    assert upright(content).size == (130, 150)
    assert np.abs(np.asarray(upright(content)).astype(int) - face).max() <= tolerance
    (tmp_path / "ann").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "ann" / name).write_bytes(content)
    plain = mj.data.FolderSource(tmp_path, (150, 130))[0]
    assert np.abs(plain.astype(int) - face).max() <= tolerance
    points = np.add(TEMPLATE, [10, 20])
    landmarks = {"ann/a.jpg": points, "ann/b.jpg": points}
    aligned = mj.data.FolderSource(tmp_path, (112, 112), landmarks=landmarks)[0]
    assert np.abs(aligned.astype(int) - np.asarray(photograph(1, 1))).max() <= tolerance
    assert np.asarray(photograph(1, 1)).std() > 30  # or this would not tell one from another


def test_16_bits_are_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(np.ascontiguousarray(STORED[6](RAMP))), "PNG", exif=exif)
    assert np.max(np.abs(grey(content) - RAMP / 257)) <= 1


@pytest.mark.parametrize("at", [0, 2, 6, 8, 10, 14, 18, 22])
def test_a_damaged_exif_block_costs_nothing_but_the_orientation(at):
    """Also where warnings are errors, as they are here: those of Pillow about the block are not raised."""
    face = np.asarray(photograph(1, 1, (20, 16)))
    content = stored(face, 3, "JPEG")
    start = content.index(b"Exif\0\0") + 6
    for damage in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\x07\x12"):
        image = upright(content[: start + at] + damage + content[start + at + 4 :])
        assert min(np.abs(np.asarray(image).astype(int) - turned).max() for turned in (face, face[::-1, ::-1])) <= 8


def test_pillows_warnings_do_not_show_and_others_do():
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 271, 2, 255, 65535)  # a text that is not there
    content = encoded(photograph(1, 1, (20, 16)), "JPEG", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mj.data.decoded(content, (20, 16))
        warnings.warn("another", stacklevel=1)
    assert [str(w.message) for w in caught] == ["another"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(content)).getexif().items()
    assert caught, "Pillow warns of this block"


def test_photographs_are_decoded_by_many_threads_at_once():
    """Warnings are errors here; what one thread does about Pillow's leaves the others' and everybody's else alone."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 271, 2, 255, 65535)
    content = encoded(photograph(1, 1, (20, 16)), "JPEG", exif=exif)
    before = len(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda _: mj.data.decoded(content, (20, 16)), range(400)))
    assert all(np.array_equal(image, images[0]) for image in images)
    assert len(warnings.filters) <= before + 1
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)


# --- what must not happen ---------------------------------------------------------------------------------------------


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    failed = []
    names = ("pipe.jpg", "folder.jpg", "device.jpg", "nowhere.jpg")

    def read():
        for name in names:
            with pytest.raises(mj.data.UNREADABLE, match=name) as caught:
                mj.data.decoded(tmp_path / name, (8, 8))
            failed.append(caught.value)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert len(failed) == 4, "reading waits for ever"
    assert isinstance(failed[3], FileNotFoundError)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "face")
    (tmp_path / "face").write_bytes(jpeg(1, 1))
    assert mj.data.decoded(tmp_path / "link.jpg", (8, 8)).shape == (8, 8, 3)


BOMBS = {
    "wide": png(178_000_000, 1),
    "tall": png(1, 178_000_000),
    "long": png(70_000, 1, bytes(70_001)),
    "large": png(30_000, 30_000, bytes(10**6)),
    "just too large": png(9_500, 9_500),
    "more than int32 holds": png(2**31 - 1, 2**31 - 1),
    "empty": png(0, 10),
    "a long note": png(8, 8, bytes(72), text_chunk(10**8)),
    "netpbm": b"P5 1000000 1000000 255\n",
    "netpbm of no size": b"P5 0 0 255\n",
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_what_is_too_large_is_refused_before_it_takes_memory(content, monkeypatch):
    loaded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", lambda self: loaded.append(self.size))
    with pytest.raises(Unreadable):
        upright(content)
    assert not loaded


def test_the_limits_are_named():
    with (
        warnings.catch_warnings(),
        pytest.raises(Unreadable, match="is 9400 × 9520 pixels; wanted 89,478,485 pixels at most, 65,535 a side"),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow, too, thinks so
        upright(png(9_400, 9_520))
    with pytest.raises(Unreadable, match="exceeds limit of 89478485 pixels"):  # where warnings are errors
        upright(png(9_400, 9_520))
    assert 9_400 * 9_520 > MOST_PIXELS > 9_400 * 9_518
    with pytest.raises(Unreadable, match="it is 70000 × 1 pixels"):
        upright(BOMBS["long"])


def test_a_bomb_takes_no_memory_in_fact():
    """The peak of a process that reads all of them, over that of one that reads a small photograph."""
    code = (
        "import resource, sys; sys.path.insert(0, '.')\n"
        "import numpy, PIL.Image\n"
        "from metricjax.data.decoder import UNREADABLE, upright\n"
        "from tests.data.test_decoder import BOMBS, jpeg\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "upright(jpeg(1, 1)); before = peak()\n"
        "for content in BOMBS.values():\n"
        "    try: upright(content)\n"
        "    except UNREADABLE: pass\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, "MiB"


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError,
        MemoryError,
        SyntaxError,
        RecursionError,
        OverflowError,
        struct.error,
        EOFError,
        IndexError,
        UserWarning,
        ZeroDivisionError,
        Image.DecompressionBombError,
    ],
)
def test_whatever_a_decoder_raises_costs_one_photograph(tmp_path, monkeypatch, failure):
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        for name in "abc":
            (tmp_path / person / f"{name}.jpg").write_bytes(jpeg(1, 1, (20, 16)))
    (tmp_path / "ann" / "b.jpg").write_bytes(jpeg(1, 1, (20, 24)))
    real = ImageFile.ImageFile.load

    def load(self):
        if self.size == (24, 20):
            raise failure("of no use")
        return real(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.warns(UserWarning, match=r"ann/b\.jpg is left out: it cannot be read \(of no use\)"):
        assert len(mj.data.folder(tmp_path, (20, 16)).files) == 5
    source = mj.data.FolderSource(tmp_path, (20, 16))
    with pytest.warns(UserWarning, match=r"ann/b\.jpg is skipped: it cannot be read \(of no use\)"):
        np.testing.assert_array_equal(source[1], source[2])


def test_a_failure_without_words_is_named():
    with pytest.raises(Unreadable, match=r"^\S.*$"):
        upright(b"")
    with pytest.raises(Unreadable, match="not one of BMP"):
        upright(bytes(1000))
