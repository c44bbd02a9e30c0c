"""Tables and arguments of the commands, as they are printed and refused."""

import argparse

import pytest


def test_values_are_shown_by_their_kind():
    from metricjax.commands.tables import line, shown

    assert [shown(value) for value in (None, 19900, 0.12345, "EER")] == ["–", "19,900", "0.123", "EER"]
    assert shown(0.12345, digits=4) == "0.1235"
    assert line("EER", 0.5, None).split() == ["EER", "0.500", "–"]
    assert len(line("", 1, 2)) == len(line("rank-1", 0.25, 12345))  # columns stand under each other


def test_the_least_of_several_numbers_counts(capsys):
    from metricjax.commands.command_line import check_least, parser

    made = parser("train", "A command.")
    check_least(made, argparse.Namespace(batch=[4, 2], chunk=None), {"batch": 2, "chunk": 1})
    with pytest.raises(SystemExit):
        check_least(made, argparse.Namespace(image_size=[8, 0]), {"image_size": 1})
    assert "--image-size is 8 0; wanted at least 1" in capsys.readouterr().err
