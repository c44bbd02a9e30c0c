"""Encoders in files for other programs: StableHLO by JAX alone, ONNX by onnxruntime, both with any number of images."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import metricjax as mj
from metricjax.commands import export
from metricjax.trained import exporting
from tests.trained.test_encoder import made

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
ALONE = """
import sys, jax, numpy as np
assert not [name for name in ("flax", "PIL", "metricjax") if name in sys.modules]
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
np.save(sys.argv[3], np.stack([exported.call(images[:count])[0] for count in (1, 3, 20)]))
assert not [name for name in ("flax", "PIL", "metricjax") if name in sys.modules]
"""


def projected(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 28, 23, 1), np.uint8)


@pytest.mark.parametrize("mirrored", [True, False])
def test_stablehlo(images, tmp_path, mirrored):
    encoder, path = made(), tmp_path / "encoder.stablehlo"
    mj.export(encoder, path, mirrored=mirrored)
    loaded = mj.load(path, mesh=encoder.mesh)
    assert (loaded.digest, loaded.name, loaded.photograph, loaded.channels) == (
        encoder.digest,
        "small_resnet",
        (28, 23),
        1,
    )
    assert loaded.trained_on is None
    expected, flipped = encoder(images), encoder(images[:, :, ::-1])
    np.testing.assert_allclose(expected, flipped, atol=1e-5)
    if mirrored:
        np.testing.assert_allclose(loaded(images), expected, atol=1e-5)
    else:
        both = projected(loaded(images) + loaded(images[:, :, ::-1]))
        np.testing.assert_allclose(both, expected, atol=1e-5)
    loaded.save(tmp_path / "again.stablehlo")
    assert (tmp_path / "again.stablehlo").read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="exported already"):
        mj.export(loaded, path)


def test_stablehlo_without_metricjax(images, tmp_path):
    encoder = made(pixels="centred")
    mj.export(encoder, tmp_path / "encoder.stablehlo")
    np.save(tmp_path / "images.npy", images)
    files = [tmp_path / name for name in ("encoder.stablehlo", "images.npy", "found.npy")]
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True)
    np.testing.assert_allclose(np.load(files[2]), np.stack([encoder(images[0])] * 3), atol=1e-5)


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"encoder\.stablehlo is not written: what was exported differs by"):
        mj.export(made(), tmp_path / "encoder.stablehlo")
    assert not list(tmp_path.iterdir())


def test_other_suffixes_and_files(tmp_path):
    with pytest.raises(ValueError, match=r"wanted a name that ends with \.stablehlo or \.onnx"):
        mj.export(made(), tmp_path / "encoder.pb")
    for content in (b"", b"no StableHLO", bytes(1000)):
        (tmp_path / "x.stablehlo").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.stablehlo is no StableHLO that"):
            mj.load(tmp_path / "x.stablehlo")
    other = jax.export.export(jax.jit(lambda x: x))(jax.ShapeDtypeStruct((2,), np.float32))
    (tmp_path / "x.stablehlo").write_bytes(other.serialize())
    with pytest.raises(ValueError, match=r"wanted an encoder that `metricjax\.export` wrote"):
        mj.load(tmp_path / "x.stablehlo")


@pytest.fixture
def onnxruntime():
    pytest.importorskip("jax2onnx", exc_type=Exception)
    return pytest.importorskip("onnxruntime")


NEWEST = jax.__version_info__ >= (0, 11)  # which jax2onnx 0.17.1 does not know


@pytest.mark.skipif(NEWEST, reason="jax2onnx knows JAX 0.10")
@pytest.mark.parametrize("settings", [{}, {"pixels": "centred", "channels": 3}], ids=str)
def test_onnx(onnxruntime, rng, tmp_path, settings):
    encoder, path = made(**settings), tmp_path / "encoder.onnx"
    images = rng.integers(0, 256, (20, 28, 23, encoder.channels), np.uint8)
    for mirrored in (True, False):
        mj.export(encoder, path, mirrored=mirrored)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        run = lambda images, session=session: session.run(["embeddings"], {"images": images})[0]
        found = np.concatenate([run(images[:1]), run(images[1:])])
        expected = encoder(images)
        if not mirrored:
            found = projected(found + run(images[:, :, ::-1]))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert session.get_modelmeta().custom_metadata_map["digest"] == encoder.digest


@pytest.mark.skipif(not NEWEST, reason="JAX 0.10 works")
def test_onnx_with_the_newest_jax_says_what_is_wrong(onnxruntime, tmp_path):
    with pytest.raises(ValueError, match=r"jax2onnx .* and JAX .* write no ONNX of small_resnet"):
        mj.export(made(), tmp_path / "encoder.onnx")


def test_the_command(images, tmp_path, capsys):
    encoder = made()
    encoder.save(tmp_path / "encoder.npz")
    export.main([str(tmp_path / "encoder.npz")])
    said = capsys.readouterr().out
    assert f"{tmp_path / 'encoder.stablehlo'}: images uint8[n, 28, 23, 1] to float32[n, 8]" in said
    assert encoder.digest in said
    export.main([str(tmp_path / "encoder.npz"), str(tmp_path / "copy.npz")])
    for name in ("encoder.stablehlo", "copy.npz"):
        np.testing.assert_allclose(mj.load(tmp_path / name)(images), encoder(images), atol=1e-5)
    for wrong, message in (
        (["copy.pb"], "wanted a name that ends with"),
        (["copy.onnx", "--format", "npz"], "does not end with .npz"),
        (["copy.npz", "--no-mirror"], "--no-mirror is for"),
    ):
        with pytest.raises(SystemExit) as caught:
            export.main([str(tmp_path / "encoder.npz"), str(tmp_path / wrong[0]), *wrong[1:]])
        assert message in f"{caught.value.code} {capsys.readouterr().err}"
