"""Trainings that begin with weights: of a run, of a saved encoder, and published ones."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

import metricjax as mj
from metricjax import encoders
from metricjax.commands import train_faces
from metricjax.encoders import layouts
from metricjax.trained import mesh
from tests.helpers.people import write_people
from tests.helpers.torch_files import saved

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
SMALL = ["--encoder", "tiny", "--image-size", "16", "14", "--embedding-size", "8", "--batch", "4", "2"]
SMALL += ["--steps", "1", "--learning-rate", "0"]


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.NAMED, "tiny", partial(encoders.IResNet, (1, 1), widths=(4, 8)))
        on = mesh.data_mesh
        patch.setattr(mesh, "data_mesh", lambda devices=None: on(devices or jax.devices()[:1]))
        patch.setattr(train_faces, "write", lambda *_: None)  # plots
        yield


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[3] * 8, size=(14, 16), noise=20)


@pytest.fixture(scope="module")
def begun(people, tmp_path_factory):
    """A run at a learning rate of 0: its weights are those that it began with, but for statistics."""
    out = tmp_path_factory.mktemp("runs") / "first"
    run(people, out, "--seed", 3)
    return out


def run(people, out, *more):
    return train_faces.main([*SMALL, "--dataset", str(people), "--out", str(out), *map(str, more)])


def params(encoder):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(encoder.weights["params"]))


def assert_equal(one, other):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), one, other)  # the average of equal numbers is rounded


def test_a_run_or_a_file_of_one(people, begun, tmp_path):
    expected = mj.load(begun)
    expected.save(tmp_path / "encoder.npz")
    for number, where in enumerate((begun, tmp_path / "encoder.npz")):
        report = run(people, tmp_path / str(number), "--weights", where)
        assert report["run"]["weights"] == str(where)
        assert_equal(params(mj.load(tmp_path / str(number))), params(expected))
    run(people, tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_equal(params(mj.load(tmp_path / "other")), params(expected))
    with pytest.raises(
        SystemExit, match=r"encoder\.npz holds an encoder with image_size \(16, 14\); wanted \(14, 12\)"
    ):
        run(people, tmp_path / "wrong", "--weights", tmp_path / "encoder.npz", "--image-size", 14, 12)


def test_published_weights(people, tmp_path, rng):
    model = encoders.create("tiny", 8, (16, 14, 3), rngs=nnx.Rngs(0))
    (layout,) = layouts.iresnet(model)
    shapes = {name: shape for place in layout.places for name, shape in place.shapes.items()}
    given = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    (tmp_path / "published.pth").write_bytes(saved(given))
    run(people, tmp_path / "run", "--weights", tmp_path / "published.pth")
    encoders.load_weights(model, given)
    found = params(mj.load(tmp_path / "run"))
    assert_equal(found, jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    del given["fc.bias"], given["bn2.weight"]
    (tmp_path / "published.pth").write_bytes(saved(given))
    with pytest.raises(SystemExit, match=r"published\.pth: 2 names missing \(bn2\.weight, fc\.bias\)"):
        run(people, tmp_path / "wrong", "--weights", tmp_path / "published.pth")


def test_pixels_of_published_weights_are_for_colour(tmp_path):
    with pytest.raises(SystemExit, match=r"--pixels clip is for colour; the photographs of --dataset orl are grey"):
        run("orl", tmp_path / "run", "--pixels", "clip")
