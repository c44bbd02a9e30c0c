"""The example as its users run it: files of embeddings, photographs with an encoder, pairs, and what is refused."""

import json

import numpy as np
import pytest

from tests.helpers.damage import spoiled
from tests.helpers.people import write_people
from tests.helpers.projection import Pixels

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]


@pytest.fixture(scope="module")
def example():
    from metricjax.commands import evaluate as evaluate_faces

    return evaluate_faces


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    labels = np.repeat([3, 5, 9, 10], 3)
    z = rng.normal(size=(11, 120))[labels] + 2 * rng.normal(size=(12, 120))  # the shape of the photographs below
    return {"embeddings": z.astype(np.float32), "labels": labels}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[3] * 4 + [1], size=(10, 12), noise=20)


@pytest.fixture
def encoder(monkeypatch):
    """In place of a trained one: pixels less their mean, and the folder it was loaded from."""
    loaded = []

    def load(run):
        loaded.append(run)
        return Pixels(run)

    monkeypatch.setattr("metricjax.trained.load", load)
    return loaded


def refused(example, capsys, *arguments):
    """What a run that ends with an error prints."""
    with pytest.raises(SystemExit) as caught:
        example.main(list(map(str, arguments)))
    assert caught.value.code not in (0, None)
    return f"{caught.value.code} {capsys.readouterr().err}"


def test_a_file_of_embeddings(example, arrays, tmp_path, capsys):
    images = np.zeros((12, 5, 4), np.uint8)
    np.savez(tmp_path / "z.npz", **arrays, images=images, people=np.array([f"P{i}" for i in range(11)]))
    out = tmp_path / "out"
    numbers = example.main([str(tmp_path / "z.npz"), "--out", str(out), "--far", "0.1", "0.05"])
    curve = example.mj.metrics.pair_scores(arrays["embeddings"], arrays["labels"]).roc
    assert json.loads((out / "metrics.json").read_text()) == numbers
    assert numbers["TAR@FAR=0.05"] == curve.tar_at_far(0.05)
    assert "TAR@FAR=0.001" not in numbers
    page = (out / "report.html").read_text()
    assert "Evaluation of z.npz" in page
    assert "<td>P9</td>" in page or "<td>P10</td>" in page  # of the hardest pairs
    assert "no images were given" not in page
    printed = capsys.readouterr().out
    assert f"{numbers['EER']:.4f}" in printed and str(out) in printed
    assert "It is not known whether anybody here was trained on" in printed
    assert "It is not known whether anybody here was trained on" in page


def test_labels_may_be_names(example, arrays, tmp_path):
    given = {**arrays, "labels": np.array([f"Person {i}" for i in arrays["labels"]])}
    np.savez(tmp_path / "z.npz", **given)
    found = example.from_npz(str(tmp_path / "z.npz"))
    assert [found.people[i] for i in found.labels] == given["labels"].tolist()
    assert found.images is found.files is None


def test_photographs_with_an_encoder(example, people, encoder, tmp_path):
    with pytest.warns(UserWarning, match="1 people with fewer than 2 images are left out: Person_4"):
        numbers = example.main(["--checkpoint", "runs/some", str(people), "--out", str(tmp_path)])
    assert [str(run) for run in encoder] == ["runs/some"]
    assert (numbers["genuine pairs"], numbers["impostor pairs"]) == (12, 54)
    assert numbers["recall@1"] == 1  # the patterns are easy for raw pixels


def test_whom_the_encoder_was_trained_on_is_left_out_and_said(example, people, encoder, tmp_path, capsys):
    from metricjax.commands import train_data as face_data
    from metricjax.commands import train_faces

    record = face_data.load(train_faces.arguments(["--dataset", str(people), "--test-people", "2"])).record
    (tmp_path / "people.json").write_text(json.dumps(record))
    numbers = example.main(["--checkpoint", str(tmp_path), f"{people}/", "--out", str(tmp_path / "out")])
    assert (numbers["genuine pairs"], numbers["impostor pairs"]) == (6, 9)
    sentence = "2 of 4 people are left out: the encoder was trained on them, or chosen by them."
    assert sentence in capsys.readouterr().out and sentence in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "people.json").write_text("{")
    message = refused(example, capsys, "--checkpoint", tmp_path, people)
    assert f"metricjax evaluate: {tmp_path / 'people.json'} is damaged" in message


def test_the_accuracy_over_pairs(example, people, encoder, tmp_path, capsys, monkeypatch):
    lines = ["2 2"]
    for a, b, other in (("Person_0", "Person_1", "Person_4"), ("Person_2", "Person_3", "Nobody")):
        lines += [f"{a} 1 2", f"{b} 2 3", f"{a} 1 {b} 1", f"{b} 3 {other} 1"]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("\n".join(lines))
    run = ["--checkpoint", "run", str(people), "--pairs", str(pairs), "--out", str(tmp_path / "out")]
    reports = []
    numbers_of = lambda notes: {name: value for name, value in notes.items() if not isinstance(value, str)}
    report = lambda path, z, labels, notes, **options: reports.append(labels) or numbers_of(notes)
    monkeypatch.setattr(example.mj.plots, "report", report)
    with pytest.warns(UserWarning, match="1 pairs are left out"):
        numbers = example.main(run)
    assert numbers == {"2-fold accuracy": 1, "deviation over folds": 0, "pairs of the list": 7}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == numbers
    assert len(reports[0]) == 13  # Person_4 is read for the pairs
    pairs.write_text("2 1\nA 1 2\nA 1 B 1\nC 1 2\nC 1 D 1")
    assert "none of the 4 pairs" in refused(example, capsys, *run)


def test_arrays_that_are_refused(example, arrays, tmp_path, capsys):
    z, labels = arrays["embeddings"], arrays["labels"]
    broken = np.where(np.arange(12)[:, None] == 7, np.float32(np.nan), z)
    wrong = {
        "has no array 'labels'; it holds embeddings": {"embeddings": z},
        "embeddings is float32[1440]; wanted floats [n, d]": {"embeddings": z.ravel(), "labels": labels},
        "embeddings is int64[12]": {"embeddings": labels, "labels": labels},
        "labels is int64[11]; wanted an integer or a name for each of 12": {**arrays, "labels": labels[:11]},
        "labels is float64[12]": {**arrays, "labels": labels / 1},
        "NaN or infinity in 1 rows, the first of which is 7": {**arrays, "embeddings": broken},
        "holds 1 people; wanted 2": {**arrays, "labels": labels * 0},
        "people has 10 names; labels go from 3 to 10": {**arrays, "people": np.array(["x"] * 10)},
        "people is int64[12]; wanted names": {**arrays, "people": labels},
        "images is uint8[3, 5, 4]; wanted uint8[12, height": {**arrays, "images": np.zeros((3, 5, 4), np.uint8)},
        "images is float64[12, 5, 4]": {**arrays, "images": np.zeros((12, 5, 4))},
        "people.npy holds Python objects": {**arrays, "people": np.array(["x", None], object)},
        "files is int64[12]; wanted a name": {**arrays, "files": labels},
        "embeddings is float32[12, 0]": {**arrays, "embeddings": z[:, :0]},
        "embeddings holds NaN or infinity in 12 rows": {**arrays, "embeddings": np.full((12, 2), 1e300)},
        "images is uint8[12, 0, 4]": {**arrays, "images": np.zeros((12, 0, 4), np.uint8)},
    }
    for message, given in wrong.items():
        np.savez(tmp_path / "z.npz", **given)
        told = refused(example, capsys, tmp_path / "z.npz", "--out", tmp_path / "out")
        assert message in told and "z.npz" in told
    assert not (tmp_path / "out").exists()


def test_damaged_files(example, arrays, fuzz, tmp_path):
    """Refused by name, or read as what they were; whole files of wrong arrays are refused or of the right kinds."""
    path = tmp_path / "z.npz"
    given = {**arrays, "people": np.array([f"P{i}" for i in range(11)]), "images": np.zeros((12, 5, 4), np.uint8)}
    np.savez(path, **given)
    refused = 0
    for is_damaged in spoiled(path, given, fuzz):
        try:
            found = example.from_npz(str(path))
        except ValueError as error:
            assert "z.npz" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert found.embeddings.shape[0] == len(found.labels) == 12 and np.all(np.isfinite(found.embeddings))
            assert np.all(found.labels < len(found.people))
            if is_damaged:
                np.testing.assert_array_equal(found.embeddings, arrays["embeddings"])
    assert refused > len(fuzz) / 2


def test_files_and_options_that_are_refused(example, arrays, people, tmp_path, capsys):
    np.savez(tmp_path / "z.npz", **arrays)
    (tmp_path / "text.npz").write_text("no embeddings")
    wrong = {
        (tmp_path / "nowhere.npz",): "nowhere.npz is not a file",
        (tmp_path / "text.npz",): "text.npz is not an .npz file",
        (people,): "give --checkpoint to embed photographs",
        (tmp_path / "z.npz", "--checkpoint", "run"): "--checkpoint is for photographs",
        ("orl", "--checkpoint", "run", "--pairs", "pairs.txt"): "give the folder that holds them, not orl",
        (tmp_path / "z.npz", "--far", "0.1", "0"): "--far is 0.1 0.0; wanted rates above 0",
        (tmp_path / "z.npz", "--pairs", "pairs.txt"): "needs an array `files`",
    }
    for arguments, message in wrong.items():
        assert message in refused(example, capsys, *arguments)


def test_a_list_without_folds_gets_some_and_the_report_says_so(example, people, encoder, tmp_path, capsys):
    """Files named by folder, as written on Windows; 12 pairs of one person and 11 of two."""
    name = lambda person, i: f"people\\Person_{person}\\Person_{person}_{i:04d}.png"
    mates = [(name(p, i), name(p, j), 1) for p in range(4) for i, j in ((1, 2), (1, 3), (2, 3))]
    others = [(name(p, i), name(q, i), 0) for p in range(4) for q in range(p) for i in (1, 2)][:11]
    pairs = tmp_path / "pairs.txt"
    pairs.write_bytes("\r\n".join("\t".join(map(str, pair)) for pair in mates + others).encode("utf-8-sig"))
    out = tmp_path / "out"
    options = ["--pairs", str(pairs), "--out", str(out), "--resamples", "0"]
    numbers = example.main(["--checkpoint", "run", str(people), *options])
    assert (numbers["10-fold accuracy"], numbers["pairs of the list"]) == (1, 23)
    assert "Folds: the list has none; 10 of 2 to 4 pairs were made of it" in (out / "report.html").read_text("utf-8")
    assert "10-fold accuracy" in capsys.readouterr().out
