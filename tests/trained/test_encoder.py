"""Encoders as objects: called on whatever holds photographs, saved, loaded, and never compiled for another number."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import metricjax as mj
from metricjax.trained import mesh
from metricjax.trained.design import Design, split
from metricjax.trained.encoder import NetworkEncoder
from tests.helpers.damage import spoiled
from tests.helpers.people import write_people

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
RECORD = {"trained on": {"Ann": [2, ""]}, "validation": {"Bob": [1, ""]}}


def made(channels=1, record=None, devices=1, **settings) -> NetworkEncoder:
    design = Design("small_resnet", 8, (28, 23), (16, 14), channels, **settings)
    structure, params, rest = split(design.network(0))
    where = mesh.data_mesh(jax.devices()[:devices])
    return NetworkEncoder(design, structure, {"params": params, "rest": rest}, record, where)


@pytest.fixture(scope="module")
def encoder():
    return made(record=RECORD)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[3] * 4, size=(23, 28), noise=20)


def test_one_photograph_in_every_form(encoder, people):
    file = people / "Person_0" / "Person_0_0001.png"
    pixels = np.asarray(Image.open(file))
    expected = encoder.embed(pixels[None, ..., None])[0]
    assert expected.shape == (8,) and abs(np.linalg.norm(expected) - 1) < 1e-6
    given = [file, str(file), file.read_bytes(), Image.open(file), Image.open(file).convert("RGB"), pixels]
    for photograph in [*given, pixels[..., None], np.stack([pixels] * 3, axis=-1)]:
        np.testing.assert_allclose(encoder(photograph), expected, atol=1e-5)
    np.testing.assert_allclose(encoder(given), np.stack([expected] * 6), atol=1e-5)
    wide = Image.open(file).resize((230, 280))
    np.testing.assert_allclose(encoder(wide), encoder(np.asarray(wide)), atol=1e-6)
    np.testing.assert_allclose(encoder(np.asarray(wide)[None, ..., None])[0], encoder(wide), atol=1e-6)


def test_folders_in_their_order(encoder, people):
    person = people / "Person_2"
    files = mj.data.photographs_in(person).files
    np.testing.assert_array_equal(encoder(person), encoder(files))
    everybody = mj.data.photographs_of_people(people).files
    found = encoder(str(people))
    assert found.shape == (12, 8)
    np.testing.assert_allclose(found, np.stack([encoder(file) for file in everybody]), atol=1e-5)


def test_what_cannot_be_read_is_a_row_of_nan_and_named(encoder, people, tmp_path):
    good = people / "Person_0" / "Person_0_0001.png"
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:100])
    with (
        pytest.warns(match=r"torn\.png is left out: it cannot be read"),
        pytest.warns(match="photograph 2 is left out"),
    ):
        found = encoder([good, tmp_path / "torn.png", b"no photograph"])
    assert np.isfinite(found).all(axis=1).tolist() == [True, False, False]
    for one in (tmp_path / "torn.png", tmp_path / "nowhere.png", b"no photograph"):
        with pytest.raises(mj.data.UNREADABLE):
            encoder(one)
    gallery = mj.search.Gallery.empty(4, 8).enrol(jax.numpy.asarray(found), jax.numpy.arange(3, dtype=np.int32))
    assert gallery.ids.tolist() == [0, -1, -1, -1]


def test_nothing_is_compiled_for_other_numbers_of_photographs(encoder, rng):
    images = rng.integers(0, 256, (300, 28, 23, 1), np.uint8)
    expected = encoder.embed(images)
    from metricjax.trained.encoder import _embedded

    for count in (1, 16, 128):
        encoder.embed(images[:count])
    before = _embedded._cache_size()
    for count in (0, 1, 2, 7, 16, 17, 100, 129, 300):
        np.testing.assert_allclose(encoder.embed(images[:count]), expected[:count], atol=1e-5)
    assert _embedded._cache_size() == before


def test_all_devices_and_colours(rng):
    images = rng.integers(0, 256, (5, 28, 23, 3), np.uint8)
    one, eight = made(3), made(3, devices=8)
    np.testing.assert_allclose(one(images), eight(images), atol=1e-5)
    assert one(images[..., :1]).shape == (5, 8)


@pytest.mark.parametrize("wrong", [np.zeros((2, 28, 23, 1)), np.zeros((2, 3), bool), np.zeros((28, 23, 2), np.uint8)])
def test_wrong_photographs(encoder, wrong):
    with pytest.raises(ValueError, match="wanted uint8"):
        encoder(wrong)


def test_embeddings_that_are_not_finite_are_an_error(encoder):
    broken = jax.tree.map(lambda a: a * np.nan, encoder.weights)
    with pytest.raises(ValueError, match="small_resnet makes embeddings that are not finite"):
        NetworkEncoder(encoder.design, encoder.structure, broken, mesh=encoder.mesh)(np.zeros((28, 23), np.uint8))


def test_what_it_says_of_itself(encoder):
    assert encoder.trained_on == ["Ann", "Bob"] and made().trained_on is None
    assert repr(encoder).startswith(
        "<encoder small_resnet, 28 × 23 × 1 pixels to 8 numbers, trained on 2 people, digest "
    )
    assert "unknown people" in repr(made()) and len(repr(encoder)) < 120
    assert made().digest == encoder.digest != made(pixels="centred").digest


def test_saved_and_loaded(encoder, people, tmp_path):
    encoder.save(tmp_path / "encoder.npz")
    loaded = mj.load(tmp_path / "encoder.npz", mesh=encoder.mesh)
    assert (loaded.digest, loaded.record, loaded.design) == (encoder.digest, RECORD, encoder.design)
    np.testing.assert_array_equal(loaded(people), encoder(people))
    made().save(tmp_path / "unknown.npz")
    assert mj.load(tmp_path / "unknown.npz").trained_on is None


def test_files_that_hold_no_encoder(encoder, tmp_path):
    path = tmp_path / "encoder.npz"
    encoder.save(path)
    good = path.read_bytes()
    arrays = dict(np.load(path, allow_pickle=False))
    del arrays["metricjax_digest"]
    design = json.loads(str(arrays["design"]))
    wrong = {
        "holds weights that are not those of its design": {"design": json.dumps({**design, "embedding_size": 9})},
        "'name' is 'none'": {"design": json.dumps({**design, "name": "none"})},
        "its record is a list": {"record": "[]"},
        "it holds no design": {"design": 3},
        "its design is damaged: it holds no 'name'": {"design": "null"},
        "holds an encoder that is not finite": {
            name: array * np.nan for name, array in arrays.items() if "head" in name and "kernel" in name
        },
    }
    for message, change in wrong.items():
        np.savez(path, **{**arrays, **change})
        with pytest.raises(ValueError, match=message):
            mj.load(path)
    path.write_bytes(good)
    for _ in spoiled(path, arrays, range(20)):
        try:
            assert mj.load(path).digest == encoder.digest
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    for name, error in (("nowhere", FileNotFoundError), ("x.onnx", ValueError)):
        pathlib.Path(tmp_path / "x.onnx").touch()
        with pytest.raises(error, match=name):
            mj.load(tmp_path / name)
