"""The example as its users run it, made small: its results, its errors, and going on after an interruption."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from metricjax import encoders
from metricjax.commands import fitting
from metricjax.commands.train_run import recipe_of
from metricjax.trained import mesh
from metricjax.trained.design import Design
from metricjax.training import loop, losses_by_name
from tests.helpers.people import write_people

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
SMALL = [
    "--image-size",
    "16",
    "14",
    "--embedding-size",
    "8",
    "--batch",
    "4",
    "2",
    "--steps",
    "6",
    "--learning-rate",
    "0.002",
]


@pytest.fixture(scope="module")
def example():
    from metricjax.commands import train_faces

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 2)
        on = mesh.data_mesh  # one device, unless a test says otherwise: what is small is faster so
        patch.setattr(mesh, "data_mesh", lambda devices=None: on(devices or jax.devices()[:1]))
        yield train_faces


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[3] * 9 + [1], size=(23, 28), noise=20)


def run(example, *arguments):
    return example.main([*SMALL, *map(str, arguments)])


def refused(example, capsys, *arguments):
    """What a run that ends with an error prints."""
    with pytest.raises(SystemExit) as caught:
        run(example, *arguments)
    assert caught.value.code not in (0, None)
    return f"{caught.value.code} {capsys.readouterr().err}"


def test_a_run_leaves_table_metrics_plots_and_checkpoint(example, people, tmp_path, capsys):
    out = tmp_path / "run"
    report = run(example, "--dataset", people, "--out", out)
    printed = capsys.readouterr().out
    assert "people never seen in training" in printed
    assert str(out) in printed
    saved = json.loads((out / "metrics.json").read_text())
    assert saved["results"] == report["results"]
    found = saved["results"]["embeddings"]
    assert found["genuine pairs"] == 15
    assert found["impostor pairs"] == 90
    assert found["TAR@FAR=0.001"] is None  # 90 impostor pairs cannot tell
    assert 0 <= found["EER"] <= 1
    assert set(saved["history"]) == {
        "step", "loss", "active triplets", "distance/positive", "distance/negative", "spread"
    }  # fmt: skip
    assert saved["history"]["step"] == [2, 4, 6]
    assert not set(saved["people"]["trained on"]) & set(saved["people"]["tested on"])
    for name in ("training", "roc", "scores", "neighbours"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 200
    assert (out / "checkpoints" / "6").is_dir()


EVERY_LOSS = (
    "contrastive", "triplet", "nt_xent", "supcon", "multi_similarity", "circle",
    "softmax", "normalized_softmax", "cosface", "arcface", "circle_class", "softmax+center",
    "margin+nca+signal_to_noise+log_ratio+ranked_list",
    "threshold_consistent_margin+tuplet_margin+intra_pair_variance+histogram+spread_out",
    "n_pairs+decoupled_contrastive+unified_pair+quadruplet+centroid_triplet",
    "angular+lifted_structure+generalized_lifted_structure",
    "fast_ap+smooth_ap+recall_at_k+roadmap+pnp", "supcon+dynamic_soft_margin",
    "large_margin_softmax+sphereface", "sphereface_r+sphereface2+combined_margin+uniface",
    "sub_center_arcface+soft_triple", "curricularface+adaface+magface", "elasticface+adacos",
    "proxy_nca+proxy_nca_pp+proxy_anchor+p2s_grad",
)  # fmt: skip


@pytest.fixture(scope="module")
def batch(example, people):
    source = example.mj.data.FolderSource(people, (28, 23), at_least=1, mode="L")
    index = [0, 1, 3, 4, 6, 7, 9, 10]
    return {"images": np.stack([source[i] for i in index]), "labels": source.labels[index]}


def made(example, *arguments, devices=None):
    """A trainer of 10 people for these arguments."""
    args = example.arguments([*SMALL, *map(str, arguments)])
    fitting.fit(args, 10, 0, 20)
    design = Design(args.encoder, args.embedding_size, (28, 23), tuple(args.image_size), 1)
    return example.Trainer(recipe_of(args), design, 10, devices)


class Smooth(nnx.Module):
    """Batch normalisation over the batch of all devices, and no kinks, at which rounding would grow."""

    def __init__(self, size, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(8 * 8 * 7, size, rngs=rngs)

    def features(self, images):
        x = jnp.tanh(self.norm(self.conv(images)))
        return self.head(x.reshape(len(x), -1))


@pytest.fixture
def smooth(example, monkeypatch):
    monkeypatch.setattr(encoders, "create", lambda name, size, shape, rngs, **_: Smooth(size, rngs))


@pytest.mark.usefixtures("smooth")
@pytest.mark.parametrize("loss", EVERY_LOSS)
def test_every_loss_trains(example, batch, loss):
    wide = ("--set", "margin=1.0") if loss == "triplet" else ()  # or no triplet is left to learn from
    trainer = made(example, "--steps", 30, "--loss", loss, "--mirror", "none", *wide, devices=jax.devices()[:1])
    images, labels = trainer.design.seen(jnp.asarray(batch["images"])), jnp.asarray(batch["labels"])

    def loss_on_clean_images():
        params = trainer.state["params"]
        embeddings, _ = trainer.encode(params["encoder"], trainer.state["rest"], images)
        given = (trainer.recipe.losses, embeddings, labels, params["heads"], kept, 30, jax.random.key(0))
        return losses_by_name.total_loss(*given, classes=10)[0]

    kept = jax.tree.map(jnp.array, trainer.state["kept"])  # as it was, so that the function stays the same
    before, first = jax.tree.map(np.array, trainer.state), loss_on_clean_images()
    for number in range(30):
        assert np.isfinite(trainer.step(number, batch)["loss"])
    assert loss_on_clean_images() < first
    assert trainer.not_finite() == []  # or it would not be saved
    encoder = zip(*(jax.tree.leaves(s["params"]["encoder"]) for s in (before, trainer.state)), strict=True)
    assert all(not np.array_equal(a, b) for a, b in encoder)
    for name, parts in trainer.state["params"]["heads"].items():
        prototypes = np.asarray(parts["prototypes"], np.float64)
        if name not in ("softmax", "large_margin_softmax"):
            np.testing.assert_allclose(np.linalg.norm(prototypes, axis=-1), 1, atol=2e-7)
        for part, value in parts.items():
            assert not np.array_equal(value, before["params"]["heads"][name][part]), (name, part)
    for name, value in trainer.state["kept"].items():
        assert not np.array_equal(value, before["kept"][name]), name


def test_every_loss_is_tried(example):

    offered = losses_by_name.offered()
    assert {"adaface", "elasticface", "dynamic_soft_margin"} <= set(offered)  # with a state, with a key
    assert set(offered) == {part for name in EVERY_LOSS for part in name.split("+")}


COMMON = ("--loss", "cosface+supcon+center", "--batch", 4, 4, "--steps", 50)


def whole(example, people, out, devices):
    """A run of 50 steps, and the state it ends with."""
    with pytest.MonkeyPatch.context() as patch:
        on = mesh.data_mesh
        patch.setattr(mesh, "data_mesh", lambda _=None: on(devices))
        report = run(example, *COMMON, "--dataset", people, "--out", out)
        return report, state_of(example, people, out)


def state_of(example, people, out):
    """The latest state of a run of 50 steps."""
    args = example.arguments([*map(str, (*SMALL, *COMMON, "--dataset", people, "--out", out, "--resume"))])
    data = example.train_data.load(args)
    trainer = example.Trainer(recipe_of(args), example.train_data.design(args, data), len(data.train.people))
    step, *_ = example.Checkpoints(out, trainer).restore()
    assert step == 50
    return trainer.state


def assert_close(states, expected, tolerance=1e-4):
    close = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance)
    jax.tree.map(close, states["params"], expected["params"])
    jax.tree.map(close, states["average"], expected["average"])


def command(people, out, *more):
    """The example as a process of its own."""
    arguments = [*SMALL, *COMMON, "--dataset", people, "--out", out, *more]
    return [sys.executable, str(EXAMPLES / "train_faces.py"), *map(str, arguments)]


def started(devices, *arguments):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")  # machine code as here
    cache = jax.config.jax_compilation_cache_dir
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": cache}
    return subprocess.Popen(
        command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_processes_of_two_devices_train_as_one_device(example, people, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    several = ("--coordinator", address, "--processes", 2, "--process-id")
    both = [started(2, people, tmp_path / "both", *several, process) for process in range(2)]
    report, expected = whole(example, people, tmp_path / "one", jax.devices()[:1])
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert "on 4 device(s) of 2 process(es)" in printed[0]
    assert "people never seen" in printed[0] and "people never seen" not in printed[1]
    assert_close(state_of(example, people, tmp_path / "both"), expected)
    results = json.loads((tmp_path / "both" / "metrics.json").read_text())["results"]
    for name, value in report["results"]["embeddings"].items():
        assert results["embeddings"][name] == pytest.approx(value, abs=1e-3), name


@pytest.mark.usefixtures("smooth")
def test_one_device_and_eight_train_alike_and_exchange_checkpoints(example, batch, tmp_path):
    trainers = [made(example, *COMMON, devices=jax.devices()[:n]) for n in (1, 8, 2)]
    for trainer in trainers[:2]:
        for number in range(50):
            trainer.step(number, {"images": np.roll(batch["images"], number, 2), "labels": batch["labels"]})
    one, eight, two = trainers
    assert_close(eight.state, one.state)
    moved = lambda state: np.max(np.abs(state["params"]["encoder"]["conv"]["kernel"] - made_kernel))
    made_kernel = np.asarray(two.state["params"]["encoder"]["conv"]["kernel"])
    assert moved(one.state) > 0.01
    assert np.max(np.abs(one.state["rest"]["norm"]["mean"])) > 0.01
    prototypes = eight.state["params"]["heads"]["cosface"]["prototypes"]
    assert {shard.data.shape for shard in prototypes.addressable_shards} == {(8, 8)}  # split by class: 64 rows
    checkpoints = example.Checkpoints(tmp_path, eight)
    checkpoints.save(50, {"loss": [1.0]}, {"next_index": 50}, None)
    checkpoints.finish()
    assert example.Checkpoints(tmp_path, two).restore() == (50, {"loss": [1.0]}, {"next_index": 50})
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(np.asarray, two.state), jax.tree.map(np.asarray, eight.state)
    )


def test_a_killed_process_goes_on_from_its_last_checkpoint(example, people, tmp_path):
    report, expected = whole(example, people, tmp_path / "whole", jax.devices()[:1])
    out = tmp_path / "killed"
    process = started(1, people, out, "--checkpoint-every", 5)
    saved = out / "checkpoints" / "10"
    while not saved.is_dir() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    left = max(int(folder.name) for folder in (out / "checkpoints").iterdir() if folder.name.isdigit())
    assert 10 <= left < 50, "it was to be killed on its way"
    again = run(example, *COMMON, "--dataset", people, "--out", out, "--resume")
    assert again["history"]["step"][-1] == 50
    assert_close(state_of(example, people, out), expected, tolerance=1e-6)
    assert again["results"] == report["results"]


def test_lfw_protocol(example, people, tmp_path, capsys):
    lines = ["3 2"]
    for fold in range(3):
        a, b = f"Person_{3 * fold}", f"Person_{3 * fold + 1}"
        lines += [f"{a} 1 2", f"{b} 2 3", f"{a} 1 {b} 1", f"{b} 3 {'Person_9' if fold == 1 else a} 1"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    protocol = ("--dataset", people, "--pairs", tmp_path / "pairs.txt")
    report = run(example, *protocol, "--test-folds", "2,3", "--out", tmp_path / "run")
    assert set(report["people"]["tested on"]) == {"Person_3", "Person_4", "Person_6", "Person_7", "Person_9"}
    assert set(report["people"]["trained on"]) == {"Person_0", "Person_1", "Person_2", "Person_5", "Person_8"}
    found = report["results"]["raw pixels"]
    assert found["LFW pairs"] == 8
    assert found["LFW accuracy"] == 1  # the patterns are easy for raw pixels
    message = refused(example, capsys, *protocol, "--test-folds", "2", "--out", tmp_path / "one")
    assert "--test-folds 2 names fewer than 2 folds" in message
    message = refused(example, capsys, "--pairs", tmp_path / "pairs.txt", "--out", tmp_path / "orl")
    assert "--pairs names files" in message


def test_a_list_of_pairs_without_folds_is_tested_whole(example, people, tmp_path):
    """Its people are not trained on, whatever --test-folds says; too few pairs are refused before training."""
    name = lambda person, i: f"Person_{person}/Person_{person}_{i:04d}.png"
    mates = [(name(p, i), name(p, j), 1) for p in range(4) for i, j in ((1, 2), (1, 3), (2, 3))]
    others = [(name(p, i), name(q, i), 0) for p in range(4) for q in range(p) for i in (1, 2)]
    write = lambda pairs: (tmp_path / "pairs.txt").write_text("\n".join(" ".join(map(str, pair)) for pair in pairs))
    given = ("--dataset", people, "--pairs", tmp_path / "pairs.txt", "--out", tmp_path / "run")
    args = example.arguments([*map(str, given)])
    write(mates + others)
    data = example.train_data.load(args)
    assert data.tested.people == [f"Person_{i}" for i in range(4)]
    assert data.trained_on == [f"Person_{i}" for i in range(4, 10)]
    assert set(data.pairs.fold) == set(range(1, 11)) and len(data.pairs.same) == 24
    results, *_ = example.evaluate(example.raw_pixels, data)
    assert (results["LFW accuracy"], results["LFW pairs"], results["LFW pairs, smallest fold"]) == (1, 24, 2)
    write(mates + others[:9])
    with pytest.raises(ValueError, match="same is False for 9 pairs; wanted 10 at least"):
        example.train_data.load(args)
    write(mates + [(a.replace("_000", "_900"), b, same) for a, b, same in others])  # of these no photograph is here
    with pytest.raises(ValueError, match=r"--pairs .*pairs\.txt cannot be evaluated in folds: same is all True"):
        example.train_data.load(args)


def test_a_collapsed_or_not_finite_run_stops(example, people, tmp_path, capsys, monkeypatch):
    message = refused(example, capsys, "--dataset", people, "--learning-rate", "1e30", "--out", tmp_path / "nan")
    assert "not finite" in message
    monkeypatch.setattr(loop, "COLLAPSED", 2.0)
    monkeypatch.setattr(loop, "PATIENCE", 2)
    message = refused(example, capsys, "--dataset", people, "--out", tmp_path / "collapsed")
    assert "stopped at step 4: the embeddings have collapsed" in message


def test_wrong_arguments(example, people, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    wrong = {
        ("--loss", "arcfase"): "--loss arcfase is unknown; wanted one of adacos, adaface, angular, arcface",
        ("--set", "sacle=3"): "no hyper-parameter 'sacle'",
        ("--set", "prototypes=3"): "no hyper-parameter 'prototypes'",
        ("--steps", "0"): "--steps is 0",
        ("--resume",): "--resume needs --out",
        ("--dataset", tmp_path / "nowhere"): "nowhere is not a folder",
        ("--dataset", tmp_path / "empty"): "holds no images",
        ("--dataset", people, "--batch", "99", "2"): "classes is 99; wanted 1 to",
    }
    for arguments, message in wrong.items():
        assert message in refused(example, capsys, *arguments)


def identity_of(example, *arguments):
    return example.identity(made(example, *arguments))


def test_a_checkpoint_of_another_encoder_is_refused(example, people, tmp_path, capsys):
    run(example, "--dataset", people, "--out", tmp_path)
    message = refused(example, capsys, "--dataset", people, "--out", tmp_path)
    assert "holds a run already" in message
    wider = ("--dataset", people, "--out", tmp_path, "--resume", "--embedding-size", 16)
    assert "the checkpoint was made with embedding_size 8, not 16" in refused(example, capsys, *wider)
    assert "holds no checkpoint" in refused(example, capsys, "--dataset", people, "--out", tmp_path / "new", "--resume")


def test_a_run_with_the_default_options_is_itself_again(example):
    """What a checkpoint is compared with survives being written as JSON."""
    found = identity_of(example, "--loss", "triplet", "--set", "triplets=semi_hard", "--set", "distance=geodesic")
    assert json.loads(json.dumps(found)) == found
    assert found["losses"] == {"triplet": {"triplets": "semi_hard", "distance": "geodesic"}}


def test_the_constraint_acts_where_it_is_said_to(example):
    """A gradient along a prototype changes its length, is undone after the update, or never enters the moments."""
    p = jnp.array([[0.6, 0.8]])
    lengths, moments = {}, {}
    for name in losses_by_name.CONSTRAINTS:
        constraint = example.arguments(["--constraint", name]).constraint
        optimizer = losses_by_name.CONSTRAINTS[constraint](0.1)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(p, optimizer.init(p), p)
        lengths[name] = float(jnp.linalg.norm(p + updates))
        moments[name] = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(state) if leaf.ndim == 2)
    assert lengths["forward"] < 0.9
    assert lengths["update"] == pytest.approx(1, abs=1e-6) == lengths["gradient"]
    assert moments["update"] > 0.01 and moments["gradient"] < 1e-6


def test_hyper_parameters_from_the_command_line(example):
    settings = [
        "--set",
        "margin=0.3",
        "--set",
        "distance=geodesic",
        "--set",
        "triplets=semi_hard",
        "--set",
        "average=valid",
    ]
    chosen = example.arguments(["--loss", "triplet", *settings]).losses["triplet"]
    assert chosen == {
        "margin": 0.3,
        "distance": example.mj.distances.geodesic,
        "triplets": example.mj.mining.semi_hard,
        "average": "valid",
    }
    assert example.arguments(["--loss", "triplet", "--set", "margin=None"]).losses["triplet"]["margin"] is None
