"""The training script on InsightFace's formats, and its trainer with batches in chunks."""

import importlib
import pickle
from functools import partial

import jax
import numpy as np
import pytest

from metricjax import encoders
from metricjax.commands import fitting
from metricjax.trained import mesh
from metricjax.trained.design import Design
from tests.helpers.photographs import jpeg
from tests.helpers.record_files import training_set

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
SMALL = ["--encoder", "tiny", "--image-size", "16", "16", "--embedding-size", "8", "--loss", "cosface"]


@pytest.fixture
def example(monkeypatch):
    example = importlib.import_module("metricjax.commands.train_faces")
    monkeypatch.setitem(encoders.NAMED, "tiny", partial(encoders.SmallResNet, widths=(8,)))
    on = mesh.data_mesh
    monkeypatch.setattr(mesh, "data_mesh", lambda devices=None: on(devices or jax.devices()[:1]))
    return example


def pairs(path, count, other=1):
    """Every other pair is of one person."""
    people = [(9 + i, 9 + i + i % 2 * other) for i in range(count)]
    images = [jpeg(person, number) for pair in people for number, person in enumerate(pair, 1)]
    path.write_bytes(pickle.dumps((images, [a == b for a, b in people])))
    return path


def test_insightface_formats_and_the_best_checkpoint(example, tmp_path, monkeypatch):
    rates = iter([0.4, 0.1, 0.3])
    measured = {}

    def validated(encoder, held):
        assert held.images.shape == (40, 112, 112, 3)
        rate = next(rates)
        measured[rate] = encoder.digest
        return rate

    monkeypatch.setattr(example, "equal_error_rate", validated)
    (tmp_path / "set").mkdir()
    out, files = tmp_path / "run", [pairs(tmp_path / f"{name}.bin", 20) for name in ("one", "other", "third")]
    pairs(files[1], 23)  # 10 folds of 2 or 3
    given = ["--dataset", training_set(people=8, each=4).save(tmp_path / "set"), "--out", out, "--batch", 8]
    given += ["--test", files[0], "--test", files[1], "--validation", files[2], "--test-people", 3]
    report = example.main([*SMALL, *map(str, given), "--steps", "3", "--checkpoint-every", "1"])
    found = report["results"]["embeddings"]
    assert {"one accuracy", "other accuracy", "one EER", "other EER", "AUC"} < found.keys()
    assert (found["other pairs, smallest fold"], found["other pairs, largest fold"]) == (2, 3)
    assert "one pairs, smallest fold" not in found
    assert report["people"] == {"trained on": list("01234"), "tested on": list("567")}
    assert {folder.name for folder in (out / "checkpoints").iterdir()} == {"2", "3"}
    assert example.run_folder.load(out).digest == measured[0.1]


def test_gradients_in_chunks_are_those_of_the_whole_batch(example, rng):
    images = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    batch = {"images": images, "labels": np.repeat(np.arange(8, dtype=np.int32), 2)}
    gradients = []
    for more in ([], ["--chunk", "8"]):
        args = example.arguments([*SMALL, *more])
        fitting.fit(args, 8, 0, 16)
        design = Design("tiny", 8, (16, 16), (16, 16), 3)
        trainer = example.Trainer(example.recipe_of(args), design, 8, jax.devices()[:2])

        def loss(params, trainer=trainer):
            placed = trainer.placed(batch)
            given = (trainer.state["rest"], trainer.state["kept"], trainer.design.seen(placed["images"]))
            return trainer.loss(params, *given, placed["labels"], 0, jax.random.key(0))[0]

        gradients.append(jax.jit(jax.grad(loss))(trainer.state["params"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), *gradients)


def trained(example, more, devices=1, steps=3):
    """The trainer after a few steps on 40 people, 8 of them in each batch."""
    args = example.arguments([*SMALL, "--loss", "cosface+sphereface2", *more])
    fitting.fit(args, 40, 0, 80)
    trainer = example.Trainer(
        example.recipe_of(args), Design("tiny", 8, (16, 16), (16, 16), 3), 40, jax.devices()[:devices]
    )
    rng = np.random.default_rng(0)
    for number in range(1, steps + 1):
        images = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
        trainer.step(number, {"images": images, "labels": np.repeat(rng.permutation(40)[:8], 2).astype(np.int32)})
    return trainer


def test_sampled_classes_are_those_that_change(example):
    everything, all_sampled = trained(example, []), trained(example, ["--sampled-classes", "1"])
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, everything.state["params"], all_sampled.state["params"])
    some, on_two = (trained(example, ["--sampled-classes", "0.45"], devices, steps=2) for devices in (1, 2))
    jax.tree.map(close, some.state["params"], on_two.state["params"])
    before = trained(example, ["--sampled-classes", "0.45"], steps=1).state["params"]["heads"]
    for name, parts in some.state["params"]["heads"].items():
        for part, now in parts.items():
            if now.shape[:1] == (64,):
                moved = np.any(np.asarray(now != before[name][part]).reshape(64, -1), axis=1)
                assert moved.sum() == 18 and not moved[40:].any(), (name, part)
    with pytest.raises(ValueError, match=r"--sampled-classes 0\.1 of 40 are 4; wanted one for each of the 16 images"):
        trained(example, ["--sampled-classes", "0.1"])


def test_what_cannot_be_evaluated_is_refused_before_training(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "Trainer", None)
    (tmp_path / "set").mkdir()
    folder = str(training_set(people=4, each=2).save(tmp_path / "set"))
    wrong = {
        (
            "--test",
            str(pairs(tmp_path / "few.bin", 4)),
        ): "--test: few cannot be evaluated in folds: folds is 10; wanted",
        (
            "--test",
            str(pairs(tmp_path / "one.bin", 10, 0)),
        ): "--test: one cannot be evaluated in folds: same is all True",
        ("--test-people", "1"): "--test-people 1: wanted 2 people at least",
        ("--test-people", "0"): "--test-people 0 without any --test",
        ("--validation", "1"): "--validation 1: wanted 2 people at least",
        ("--checkpoint-every", "0"): "--checkpoint-every is 0; wanted at least 1",
        ("--landmarks", "points.csv"): "--landmarks names files",
        ("--test", "a/lfw.bin", "--test", "b/lfw.bin"): "have one name",
    }
    for arguments, message in wrong.items():
        with pytest.raises(SystemExit) as caught:
            example.main([*SMALL, "--dataset", folder, *arguments])
        assert message in f"{caught.value.code} {capsys.readouterr().err}"
