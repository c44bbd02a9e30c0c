"""What the command lines of several commands have in common."""

import argparse
import datetime
import pathlib

import numpy as np

__all__ = ["check_least", "dated_folder", "parser"]


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """That of a command, whose help has the description as it is written."""
    shown = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"metricjax {command}", description=description, formatter_class=shown)


def check_least(parser: argparse.ArgumentParser, args: argparse.Namespace, least: dict[str, int]) -> None:
    """End with an error where an argument, or one of several numbers of it, is below its least value."""
    for name, wanted in least.items():
        given = getattr(args, name)
        if given is not None and np.min(given) < wanted:
            shown = " ".join(map(str, np.ravel(given)))
            parser.error(f"--{name.replace('_', '-')} is {shown}; wanted at least {wanted}")


def dated_folder() -> pathlib.Path:
    """Where results go unless the command line says otherwise: runs/DATE-TIME."""
    return pathlib.Path("runs") / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
