"""The comparison of losses, made small: its table, its numbers, its figure and its errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.people import write_people

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
LOSSES = "arcface,triplet:semi_hard"
SMALL = [
    "--losses", LOSSES, "--trials", "3", "--seeds", "2", "--steps", "25", "--batch", "4", "2",
    "--image-size", "12", "10",
]  # fmt: skip


@pytest.fixture(scope="module")
def example():
    from metricjax.commands import compare as compare_losses

    return compare_losses


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[4] * 16, size=(20, 24), noise=40)


@pytest.fixture(scope="module")
def run(example, people, tmp_path_factory):
    """What a run returns, and its folder."""
    out = tmp_path_factory.mktemp("comparison")
    return example.main([*SMALL, "--dataset", str(people), "--baseline", "arcface", "--out", str(out)]), out


def test_a_run_leaves_numbers_and_a_figure(run):
    report, out = run
    assert json.loads((out / "compare_losses.json").read_text()) == json.loads(json.dumps(report))
    with Image.open(out / "compare_losses.png") as image:
        assert min(image.size) > 300
    groups = [set(report["people"][name]) for name in ("training", "validation", "test")]
    assert [len(group) for group in groups] == [8, 4, 4]
    assert len(set.union(*groups)) == 16
    assert sorted(report["results"]) == sorted(LOSSES.split(","))


def test_the_best_trial_is_trained_anew(run):
    report, _ = run
    for found in report["results"].values():
        rates = [trial["metrics"]["EER"] for trial in found["trials"]]
        assert found["best"] == np.argmin(rates)
        assert found["setting"] == found["trials"][found["best"]]["setting"]
        assert [test["setting"] for test in found["test"]] == [found["setting"]] * 2
        assert len(found["trials"]) == 3
        assert found["lost"] == 0
        mean, half = found["summary"]["MAP@R"]
        first, second = (test["metrics"]["MAP@R"] for test in found["test"])
        assert mean == pytest.approx((first + second) / 2)
        assert half == pytest.approx(12.7062 * abs(first - second) / 2, rel=1e-4)  # t of one degree of freedom
        assert found["summary"]["EER"][0] < 0.4
    order = [found["summary"]["EER"][0] for found in report["results"].values()]
    assert order == sorted(order)


def test_losses_are_compared_with_the_baseline_seed_by_seed(run):
    report, _ = run
    first, second = (
        [test["metrics"]["EER"] for test in report["results"][loss]["test"]]
        for loss in ("arcface", "triplet:semi_hard")
    )
    difference = report["over seeds"]["metrics"]["EER"]["triplet:semi_hard"]["difference"]
    assert difference["mean"] == pytest.approx(np.mean(np.subtract(second, first)))
    assert difference["pairs"] == 2 and difference["p_corrected"] == difference["p"]


def test_the_table_has_every_loss_in_order(example, run):
    report, _ = run
    lines = example.table(report["results"], report["raw pixels"]).splitlines()
    assert "TAR@FAR=0.01" not in lines[0]  # 96 impostor pairs cannot tell
    assert [line.split()[0] for line in lines[1:-1]] == list(report["results"])
    for line, found in zip(lines[1:-1], report["results"].values(), strict=True):
        mean, half = found["summary"]["EER"]
        assert line.split()[1:4] == [f"{mean:.3f}", "±", f"{half:.3f}"]
        assert f"learning_rate {found['setting']['learning_rate']:.3g}" in line
    assert lines[-1].split()[:3] == ["raw", "pixels", f"{report['raw pixels']['EER']:.3f}"]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_trials_that_fail_are_counted_and_never_chosen(example, people, tmp_path, monkeypatch, capsys, lost):
    """Without training: three initial networks, of which the first has collapsed and the last `lost` are not finite."""

    def train(task, variants, steps, **given):
        params = jax.vmap(lambda seed: task.init(jax.random.key(seed)))(np.arange(3))
        params = jax.tree.map(lambda a: a.at[3 - lost :].set(np.nan), params)
        return example.mj.variants.Trained(params, None, {"spread": np.array([[0.01, 0.9, 0.9]])}, 1, {})

    monkeypatch.setattr(example.mj.variants, "train", train)
    options = ["--losses", "supcon", "--seeds", "3", "--dataset", str(people), "--out", str(tmp_path)]
    found = example.main([*SMALL, *options])["results"]["supcon"]
    outcomes = [*["collapsed", "trained", "trained"][: 3 - lost], *["not finite"] * lost]
    assert [trial["outcome"] for trial in found["trials"]] == [test["outcome"] for test in found["test"]] == outcomes
    assert found["trials"][2]["metrics"] is None
    assert found["best"] == (1 if lost == 1 else 0)  # not the collapsed one, unless there is no other
    assert found["lost"] == pytest.approx((1 + min(lost, 2)) / 3)
    if lost == 3:
        assert found["summary"] == {}
        assert "not finite" in capsys.readouterr().out
    else:
        assert (found["summary"]["EER"][1] is None) == (lost == 2)  # no interval of one seed


def test_settings_are_spread_over_their_ranges(example):
    args = example.arguments(["--trials", "10"])
    for name in example.KNOWN:
        settings = example.settings(name, args)
        space = {"learning_rate": example.LEARNING_RATE, **example.SPACES.get(name.partition(":")[0], {})}
        for key, (low, high, how) in space.items():
            values = np.array([setting[key] for setting in settings])
            part = np.log(values / low) / np.log(high / low) if how == "log" else (values - low) / (high - low)
            assert sorted(np.floor(part * 10 + 1e-9)) == list(range(10)), (name, key)
    assert example.settings("supcon", args) == example.settings("supcon", args)


def test_every_known_loss_has_what_its_function_takes(example):
    """Every entry is differentiable with the numbers that are searched, and no others, traced."""
    params = {"prototypes": jax.random.normal(jax.random.key(0), (4, 6))}
    z, labels = jax.random.normal(jax.random.key(1), (8, 6)), jnp.arange(8) // 2
    for name in example.KNOWN:
        numbers = dict.fromkeys(example.SPACES.get(name.partition(":")[0], ()), jnp.ones(()))
        loss = lambda z, numbers, name=name: example.loss_of(name)(params, z, (None, labels), numbers)
        value, gradient = jax.eval_shape(jax.value_and_grad(loss), z, numbers)
        assert value.shape == () and gradient.shape == z.shape, name
    assert set(example.DEFAULT.split(",")) <= set(example.KNOWN)
    assert {"ranked_list", "p2s_grad"} <= set(example.KNOWN)  # of the catalogue; not what needs more than is made here:
    assert not {"adaface", "elasticface", "soft_triple", "softmax", "center", "spread_out", "clip"} & {*example.KNOWN}


def test_wrong_arguments_are_refused_before_training(example, people, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example.mj.variants, "train", None)
    few = tmp_path / "few"
    few.mkdir()
    for person in range(7):
        (few / f"Person_{person}").symlink_to(people / f"Person_{person}")
    wrong = {
        ("--losses", "supcon,arcfase"): "'arcfase' is unknown; wanted some of contrastive, triplet",
        ("--losses", "supcon,supcon"): "--losses names supcon 2 times",
        ("--trials", "0"): "--trials is 0; wanted at least 1",
        ("--seeds", "0"): "--seeds is 0; wanted at least 1",
        ("--steps", "-1"): "--steps is -1; wanted at least 1",
        ("--seed", "-1"): "--seed is -1; wanted at least 0",
        ("--batch", "4", "1"): "--batch is 4 1; wanted at least 2",
        ("--image-size", "4", "8"): "--image-size is 4 8; wanted at least 8",
        ("--batch", "17", "2"): "--batch wants 17 people; with mirror images, training has 16",
        ("--dataset", str(few)): "has 7 people; wanted at least 8",
        ("--baseline", "supcon"): "--baseline is supcon; wanted one of --losses: arcface, triplet:semi_hard",
        ("--dataset", "nowhere"): "nowhere is not a folder",
    }
    for arguments, message in wrong.items():
        with pytest.raises(SystemExit) as caught:
            example.main([*SMALL, "--dataset", str(people), *arguments, "--out", str(tmp_path / "run")])
        assert message in f"{caught.value.code} {capsys.readouterr().err}"
    assert not (tmp_path / "run").exists()
