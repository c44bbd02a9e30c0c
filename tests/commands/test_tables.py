"""Tables and arguments of the commands, as they are printed and refused."""

import argparse

import pytest


def test_values_are_shown_by_their_kind():
    from metricjax.commands.tables import line, shown

    assert [shown(value) for value in (None, 19900, 0.12345, "EER")] == ["–", "19,900", "0.123", "EER"]
    assert shown(0.12345, digits=4) == "0.1235"
    assert line("EER", 0.5, None).split() == ["EER", "0.500", "–"]
    assert len(line("", 1, 2)) == len(line("rank-1", 0.25, 12345))  # columns stand under each other


def test_a_table_has_a_column_for_each_way():
    from metricjax.commands.tables import line, of_ways

    made = of_ways("never seen", {"embeddings": {"EER": 0.1, "pairs": 7}, "raw pixels": {"EER": 0.2, "pairs": 7}})
    wanted = [line("never seen", "embeddings", "raw pixels"), line("EER", 0.1, 0.2), line("pairs", 7, 7)]
    assert made.splitlines() == wanted


def test_the_least_of_several_numbers_counts(capsys):
    from metricjax.commands.command_line import check_least, parser

    made = parser("train", "A command.")
    check_least(made, argparse.Namespace(batch=[4, 2], chunk=None), {"batch": 2, "chunk": 1})
    with pytest.raises(SystemExit):
        check_least(made, argparse.Namespace(image_size=[8, 0]), {"image_size": 1})
    assert "--image-size is 8 0; wanted at least 1" in capsys.readouterr().err


def test_settings_fit_the_data():
    from metricjax.commands import fitting
    from metricjax.commands.train_arguments import arguments

    few, many = (arguments([]) for _ in range(2))
    said = fitting.fit(few, 20, 0, 200)
    assert (few.encoder, few.steps, few.batch, few.mirror) == ("small_resnet", 500, (40, 2), "people")
    assert said.startswith("20 people to train on, 200 photographs: ")
    assert "--batch 40 2" in said and "--image-size 64 56" in said
    said = fitting.fit(many, 962, 1655, 4627)
    assert said.startswith(
        "962 people and 1655 with one photograph to train on, 4627 photographs: --loss cosface+supcon"
    )
    assert "--encoder plain_convnet" in said and "--steps 2530" in said
    assert (many.steps, many.batch, many.augment) == (2530, (32, 2), 0.4)
    steps = [fitting.fitting(962, photographs)["steps"] for photographs in (200, 6400, 10**7)]
    assert steps == [1000, 3500, 20_000]
    given = arguments(["--encoder", "iresnet18", "--steps", "7", "--batch", "8", "--mirror", "none", "--augment", "0"])
    said = fitting.fit(given, 15, 0, 30)
    assert (given.encoder, given.steps, given.batch, given.augment) == ("iresnet18", 7, [8], 0)
    assert "--encoder" not in said and "--learning-rate 0.001" in said
    alone = arguments(["--mirror", "none"])
    fitting.fit(alone, 15, 0, 30)
    assert alone.batch == (15, 2)  # of as many people as there are
