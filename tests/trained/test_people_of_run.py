"""The people trained on are known by name, whatever the data set's path; where they are not, that is said."""

import json
import shutil
import unicodedata

import numpy as np
import pytest

from metricjax import data
from tests.helpers.people import write_people
from tests.helpers.projection import Pixels
from tests.helpers.record_files import training_set

pytestmark = pytest.mark.filterwarnings("default")
E_ACUTE = unicodedata.normalize("NFC", "Ren\u00e9e"), unicodedata.normalize("NFD", "Ren\u00e9e")


@pytest.fixture(scope="module")
def people_of_run():
    from metricjax.trained import people_of_run

    return people_of_run


@pytest.fixture(scope="module")
def faces():
    from metricjax.commands import train_data as face_data
    from metricjax.commands import train_faces

    return lambda *given: face_data.load(train_faces.arguments(["--dataset", *map(str, given)]))


@pytest.fixture
def people(tmp_path):
    (tmp_path / "people").mkdir()
    return write_people(tmp_path / "people", photographs=[3] * 10, size=(10, 12), noise=0)


def a_set(names, files=None):
    """Two tiny photographs of each person."""
    files = files or ["1", "2"] * len(names)
    labels = np.repeat(np.arange(len(names), dtype=np.int32), 2)
    return data.Faces(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, list(names), files)


def written(people_of_run, run, *, train, validation=None, tested=()):
    (run / "people.json").write_text(json.dumps(people_of_run.record(train, validation, tested)))
    return run


def new_to(people_of_run, run, faces):
    return people_of_run.new_to(people_of_run.read(run), run, faces)


def test_another_spelling_of_a_path_is_the_same_data(faces, people, tmp_path, monkeypatch):
    expected = faces(people).record
    (tmp_path / "link").symlink_to(people)
    monkeypatch.chdir(tmp_path)
    for spelled in ("people", "people/", "./people/../people", f"{people}/", "link"):
        assert faces(spelled).record == expected
    shutil.move(people, tmp_path / "moved")
    assert faces("moved").record == expected


def test_other_people_or_photographs_are_named(faces, people_of_run, people, tmp_path):
    before = faces(people, "--validation", 2).record
    assert list(before["trained on"]) == ["Person_0", "Person_1", "Person_2"]
    assert list(before["validation"]) == ["Person_3", "Person_4"]
    assert before["tested on"] == [f"Person_{i}" for i in range(5, 10)]

    def told(*given, change=lambda folder: None):
        shutil.copytree(people, tmp_path / "changed")
        change(tmp_path / "changed")
        now = faces(tmp_path / "changed", *given).record
        shutil.rmtree(tmp_path / "changed")
        assert (now["digest"] == before["digest"]) == (not people_of_run.difference(before, now))
        return people_of_run.difference(before, now)

    def taken_and_given(folder):
        shutil.rmtree(folder / "Person_9")
        (folder / "Person_1").rename(folder / "Another")

    validated = ("--validation", 2)
    assert told(*validated) == told(*validated, "--test-people", 5) == ""
    message = told(*validated, change=taken_and_given)
    assert "missing (trained on): Person_1, Person_2" in message and "new (trained on): Another" in message
    photograph = "Person_0/Person_0_0002.png"
    message = told(*validated, change=lambda folder: (folder / photograph).unlink())
    assert message == "with other photographs: Person_0 (now 2, were 3)"
    renamed = told(*validated, change=lambda folder: (folder / photograph).rename(folder / "Person_0/x.png"))
    assert renamed == "with other photographs: Person_0 (now 3, were 3)"
    assert "missing (trained on): Person_2" in told(*validated, "--test-people", 6)
    three, two = (faces(people, "--validation", v, "--test-people", t).record for v, t in ((3, 5), (2, 6)))
    assert three["trained on"] == two["trained on"]
    assert people_of_run.difference(three, two) == "missing (validation): Person_4"  # to be tested on instead
    points = "".join(f"Person_{i}/Person_{i}_{j:04d}.png 1 1 2 1 1 2 1 3 2 3\n" for i in range(10) for j in (1, 2, 3))
    (tmp_path / "points.txt").write_text(points)
    assert told(*validated, "--landmarks", tmp_path / "points.txt") == "another landmarks"


def test_people_in_another_order_are_not_those_of_before(people_of_run):
    one, other = (people_of_run.record(a_set(names), None, []) for names in (["A", "B"], ["B", "A"]))
    assert one["digest"] != other["digest"]
    assert people_of_run.difference(one, other) == "the people are in another order"


def test_one_person_in_two_spellings_is_not_trained_on_and_tested_on(faces, people):
    for spelled, folder in zip(E_ACUTE, ("Person_0", "Person_1"), strict=True):
        (people / folder).rename(people / spelled)
    assert faces(people, "--test-people", 2).record["tested on"] == [E_ACUTE[0]] * 2
    with pytest.raises(ValueError, match=r"people in two spellings of Unicode, as if they were two: Ren"):
        faces(people, "--test-people", 1)


def test_a_verification_set_counts_by_what_it_holds(people_of_run):
    held = data.PairImages(np.zeros((4, 1, 1, 3), np.uint8), np.array([True, False]))
    record = lambda held: people_of_run.record(a_set("AB"), held, [])
    assert record(held) == record(held._replace(images=held.images.copy()))
    assert "another validation set" in people_of_run.difference(record(held), record(held._replace(same=~held.same)))


def test_whom_the_encoder_saw_is_left_out_by_name(people_of_run, tmp_path):
    run = written(people_of_run, tmp_path, train=a_set(["Ann", E_ACUTE[0]]), validation=a_set(["Val"]), tested=["New"])
    new, sentence = new_to(people_of_run, run, a_set(["Ann", "New", E_ACUTE[1], "Val", "Zoe"]))
    assert new.tolist() == [False, True, False, False, True]
    assert sentence == "3 of 5 people are left out: the encoder was trained on them, or chosen by them."
    new, sentence = new_to(people_of_run, run, a_set(["Ann", "Zoe"], files=["1", "3", "1", "2"]))
    assert new.tolist() == [False, True]
    assert "Of 1 of these, photographs have other names here: Ann." in sentence
    new, sentence = new_to(people_of_run, run, a_set(["New", "Zoe"]))
    assert new.all() and sentence.startswith("Nobody here was trained on, by name: the 3 people of")


def test_what_cannot_be_known_is_said(people_of_run, faces, tmp_path):
    new, sentence = new_to(people_of_run, tmp_path, a_set(["Ann"]))
    assert (
        new.all()
        and sentence
        == f"It is not known whether anybody here was trained on: {tmp_path} holds no record of its people."
    )
    (tmp_path / "metrics.json").write_text(json.dumps({"people": {"trained on": ["Ann"], "tested on": []}}))
    new, sentence = new_to(people_of_run, tmp_path, a_set(["Ann", "Zoe"]))
    assert new.tolist() == [False, True] and "holds no people.json" in sentence  # an older version's run
    (tmp_path / "set").mkdir()
    record = faces(training_set(people=6, each=2).save(tmp_path / "set")).record
    assert not record["named"] and record["trained on"]["0"] == [2, ""]
    (tmp_path / "people.json").write_text(json.dumps(record))
    new, sentence = new_to(people_of_run, tmp_path, a_set(["0", "Zoe"]))
    assert new.all() and sentence.endswith("are numbers, not names.") and sentence.startswith(people_of_run.NOT_KNOWN)


def test_the_trial_takes_whom_the_run_tested_on(people_of_run, people, tmp_path):
    from metricjax.commands import recognition_trial

    never_seen = lambda: recognition_trial.never_seen(Pixels(tmp_path), tmp_path, str(people))
    with pytest.raises(ValueError, match=r"does not say whom its encoder was trained on"):
        never_seen()
    written(people_of_run, tmp_path, train=a_set(["Person_0"]), validation=a_set(["Person_1"]), tested=["Person_3"])
    found, sentence = never_seen()
    assert found.people == ["Person_3"] and sentence.startswith("2 of 10 people are left out")
    written(people_of_run, tmp_path, train=a_set(["Person_0"]), validation=a_set(["Person_1"]), tested=["Somebody"])
    assert never_seen()[0].people == [f"Person_{i}" for i in range(2, 10)]
    written(people_of_run, tmp_path, train=a_set(["0"], files=["", ""]))
    found, sentence = never_seen()
    assert len(found.people) == 10 and sentence.startswith(people_of_run.NOT_KNOWN)


def test_names_that_are_no_unicode_survive(people_of_run, tmp_path):
    run = written(people_of_run, tmp_path, train=a_set(["Ann\udcff", "B"]))
    assert new_to(people_of_run, run, a_set(["Ann\udcff", "C"]))[0].tolist() == [False, True]


@pytest.mark.parametrize("name", ["people.json", "metrics.json"])
def test_a_damaged_record_is_refused_by_name(people_of_run, tmp_path, fuzz, name):
    """Whatever is read of a damaged file is what was written, or one line that names the file."""
    path = tmp_path / name
    whole = written(people_of_run, tmp_path, train=a_set(["Ann", "B"]), tested=["C"]) / "people.json"
    if name == "metrics.json":
        whole.unlink()
        path.write_text(json.dumps({"people": {"trained on": ["Ann", "B"], "tested on": ["C"]}}))
    good = path.read_bytes()
    expected = people_of_run.read(tmp_path)
    damaged = [b"", b"\xff\xfe", b"null", b"[]", b"7", b'{"people": 3}', b"[" * 100_000, good[:-1]]
    for seed in fuzz:
        rng, some = np.random.default_rng(seed), bytearray(good)
        some[rng.integers(len(some))] ^= 1 << rng.integers(8)
        damaged.append(bytes(some))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = people_of_run.read(tmp_path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:  # a name of metrics.json may turn into another name: there is nothing to know it by
            assert name == "metrics.json" or found == expected
    assert refused > len(damaged) / 3
