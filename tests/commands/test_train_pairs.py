"""Two towers by the command: what a run leaves, going on after an interruption, and errors in one line."""

import json
import signal

import jax
import numpy as np
import pytest

import metricjax as mj
from metricjax.trained import mesh
from metricjax.training import ImageTowers, loop
from tests.helpers.people import write_people

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
SMALL = ["--encoder", "small_convnet", "--image-size", "16", "8", "--embedding-size", "8", "--batch", "8"]
SMALL += ["--steps", "6", "--checkpoint-every", "3", "--learning-rate", "0.003"]


@pytest.fixture(scope="module")
def example():
    from metricjax.commands import train_pairs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 2)
        on = mesh.data_mesh
        patch.setattr(mesh, "data_mesh", lambda devices=None: on(devices or jax.devices()[:1]))
        yield train_pairs


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[4] * 9, size=(28, 28), noise=20)


def run(example, people, out, *more):
    return example.main([*SMALL, "--dataset", str(people), "--out", str(out), *map(str, more)])


@pytest.fixture(scope="module")
def trained(example, people, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "trained"
    return run(example, people, out, "--no-shared", "--validation", 2, "--log", "csv"), out


def recalls(x, y):
    """Recall at 1, 5 and 10 and the median rank of x among y, by a loop."""
    ranks = []
    for i, row in enumerate(x.astype(np.float64)):
        scores = [float(row @ other) for other in y.astype(np.float64)]
        ranks.append(1 + sum(score > scores[i] for score in scores))
    return [*(np.mean(np.array(ranks) <= k) for k in (1, 5, 10)), np.median(ranks)]


def test_a_run_leaves_encoders_that_give_its_table(example, people, trained):
    report, out = trained
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(report))
    assert set(report["results"]) == {"towers", "untrained", "raw pixels"}
    assert (len(report["groups"]["trained on"]), len(report["groups"]["tested on"])) == (2, 5)
    assert not set(report["groups"]["trained on"]) & set(report["groups"]["tested on"])
    source = mj.data.FolderSource(people, (112, 112))
    chosen = np.isin(source.people, report["groups"]["tested on"])
    halves = mj.data.HalfViews(mj.data.of_people(source, chosen))
    pairs = np.stack([halves[i] for i in range(len(halves))])
    x, y = mj.load(out / "x.npz").embed(pairs[:, 0]), mj.load(out / "y.npz").embed(pairs[:, 1])
    found = report["results"]["towers"]
    names = [f"recall@{k}" for k in (1, 5, 10)] + ["median_rank"]
    for way, views in {"x to y": (x, y), "y to x": (y, x)}.items():
        assert [found[f"{way} {name}"] for name in names] == pytest.approx(recalls(*views))
    nearest = halves.labels[np.argmax(x @ y.T, axis=1)]
    assert found["x to y recall@1 of the group"] == pytest.approx(np.mean(nearest == halves.labels))
    assert mj.load(out / "x.npz").digest != mj.load(out / "y.npz").digest
    assert {"training.png", "validation.png", "metrics.csv", "towers.json"} <= {path.name for path in out.iterdir()}
    history = report["history"]
    assert history["step"] == [2, 4, 6] and len(set(history["scale"])) == 3 and max(history["scale"]) <= 100


def test_saved_towers_do_without_mirror_images(trained, rng, tmp_path):
    _, out = trained
    encoder = mj.load(out / "x.npz")
    images = rng.integers(0, 256, (3, *encoder.photograph, encoder.channels), dtype=np.uint8)
    assert np.max(np.abs(encoder.embed(images) - encoder.embed(images[:, :, ::-1]))) > 1e-3
    encoder.save(tmp_path / "again.npz")
    again = mj.load(tmp_path / "again.npz")
    assert again.digest == encoder.digest
    np.testing.assert_array_equal(again.embed(images), encoder.embed(images))
    with_mirror = type(encoder)(encoder.design, encoder.structure, encoder.weights, encoder.record, encoder.mesh)
    assert with_mirror.digest != encoder.digest


@pytest.mark.parametrize("how", ["killed", "asked to end"])
def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(example, people, tmp_path, monkeypatch, how):
    step = ImageTowers.step

    def interrupted(self, number, batch):
        if number == 4 and how == "killed":
            raise KeyError("the power fails")
        if number == 3 and how == "asked to end":
            signal.raise_signal(signal.SIGTERM)
        return step(self, number, batch)

    whole = run(example, people, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ImageTowers, "step", interrupted)
        with pytest.raises((KeyError, SystemExit)):
            run(example, people, tmp_path / "part")
    report = run(example, people, tmp_path / "part", "--resume")
    assert report["results"]["towers"] == whole["results"]["towers"]
    arrays = [np.load(tmp_path / name / "x.npz") for name in ("whole", "part")]
    for name in arrays[0].files:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])
    assert not (tmp_path / "whole" / "y.npz").exists()


def test_pairs_of_files_train_too(example, people, tmp_path):
    """Two folders, and a table that says the same, give the same run."""
    names = sorted(path.relative_to(people) for path in people.rglob("*.png"))
    (tmp_path / "pairs.csv").write_text("".join(f"{people / name},{people / name},{name.parent}\n" for name in names))
    more = ["--other-encoder", "plain_convnet", "--loss", "siglip", "--image-size", "16", "16", "--batch", "8"]
    reports = [
        run(example, dataset, tmp_path / out, *more, *other)
        for dataset, out, other in (
            (people, "folders", ("--other-dataset", people)),
            (tmp_path / "pairs.csv", "table", ()),
        )
    ]
    assert reports[0]["results"] == reports[1]["results"]
    assert reports[0]["results"]["raw pixels"]["x to y recall@1"] == 1  # of an image among its like
    assert "y to x recall@1 of the group" in reports[0]["results"]["towers"]


def test_eight_devices_train_images_as_one(example, people, tmp_path):
    args = example.arguments([*SMALL, "--dataset", str(people), "--out", str(tmp_path)])
    data = example.load(args)
    images = np.stack([data.train[i] for i in range(8)])
    states = []
    for devices in (1, 8):
        trainer = ImageTowers(
            example.towers_of(args, data).recipe, example.towers_of(args, data).designs, devices=jax.devices()[:devices]
        )
        for number in range(3):
            trainer.step(number, {"x": images[:, 0], "y": images[:, 1], "groups": data.train.labels[:8]})
        states.append(trainer.state["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), *states)


def test_wrong_arguments_end_with_one_line(example, people, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "ImageTowers", None)
    (tmp_path / "empty.csv").write_text("a,b\n")
    wrong = {
        ("--shared", "--other-encoder", "vit_small"): "--shared has one tower",
        ("--loss", "triplet"): "invalid choice: 'triplet'",
        ("--scale", "0.5"): "scale is 0.5; wanted 1 to most_scale, 100.0",
        ("--augment", "3"): "--augment is 3.0; wanted 0 to 2",
        ("--patience", "2"): "--patience needs --validation",
        ("--batch", "1"): "--batch is 1; wanted at least 2",
        ("--batch", "200"): "--batch is 200; there are 32 pairs to train on",
        ("--test-groups", "8"): "has 9 groups; 8 to test on and --validation 0 leave 1 to train on, wanted 2 at least",
        ("--dataset", "nowhere"): "nowhere is not a folder",
        ("--dataset", str(tmp_path / "empty.csv")): "names no pairs of files that exist",
        ("--dataset", "orl", "--other-dataset", "nowhere"): "is not a folder",
        ("--resume",): "holds no checkpoint",
    }
    for arguments, message in wrong.items():
        with pytest.raises(SystemExit) as caught:
            run(example, people, tmp_path / "run", *arguments)
        said = f"{caught.value.code} {capsys.readouterr().err}"
        assert message in said
        assert "\n" not in str(caught.value.code)
