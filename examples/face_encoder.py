"""A face encoder together with how it wants its photographs: what training leaves, and evaluation and recognition use.

encoder = face_encoder.load("runs/20261122-093000")
embeddings = encoder.embed(images)                              # [n, height, width, channels] uint8 -> [n, d]
"""

import dataclasses
import hashlib
import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import metricjax as mj

FILE = "encoder.json"
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow has it


@dataclasses.dataclass(frozen=True)
class Design:
    """What an encoder is, but for its weights.

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
    """Structure, parameters, and what else there is (statistics of batch normalisation)."""
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
        """The same for the same encoder, and another for any other: embeddings of two encoders do not compare."""
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
    """The encoder that a training left in its folder: of the best checkpoint where it was validated, else the last."""
    run = pathlib.Path(run)
    if not (run / FILE).is_file():
        raise ValueError(f"{run} holds no {FILE}; wanted the folder of a run of train_faces.py")
    written = json.loads((run / FILE).read_text())
    design = Design(**{**written, **{name: tuple(written[name]) for name in ("photograph", "image_size")}})
    with ocp.CheckpointManager((run / "checkpoints").absolute(), options=options(create=False)) as manager:
        step = manager.best_step()
        step = manager.latest_step() if step is None else step
        if step is None:
            raise ValueError(f"{run} holds no checkpoint yet")
        mesh = mesh or data_mesh()
        whole = NamedSharding(mesh, PartitionSpec())
        structure, params, rest = split(nnx.eval_shape(design.network))
        placed = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole)
        like = jax.tree.map(placed, {"params": params, "rest": rest})
        restored = manager.restore(step, args=ocp.args.Composite(encoder=ocp.args.StandardRestore(like)))
    return FaceEncoder(design, structure, restored["encoder"], mesh)


def options(chosen: bool = True, **others) -> ocp.CheckpointManagerOptions:
    """The latest checkpoint, to go on from, and, if any is `chosen` by its equal error rate, the best, to use."""
    policies = ocp.checkpoint_managers
    latest, error = policies.LatestN(1), lambda metrics: metrics["EER"]
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
