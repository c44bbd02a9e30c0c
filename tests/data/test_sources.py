import itertools
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
from PIL import Image

import metricjax as mj
from metricjax.data import tfds_sets as readers
from metricjax.data.alignment import TEMPLATE
from metricjax.data.orl_faces import OrlFaces
from tests.helpers.photographs import photograph

pytestmark = pytest.mark.filterwarnings("default")  # TFDS and the packages it reads with warn about each other


@pytest.fixture
def folder(tmp_path):
    """Three people with 4, 4 and 1 photographs, in PNG."""
    for person, count in (("ann", 4), ("bob", 4), ("cy", 1)):
        (tmp_path / person).mkdir()
        for i in range(count):
            photograph("abc".index(person[0]) + 1, i + 1, (40, 32)).save(tmp_path / person / f"{person}_{i:04d}.png")
    return tmp_path


def test_a_folder_gives_what_is_read_whole(folder):
    with pytest.warns(UserWarning, match="1 people with fewer than 2 images are left out: cy"):
        source = mj.data.FolderSource(folder, (20, 16))
    with pytest.warns(UserWarning):
        faces = mj.data.folder(folder, (20, 16))
    assert source.people == faces.people == ["ann", "bob"]
    assert source.files == faces.files
    assert source.labels.dtype == np.int32
    np.testing.assert_array_equal(source.labels, faces.labels)
    np.testing.assert_array_equal([source[i] for i in range(8)], faces.images)
    memory = mj.data.ArraySource(faces)
    np.testing.assert_array_equal([memory[i] for i in range(len(memory))], faces.images)
    assert len(mj.data.FolderSource(folder, (20, 16), at_least=1)) == 9
    grey = mj.data.FolderSource(folder, (20, 16), at_least=1, mode="L")[0]
    assert grey.shape == (20, 16, 1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[3], faces.images[3])


def test_unreadable_files_show_when_they_are_read(folder):
    (folder / "ann" / "ann_0001.png").write_bytes(b"\x89PNG nothing more")
    source = mj.data.FolderSource(folder, (40, 32), at_least=1)
    with pytest.warns(UserWarning, match=r"ann_0001\.png is skipped: it cannot be read"):
        np.testing.assert_array_equal(source[1], np.asarray(photograph(1, 3, (40, 32))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(source[1], source[2])


def test_a_folder_aligned_by_landmarks(folder, tmp_path):
    image = photograph(1, 1, (112, 112))
    turned = Image.new("RGB", (200, 200))
    turned.paste(image, (60, 50))
    turned.save(folder / "ann" / "ann_0000.png")
    lines = [f"ann/ann_{i:04d}.png," + ",".join(str(v) for v in np.add(TEMPLATE, (60, 50)).ravel()) for i in (0, 1)]
    (tmp_path / "landmarks.csv").write_text("\n".join(lines))
    landmarks = mj.data.read_landmarks(tmp_path / "landmarks.csv")
    with pytest.warns(UserWarning, match=r"7 images without landmarks are left out: ann/ann_0002\.png, .*, …"):
        source = mj.data.FolderSource(folder, (112, 112), landmarks=landmarks)
    assert source.people == ["ann"]
    assert len(source) == 2
    np.testing.assert_allclose(source[0], np.asarray(image), atol=1)
    with pytest.raises(ValueError, match=r"size is \(112, 96\); wanted equal height and width"):
        mj.data.FolderSource(folder, (112, 96), landmarks=landmarks)


def test_classes_of_super_classes_and_several_sources_in_one(folder, tmp_path):
    deep = tmp_path / "deep"
    for name, count in (("greek/a", 2), ("greek/b", 3), ("latin/a", 2)):
        (deep / name).mkdir(parents=True)
        for i in range(count):
            photograph(len(name) + count, i + 1, (16, 12)).save(deep / name / f"{i}.png")
    source = mj.data.FolderSource(deep, (16, 12), superclasses=True)
    assert source.people == ["greek/a", "greek/b", "latin/a"]  # two that are called "a"
    np.testing.assert_array_equal(source.labels, [0, 0, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(mj.data.superlabels(source), [0] * 5 + [1] * 2)
    people = tmp_path / "people"
    people.mkdir()
    for name in ("ann", "bob"):
        (folder / name).rename(people / name)
    faces = mj.data.FolderSource(people, (16, 12))
    assert mj.data.superlabels(faces) is None
    both = pickle.loads(pickle.dumps(mj.data.joined([source, faces])))
    assert both.people == [*source.people, "ann", "bob"] and len(both) == 15
    np.testing.assert_array_equal(both.labels, [*source.labels, *(faces.labels + 3)])
    assert both.files == source.files + faces.files and both.labels.dtype == np.int32
    for i in (0, 6):
        np.testing.assert_array_equal(both[i], source[i])
    for i in (7, 14, -1):
        np.testing.assert_array_equal(both[i], faces[(i - 7) % 8 if i > 0 else 7])
    with pytest.raises(ValueError, match="sources have people in common: ann, bob"):
        mj.data.joined([faces, faces])


def test_folders_without_people(folder, tmp_path):
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="holds no people with 5 images or more"):
        mj.data.FolderSource(folder, (8, 8), at_least=5)
    with pytest.raises(NotADirectoryError):
        mj.data.FolderSource(tmp_path / "nowhere", (8, 8))


def test_a_tfds_builder(tmp_path):
    builder = OrlFaces(data_dir=str(tmp_path), file_format="array_record")
    source = mj.data.TfdsSource(builder, "train[:10%]", (112, 92), mode="L", at_least=1)
    orl = mj.data.orl(data_dir=str(tmp_path))
    assert len(source) == 40
    everyone = {image.tobytes(): label for image, label in zip(orl.images, orl.labels, strict=True)}
    copy = pickle.loads(pickle.dumps(source))
    for i in (0, 17, 39):
        name = orl.people[everyone[source[i].tobytes()]]
        assert source.people[source.labels[i]] == name
        np.testing.assert_array_equal(copy[i], source[i])
    order = [orl.people.index(name) for name in source.people]
    assert order == sorted(order)  # by the builder's numbers, not by name: s2 before s10
    counts = np.bincount(source.labels)
    with pytest.warns(UserWarning, match=f"{np.sum(counts < 2)} people with fewer than 2 images"):
        several = mj.data.TfdsSource(builder, "train[:10%]", (112, 92), mode="L")
    np.testing.assert_array_equal(np.bincount(several.labels), counts[counts > 1])
    with pytest.raises(ValueError, match=r"orl_faces has no feature \{'identity'\}"):
        mj.data.TfdsSource(builder, "train", (8, 8), label="identity")


def test_lfw_by_tfds(tmp_path, monkeypatch):
    for person, count in (("Ann_A", 2), ("Bob_B", 3), ("Cy_C", 1)):
        (tmp_path / "archive" / "lfw" / person).mkdir(parents=True)
        for i in range(count):
            file = tmp_path / "archive" / "lfw" / person / f"{person}_{i + 1:04d}.jpg"
            photograph("ABC".index(person[-1]) + 1, i + 1, (250, 250)).save(file)
    monkeypatch.setattr(readers, "_reach", lambda builder: None)
    manager = readers.tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda self, url: str(tmp_path / "archive"))
    with pytest.warns(UserWarning, match="1 people with fewer than 2 images are left out: Cy_C"):
        source = mj.data.TfdsSource("lfw", "train", (32, 28), data_dir=str(tmp_path / "tfds"))
    with pytest.warns(UserWarning, match="Cy_C"):
        faces = mj.data.lfw((32, 28), data_dir=str(tmp_path / "tfds"))
    assert source.people == faces.people == ["Ann_A", "Bob_B"]
    images = {image.tobytes() for image in faces.images}
    assert {source[i].tobytes() for i in range(len(source))} == images


def test_a_set_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def offline(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(readers, "_reach", offline)
    with pytest.raises(OSError, match=r"mnist could not be downloaded .*Name or service not known"):
        mj.data.TfdsSource("mnist", "train", (8, 8), data_dir=str(tmp_path))


# --- batches --------------------------------------------------------------------------------------------------------


class Numbers:
    """A source whose image i says i."""

    labels = np.repeat(np.arange(6, dtype=np.int32), 5)

    def __init__(self):
        self.people = [str(i) for i in range(6)]

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return np.full((2, 2, 1), index, np.uint8)


SAMPLER = partial(mj.samplers.pk_batches, Numbers.labels, 4, 2, seed=0)


def taken(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        for name in ("images", "labels"):
            np.testing.assert_array_equal(one[name], other[name])


def test_batches_are_the_samplers_epoch_after_epoch():
    batches = mj.data.batches(Numbers(), SAMPLER)
    per_epoch = len(SAMPLER())
    indices = np.concatenate([SAMPLER(epoch=epoch) for epoch in range(3)])
    for index, batch in zip(indices, taken(batches, 3 * per_epoch), strict=True):
        assert batch["images"].shape == (8, 2, 2, 1)
        assert batch["images"].dtype == np.uint8
        assert batch["labels"].dtype == np.int32
        np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], index)
        np.testing.assert_array_equal(batch["labels"], Numbers.labels[index])


def test_uniform_batches_without_threads():
    uniform = partial(mj.samplers.uniform_batches, 30, 10, seed=0)
    seen = [b["images"][:, 0, 0, 0] for b in taken(mj.data.batches(Numbers(), uniform, threads=0), 3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(30))


def test_shards_put_together_are_the_whole_batch():
    whole = taken(mj.data.batches(Numbers(), SAMPLER), 12)
    parts = [taken(mj.data.batches(Numbers(), SAMPLER, shard=i, shards=2), 12) for i in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_same(joined, whole)


@pytest.mark.parametrize("start", [0, 3, len(SAMPLER()), len(SAMPLER()) + 1])
def test_a_restored_position_goes_on_as_if_it_had_never_stopped(start):
    uninterrupted = mj.data.batches(Numbers(), SAMPLER)
    taken(uninterrupted, start)
    state = pickle.loads(pickle.dumps(uninterrupted.get_state()))
    rest = taken(uninterrupted, 10)
    fresh = mj.data.batches(Numbers(), SAMPLER)
    taken(fresh, 2)
    fresh.set_state(state)
    assert_same(taken(fresh, 10), rest)
    assert fresh.get_state() == uninterrupted.get_state()


def test_an_epoch_is_made_once():
    made = []

    def sampler(epoch, **part):
        made.append(epoch)
        return SAMPLER(epoch=epoch, **part)

    batches = mj.data.batches(Numbers(), sampler, threads=4)
    list(itertools.islice(batches, 3 * len(SAMPLER())))
    batches.close()
    assert made == list(range(len(made)))


def test_a_sampler_whose_epochs_differ():
    batches = mj.data.batches(Numbers(), lambda epoch, **part: np.zeros((2 + epoch, 4), int))
    with pytest.raises(ValueError, match="sampler gave 3 batches for epoch 1; wanted 2, as for epoch 0"):
        taken(batches, 3)


def test_a_worker_process_gives_the_same(tmp_path):
    """From files, which are opened anew there."""
    for person in range(2):
        (tmp_path / f"p{person}").mkdir()
        for i in range(4):
            photograph(person + 1, i + 1, (16, 12)).save(tmp_path / f"p{person}" / f"{i}.png")
    source = mj.data.FolderSource(tmp_path, (16, 12))
    sampler = partial(mj.samplers.pk_batches, source.labels, 2, 2, seed=0)
    there = mj.data.batches(source, sampler, workers=1)
    assert_same(taken(there, 4), taken(mj.data.batches(source, sampler), 4))
    there.close()
