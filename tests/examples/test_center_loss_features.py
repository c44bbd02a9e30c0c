"""The figure of center loss, trained for a few steps: what it claims is measured, and so is the measure."""

import contextlib
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]


@pytest.fixture(scope="module")
def example():
    import center_loss_features

    return center_loss_features


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    """What a run returns and prints, its folder, and the state that it trained."""
    out, printed, states, train = tmp_path_factory.mktemp("figure"), io.StringIO(), [], example.train
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(example, "BATCH", 64)
        patch.setattr(example, "train", lambda *inputs: states.append(train(*inputs)) or states[0])
        results = example.main(["--steps", "320", "--seeds", "1", "--out", str(out)])
    return results, printed.getvalue(), out, states[0]


def test_a_run_leaves_a_figure_its_numbers_and_a_table(example, run):
    results, printed, out, _ = run
    assert list(results) == list(example.LOSSES)
    with Image.open(out / "features.png") as image:
        assert min(image.size) > 500
    saved = json.loads((out / "features.json").read_text())
    assert saved["results"] == results
    assert saved["losses"]["CosFace"] == {"scale": 16, "margin": 0.15}
    for name, found in results.items():
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{name}  "))
        assert line.split()[-7:] == [f"{numbers[0]:.3f}" for numbers in found.values()]


def test_features_of_digits_never_seen(run):
    for found in run[0].values():
        assert found["accuracy"][0] > 0.8
        assert found["angular between"][0] < 36.01
    ratios = {name: found["Euclidean ratio"][0] for name, found in run[0].items()}
    least = ratios.pop("softmax + center loss")
    assert least < 0.85 * min(ratios.values())


def test_each_row_of_the_state_belongs_to_its_loss(example, run):
    """Only the first two losses have biases, and center loss keeps features short."""
    moved = dict(zip(example.LOSSES, np.any(np.asarray(run[3].params["bias"]), axis=1), strict=True))
    assert moved == {name: name not in example.ANGULAR for name in example.LOSSES}
    length = np.linalg.norm(np.asarray(run[3].centers), axis=-1).mean(axis=1)
    assert length[1] < length[0]


def test_spread(example):
    z = jnp.array([[11.0, 0.0], [1.0, 10.0], [10.0, -1.0], [0.0, 9.0]])
    means = jnp.array([[10.5, -0.5], [0.5, 9.5]])
    found = example.spread(z, jnp.array([0, 1, 0, 1]), means, example.mj.distances.euclidean)
    np.testing.assert_allclose(found, [0.5**0.5, 200**0.5, 0.05], rtol=1e-5)


def test_wrong_arguments(example, capsys):
    for option in ("--steps", "--seeds"):
        with pytest.raises(SystemExit):
            example.main([option, "0"])
        assert f"{option} is 0; wanted at least 1" in capsys.readouterr().err
