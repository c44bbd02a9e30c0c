"""The command `metricjax`, and `python -m metricjax`: each of its commands is a module here."""

import argparse
import importlib
import sys
import warnings

from metricjax import __version__

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train an encoder of faces, of images of any classes, or of pairs, and test it on others",
    "evaluate": "evaluate embeddings, or an encoder on photographs: a table and a page to look at",
    "recognize": "enrol people, and say who is in a photograph; `recognize serve` answers in a browser",
    "compare": "compare losses on photographs, each with its best hyper-parameters",
    "export": "write an encoder as StableHLO or ONNX, or into one file",
}


def main(argv: list[str] | None = None) -> None:
    """Run a command of the command line, `sys.argv` by default."""
    listed = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "metricjax",
        usage="metricjax COMMAND ...",
        description="Deep metric learning for JAX.",
        epilog=f"commands:\n{listed}\n\n`metricjax COMMAND --help` says what it takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"metricjax {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    given = sys.argv[1:] if argv is None else argv
    command = parser.parse_args(given[:1]).command
    warnings.formatwarning = lambda message, *_, **__: f"metricjax {command}: {message}\n"
    try:
        module = importlib.import_module(f"metricjax.commands.{command}")
    except ImportError as error:  # it says which extra to install
        sys.exit(f"metricjax {command}: {error}")
    module.main(given[1:])
