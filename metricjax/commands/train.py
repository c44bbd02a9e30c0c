"""The command `metricjax train`: each of its tasks is a module here."""

import argparse
import importlib
import sys

__all__ = ["TASKS", "main"]

TASKS = {"faces": "train_faces", "retrieval": "train_retrieval", "pairs": "train_pairs"}


def main(argv: list[str] | None = None) -> dict:
    """Run the task that the command line names, faces by default."""
    parser = argparse.ArgumentParser("metricjax train", add_help=False, allow_abbrev=False)
    parser.add_argument("--task", choices=TASKS, default="faces")
    known, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    try:
        task = importlib.import_module(f"metricjax.commands.{TASKS[known.task]}")
    except ImportError as error:  # it says which extra to install
        sys.exit(f"metricjax train: {error}")
    return task.main(rest)
