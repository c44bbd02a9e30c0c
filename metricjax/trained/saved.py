"""An encoder in one file: an .npz of its weights, its design, and the record of its people."""

import json
import os
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metricjax.ground.files import read_arrays, write_arrays
from metricjax.trained import mesh as meshes
from metricjax.trained.design import design_of, split
from metricjax.trained.encoder import NetworkEncoder

__all__ = ["read", "write"]

DESIGN, RECORD, WEIGHTS = "design", "record", "weights/"


def write(path: str | os.PathLike, encoder: NetworkEncoder) -> None:
    """All of the encoder, with a digest by which damage is noticed."""
    arrays = {name: np.asarray(leaf) for name, leaf in _named(encoder.weights).items()}
    notes = {DESIGN: encoder.description, RECORD: encoder.record}
    write_arrays(path, {**arrays, **{name: np.array(json.dumps(note)) for name, note in notes.items()}})


def read(path: str | os.PathLike, mesh: Mesh | None = None) -> NetworkEncoder:
    """The encoder that `write` wrote; ValueError that names the file and what is wrong with it."""
    arrays = read_arrays(path)
    try:
        written = _note(arrays, DESIGN) or {}
        mirrored = written.pop("mirrored", True) is not False
        design = design_of(written, "its design")
        record = _note(arrays, RECORD)
    except ValueError as error:
        raise ValueError(f"{path} is not an encoder that `save` wrote ({error})") from None
    structure, params, rest = split(nnx.eval_shape(design.network))
    like = {"params": params, "rest": rest}
    wanted = _named(like)
    if {n: (a.shape, a.dtype) for n, a in arrays.items()} != {n: (a.shape, a.dtype) for n, a in wanted.items()}:
        raise ValueError(f"{path} holds weights that are not those of its design, {design.name}")
    for name, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{path} holds an encoder that is not finite ({name.removeprefix(WEIGHTS)})")
    for part, state in like.items():
        found = jax.tree.map_with_path(lambda path, _, part=part: arrays[_name(part, path)], nnx.to_pure_dict(state))
        nnx.replace_by_pure_dict(state, found)
    mesh = mesh or meshes.data_mesh()
    weights = jax.device_put(like, NamedSharding(mesh, PartitionSpec()))
    return NetworkEncoder(design, structure, weights, record, mesh, mirrored)


def _note(arrays: dict[str, np.ndarray], name: str) -> Any:
    note = arrays.pop(name, np.zeros(0))
    if note.dtype.kind != "U" or note.ndim:
        raise ValueError(f"it holds no {name}")
    found = json.loads(str(note))
    if not isinstance(found, dict | None):
        raise ValueError(f"its {name} is a {type(found).__name__}")
    return found


def _named(weights: dict[str, Any]) -> dict[str, Any]:
    """Arrays by names that do not depend on how Flax keeps them."""
    parts = ((part, jax.tree.leaves_with_path(nnx.to_pure_dict(state))) for part, state in weights.items())
    return {_name(part, path): leaf for part, leaves in parts for path, leaf in leaves}


def _name(part: str, path: tuple) -> str:
    return f"{WEIGHTS}{part}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
