"""A face encoder that knows which photographs it takes: training leaves one, evaluation and recognition use it.

encoder = face_encoder.load("runs/20261122-093000")
embeddings = encoder.embed(images)                              # [n, height, width, channels] uint8 -> [n, d]
"""

import dataclasses
import hashlib
import json
import pathlib
from functools import partial
from typing import Any

import checkpoint_digests
import jax
import jax.numpy as jnp
import json_file
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import metricjax as mj

FILE = "encoder.json"
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow has it


@dataclasses.dataclass(frozen=True)
class Design:
    """All of an encoder but its weights.

    photograph: height and width at which photographs are read; image_size: what the network sees of them.
    pixels: "standardised" (each image has mean 0 and variance 1) or "centred" (from −1 to 1).
    """

    name: str
    embedding_size: int
    photograph: tuple[int, int]
    image_size: tuple[int, int]
    channels: int
    pixels: str = "standardised"
    precision: str = "float32"

    def network(self, seed: int = 0, remat: bool = False) -> nnx.Module:
        shape = (*self.image_size, self.channels)
        rngs, dtype = nnx.Rngs(seed), None if self.precision == "float32" else jnp.dtype(self.precision)
        return mj.encoders.create(self.name, self.embedding_size, shape, dtype=dtype, remat=remat, rngs=rngs)

    def seen(self, images):
        """Photographs as the network sees them."""
        images = mj.data.resized(images, self.image_size)
        return mj.data.standardised(images) if self.pixels == "standardised" else mj.data.centred(images)


def split(network: nnx.Module):
    """Structure, parameters, and the rest (statistics of batch normalisation)."""
    return nnx.split(network, nnx.Param, ...)


class FaceEncoder:
    """Weights and design; `embed` uses all devices of the mesh."""

    def __init__(self, design: Design, structure: nnx.GraphDef, weights, mesh: Mesh):
        self.design, self.structure, self.weights, self.mesh = design, structure, weights, mesh

    @property
    def photograph(self) -> tuple[int, int]:
        return self.design.photograph

    def embed(self, images: np.ndarray, size: int = 128) -> np.ndarray:
        """Embeddings of length 1: the sum of those of each photograph and of its mirror image, projected."""
        images = self._with_channels(np.asarray(images))
        if images.shape[1:3] != tuple(self.photograph):
            raise ValueError(f"images are {images.shape[1:3]} in height and width; wanted {tuple(self.photograph)}")
        size += -size % self.mesh.size
        parts = [self._embedded(images[i : i + size], size) for i in range(0, len(images), size)]
        return np.concatenate(parts) if parts else np.zeros((0, self.design.embedding_size), np.float32)

    def _embedded(self, images: np.ndarray, size: int) -> np.ndarray:
        padded = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), images.dtype)])
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        placed = jax.make_array_from_callback(padded.shape, rows, lambda index: padded[index])
        return np.asarray(_embed(self.design, self.structure, self.mesh, self.weights, placed))[: len(images)]

    def _with_channels(self, images: np.ndarray) -> np.ndarray:
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
            raise ValueError(f"images is {images.dtype}{list(images.shape)}; wanted uint8 [n, height, width, 1 or 3]")
        if images.shape[-1] == self.design.channels:
            return images
        if self.design.channels == 3:
            return np.broadcast_to(images, (*images.shape[:-1], 3))
        return np.round(images @ np.array(LUMINANCE))[..., None].astype(np.uint8)

    def fingerprint(self) -> str:
        """A text that differs between any two encoders, whose embeddings do not compare."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.design)).encode())
        for path, leaf in jax.tree.leaves_with_path(self.weights):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()


@partial(jax.jit, static_argnums=(0, 1, 2))
def _embed(design: Design, structure, mesh: Mesh, weights, images):
    network = nnx.merge(structure, weights["params"], weights["rest"])
    network.eval()
    images = design.seen(images)
    one = lambda images: mj.sphere.project(network.features(images))
    both = mj.sphere.project(one(images) + one(images[:, :, ::-1]))
    return jax.lax.with_sharding_constraint(both, NamedSharding(mesh, PartitionSpec()))


def data_mesh(devices=None) -> Mesh:
    """All devices (of all processes) in a row, over which rows of batches are split."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def load(run: str | pathlib.Path, mesh: Mesh | None = None) -> FaceEncoder:
    """The encoder that a training left in its folder: of the best checkpoint where it was validated, else the last.

    Only whole checkpoints count; damaged ones are named, and passed over.
    """
    run = pathlib.Path(run)
    if not (run / FILE).is_file():
        raise ValueError(f"{run} holds no {FILE}; wanted the folder of a run of train_faces.py")
    design = read_design(run / FILE)
    whole, _ = checkpoint_digests.checked(run)
    if not whole:
        raise ValueError(f"{run} holds no checkpoint yet")
    step = min(whole, key=lambda step: _error_of(run, step))  # of equals the latest
    made = besides_arrays(run, step)["identity"]
    for name, value in json.loads(json.dumps(dataclasses.asdict(design))).items():
        if made.get(name) != value:
            raise ValueError(f"{run / FILE} is damaged: {name!r} is {value}; the checkpoint has {made.get(name)}")
    mesh = mesh or data_mesh()
    structure, params, rest = split(nnx.eval_shape(design.network))
    placed = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    like = jax.tree.map(placed, {"params": params, "rest": rest})
    weights = restored(run, step, encoder=ocp.args.StandardRestore(like))["encoder"]
    if broken := not_finite(weights, mesh):
        raise ValueError(f"{run}: the encoder of checkpoint {step} is not finite ({broken[0]})")
    return FaceEncoder(design, structure, weights, mesh)


def read_design(path: pathlib.Path) -> Design:
    """The design in a file, with every part of it checked."""
    written = json_file.read(path)
    size = lambda value: type(value) is int and 0 < value < 2**16
    pair = lambda value: isinstance(value, list) and len(value) == 2 and all(map(size, value))
    good = {
        "name": lambda value: isinstance(value, str) and value in mj.encoders.NAMED,
        "embedding_size": size,
        "photograph": pair,
        "image_size": pair,
        "channels": lambda value: value in (1, 3),
        "pixels": lambda value: value in ("standardised", "centred"),
        "precision": lambda value: value in ("float32", "bfloat16"),
    }
    for field in dataclasses.fields(Design):
        if field.name not in written and field.default is dataclasses.MISSING:
            raise ValueError(f"{path} is damaged: it holds no {field.name!r}")
    for name, value in written.items():
        if name not in good or not good[name](value):
            raise ValueError(f"{path} is damaged: {name!r} is {value!r:.80}")
    values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in written.items()}
    return Design(**values)


def restored(run: pathlib.Path, step: int, **items):
    """Items of a checkpoint."""
    folder = run / checkpoint_digests.CHECKPOINTS
    try:
        with ocp.CheckpointManager(folder.absolute(), options=options(create=False)) as manager:
            return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises nearly every kind over a damaged file
        raise ValueError(f"{folder / str(step)} cannot be read ({in_short(error)})") from None


def besides_arrays(run: pathlib.Path, step: int) -> dict[str, Any]:
    """What a checkpoint holds of its run: identity, history, and position of the input."""
    item = (run / checkpoint_digests.CHECKPOINTS / str(step) / "run").absolute()
    try:
        found = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(item)
        if not isinstance(found["identity"], dict) or not isinstance(found["history"], dict) or "position" not in found:
            raise ValueError("it is not what train_faces.py writes")
    except Exception as error:  # Orbax raises nearly every kind over a damaged file
        raise ValueError(f"{item} cannot be read ({in_short(error)})") from None
    return found


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def _error_of(run: pathlib.Path, step: int) -> float:
    """The equal error rate of a checkpoint; infinity where it was not measured."""
    path = run / checkpoint_digests.CHECKPOINTS / str(step) / "metrics" / "metrics"
    error = json_file.read(path).get("EER") if path.is_file() else None
    return float(error) if isinstance(error, float | int) else np.inf


def not_finite(tree, mesh: Mesh) -> list[str]:
    """Names of the arrays that hold NaN or infinity."""
    arrays = [(path, leaf) for path, leaf in jax.tree.leaves_with_path(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = np.asarray(_finite([leaf for _, leaf in arrays], mesh))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in arrays]
    return [name for name, whole in zip(names, finite, strict=True) if not whole]


@partial(jax.jit, static_argnums=1)
def _finite(arrays, mesh: Mesh):
    each = jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays])
    return jax.lax.with_sharding_constraint(each, NamedSharding(mesh, PartitionSpec()))


def options(chosen: bool = True, **others) -> ocp.CheckpointManagerOptions:
    """Keep the two latest checkpoints, to go on from, and, if one is `chosen` by equal error rate, the best, to use."""
    policies = ocp.checkpoint_managers
    latest, error = policies.LatestN(2), lambda metrics: metrics["EER"]
    if not chosen:
        return ocp.CheckpointManagerOptions(preservation_policy=latest, **others)
    best = policies.BestN(get_metric_fn=error, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    either = policies.AnyPreservationPolicy([latest, best])
    return ocp.CheckpointManagerOptions(preservation_policy=either, best_fn=error, best_mode="min", **others)


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The baseline: pixels less the mean image of the set, to be compared by their cosine."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=0)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
