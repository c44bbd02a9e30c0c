"""Side by side with PyTorch Metric Learning: losses agree where it is installed; our half, everywhere."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import benchmarks
import metricjax as mj
from benchmarks import reality_check
from benchmarks.reality_check_ours import FEATURES, LOSSES, RATES, Ours, features, initial, our_loss
from tests.helpers import oracle
from tests.helpers.benchmark_runs import run_benchmark

OURS, THEIRS = reality_check.FRAMEWORKS


@pytest.fixture(autouse=True)
def as_for_everybody():
    """Optax and `data.augmented` promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class WithoutPrototypes(Ours):
    """One that trains something else."""

    def __init__(self, name, params, images, labels):
        super().__init__("SupCon" if LOSSES.get(name, LOSSES["SupCon"]).prototypes else name, params, images, labels)


def in_place_of_theirs(training) -> SimpleNamespace:
    calculator = lambda z, y: mj.metrics.retrieval(z, y, ks=(1,))
    return SimpleNamespace(Theirs=training, their_loss=our_loss, by_calculator=calculator, PACKAGES=())


def checked(monkeypatch, folder):
    """Rows of losses and rows of times."""
    monkeypatch.setattr(reality_check, "BLOCK", 1)
    saved = run_benchmark(reality_check, ["--quick"], monkeypatch, folder)
    assert (folder / "runs/benchmarks/reality_check.png").stat().st_size > 1000
    rows, times = saved["rows"][: len(LOSSES)], saved["rows"][len(LOSSES) :]
    assert {row["set"] for row in rows} == {"ORL"}
    assert [row["loss"] for row in rows] == list(LOSSES)
    assert all(row[f"step, {who}"] > row[f"loss, {who}"] > 0 for row in times for who in (OURS, THEIRS))
    return rows, times


def test_losses_agree(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("pytorch_metric_learning")
    rows, _ = checked(monkeypatch, tmp_path)
    for row in rows:
        assert 0 < row["first"] < 1e-4, row["loss"]
        assert 0 < row["float64"] < 1e-10, row["loss"]
        assert row["agreeing"] == 5
        assert row["calculators"] < 1e-3
        for measure in reality_check.MEASURES:
            np.testing.assert_allclose(row[measure][OURS], row[measure][THEIRS], atol=0.02)
    assert "| ORL | ArcFace |" in capsys.readouterr().out


def test_what_differs_is_seen(monkeypatch, tmp_path, capsys):
    for name in set(LOSSES) - {"SupCon", "ProxyAnchor"}:
        monkeypatch.delitem(LOSSES, name)
        monkeypatch.delitem(reality_check.ALL, name)
    monkeypatch.setattr(benchmarks, "reality_check_torch", in_place_of_theirs(WithoutPrototypes), raising=False)
    rows, times = checked(monkeypatch, tmp_path)
    for row in rows:
        changed = LOSSES[row["loss"]].prototypes
        assert (row["first"] > 0.01) == changed, row["loss"]
        assert (row["map@r"][OURS] != row["map@r"][THEIRS]) == changed
        assert (row["float64"] > 0.01) == changed
        assert row["agreeing"] == (0 if changed else 5)
    assert [row["loss"] for row in times] == list(reality_check.ALL)
    assert "recall@1, PyTorch Metric Learning" in capsys.readouterr().out


# --- our half -------------------------------------------------------------------------------------------------------


def gelu(x):
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def convolved(image, kernel):
    """With stride 2, and zeros around."""
    width, _, _, channels = kernel.shape
    image = np.pad(image, [(width // 2, width // 2)] * 2 + [(0, 0)])
    size = [-(-(n - 2 * (width // 2)) // 2) for n in image.shape[:2]]
    found = np.zeros((*size, channels))
    for i, j in np.ndindex(*size):
        patch = image[2 * i : 2 * i + width, 2 * j : 2 * j + width]
        found[i, j] = np.tensordot(patch, kernel, 3)
    return found


def embedded(network, image):
    x = np.float64(image)
    for kernel, scale, bias in network.convolutions:
        x = convolved(x, np.float64(kernel))
        x = np.vectorize(gelu)((x - x.mean()) / math.sqrt(x.var() + 1e-5) * scale + bias)
    return x.reshape(-1) @ np.float64(network.kernel) + network.bias


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).standard_normal((8, 28, 28, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """With norms and biases that are not those of the beginning."""
    rng, begun = np.random.default_rng(1), initial(0, 4)
    moved = lambda array: array + np.float32(0.1) * rng.standard_normal(array.shape).astype(np.float32)
    return jax.tree.map(moved, begun)


def test_features(params, images):
    wanted = np.array([embedded(params["network"], image) for image in images[:2]])
    assert wanted.shape == (2, FEATURES)
    np.testing.assert_allclose(features(params["network"], jnp.asarray(images[:2])), wanted, rtol=1e-4, atol=1e-4)


def test_a_step_is_of_the_batch_and_each_rate_is_its_own(params, images):
    labels, chosen = np.repeat(np.arange(4, dtype=np.int32), 2), np.array([6, 7, 0, 1])
    supcon = Ours("SupCon", params, images, labels)
    z = np.array([embedded(params["network"], images[i]) for i in chosen])
    value = supcon.step(chosen)
    wanted = oracle.supcon(oracle.matrix("cosine_similarity", z, z), *oracle.neighbours(labels[chosen]))
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    assert supcon.step(chosen) < value
    arcface = Ours("ArcFace", params, images, labels)
    arcface.step(chosen)
    for name, rate in RATES.items():  # Adam's first step has everywhere the length of its rate
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), arcface.state[0][name], params[name])
        np.testing.assert_allclose(jax.tree.leaves(moved), rate, rtol=1e-2)


def test_relative():
    zero, one = np.zeros(1), np.ones(1)
    assert reality_check.relative(zero, zero) == 0
    assert reality_check.relative(zero, one) == reality_check.relative(one, zero) == 1
    np.testing.assert_allclose(reality_check.relative(0.9 * one, one), 0.1)


# --- splits ---------------------------------------------------------------------------------------------------------


def test_people_of_orl_are_in_one_half():
    split = reality_check.orl()
    faces = mj.data.orl(reality_check.SIZE)
    seen = faces.labels < 20
    assert np.unique(split.labels).tolist() == list(range(40))  # twenty, and their mirror images
    assert np.unique(split.unseen_labels).tolist() == list(range(20))
    mean = np.mean(faces.images[seen] / 255, axis=0)
    both = (mean + mean[:, ::-1]) / 2
    np.testing.assert_allclose(split.unseen, faces.images[~seen] / 255 - both, atol=1e-5)
    assert len(split.images) == len(split.labels) == reality_check.COPIES * 2 * seen.sum()


def test_alphabets_of_omniglot_are_in_one_half(tmp_path):
    for alphabet in range(5):  # each has its own grey
        for character in range(2):
            folder = tmp_path / f"alphabet{alphabet}" / f"character{character:02}"
            folder.mkdir(parents=True)
            for drawer in (1, 2):
                Image.new("L", (105, 105), 255 - 10 * alphabet).save(folder / f"{character:04}_{drawer:02}.png")
    split = reality_check.omniglot(str(tmp_path))
    mean = 10 / 255
    assert np.unique(np.round(255 * (split.images + mean))).tolist() == [0, 10, 20]
    assert np.unique(np.round(255 * (split.unseen + mean))).tolist() == [30, 40]
    assert split.unseen_labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(np.unique(split.labels)) == 6
