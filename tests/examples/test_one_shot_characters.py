"""One-shot classification, trained for moments on lines: its runs, what queries are taken for, and what it prints."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import metricjax as mj

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]

WAYS, DRAWERS = 20, 3


def drawing(alphabet, character, drawer):
    """Three lines, which each drawer places elsewhere: black on white, one bit a pixel."""
    corners = np.random.default_rng([alphabet, character]).integers(20, 85, (4, 2))
    corners = corners + np.random.default_rng([alphabet, character, drawer]).integers(-8, 9, 2)
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).line([tuple(corner) for corner in corners.tolist()], fill=0, width=3)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two alphabets in Omniglot's layout, and two runs in Lake's, whose test items are the support, shuffled."""
    root = tmp_path_factory.mktemp("omniglot")
    for alphabet, name in enumerate(("Known", "Other")):
        for character in range(WAYS):
            place = root / "images" / name / f"character{character + 1:02d}"
            place.mkdir(parents=True)
            for drawer in range(1, DRAWERS + 1):
                drawing(alphabet, character, drawer).save(place / f"{20 * alphabet + character:04d}_{drawer:02d}.png")
    for run in (1, 2):
        lines, order = [], np.random.default_rng(run).permutation(WAYS)
        place = root / "all_runs" / f"run{run:02d}"
        (place / "training").mkdir(parents=True)
        (place / "test").mkdir()
        for item, character in enumerate(order, 1):
            drawing(run, character, 1).save(place / "training" / f"class{character + 1:02d}.png")
            drawing(run, character, 1).save(place / "test" / f"item{item:02d}.png")
            lines.append(f"{place.name}/test/item{item:02d}.png {place.name}/training/class{character + 1:02d}.png")
        (place / "class_labels.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def example():
    import one_shot_characters

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SIZE": 16, "VIEWS": 3, "CLASSES": 8, "CHUNK": 16}.items():
            patch.setattr(one_shot_characters, name, value)
        yield one_shot_characters


def test_a_run_of_it(example, folder, tmp_path, capsys):
    told = {"data": folder, "hold": "Other", "runs": folder / "all_runs", "minutes": 0.3}
    told |= {"networks": 2, "count": 30, "out": tmp_path}
    results = example.main([word for name, value in told.items() for word in (f"--{name}", str(value))])
    assert {name: list(found) for name, found in results.items()} == {
        name: ["raw pixels", "one view", "3 views"] for name in ("Other", "official runs")
    }
    assert set(results["official runs"].values()) == {0.0}  # the same drawings, in another order
    assert all(0 < error < 0.9 for error in results["Other"].values())  # 0.95 would be chance
    printed = capsys.readouterr().out
    assert "trained on 20 characters of Known" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("Other "))
    assert line.split() == ["Other", "30", *(f"{error:.1%}" for error in results["Other"].values())]
    for name in ("Other", "official_runs"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size[0] > 500


def test_random_runs(example, folder):
    drawn = mj.data.omniglot(folder, (16, 16)).of_alphabets(np.array([False, True]))
    runs = example.random_runs(drawn, 40, seed=1)
    assert runs.support.shape == runs.queries.shape == (40, WAYS)
    for support, queries, answers in zip(runs.support, runs.queries, runs.answers, strict=True):
        np.testing.assert_array_equal(drawn.labels[queries], drawn.labels[support[answers]])
        assert len(set(drawn.labels[support].tolist())) == WAYS
        (one,), (other,) = (np.unique(drawn.drawer[places]) for places in (support, queries))
        assert one != other
    assert not np.array_equal(runs.support, example.random_runs(drawn, 40, seed=2).support)


def test_what_queries_are_taken_for(example):
    random = np.random.default_rng(0)
    views = random.normal(size=(12, 3, 5)).astype(np.float32)
    places = np.array([random.permutation(12)[:8] for _ in range(6)])
    runs = example.Runs(np.zeros((12, 1, 1, 1)), places[:, :4], places[:, 4:], np.zeros((6, 4), int))
    wanted = np.zeros((6, 4), int)
    for run in range(6):
        for query in range(4):
            best = -2.0
            for candidate in range(4):
                for a in views[runs.queries[run, query]].astype(np.float64):
                    for b in views[runs.support[run, candidate]].astype(np.float64):
                        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
                        if cosine > best:
                            best, wanted[run, query] = cosine, candidate
    np.testing.assert_array_equal(example.taken_for(views, runs), wanted)


def test_how_drawings_are_moved(example):
    import jax

    still = dict.fromkeys(example.MOVED, 0.0)
    images = np.random.default_rng(0).uniform(size=(5, 9, 9, 1)).astype(np.float32)
    np.testing.assert_allclose(example.moved(jax.random.key(0), images, **still), images, atol=1e-5)
    dot = np.zeros((64, 9, 9, 1), np.float32)
    dot[:, 4, 4] = 1.0  # the middle: neither turned, nor stretched, nor sheared, it stays
    for name in ("turn", "stretch", "shear"):
        found = np.asarray(example.moved(jax.random.key(1), dot, **{**still, name: 0.5}))
        np.testing.assert_allclose(found[:, 4, 4], 1.0, atol=1e-5)
    shifted = np.asarray(example.moved(jax.random.key(1), dot, **{**still, "shift": 1 / 8}))
    row = np.sum(shifted * np.arange(9)[:, None, None], axis=(1, 2, 3)) / np.sum(shifted, axis=(1, 2, 3))
    assert 0.5 < np.max(np.abs(row - 4)) < 1.001  # an eighth of 8 pixels


def test_nothing_to_test_on_and_wrong_arguments(example, folder, capsys, tmp_path):
    for arguments, message in (
        ([], "there is nothing to test on; wanted --hold ALPHABET … or --runs FOLDER"),
        (["--hold", "Other", "--count", "0"], "--count is 0"),
        (["--hold", "Other", "--networks", "0"], "--networks is 0"),
        (["--hold", "Other", "--minutes", "0"], "--minutes is 0.0"),
    ):
        with pytest.raises(SystemExit):
            example.main(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="--hold names Third; wanted some of Known, Other"):
        example.main(["--data", str(folder), "--hold", "Third"])
    with pytest.raises(ValueError, match="holds no runs"):
        example.main(["--data", str(folder), "--runs", str(tmp_path)])
    with (
        pytest.raises(ValueError, match="Known has 20 characters; wanted 21 or more"),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(example, "WAYS", 21)
        example.main(["--data", str(folder), "--hold", "Known"])
