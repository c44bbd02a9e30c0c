"""Encoders in files that other programs run: StableHLO, which JAX reads without metricjax, and ONNX."""

import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh

from metricjax.ground.extras import extra
from metricjax.ground.files import replacing
from metricjax.trained.encoder import Encoder, NetworkEncoder, embedded

__all__ = ["PLATFORMS", "TOLERANCE", "ExportedEncoder", "export", "read"]

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
TOLERANCE = 1e-5  # of the embeddings, whose length is 1
MAKER = "metricjax"  # how the name of what is exported begins; the network's name and the digest follow


def export(encoder: Encoder, path: str | os.PathLike, *, mirrored: bool = True) -> None:
    """Write an encoder, with all that it does to images, for programs that have no metricjax: the suffix says how.

    What is written is one function, from images [n, height, width, channels] of uint8, any number n of them, at the
    height, width and channels of `encoder.photograph` and `encoder.channels`, to embeddings [n, d] of length 1,
    float32: resized, brought to the pixels that the network takes, embedded, and, with `mirrored`, added to the
    embeddings of the mirror images, unless the encoder is one of two towers. It is read back and run on random images
    before the file gets its name.

    - `.stablehlo`: for CPUs, GPUs and TPUs. `jax.export.deserialize(bytearray(content)).call(images)` runs it, with
      JAX and flatbuffers installed and nothing else; so does `metricjax.load`, which knows its digest too.
    - `.onnx`: for onnxruntime and others, by jax2onnx (the extra `onnx`).

    Raises:
      ValueError: another suffix, an encoder that was exported already, embeddings that differ by more than 1e-5, or
        (ONNX) what jax2onnx 0.17.1 cannot do: `small_convnet`, and JAX 0.12.
      ImportError: the extra is not installed.
    """
    path = pathlib.Path(path)
    writers: dict[str, Callable] = {".stablehlo": _stablehlo, ".onnx": _onnx}
    if path.suffix not in writers:
        raise ValueError(f"path is {path}; wanted a name that ends with {' or '.join(writers)}")
    if not isinstance(encoder, NetworkEncoder):
        raise ValueError(f"encoder is {encoder!r}, exported already; wanted one that `metricjax.load` gives of a run")

    mirrored = mirrored and encoder.mirrored
    function = partial(embedded, encoder.design, encoder.structure, encoder.weights, mirrored=mirrored)
    content, run = writers[path.suffix](encoder, function)
    rng = np.random.default_rng(0)
    for count in (1, 3):
        images = rng.integers(0, 256, (count, *encoder.photograph, encoder.channels), np.uint8)
        error = float(np.max(np.abs(run(images) - np.asarray(jax.jit(function)(images)))))
        if not error <= TOLERANCE:
            raise ValueError(f"{path} is not written: what was exported differs by {error:.1g} from the encoder")
    with replacing(path) as file:
        file.write(content)


def _stablehlo(encoder: NetworkEncoder, function: Callable) -> tuple[bytes, Callable]:
    with extra("export"):
        import flatbuffers  # noqa: F401  # which JAX needs for it, and does not install

    named = lambda images: function(images)
    named.__name__ = f"{MAKER} {encoder.name} {encoder.digest}"
    content = jax_export.export(jax.jit(named), platforms=PLATFORMS)(_any_number_of_images(encoder)).serialize()
    return bytes(content), lambda images: np.asarray(jax.jit(jax_export.deserialize(content).call)(images))


def _onnx(encoder: NetworkEncoder, function: Callable) -> tuple[bytes, Callable]:
    with extra("onnx"):
        import onnxruntime

    images = _any_number_of_images(encoder)
    # Traced here, where jax2onnx has not put resizing and the like of its own in place of JAX's.
    traced = jaxpr_as_fun(jax.make_jaxpr(partial(function, project=_plainly_projected))(images))
    made = _by_jax2onnx(traced, images, encoder.name)
    for name, note in {"maker": MAKER, "name": encoder.name, "digest": encoder.digest}.items():
        made.metadata_props.add(key=name, value=note)
    content = made.SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    return content, lambda images: session.run(None, {"images": images})[0]


def _by_jax2onnx(traced: Callable, images: jax.ShapeDtypeStruct, name: str):
    """The model; jax2onnx knows neither every operation nor every version of JAX."""
    try:
        with extra("onnx"), _without_messages("onnx_ir"):
            import jax2onnx

            return jax2onnx.to_onnx(traced, [images], input_names=["images"], output_names=["embeddings"])
    except ImportError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        known = f"jax2onnx {metadata.version('jax2onnx')} and JAX {jax.__version__}"
        raise ValueError(
            f"{known} write no ONNX of {name} ({why}); JAX 0.10.2 and jax2onnx 0.17.1 write most"
        ) from None


def _plainly_projected(x: jax.Array) -> jax.Array:
    """`sphere.project`, without what it does for lengths that no network gives: ONNX has no numbers as bits."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@contextlib.contextmanager
def _without_messages(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _any_number_of_images(encoder: Encoder) -> jax.ShapeDtypeStruct:
    (n,) = jax_export.symbolic_shape("n")
    return jax.ShapeDtypeStruct((n, *encoder.photograph, encoder.channels), jnp.uint8)


class ExportedEncoder(Encoder):
    """An encoder that `export` wrote as StableHLO; of the people it was trained on nothing is known."""

    def __init__(self, content: bytes, exported: jax_export.Exported, mesh: Mesh | None = None):
        super().__init__(None, mesh)
        self.content, self.exported = content, exported
        _, self.name, self.digest = exported.fun_name.split(" ")
        (images,), (embeddings,) = exported.in_avals, exported.out_avals
        _, height, width, self.channels = images.shape
        self.photograph, self.embedding_size = (height, width), embeddings.shape[1]
        self._called = jax.jit(exported.call)

    def apply(self, images: jax.Array) -> jax.Array:
        return self._called(images)

    def save(self, path: str | os.PathLike) -> None:
        with replacing(path) as file:
            file.write(self.content)


def read(path: str | os.PathLike, mesh: Mesh | None = None) -> ExportedEncoder:
    """The encoder in a `.stablehlo` file; ValueError that names the file where it holds something else."""
    with extra("export"):
        import flatbuffers  # noqa: F401

    content = pathlib.Path(path).read_bytes()
    try:
        exported = jax_export.deserialize(bytearray(content))
        if exported.fun_name.startswith(f"{MAKER} "):
            return ExportedEncoder(content, exported, mesh)
    except Exception as error:  # flatbuffers raises nearly every kind over what is none
        raise ValueError(f"{path} is no StableHLO that `metricjax.export` wrote, or a damaged one ({error})") from None
    raise ValueError(f"{path} holds {exported.fun_name}; wanted an encoder that `metricjax.export` wrote")
