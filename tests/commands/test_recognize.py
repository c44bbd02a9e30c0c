"""The example that recognises people: a company with five employees, strangers, and files that must not be lost."""

import dataclasses
import io
import json
import pathlib
import shutil
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import metricjax as mj
from tests.helpers.people import write_people
from tests.helpers.projection import Projection

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
STAFF = [f"Person_{i}" for i in (1, 12, 2, 3, 8)]  # in order; nobody else resembles them much


@pytest.fixture
def recognize(monkeypatch):
    from metricjax.commands import recognize

    monkeypatch.setattr("metricjax.trained.load", Projection)
    return recognize


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[4] * 13, size=(23, 28), noise=20)


@pytest.fixture
def folders(people, tmp_path):
    """One photograph of each of five employees, and four of each of three people besides."""
    for name in STAFF:
        (tmp_path / "staff" / name).mkdir(parents=True)
        shutil.copy(photograph(people, name, 1), tmp_path / "staff" / name)
    for i in (4, 5, 6):
        shutil.copytree(people / f"Person_{i}", tmp_path / "others" / f"Person_{i}")
    return tmp_path / "staff", tmp_path / "others"


@pytest.fixture
def run(recognize, capsys, tmp_path):
    """A command with the usual encoder and gallery; what it prints, or its message where it fails."""

    def call(command, *arguments, checkpoint="run", gallery=True, fails=False):
        capsys.readouterr()
        given = [] if command in ("remove", "list") else ["--checkpoint", tmp_path / checkpoint]
        given += ["--gallery", tmp_path / "staff.npz"] if gallery else []
        if not fails:
            recognize.main([command, *map(str, [*given, *arguments])])
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as caught, warnings.catch_warnings(record=True) as told:
            recognize.main([command, *map(str, [*given, *arguments])])
        assert caught.value.code not in (0, None)
        return f"{caught.value.code} {capsys.readouterr().err} {' '.join(str(w.message) for w in told)}"

    return call


def photograph(people, name, number):
    return people / name / f"{name}_{number:04d}.png"


def embedding(file, run="run"):
    """Of one photograph, in float64 and read by Pillow alone."""
    pixels = np.asarray(Image.open(file), np.float64).reshape(-1)
    x = (pixels - pixels.mean()) @ np.asarray(Projection(pathlib.Path(run)).matrix, np.float64)
    return x / np.linalg.norm(x)


def cosine(file, *template):
    mean = np.sum([embedding(other) for other in template], axis=0)
    return embedding(file) @ mean / np.linalg.norm(mean)


def answers(printed):
    return [(name, float(score)) for _, name, score in (line.split("\t") for line in printed.splitlines())]


def test_a_company_of_five_and_one_photograph_each(run, people, folders):
    staff, others = folders
    assert "5 photographs of 5 people enrolled, 5 of them new" in run("enrol", staff)
    searched = [photograph(people, name, number) for name in STAFF for number in (2, 3, 4)]
    assert "has no threshold yet; run `calibrate`" in run("identify", *searched, fails=True)
    run("calibrate", "--far", "0.03", others)
    before = answers(run("identify", *searched))
    assert [name for name, _ in before] == np.repeat(STAFF, 3).tolist()
    own = [cosine(file, photograph(people, file.parent.name, 1)) for file in searched]
    np.testing.assert_allclose([score for _, score in before], own, atol=1e-4)  # four digits are printed
    stranger, late = photograph(people, "Person_11", 1), photograph(people, "Person_0", 1)
    for who in (stranger, late):
        ((name, score),) = answers(run("identify", who))
        assert name == "unknown"
        closest = max(cosine(who, photograph(people, member, 1)) for member in STAFF)
        assert score == pytest.approx(closest, abs=1e-4)

    run("enrol", late, "--name", "Ada Lovelace")  # and nobody was trained
    assert [name for name, _ in answers(run("identify", people / "Person_0"))] == ["Ada Lovelace"] * 4
    assert answers(run("identify", *searched)) == before
    assert answers(run("identify", stranger))[0][0] == "unknown"
    assert "Ada Lovelace\t1 photograph\n" in run("list")

    assert "Ada Lovelace is removed" in run("remove", "--name", "Ada Lovelace")
    assert answers(run("identify", late))[0][0] == "unknown"
    assert "Ada" not in run("list")
    assert answers(run("identify", *searched)) == before


def test_photographs_of_later_calls_join_the_template(run, people, folders):
    run("enrol", folders[0])
    first, second, third, last = (photograph(people, "Person_1", i) for i in (1, 2, 3, 4))
    run("enrol", second, third, "--name", "Person_1")
    ((name, score),) = answers(run("identify", last, "--threshold", 0))
    assert (name, score) == ("Person_1", pytest.approx(cosine(last, first, second, third), abs=1e-4))
    assert "Person_1\t3 photographs" in run("list")


def test_a_full_gallery_doubles_and_a_place_is_given_again(run, people, folders, recognize, monkeypatch, tmp_path):
    monkeypatch.setattr(recognize.gallery_file, "CAPACITY", 2)
    run("enrol", folders[0])
    held = recognize.gallery_file.read(tmp_path / "staff.npz")
    assert (len(held.gallery.ids), held.names) == (8, STAFF)
    run("remove", "--name", "Person_2")
    run("enrol", photograph(people, "Person_7", 1), "--name", "Zoe\u0301")  # e and an accent, as some systems write it
    held = recognize.gallery_file.read(tmp_path / "staff.npz")
    assert held.names == ["Person_1", "Person_12", "Zo\u00e9", "Person_3", "Person_8"]
    assert held.photographs == [1] * 5
    found = answers(run("identify", people / "Person_7", people / "Person_8", "--threshold", 0.5))
    assert [name for name, _ in found] == ["Zo\u00e9"] * 4 + ["Person_8"] * 4


def test_calibrated_by_pairs(run, folders, recognize, tmp_path):
    staff, others = folders
    run("enrol", staff)
    files = sorted(others.glob("*/*"))
    x = [embedding(file) for file in files]
    pairs = [(i, j) for i in range(12) for j in range(i)]
    impostors = sorted((x[i] @ x[j] for i, j in pairs if files[i].parent != files[j].parent), reverse=True)
    genuine = [x[i] @ x[j] for i, j in pairs if files[i].parent == files[j].parent]
    told = "far is 0.02; wanted 0.0208 to 1, with 48 impostor pairs"
    assert told in run("calibrate", "--far", "0.02", others, fails=True)
    assert not recognize.gallery_file.read(tmp_path / "staff.npz").calibrated
    printed = run("calibrate", "--far", "0.05", others)
    threshold = recognize.gallery_file.read(tmp_path / "staff.npz").threshold
    assert impostors[1] - 1e-6 < min(threshold, *genuine)  # 2 of 48 pass, not 3
    assert impostors[2] < threshold
    missed = np.mean(np.array(genuine) < threshold)
    assert f"FRR {missed:.3g} of 18 genuine pairs" in printed
    assert "about 19.17% will pass" in printed  # 1 − (1 − 2/48)^5
    assert "for a FAR of 0.05" in run("list")


def test_calibrated_by_searches(run, people, folders, recognize, tmp_path):
    staff, _ = folders
    run("enrol", staff)
    printed = run("calibrate", "--fpir", "0.1", people)  # employees among them, with three photographs more
    files = sorted(people.glob("*/*"))
    x, templates = [embedding(f) for f in files], [embedding(photograph(people, name, 1)) for name in STAFF]
    best = np.array([max(a @ t for t in templates) for a in x])
    who = [STAFF[int(np.argmax([a @ t for t in templates]))] for a in x]
    strangers = sorted((s for s, f in zip(best, files, strict=True) if f.parent.name not in STAFF), reverse=True)
    threshold = recognize.gallery_file.read(tmp_path / "staff.npz").threshold
    assert strangers[3] < threshold + 1e-6 and threshold <= strangers[2]  # which is of float32
    missed = sum(
        w != f.parent.name or s < threshold for w, s, f in zip(who, best, files, strict=True) if f.parent.name in STAFF
    )
    assert "3 of 32 photographs of 8 strangers pass" in printed
    assert f"{missed} of 20 photographs of people enrolled are not found" in printed
    found = answers(run("identify", *(people / f"Person_{i}" for i in (0, 4, 5, 6, 7, 9, 10, 11))))
    assert sum(name == "unknown" for name, _ in found) == 29


def test_verify(run, people, folders):
    a, b, c = photograph(people, "Person_1", 1), photograph(people, "Person_1", 2), photograph(people, "Person_2", 1)
    assert run("verify", a, b, gallery=False) == f"{cosine(a, b):.4f}\n"
    assert run("verify", a, b, "--threshold", 0.5, gallery=False) == f"{cosine(a, b):.4f}\tsame\n"
    run("enrol", folders[0])
    run("calibrate", "--far", "0.03", folders[1])
    assert run("verify", a, b).endswith("\tsame\n")
    assert run("verify", a, c).endswith("\tdifferent\n")
    message = run("verify", a, people / "nowhere.png", gallery=False, fails=True)
    assert "nowhere.png is left out: it cannot be read" in message and "two photographs are needed" in message


def test_what_changes_while_the_encoder_runs_is_kept(run, people, folders, recognize, monkeypatch, tmp_path):
    staff, others = folders
    path, embed = tmp_path / "staff.npz", recognize.embedded
    run("enrol", staff)

    def during(command, *arguments, change, fails=False):
        def embedded(*given):
            gallery_file = recognize.gallery_file
            gallery_file.write(path, change(gallery_file.read(path)))
            return embed(*given)

        with monkeypatch.context() as patched:
            patched.setattr(recognize, "embedded", embedded)
            return run(command, *arguments, fails=fails)

    add = lambda name: lambda before: before.enrol([name], np.eye(1, 32, dtype=np.float32))
    during("enrol", photograph(people, "Person_7", 1), "--name", "New", change=add("Meanwhile"))
    assert "Meanwhile\t1 photograph\nNew\t1 photograph\n" in run("list")
    during("calibrate", "--far", "0.03", others, change=add("Later"))
    assert "Later\t1 photograph\n" in run("list") and "for a FAR of 0.03" in run("list")
    held = recognize.gallery_file.read(path)
    for command in (("enrol", others), ("calibrate", "--far", "0.03", others)):
        recognize.gallery_file.write(path, held)
        other = lambda before: dataclasses.replace(before, encoder="another")
        assert "was made by another encoder" in during(*command, change=other, fails=True)
        assert recognize.gallery_file.read(path).encoder == "another"


def test_names_that_no_terminal_can_show(run, people, folders, recognize, monkeypatch, tmp_path):
    run("enrol", folders[0])
    held = recognize.gallery_file.read(tmp_path / "staff.npz")
    names = ["\udcff", "Zo\u00eb", *held.names[2:]]
    recognize.gallery_file.write(tmp_path / "staff.npz", dataclasses.replace(held, names=names))
    assert "\\xff\t1 photograph\n" in run("list") and "Zo\u00eb\t1" in run("list")
    assert "\\xff" in run("identify", photograph(people, STAFF[0], 1), "--threshold", 0)
    plain = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    recognize.say("Zo\u00eb\n", 1)
    plain.flush()
    assert plain.buffer.getvalue() == b"Zo\\xeb\\n\t1\n"


@pytest.mark.parametrize("where", ("writing", "replacing"))
def test_a_crash_leaves_the_old_gallery(run, people, folders, recognize, monkeypatch, tmp_path, where):
    run("enrol", folders[0])
    held = (tmp_path / "staff.npz").read_bytes()

    def half(file, **_):
        file.write(held[: len(held) // 2])
        raise OSError("no space left")

    def fails(*_):
        raise OSError("no space left")

    if where == "writing":
        monkeypatch.setattr(recognize.gallery_file.np, "savez", half)
    else:
        monkeypatch.setattr("os.replace", fails)
    assert "no space left" in run("enrol", people / "Person_7", "--name", "New", fails=True)
    assert (tmp_path / "staff.npz").read_bytes() == held
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [".staff.npz.lock", "staff.npz"]


def test_another_encoder_is_refused(run, people, folders, tmp_path):
    run("enrol", folders[0])
    held = (tmp_path / "staff.npz").read_bytes()
    other = {"checkpoint": "another", "fails": True}
    for command in (
        ("enrol", folders[1]),
        ("identify", people / "Person_1", "--threshold", "0.5"),
        ("calibrate", "--far", "0.1", folders[1]),
        ("verify", *sorted((people / "Person_1").glob("*"))[:2], "--threshold", "0.5"),
    ):
        assert "staff.npz was made by another encoder" in run(*command, **other)
    assert (tmp_path / "staff.npz").read_bytes() == held


@pytest.mark.parametrize("kind", ("text", "nothing", "an array", "an archive", "a bare gallery", "a torn gallery"))
def test_what_is_no_gallery_is_refused_and_stays(run, folders, tmp_path, kind):
    path = tmp_path / "staff.npz"
    if kind == "text":
        path.write_text("staff")
    elif kind == "nothing":
        path.touch()
    elif kind == "an array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "an archive":
        np.savez(path, names=np.array(["Ada"]))
    elif kind == "a bare gallery":
        mj.search.Gallery.empty(4, 32).save(path)
    else:
        run("enrol", folders[0])
        path.write_bytes(path.read_bytes()[:-100])
    held = path.read_bytes()
    for command in (("enrol", folders[0]), ("list",), ("remove", "--name", "Person_1")):
        assert "staff.npz is not a gallery of `metricjax recognize`, or a damaged one" in run(*command, fails=True)
    assert path.read_bytes() == held


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(run, people, folders, tmp_path, capsys):
    (folders[0] / "Person_3" / "torn.jpg").write_text("no image")
    (folders[0] / "Broken").mkdir()
    (folders[0] / "Broken" / "torn.png").write_bytes(photograph(people, "Person_5", 1).read_bytes()[:200])
    message = run("enrol", folders[0] / "Broken", "--name", "Broken", fails=True)
    assert "torn.png is left out" in message and "none of the photographs can be read" in message
    assert not (tmp_path / "staff.npz").exists()
    arguments = ["enrol", "--checkpoint", tmp_path / "run", "--gallery", tmp_path / "staff.npz", folders[0]]
    from metricjax.commands import recognize

    with pytest.warns(match=r"torn\.jpg is left out"), pytest.warns(match=r"torn\.png is left out"):
        recognize.main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert "no photograph of Broken can be read" in printed.err
    assert "5 photographs of 5 people enrolled" in printed.out
    assert len(answers(run("identify", people / "Person_3", folders[0] / "Broken", "--threshold", 0))) == 4


def test_messages(run, people, folders, tmp_path):
    assert "staff.npz does not exist; `enrol` makes a gallery" in run("identify", people / "Person_1", fails=True)
    assert "wanted a sub-folder of images" in run("enrol", people / "Person_1", fails=True)
    assert "'unknown' is not a name for a person" in run("enrol", people / "Person_1", "--name", "unknown", fails=True)
    assert "'' is not a name for a person" in run("enrol", people / "Person_1", "--name", "", fails=True)
    assert "holds no images; wanted files .pgm" in run("enrol", people, "--name", "All", fails=True)
    run("enrol", people / "Person_1", "--name", "Person_1")
    assert "Person_2 is not enrolled" in run("remove", "--name", "Person_2", fails=True)
    assert "wanted 0.25 to 1, with 4 non-mated queries" in run(
        "calibrate", "--fpir", "0.1", subset(tmp_path, people, "Person_1", "Person_4"), fails=True
    )
    assert "no two people, or nobody twice" in run(
        "calibrate", "--far", "0.1", subset(tmp_path, people, "Person_4"), fails=True
    )
    run("remove", "--name", "Person_1")
    assert "staff.npz holds nobody" in run("identify", people / "Person_1", "--threshold", 0, fails=True)
    assert "orl does not say whom its encoder was trained on" in run(
        "trial", gallery=False, checkpoint="orl", fails=True
    )


def subset(tmp_path, people, *names):
    folder = tmp_path / "-".join(names)
    for name in names:
        shutil.copytree(people / name, folder / name)
    return folder


def test_the_trial_pools_its_searches(run, people, recognize, tmp_path):
    """Its numbers by loops: one threshold for all draws, at most so many strangers above it."""
    (tmp_path / "poor").mkdir()
    seen = {"trained on": ["Person_0"], "tested on": [f"Person_{i}" for i in range(2, 10)]}
    (tmp_path / "poor" / "metrics.json").write_text(json.dumps({"people": seen}))
    options = ("--people", 5, "--photographs", 1, 3, "--draws", 6, "--seed", 3)
    printed = run("trial", people, *options, gallery=False, checkpoint="poor")
    report = json.loads((tmp_path / "poor" / "recognition.json").read_text())
    assert report["people"] == seen["tested on"]
    with Image.open(tmp_path / "poor" / "recognition.png") as image:
        assert min(image.size) > 200
    files = [file for name in seen["tested on"] for file in sorted((people / name).glob("*"))]
    labels = np.repeat(np.arange(8), 4)
    pixels = np.array([np.asarray(Image.open(file), np.float64).reshape(-1) for file in files])
    pixels -= pixels.mean(axis=0)
    ways = {
        "embeddings": np.array([embedding(file, "poor") for file in files]),
        "raw pixels": pixels / np.linalg.norm(pixels, axis=1, keepdims=True),
    }
    assert len(report["results"]) == 4
    for result in report["results"]:
        each, x = result["photographs of each"], ways[result["compared by"]]
        mated, strangers = [], []
        for enrolled in recognize.recognition_trial.draws(labels, 5, each, 6, 3):
            known = sorted(set(labels[enrolled]))
            assert (len(known), len(enrolled)) == (5, 5 * each)
            templates = {k: sum(x[i] for i in enrolled if labels[i] == k) for k in known}
            for i in set(range(32)) - set(enrolled.tolist()):
                scores = {k: float(x[i] @ t / np.linalg.norm(t)) for k, t in templates.items()}
                if labels[i] in known:
                    mated.append((max(scores, key=scores.get) == labels[i], scores[labels[i]]))
                else:
                    strangers.append(max(scores.values()))
        assert (result["mated"], result["non-mated"]) == (len(mated), len(strangers))
        assert result["rank-1"] == pytest.approx(np.mean([first for first, _ in mated]))
        above = sorted(strangers, reverse=True)[len(strangers) // 10]  # the first that may not pass
        missed = np.mean([not first or score <= above for first, score in mated])
        assert result["FNIR at FPIR 0.1"] == pytest.approx(missed)
        assert result["FNIR at FPIR 0.01"] is None  # 72 searches of strangers cannot tell
        assert f"| 5 | {each} | {result['compared by']} | {result['rank-1']:.3f} |" in printed
    rates = [result["rank-1"] for result in report["results"]]
    assert 0.2 < min(rates) < 1  # or this would not tell one from another
    message = run("trial", people, "--people", 8, gallery=False, checkpoint="poor", fails=True)
    assert "of 8 people never seen, 8 have more than 1 photographs; wanted 8" in message
    message = run("trial", people, "--photographs", 4, gallery=False, checkpoint="poor", fails=True)
    assert "of 8 people never seen, 0 have more than 4 photographs; wanted 5" in message


def test_any_name_of_a_folder_is_enrolled_found_and_removed(run, people, tmp_path):
    names = {
        "Ren\udce9 \x1b[2J": r"Ren\xe9 \x1b[2J",
        "\u202eevil": r"\u202eevil",
        "日本 $x": "日本 $x",
        "a\tb": r"a\tb",
    }
    for i, name in enumerate(names):
        (tmp_path / "odd" / name).mkdir(parents=True)
        shutil.copy(photograph(people, STAFF[i], 1), tmp_path / "odd" / name / "a.png")
    (tmp_path / "odd" / ".ipynb_checkpoints").mkdir()
    shutil.copy(photograph(people, "Person_7", 1), tmp_path / "odd" / ".ipynb_checkpoints")
    assert "4 photographs of 4 people enrolled" in run("enrol", tmp_path / "odd")
    searched = [photograph(people, who, 2) for who in STAFF[:4]]
    assert [name for name, _ in answers(run("identify", *searched, "--threshold", 0))] == list(names.values())
    for shown in names.values():  # as they are listed
        run("remove", "--name", shown)
    assert run("list").startswith("0 people")
