"""Calls with wrong arguments, each refused with an error that says so."""

from collections.abc import Callable, Mapping

import pytest


def refuses(wrong: Mapping[str, tuple[Callable, type[Exception], str]]) -> Callable:
    """A test of each call in `wrong`: it raises that error, with a message in which that pattern is found."""

    @pytest.mark.parametrize("name", wrong)
    def test_wrong_arguments(name, unchecked):
        call, error, message = wrong[name]
        with pytest.raises(error, match=message):
            call()

    return test_wrong_arguments
