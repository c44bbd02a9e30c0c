"""The training of train_faces.py: its state, split over all devices, and one step of it.

Rows of a batch are split over the devices, and class prototypes (and their centres and moments) by class. Weights of
the encoder are everywhere the same. Every loss sees the whole batch, as does batch normalisation.
"""

import time
from functools import partial

import face_encoder
import jax
import jax.numpy as jnp
import losses_by_name
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import metricjax as mj

ROWS = 64  # prototypes are filled up to a multiple of it, so that checkpoints fit any number of devices that divides it


class Trainer:
    """The state, and the jitted step that acts on it."""

    def __init__(self, args, design: face_encoder.Design, classes: int, devices=None):
        self.args, self.design, self.classes = args, design, classes
        self.mesh = face_encoder.data_mesh(devices)
        self.rows = -(-classes // ROWS) * ROWS
        if self.rows % self.mesh.size:
            raise ValueError(f"there are {self.mesh.size} devices; wanted a divisor of {ROWS}, for prototypes to split")
        abstract = nnx.eval_shape(partial(design.network, remat=args.remat))
        self.structure, *_ = face_encoder.split(abstract)
        rate = optax.warmup_cosine_decay_schedule(0, args.learning_rate, args.steps // 10, args.steps)
        by_kind = {
            "encoder": optax.adamw(rate, weight_decay=0.1),
            "sphere": losses_by_name.CONSTRAINTS[args.constraint](rate),
            "free": optax.adam(rate),
        }
        made = jax.eval_shape(partial(self._heads, jax.random.key(0)))
        kinds = {"encoder": "encoder", "heads": losses_by_name.kinds(made)}
        self.optimizer = optax.partition(by_kind, kinds)
        self.placement = jax.tree.map_with_path(self._placed, jax.eval_shape(self._initial))
        self.state = jax.jit(self._initial, out_shardings=self.placement)()
        self._compiled: jax.stages.Compiled | None = None

    def _heads(self, key):
        return losses_by_name.heads(self.args.losses, self.classes, self.args.embedding_size, key, self.rows)

    def _initial(self):
        args = self.args
        _, encoder, rest = face_encoder.split(self.design.network(args.seed, args.remat))
        params = {"encoder": encoder, "heads": self._heads(jax.random.key(args.seed + 1))}
        return {
            "params": params,
            "rest": rest,  # statistics of batch normalisation
            "average": {"params": encoder, "rest": rest},  # over the last steps: what is evaluated
            "optimizer": self.optimizer.init(params),
            "kept": losses_by_name.kept(args.losses, self.classes, args.embedding_size, self.rows),
        }

    def _placed(self, path, leaf) -> NamedSharding:
        """Where an array of the state lies: one with a row for each class is split by class."""
        names = {getattr(part, "key", None) for part in path}
        by_class = names & {"heads", "kept"} and leaf.shape[:1] == (self.rows,)
        return NamedSharding(self.mesh, PartitionSpec("data") if by_class else PartitionSpec())

    def placed(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's part of a batch, as its part of the arrays that all devices share."""
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        return {name: jax.make_array_from_process_local_data(rows, batch[name]) for name in ("images", "labels")}

    def encode(self, params, rest, images):
        """Embeddings before they are projected to the sphere, as some losses look at their length; new statistics."""
        encode = partial(_encode, self.structure)
        if self.args.chunk is None:
            return encode((params, rest), images)
        embeddings, rests = mj.cached(encode, self.args.chunk, has_aux=True)((params, rest), images)
        return embeddings, jax.tree.map(lambda a: jnp.mean(a, axis=0, dtype=a.dtype), rests)

    def loss(self, params, rest, kept, images, labels, number, key):
        embeddings, rest = self.encode(params["encoder"], rest, images)
        given = (self.args.losses, embeddings, labels, params["heads"], kept, number, key)
        value, kept = losses_by_name.total_loss(*given, classes=self.classes, mesh=self.mesh)
        return value, (kept, rest, embeddings)

    def _step(self, state, number, images, labels):
        """One update; everything random is a function of the seed and the step's number."""
        key = jax.random.fold_in(jax.random.key(self.args.seed), number)
        images = mj.data.augmented(key, self.design.seen(images), mirror=self.args.mirror == "random")
        gradient_of = jax.value_and_grad(self.loss, has_aux=True)
        params = state["params"]
        (value, aux), gradient = gradient_of(params, state["rest"], state["kept"], images, labels, number, key)
        kept, rest, embeddings = aux
        updates, optimizer = self.optimizer.update(gradient, state["optimizer"], params)
        params = optax.apply_updates(params, updates)
        latest = {"params": params["encoder"], "rest": rest}
        average = optax.incremental_update(latest, state["average"], step_size=0.01)
        state = {"params": params, "rest": rest, "average": average, "optimizer": optimizer, "kept": kept}
        return state, {"loss": value, **mj.metrics.health(embeddings, labels)}

    def compile(self, batch: dict[str, np.ndarray]) -> float:
        """Compile the step for batches like this one; returns the seconds that took."""
        started = time.perf_counter()
        images = len(batch["labels"]) * jax.process_count()
        if images % self.mesh.size:
            raise ValueError(f"--batch: {images} images; wanted a multiple of the {self.mesh.size} devices")
        if self.args.chunk is not None and images % self.args.chunk:
            raise ValueError(f"--chunk is {self.args.chunk}; wanted a divisor of the {images} images of a batch")
        whole = NamedSharding(self.mesh, PartitionSpec())
        step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.placement, whole))
        self._compiled = step.lower(self.state, np.int32(0), **self.placed(batch)).compile()
        return time.perf_counter() - started

    def step(self, number: int, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """One update with this process's part of the batch; returns the numbers to monitor."""
        if self._compiled is None:
            self.compile(batch)
        assert self._compiled is not None
        self.state, seen = self._compiled(self.state, np.int32(number), **self.placed(batch))
        return seen

    def not_finite(self) -> list[str]:
        """Names of the arrays of the state that hold NaN or infinity."""
        return face_encoder.not_finite(self.state, self.mesh)

    def encoder(self) -> face_encoder.FaceEncoder:
        return face_encoder.FaceEncoder(self.design, self.structure, self.state["average"], self.mesh)


def _encode(structure, weights, images):
    network = nnx.merge(structure, *weights, copy=True)  # statistics of its own, to update
    network.train()
    embeddings = network.features(images)
    return embeddings, face_encoder.split(network)[2]
