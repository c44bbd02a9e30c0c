"""The two examples of memory banks, in a few steps: they print what they return, and banks are worth something."""

import json

import pytest

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]


def test_cross_batch_memory(capsys, tmp_path):
    import cross_batch_memory

    arguments = ["--steps", "250", "--seeds", "1", "--batch", "8", "--capacity", "56", "--out", str(tmp_path)]
    results = cross_batch_memory.main(arguments)
    printed = capsys.readouterr().out.splitlines()[1:]
    for line, (name, found) in zip(printed, results.items(), strict=True):
        assert line.startswith(name)
        assert all(f"{found[what][0]:.3f} ± 0.000" in line for what in ("recall@1", "map@r"))
    saved = json.loads((tmp_path / "cross_batch_memory.json").read_text())
    assert [row["photographs"] for row in saved["rows"]] == list(results)
    assert saved["rows"][0]["MAP@R"] == f"{results['8 photographs']['map@r'][0]:.3f} ± 0.000"
    alone, added, as_one, large = results.values()
    assert added["staleness"] == as_one["staleness"] == [3.0]  # pushes of 8 into 56 places: 0 to 6 ago
    assert alone["map@r"] < added["map@r"]
    assert alone["map@r"] < as_one["map@r"] < large["map@r"]


def test_momentum_contrast(capsys):
    import momentum_contrast

    results = momentum_contrast.main(["--steps", "300", "--seeds", "1"])
    printed = capsys.readouterr().out.splitlines()[1:5]
    for line, (name, ((*numbers,),)) in zip(printed, results.items(), strict=True):
        assert line.split()[-12::3] == [f"{number:.3f}" for number in numbers]
        assert line.startswith(name)
    pixels, before, _, queue = (numbers[0] for numbers in results.values())
    assert before[3] < pixels[3] < queue[3]  # of moved photographs
    assert before[1] < queue[1]
