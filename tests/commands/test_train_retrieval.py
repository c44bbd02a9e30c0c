"""Trainings for retrieval, made small: splits by classes, what is validated and tested, several trainings, going on."""

import json
import math
import pathlib
import re
import shutil
from functools import partial

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy import stats

import metricjax as mj
from metricjax import commands, encoders
from metricjax.commands import retrieval_data, train_retrieval
from metricjax.data import tfds_sets
from metricjax.trained import mesh, run_folder
from metricjax.training import Checkpoints, Trainer, loop
from tests.helpers.people import write_people

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion", "small")]
SMALL = ["--encoder", "tiny", "--image-size", "16", "14", "--embedding-size", "8", "--batch", "4", "2", "--steps", "6"]
OMNIGLOT = pathlib.Path(__file__).parents[3] / "shared" / "data" / "omniglot_small2" / "images"


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.NAMED, "tiny", partial(encoders.SmallResNet, widths=(8,)))
        patch.setattr(loop, "LOG_EVERY", 2)
        patch.setattr(train_retrieval, "LEAST", 1)
        on = mesh.data_mesh  # one device: what is small is faster so
        patch.setattr(mesh, "data_mesh", lambda devices=None: on(devices or jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("classes"), photographs=[4] * 20, size=(14, 16), noise=20)


@pytest.fixture(scope="module")
def alphabets(tmp_path_factory):
    """Four super-classes of five classes; names of classes come again."""
    folder = tmp_path_factory.mktemp("alphabets")
    for name in "abcd":
        (folder / name).mkdir()
        write_people(folder / name, photographs=[2] * 5, size=(14, 16), noise=20)
    return folder


def run(dataset, out, *more):
    given = [*SMALL, "--dataset", dataset, "--out", out, *more]
    return train_retrieval.main([*map(str, given)])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code not in (0, None)
    return f"{caught.value.code} {capsys.readouterr().err}"


def parts_of(*arguments):
    args = train_retrieval.arguments([*map(str, arguments)])
    return retrieval_data.parts(args, retrieval_data.opened(args))


def measures(embeddings, labels, ks):
    """recall@k, R-precision and MAP@R by their definitions, in float64 loops."""
    z, each = np.asarray(embeddings, np.float64), []
    for i in range(len(z)):
        order = sorted((j for j in range(len(z)) if j != i), key=lambda j: (-float(z[i] @ z[j]), j))
        hits = [labels[j] == labels[i] for j in order]
        if (r := sum(hits)) > 0:
            found = {f"recall@{k}": float(any(hits[:k])) for k in ks}
            found["r_precision"] = sum(hits[:r]) / r
            found["map@r"] = sum(sum(hits[: n + 1]) / (n + 1) for n in range(r) if hits[n]) / r
            each.append(found)
    return {name: sum(found[name] for found in each) / len(each) for name in each[0]}


# --- which classes --------------------------------------------------------------------------------------------------


def built(name, folder, splits, label="label", superlabel=None):
    """A TFDS builder of that name, prepared, with {split: classes} of two images each."""
    names = sorted({one for found in splits.values() for one in found})
    with tfds.core.registered.skip_registration():

        class Small(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png")}
                features |= {label: tfds.features.ClassLabel(names=names)}
                features |= {superlabel: tfds.features.ClassLabel(names=["bicycle", "chair"])} if superlabel else {}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                for i, one in enumerate([*splits[split], *splits[split]]):
                    path = folder / f"{split}-{i}.png"
                    Image.new("RGB", (14, 16), (10 * names.index(one), i, 0)).save(path)
                    above = {superlabel: names.index(one) % 2} if superlabel else {}
                    yield i, {"image": str(path), label: one, **above}

    Small.name = name
    builder = Small(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return builder


NAMES = [f"{i:03d}" for i in range(12)]


def names_of(parts):
    """The classes of training, validation and test, none of which are in two."""
    groups = [set(part.people) for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for part in (parts.train, parts.validation, parts.test):
        assert set(np.unique(part.labels)) == set(range(len(part.people))) and len(part[0].shape) == 3
    return groups


@pytest.mark.parametrize("name", ["caltech_birds2011", "cars196", "tfds:cars196"])
def test_birds_and_cars_are_the_first_and_the_second_half(name, tmp_path, monkeypatch):
    """Of both splits of TFDS, each of which has every class."""
    builder = built(name.removeprefix("tfds:"), tmp_path, {"train": NAMES, "test": NAMES})
    monkeypatch.setattr(tfds_sets.tfds, "builder", lambda *_, **__: builder)
    (parts,) = parts_of("--dataset", name, "--image-size", 16, 14)
    train, validation, test = names_of(parts)
    assert train | validation == set(NAMES[:6]) and test == set(NAMES[6:])
    assert len(parts.test) == 24 and len(parts.train) + len(parts.validation) == 24
    assert train == set(NAMES[:4])  # known sets draw nothing: the last classes choose the checkpoint


def test_products_are_the_official_lists(tmp_path, monkeypatch):
    splits = {"train": NAMES[:7], "test": NAMES[7:]}
    builder = built("stanford_online_products", tmp_path, splits, label="class_id", superlabel="super_class_id")
    monkeypatch.setattr(tfds_sets.tfds, "builder", lambda *_, **__: builder)
    given = ("--dataset", "stanford_online_products", "--image-size", 16, 14)
    (parts,) = parts_of(*given)
    train, validation, test = names_of(parts)
    named = lambda i: f"{('bicycle', 'chair')[i % 2]}/{NAMES[i]}"
    assert train | validation == {named(i) for i in range(7)} and test == {named(i) for i in range(7, 12)}
    (parts,) = parts_of(*given, "--by-superclass")
    assert {name.split("/")[0] for name in parts.test.people} == {"chair"}
    assert train_retrieval.arguments([*map(str, given)]).ks == (1, 10, 100, 1000)


def test_any_other_builder_is_halved_at_random(tmp_path, monkeypatch):
    builder = built("flowers", tmp_path, {"train": NAMES})
    monkeypatch.setattr(tfds_sets.tfds, "builder", lambda *_, **__: builder)
    halves = [names_of(parts_of("--dataset", "tfds:flowers", "--split-seed", seed)[0])[2] for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2] and len(halves[0]) == 6


def test_omniglot_trains_on_its_background(monkeypatch):
    def characters(size, split):
        names = [f"{split}/{i}" for i in range(6)]
        labels, zeros = np.repeat(np.arange(6, dtype=np.int32), 2), np.zeros(12, np.int32)
        return mj.data.Characters(np.zeros((12, *size, 1), np.uint8), labels, zeros, zeros, names, [split])

    monkeypatch.setattr(mj.data, "omniglot", characters)
    train, validation, test = names_of(parts_of("--dataset", "omniglot")[0])
    assert {name.split("/")[0] for name in train | validation} == {"train"}
    assert test == {f"test/{i}" for i in range(6)}


def test_folders_and_orl_are_halved_at_random_or_by_super_classes(classes, alphabets):
    train, validation, test = names_of(parts_of("--dataset", classes)[0])
    assert (len(train), len(validation), len(test)) == (8, 2, 10)
    assert names_of(parts_of("--dataset", classes, "--split-seed", 5)[0])[2] != test
    train, validation, test = names_of(parts_of("--dataset", alphabets)[0])
    assert (len(train), len(validation), len(test)) == (8, 2, 10)
    train, validation, test = names_of(parts_of("--dataset", alphabets, "--by-superclass")[0])
    assert len({name[0] for name in train | validation}) == len({name[0] for name in test}) == 2
    assert not {name[0] for name in train | validation} & {name[0] for name in test}
    train, validation, test = names_of(parts_of("--dataset", "orl", "--validation", 0.5)[0])
    assert (len(train), len(validation), len(test)) == (10, 10, 20)


def test_the_four_folds_hold_back_each_training_class_once(classes):
    folds = parts_of("--dataset", classes, "--reality-check")
    groups = [names_of(parts) for parts in folds]
    assert len(folds) == 4 and {len(train | validation) for train, validation, _ in groups} == {10}
    held = [name for _, validation, _ in groups for name in validation]
    assert sorted(held) == sorted(groups[0][0] | groups[0][1])
    assert all(test == groups[0][2] for *_, test in groups) and folds[0].test is folds[3].test


def test_what_is_searched_is_read_again_where_it_is_too_much_to_keep(classes, monkeypatch):
    kept = parts_of("--dataset", classes)[0].test
    monkeypatch.setattr(retrieval_data, "MOST_HELD", 0)
    source = parts_of("--dataset", classes)[0].test
    assert isinstance(kept, mj.data.ArraySource) and not isinstance(source, mj.data.ArraySource)
    np.testing.assert_array_equal([source[i] for i in range(len(source))], kept.images)
    monkeypatch.setattr(train_retrieval, "AT_ONCE", 7)

    class Mean(mj.Encoder):
        def __init__(self):
            pass

        def embed(self, images):
            return images.reshape(len(images), -1).mean(axis=1, keepdims=True)

    expected = Mean().embed(kept.images)
    np.testing.assert_array_equal(train_retrieval.embedded(Mean(), source), expected)


def test_the_settings_fit_the_images(classes, tmp_path):
    def fitted(dataset, *more):
        args = train_retrieval.arguments(["--dataset", str(dataset), *more])
        parts = retrieval_data.parts(args, retrieval_data.opened(args))[0]
        return retrieval_data.settings(args, parts.train)

    found = fitted(classes)
    assert found["encoder"] == "small_resnet" and found["mirror"] == "none"  # grey
    assert found["image_size"] == (16, 16) and found["batch"] == (8, 4)  # no larger than they are; 8 classes train
    assert fitted(classes, "--sampler", "uniform")["batch"] == (64,)
    large = write_people(tmp_path, photographs=[2] * 8, size=(140, 160), noise=20)
    assert fitted(large)["image_size"] == (64, 64)
    published = fitted(large, "--weights", "resnet50.pth")
    assert (published["encoder"], published["pixels"], published["image_size"]) == ("resnet50", "imagenet", (224, 224))
    assert fitted(large, "--weights", "mine.npz")["encoder"] == "small_resnet"


# --- a training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(classes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "trained"
    return out, run(classes, out, "--log", "csv")


def test_a_run_is_tested_by_the_definitions(classes, trained):
    out, report = trained
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(report))
    assert {"results", "seconds", "run", "classes", "history"} == set(report)
    for name in ("training", "validation", "neighbours"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 100
    (parts,) = parts_of("--dataset", classes, "--image-size", 16, 14)
    encoder, ks = mj.load(out), (1, 2, 4, 8)
    assert report["results"]["embeddings"] == pytest.approx(
        measures(encoder.embed(parts.test.images), parts.test.labels, ks), abs=1e-6
    )
    assert set(report["results"]) == {"embeddings", "untrained", "raw pixels"}
    untrained = trainer_of(out, classes).encoder().embed(parts.test.images)
    assert np.abs(untrained - encoder.embed(parts.test.images)).max() > 1e-3
    assert report["results"]["untrained"] == pytest.approx(measures(untrained, parts.test.labels, ks), abs=1e-6)
    pixels = parts.test.images.reshape(40, -1).astype(np.float64)
    pixels -= pixels.mean(axis=0)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    assert report["results"]["raw pixels"] == pytest.approx(measures(pixels, parts.test.labels, ks), abs=1e-6)
    past = report["history"]["validation"]
    assert past["step"] == [4, 6]  # an epoch of 8 classes with 4 images is 4 batches of 4 × 2, and the end
    best = past["map@r"].index(max(past["map@r"]))
    found = measures(encoder.embed(parts.validation.images), parts.validation.labels, ks)
    assert {name: values[best] for name, values in past.items() if name in found} == pytest.approx(found, abs=1e-6)
    assert past["error"] == pytest.approx([1 - value for value in past["map@r"]])
    assert "validation map@r" in (out / "metrics.csv").read_text().splitlines()[0]


def test_embeddings_are_without_mirror_images_wherever_the_encoder_goes(classes, trained, tmp_path):
    encoder = mj.load(trained[0])
    images = parts_of("--dataset", classes, "--image-size", 16, 14)[0].test.images
    mirrored = images[:, :, ::-1]
    assert np.abs(encoder.embed(images) - encoder.embed(mirrored)).max() > 1e-2
    encoder.save(tmp_path / "encoder.npz")
    np.testing.assert_allclose(mj.load(tmp_path / "encoder.npz").embed(images), encoder.embed(images), atol=1e-6)


def test_a_training_that_gets_no_better_ends_and_the_best_is_used(classes, tmp_path, monkeypatch, capsys):
    scores, digests = iter([0.2, 0.5, 0.3, 0.45, 0.4, 0.9]), []

    def validated(encoder, held, ks):
        digests.append(encoder.digest)
        return {"map@r": next(scores)}

    monkeypatch.setattr(train_retrieval, "validated", validated)
    more = ("--steps", 40, "--patience", 3, "--checkpoint-every", 1)
    report = run(classes, tmp_path / "run", *more)
    assert report["history"]["validation"]["map@r"] == [0.2, 0.5, 0.3, 0.45, 0.4]
    assert "no better for 3 validations: the training ends at step 5" in capsys.readouterr().err
    assert run_folder.load(tmp_path / "run").digest == digests[1]
    again = run(classes, tmp_path / "run", *more, "--resume")  # it has ended
    assert again["history"] == report["history"] and again["results"] == report["results"]


def test_without_validation_the_last_checkpoint_is_used(classes, tmp_path):
    report = run(classes, tmp_path / "run", "--validation", 0)
    assert "validation" not in report["history"] and report["classes"]["chosen by"] == []
    assert len(report["classes"]["trained on"]) == 10


def trainer_of(out, classes, *more):
    args = train_retrieval.arguments([*map(str, (*SMALL, "--dataset", classes, "--out", out, *more))])
    train_retrieval.filled(args, retrieval_data.settings(args, parts_of("--dataset", classes)[0].train))
    (parts,) = retrieval_data.parts(args, retrieval_data.opened(args))
    design = train_retrieval.design(args, parts)
    return Trainer(train_retrieval.recipe_of(args), design, len(parts.train.people), mirrored=False)


def test_an_interrupted_training_goes_on_with_its_bank(classes, tmp_path, monkeypatch):
    more = ("--loss", "contrastive", "--bank", 12, "--bank-warm-up", 2, "--miner", "multi_similarity:epsilon=0.3")
    whole = run(classes, tmp_path / "whole", *more)
    step = Trainer.step

    def interrupted(self, number, batch):
        if number == 5:
            raise KeyError("the power fails")
        return step(self, number, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(Trainer, "step", interrupted)
        run(classes, tmp_path / "again", *more)
    report = run(classes, tmp_path / "again", *more, "--resume")
    trainers = {name: trainer_of(tmp_path / name, classes, *more) for name in ("whole", "again")}
    for name, trainer in trainers.items():
        Checkpoints(tmp_path / name, trainer).restore()
    states = [trainer.state for trainer in trainers.values()]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert (np.asarray(states[0]["bank"].age) >= 0).all() and np.abs(states[0]["bank"].embeddings).sum() > 1
    assert report["results"] == whole["results"] and report["history"]["validation"] == whole["history"]["validation"]
    with pytest.raises(SystemExit, match="the checkpoint was made with bank 12, not 24"):
        run(classes, tmp_path / "again", *more, "--bank", 24, "--resume")


# --- several trainings ----------------------------------------------------------------------------------------------


def test_the_table_of_seeds_is_means_and_intervals_by_hand(classes, tmp_path, capsys):
    out = tmp_path / "seeds"
    report = run(classes, out, "--seeds", 3, "--seed", 4)
    printed = capsys.readouterr().out
    each = [json.loads((out / f"seed-{seed}" / "metrics.json").read_text())["results"] for seed in (4, 5, 6)]
    assert report["of seeds"] == each and each[0]["embeddings"] != each[1]["embeddings"]
    values = [found["embeddings"]["map@r"] for found in each]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert report["results"]["embeddings"]["map@r"] == pytest.approx(np.mean(values))
    assert report["half width of 95 % interval"]["embeddings"]["map@r"] == pytest.approx(half)
    section = printed[printed.index("map@r") :]
    assert re.search(rf"embeddings +{np.mean(values):.4f} ± {half:.4f}", section)
    shutil.rmtree(out / "seed-5")  # as if the power had failed after seed 4
    again = run(classes, out, "--seeds", 3, "--seed", 4, "--resume")
    assert again["results"] == report["results"]


def test_the_reality_check_by_hand(classes, tmp_path, capsys):
    out = tmp_path / "check"
    report = run(classes, out, "--reality-check", "--loss", "contrastive", "--patience", 2)
    assert "concatenated" in capsys.readouterr().out
    test = parts_of("--dataset", classes, "--image-size", 16, 14)[0].test
    each = [mj.load(out / "seed-0" / f"fold-{i}").embed(test.images) for i in range(4)]
    rows = [np.concatenate([z[i] for z in each]) for i in range(len(test))]
    together = np.array([row / np.linalg.norm(row) for row in rows])
    np.testing.assert_allclose(train_retrieval.concatenated(each), together, atol=1e-6)
    ks = (1, 2, 4, 8)
    assert report["results"]["concatenated"] == pytest.approx(measures(together, test.labels, ks), abs=1e-6)
    found = [measures(z, test.labels, ks) for z in each]
    mean = {name: sum(one[name] for one in found) / 4 for name in found[0]}
    assert report["results"]["separated"] == pytest.approx(mean, abs=1e-6)
    records = [json.loads((out / "seed-0" / f"fold-{i}" / "metrics.json").read_text())["classes"] for i in range(4)]
    assert len({name for record in records for name in record["chosen by"]}) == 10
    args = train_retrieval.arguments(["--dataset", str(classes), "--reality-check"])
    assert (tuple(args.batch), args.patience, args.embedding_size) == ((8, 4), 9, 128)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_errors_come_before_anything_is_trained(classes, alphabets, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "run_steps", None)
    (tmp_path / "seed-1" / "checkpoints").mkdir(parents=True)
    wrong = {
        ("--sampler", "pk", "--batch", 4): "--batch is 4; wanted P K, for --sampler pk",
        ("--sampler", "hierarchical"): "--batch is 4 2; wanted S P K",
        ("--batch", 2, 2, 2): "classes have no super-classes here",
        ("--sampler", "weighted", "--class-power", -1): "--class-power is -1; wanted a number from 0",
        ("--class-power", 1): "--class-power is 1; wanted a number from 0, with --sampler weighted",
        ("--bank-warm-up", 3): "--bank-warm-up needs --bank",
        ("--bank", -1): "--bank is -1; wanted at least 0",
        ("--bank", 8, "--loss", "cosface"): "--bank is for losses that compare embeddings",
        ("--bank", 8, "--loss", "centroid_triplet"): "--bank is not for centroid_triplet",
        ("--miner", "semi_hard"): "--miner semi_hard is unknown; wanted one of",
        ("--miner", "multi_similarity:delta=1"): "unexpected keyword argument 'delta'",
        ("--miner", "multi_similarity", "--loss", "arcface"): "--miner is for losses that compare embeddings",
        ("--validation", 1): "--validation is 1; wanted a share",
        ("--validation", 0.9): "--validation 0.9 of 10 training classes leaves fewer than 2",
        ("--validation", 0, "--patience", 2): "--patience needs --validation",
        ("--validation", 0.2, "--reality-check"): "leave out --validation",
        ("--by-superclass",): "has no super-classes; wanted 2 at least",
        ("--ks", 0): "--ks is 0; wanted at least 1",
        ("--seeds", 2): "seed-1 holds a run already",
        ("--seeds", 2, "--resume"): "holds no checkpoint",
        ("--pixels", "imagenet"): "--pixels imagenet is for colour",
        ("--batch", 9, 2): "--batch: classes is 9; wanted 1 to 8",
    }
    for more, message in wrong.items():
        assert message in refused(capsys, classes, tmp_path, *more), more
    assert "holds a run already" in refused(capsys, classes, trained[0])
    (tmp_path / "few").mkdir()
    few = write_people(tmp_path / "few", photographs=[2] * 3, size=(14, 16), noise=20)
    assert "has 3 classes; wanted 4 at least" in refused(capsys, few, tmp_path / "of few")
    assert "is not a folder" in refused(capsys, tmp_path / "nowhere", tmp_path / "of nowhere")


def test_the_command_shows_the_help_of_its_task(capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(["train", "--task", "retrieval", "--help"])
    said = capsys.readouterr().out
    assert not caught.value.code and "--reality-check" in said and "--landmarks" not in said


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="Omniglot's small set is not here")
def test_characters_of_other_alphabets_are_found(tmp_path):
    given = ["--dataset", OMNIGLOT, "--by-superclass", "--image-size", 28, 28, "--loss", "supcon", "--steps", 80]
    given += ["--sampler", "hierarchical", "--out", tmp_path, "--checkpoint-every", 80]
    report = train_retrieval.main([*map(str, given)])
    alphabets = {side: {name.split("/")[0] for name in names} for side, names in report["classes"].items()}
    assert len(alphabets["trained on"]) == 3 and not alphabets["trained on"] & alphabets["tested on"]
    assert report["results"]["embeddings"]["map@r"] > report["results"]["raw pixels"]["map@r"]
