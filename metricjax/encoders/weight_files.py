"""Files of weights, by what they begin with: safetensors, or what PyTorch writes. Nothing in them is run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from metricjax.encoders.torch_files import Stored, read_archive, read_stream
from metricjax.ground.extras import extra
from metricjax.ground.names import printable

__all__ = ["opened_weights", "reason"]


def reason(error: Exception) -> str:
    """What is wrong, in one line."""
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()))[:200]}".rstrip(" :.")


@contextmanager
def opened_weights(path: str | os.PathLike) -> Iterator[Any]:
    """What a file holds: for weights, a mapping of names to `Stored`, or to such mappings and to anything else.

    ValueError that names the file and says what is wrong, whatever it holds.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is a folder or a device; wanted a file of weights")  # a pipe would be waited for
    with open(path, "rb") as file:
        start = file.read(9)
        file.seek(0)
        if start[8:] == b"{":
            with extra("flax"):
                from safetensors import safe_open
        try:
            if start[8:] == b"{":
                opened = safe_open(path, framework="np")
                found = {name: _stored(opened, name) for name in opened.keys()}  # noqa: SIM118
            elif start[:4] == b"PK\x03\x04":
                found = read_archive(file)
            elif start[:1] == b"\x80":
                found = read_stream(file)
            else:
                raise ValueError("neither safetensors nor of PyTorch")
        except Exception as error:  # zipfile and pickle raise nearly every kind
            raise ValueError(f"{path} holds no weights that can be read ({reason(error)})") from None
        yield found


def _stored(opened: Any, name: str) -> Stored:
    return Stored(tuple(opened.get_slice(name).get_shape()), partial(opened.get_tensor, name))
