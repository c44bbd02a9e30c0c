"""What the command lines of several scripts have in common."""

import argparse
import datetime
import pathlib

import numpy as np


def parser(description: str | None) -> argparse.ArgumentParser:
    """One whose help has the description as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


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
