"""Trained encoders: loaded from runs and files, asked, and exported."""

import os
import pathlib

from jax.sharding import Mesh

from metricjax.ground.extras import extra

with extra("images"):
    from metricjax.trained import exporting, saved
    from metricjax.trained.design import Design, split
    from metricjax.trained.encoder import Encoder, NetworkEncoder
    from metricjax.trained.exporting import export

__all__ = ["Design", "Encoder", "NetworkEncoder", "export", "load", "split"]


def load(run_or_file: str | os.PathLike, *, mesh: Mesh | None = None) -> Encoder:
    """The encoder that a training left in its folder, or that `Encoder.save` or `metricjax.export` wrote to a file.

    Of a run that was validated it is the best checkpoint, else the latest, of those that are whole. A run needs the
    extra `faces` (Orbax), a `.stablehlo` file `export` (flatbuffers). Nothing that a file holds is executed, but what
    it holds of StableHLO.

    Args:
      run_or_file: a folder, an `.npz` file of `save`, or a `.stablehlo` file.
      mesh: of one axis, "data", over which batches are split; default all devices.

    Raises:
      ValueError: it holds no encoder, or a damaged one; the message names it.
      FileNotFoundError: there is no such file or folder.
    """
    path = pathlib.Path(run_or_file)
    if path.is_dir():
        from metricjax.trained import run_folder

        return run_folder.load(path, mesh)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; wanted the folder of a run, or a file of an encoder")
    if path.suffix == ".onnx":
        raise ValueError(f"{path} is for onnxruntime; wanted a run, an .npz file of `save`, or a .stablehlo file")
    return (exporting if path.suffix == ".stablehlo" else saved).read(path, mesh)


def __dir__() -> list[str]:
    return __all__
