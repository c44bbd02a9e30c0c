"""A process of `metricjax recognize serve` with an encoder that nobody trained."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import jax

from metricjax.trained import NetworkEncoder
from metricjax.trained.design import Design, split

ROOT = pathlib.Path(__file__).parents[2]
SIZE = (28, 23)
THRESHOLD, NOISE = 0.93, 2  # between strangers and photographs of one person that `write_people` writes with this noise


def untrained(file: pathlib.Path) -> pathlib.Path:
    """The file of an encoder with random weights."""
    design = Design("small_convnet", 16, SIZE, SIZE, 1)
    structure, params, rest = split(design.network())
    NetworkEncoder(design, structure, {"params": params, "rest": rest}).save(file)
    return file


@contextlib.contextmanager
def serving(encoder: pathlib.Path, gallery: pathlib.Path, *options: object, before: str = "") -> Iterator[str]:
    """Its address, while it runs; it has to end well, and silently. `before`: what its Python executes first."""
    begin = f"{before}\nimport runpy, sys\nrunpy.run_module('metricjax', run_name='__main__', alter_sys=True)"
    command = ["recognize", "serve", "--checkpoint", encoder, "--gallery", gallery, "--port", 0, *options]
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": os.pathsep.join(places),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as for users
    process = subprocess.Popen(
        [sys.executable, "-c", begin, *map(str, command)],
        env={**environment, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("http://") and line.endswith("/ answers; Ctrl-C ends it\n"), process.communicate()
        yield line.split()[0]
    finally:
        process.send_signal(signal.SIGTERM)
        ended = process.communicate(timeout=60)
    assert (process.returncode, *ended) == (0, "", "")


def multipart(*photographs: tuple[str, bytes], **fields: str) -> tuple[bytes, str]:
    """A form as browsers send it, and its content type."""
    parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    parts += [(f'name="photographs"; filename="{name}"', held) for name, held in photographs]
    head = b"--limit\r\nContent-Disposition: form-data; "
    body = b"".join(head + name.encode() + b"\r\n\r\n" + value + b"\r\n" for name, value in parts)
    return body + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def asked(url: str, method: str, path: str, *photographs: pathlib.Path, headers=(), **fields: str) -> tuple[int, dict]:
    """The status and the JSON of an answer."""
    body, kind = multipart(*((file.name, file.read_bytes()) for file in photographs), **fields)
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        if method == "POST":
            connection.request(method, path, body, {"Content-Type": kind, **dict(headers)})
        else:
            connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
