import pickle
import struct
import warnings

import numpy as np
import pytest

import metricjax as mj
from metricjax.data import record_io
from tests.helpers.photographs import jpeg, pixels
from tests.helpers.record_files import MAGIC, Writer, training_set


def check(source, people=3, each=4):
    assert len(source) == people * each
    assert source.labels.dtype == np.int32
    np.testing.assert_array_equal(source.labels, np.repeat(np.arange(people), each))
    assert source.people == [str(i) for i in range(people)]
    for i in np.random.default_rng(0).permutation(people * each):
        image = source[i]
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, pixels(jpeg(i // each + 1, i % each + 1)))


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("magic", [False, True])
def test_images_of_a_training_set(tmp_path, index, magic):
    writer = training_set(magic=magic)
    if magic:
        assert writer.file.count(MAGIC) > 3 * 4 + 4
    source = mj.data.RecordSource(writer.save(tmp_path, index=index))
    check(source)
    np.testing.assert_array_equal(source.ranges, [[1, 5], [5, 9], [9, 13]])
    assert source.left_out == []
    check(mj.data.RecordSource(tmp_path / "train.rec"))
    with pytest.raises(IndexError):
        source[12]


def test_split_records_are_put_together(tmp_path):
    writer = training_set(magic=True)
    source = mj.data.RecordSource(writer.save(tmp_path))
    for i in (1, 3):
        whole = jpeg(1, i + 1)
        whole += bytes(-len(whole) % 4) + MAGIC * (1 + i // 2) + b"tail" + MAGIC + b"end"
        assert source.encoded(i) == whole


def test_plain_records_with_a_number_for_label(tmp_path):
    """As MXNet's im2rec writes them: no header record, no identities, labels with gaps."""
    writer = Writer()
    for i, label in enumerate([7, 3, 7, 1000]):
        writer.write(i, label, jpeg(i + 1, 1))
    source = mj.data.RecordSource(writer.save(tmp_path, size=None))
    assert source.people == ["3", "7", "1000"]
    np.testing.assert_array_equal(source.labels, [1, 0, 1, 2])
    assert source.ranges.shape == (0, 2)
    assert source.size == (112, 112)
    np.testing.assert_array_equal(source[3], pixels(jpeg(4, 1)))


def test_sizes(tmp_path):
    folder = training_set().save(tmp_path, size="56,48")
    assert mj.data.RecordSource(folder)[0].shape == (56, 48, 3)
    assert mj.data.RecordSource(folder, (20, 20))[0].shape == (20, 20, 3)
    (folder / "property").write_text("112")
    with pytest.raises(ValueError, match="does not hold people,height,width"):
        mj.data.RecordSource(folder)


@pytest.mark.parametrize("index", [True, False])
def test_damaged_records_are_reported_by_position_and_left_out(tmp_path, index):
    writer = training_set()
    at = dict(writer.index)
    data = bytearray(writer.file)
    data[at[2]] ^= 1  # no magic number
    data[at[4] + 4 : at[4] + 8] = struct.pack("<I", 10)  # shorter than its header
    data[at[7] + 32 : at[7] + 36] = struct.pack("<f", np.nan)
    cut = at[12] + 1000
    writer.file = bytes(data[:cut])
    folder = writer.save(tmp_path, index=index)
    with pytest.warns(UserWarning) as caught:
        source = mj.data.RecordSource(folder)
    message = str(caught[0].message)
    found = {byte: reason for _, byte, reason in source.left_out}
    assert found[at[4]] == "it is shorter than its header"
    assert found[at[7]] == "its label is not a whole number"
    assert found[at[12]] == "it runs past the end of the file"
    assert f"at byte {at[7]} (its label is not a whole number)" in message
    if index:
        assert found[at[2]] == "the magic number is missing"
        assert f"key 2 at byte {at[2]} (the magic number is missing)" in message
        assert "8 records are left out" in message  # these, the header record and three identity records
    else:  # where the chain breaks, the scan goes on at the next record
        assert at[2] in found
    np.testing.assert_array_equal(source.labels, np.repeat([0, 1, 2], [2, 3, 3]))
    kept = [(0, 1), (0, 3), (1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 3)]
    for i, (person, k) in enumerate(kept):
        np.testing.assert_array_equal(source[i], pixels(jpeg(person + 1, k)))


def test_a_split_record_that_breaks_off(tmp_path):
    writer = training_set(magic=True)
    at = dict(writer.index)
    data = bytearray(writer.file)
    second = writer.file.index(MAGIC, at[2] + 4)
    data[second] ^= 1
    writer.file = bytes(data)
    with pytest.warns(UserWarning, match=f"1 records are left out: key 2 at byte {at[2]} .the magic number"):
        source = mj.data.RecordSource(writer.save(tmp_path))
    assert len(source) == 11


def test_records_that_the_index_lacks(tmp_path):
    writer = training_set()
    del writer.index[3:6]
    with pytest.warns(UserWarning, match="holds 9 images; its identity records name 12"):
        assert len(mj.data.RecordSource(writer.save(tmp_path))) == 9
    writer.index[0] = (1, 10**9)
    with (
        pytest.warns(UserWarning, match="holds 8 images"),
        pytest.warns(UserWarning, match=r"key 1 at byte 1000000000 \(it runs past the end"),
    ):
        mj.data.RecordSource(writer.save(tmp_path))


def test_an_image_that_cannot_be_decoded_is_skipped_once_reported(tmp_path):
    writer = Writer()
    for key, (label, content) in enumerate([(0, jpeg(1, 1)), (0, b"no image"), (0, jpeg(1, 3)[:900]), (1, b"nothing")]):
        writer.write(key, label, content)
    source = mj.data.RecordSource(writer.save(tmp_path, size="112,112"))
    with pytest.warns(UserWarning) as caught:
        image = source[1]
    assert [str(w.message).split(" is skipped")[0] for w in caught] == [
        f"{tmp_path / 'train.rec'}: key {key} at byte {dict(writer.index)[key]}" for key in (1, 2)
    ]
    np.testing.assert_array_equal(image, pixels(jpeg(1, 1)))  # the next of the same person that can be read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(source[2], image)
    with pytest.warns(UserWarning, match="key 3"), pytest.raises(ValueError, match="no photograph of 1 can be read"):
        source[3]


def test_a_copy_in_another_process_reads_on(tmp_path):
    source = pickle.loads(pickle.dumps(mj.data.RecordSource(training_set().save(tmp_path))))
    check(source)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.rec is not there or empty"):
        mj.data.RecordSource(tmp_path)
    (tmp_path / "train.rec").write_bytes(b"no record at all")
    with (
        pytest.warns(UserWarning, match=r"at byte 0 \(the magic number is missing\)"),
        pytest.raises(ValueError, match="holds no image records"),
    ):
        mj.data.RecordSource(tmp_path)
    training_set().save(tmp_path)
    (tmp_path / "train.idx").write_text("1\tx\n")
    with pytest.raises(ValueError, match=r"train\.idx does not hold lines of a key"):
        mj.data.RecordSource(tmp_path)


@pytest.mark.parametrize("index", [True, False])
def test_the_size_without_property_is_of_the_first_that_can_be_read(tmp_path, index):
    writer = Writer()
    for key, content in enumerate([b"no image", jpeg(1, 1)[:500], jpeg(1, 3, (40, 32)), jpeg(1, 4, (50, 50))]):
        writer.write(key, 0, content)
    source = mj.data.RecordSource(writer.save(tmp_path, index=index, size=None))
    assert (source.size, len(source)) == ((40, 32), 4)
    with pytest.warns(UserWarning, match="key 0 at byte 0 is skipped"), pytest.warns(UserWarning, match="key 1 at"):
        np.testing.assert_array_equal(source[0], pixels(jpeg(1, 3, (40, 32))))
    assert mj.data.RecordSource(tmp_path, (20, 20)).size == (20, 20)
    none = Writer()
    for key in range(3):
        none.write(key, 0, b"no image")
    with pytest.raises(ValueError, match=r"none of the 3 images in .*train\.rec can be read, the first at .*byte 0"):
        mj.data.RecordSource(none.save(tmp_path, index=index, size=None))
    assert len(mj.data.RecordSource(none.save(tmp_path, index=index))) == 3  # its property says how large


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"3,-112,112", "does not hold people,height,width: 3,-112,112"),
        (b"3,112", "does not hold people"),
        (b"3,112,112,112", "does not hold people"),
        (b"3,1e2,112", "does not hold people"),
        (b"", "does not hold people"),
        (bytes(range(256)) * 1000, r"does not hold people,height,width: \\x00\\x01"),
        ("3,112,112".encode("utf-16"), "does not hold people"),
        (b"3,0,112", "has height 0 and width 112; wanted 1 to 4096"),
        (b"3,100000,100000", "has height 100000 and width 100000; wanted 1 to 4096"),
        (b"3," + b"9" * 90 + b",1", "wanted 1 to 4096"),
        (b"3,112," + b"9" * 10**6, "wanted 1 to 4096"),
    ],
)
def test_a_property_that_is_none(tmp_path, content, message):
    folder = training_set().save(tmp_path)
    (folder / "property").write_bytes(content)
    with pytest.raises(ValueError, match=rf"property {message}|property .*{message}"):
        mj.data.RecordSource(folder)
    (folder / "property").write_bytes(b"\xef\xbb\xbf3, 56 ,48\r\n")
    assert mj.data.RecordSource(folder).size == (56, 48)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("99\t-4", "entry 4 has the position -4; wanted a whole number"),
        ("-1\t4", "entry 4 has the key -1; wanted a whole number"),
        ("99\tnan", "entry 4 has the position nan; wanted a whole number"),
        ("99\tinf", "entry 4 has the position inf; wanted a whole number"),
        ("99\t1.5", "entry 4 has the position 1.5; wanted a whole number"),
        ("99\t99999999999999999999", r"entry 4 has the position 1e\+20; wanted a whole number"),
        ("2\t400", "entry 4 has the key 2 of one before"),
        ("99\t0", "entry 4 has the position 0 of one before"),
        ("99\t0\t0", "does not hold lines of a key"),
        ("99", "does not hold lines of a key"),
        ("99\t\x1b[2J", "does not hold lines of a key"),
    ],
)
def test_an_index_that_is_none(tmp_path, entry, message):
    folder = training_set().save(tmp_path)
    whole = (folder / "train.idx").read_text().splitlines()
    (folder / "train.idx").write_text("\n".join([*whole[:3], entry, *whole[4:]]))
    with pytest.raises(ValueError, match=rf"train\.idx.*{message}") as caught:
        mj.data.RecordSource(folder)
    assert str(caught.value).isprintable()
    (folder / "train.idx").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(whole).encode())
    check(mj.data.RecordSource(folder))


@pytest.mark.parametrize("content", [b"", b"# none\n", bytes(range(256))])
def test_an_index_without_entries(tmp_path, content):
    folder = training_set().save(tmp_path)
    (folder / "train.idx").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.idx does not hold lines of a key"):
        mj.data.RecordSource(folder)


def test_an_index_that_lies(tmp_path):
    writer = training_set()
    at = dict(writer.index)
    lies = {1: at[1] + 2, 3: 2**52, 4: len(writer.file) - 4, 6: at[6] + 4}
    hidden = MAGIC + struct.pack("<I", 24 + 4) + struct.pack("<IfQQ", 0, 1.0, 0, 0) + b"none"
    inside = at[8] + 8 + 24 + 8 + 100 & ~3
    writer.file = writer.file[:inside] + hidden + writer.file[inside + len(hidden) :]  # a record within the image of 8
    lies[9] = inside
    writer.index = [(key, lies.get(key, offset)) for key, offset in writer.index]
    with pytest.warns(UserWarning, match="5 records are left out: key 1 at byte 2 ") as caught:
        source = mj.data.RecordSource(writer.save(tmp_path))
    assert [str(w.message).split(":")[0] for w in caught] == [str(tmp_path / "train.rec")]
    assert sorted(source.left_out) == [
        (1, 2, "its position is not a multiple of 4"),
        (3, 2**52, "it runs past the end of the file"),
        (4, len(writer.file) - 4, "it runs past the end of the file"),
        (6, at[6] + 4, "the magic number is missing"),
        (8, at[8], "it runs into the next record"),
    ]
    assert source.keys.tolist() == [2, 5, 7, 9, 10, 11, 12]


def test_a_length_that_lies_is_blamed_on_its_record(tmp_path):
    writer = training_set()
    at = dict(writer.index)
    data = bytearray(writer.file)
    data[at[5] + 4 : at[5] + 8] = struct.pack("<I", at[9] - at[5])
    data[at[14] + 32 : at[14] + 36] = struct.pack("<f", np.inf)  # of an identity record
    writer.file = bytes(data)
    with pytest.warns(UserWarning, match="2 records are left out"):
        source = mj.data.RecordSource(writer.save(tmp_path))
    reasons = [(5, at[5], "it runs into the next record"), (14, at[14], "its label is not a whole number")]
    assert source.left_out == reasons
    assert len(source) == 11


def test_many_damaged_records_are_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(record_io, "MOST_DAMAGED", 10)
    (tmp_path / "train.rec").write_bytes((MAGIC + bytes(4)) * 11)
    with pytest.raises(
        ValueError, match=r"train\.rec: 11 of 11 records are damaged, the first at byte 0 \(it is shorter"
    ):
        mj.data.RecordSource(tmp_path)
