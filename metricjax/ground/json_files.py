"""JSON files, written whole or not at all; one line tells of damage to them."""

import json
import pathlib
from typing import Any

from metricjax.ground.files import replacing

__all__ = ["read", "write"]


def write(path: pathlib.Path, value: Any) -> None:
    """The old file stays as it is until the new one is on the disk."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def read(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file; ValueError that names the file where it holds something else."""
    try:
        found = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{path} is damaged: it holds no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__}; wanted an object")
    return found
