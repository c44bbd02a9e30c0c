"""A training of an encoder: its state, split over all devices, and one step of it.

Rows of a batch are split over the devices, and class prototypes (and their centres and moments) by class. Weights of
the encoder are everywhere the same. Every loss sees the whole batch, as does batch normalisation.
"""

import dataclasses
import math
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import metricjax as mj
from metricjax.data.augmentation import AUGMENTATION
from metricjax.trained import mesh as meshes
from metricjax.trained.design import Design, split
from metricjax.trained.encoder import NetworkEncoder
from metricjax.trained.run_folder import FILE, not_finite
from metricjax.training import losses_by_name
from metricjax.training.recipe import Recipe

__all__ = ["ROWS", "Trainer"]

ROWS = 64  # prototypes are filled up to a multiple of it, so that checkpoints fit any number of devices that divides it


class Trainer:
    """The state, and the jitted step that acts on it.

    mirrored: whether the encoder adds the embedding of the mirror image to that of an image, as it does for faces.
    """

    def __init__(self, recipe: Recipe, design: Design, classes: int, devices=None, *, mirrored: bool = True):
        self.recipe, self.design, self.classes, self.mirrored = recipe, design, classes, mirrored
        self.mesh = meshes.data_mesh(devices)
        self.rows = -(-classes // ROWS) * ROWS
        if self.rows % self.mesh.size:
            raise ValueError(f"there are {self.mesh.size} devices; wanted a divisor of {ROWS}, for prototypes to split")
        if recipe.bank % self.mesh.size:
            raise ValueError(f"--bank is {recipe.bank}; wanted a multiple of the {self.mesh.size} devices")
        abstract = nnx.eval_shape(partial(design.network, remat=recipe.remat))
        self.structure, *_ = split(abstract)
        rate = optax.warmup_cosine_decay_schedule(0, recipe.learning_rate, recipe.steps // 10, recipe.steps)
        sphere, free = losses_by_name.CONSTRAINTS[recipe.constraint](rate), optax.adam(rate)
        by_kind = {"encoder": optax.adamw(rate, weight_decay=0.1), "sphere": sphere, "free": free}
        made = jax.eval_shape(partial(self._heads, jax.random.key(0)))
        kinds = losses_by_name.kinds(made)
        self.by_class = losses_by_name.by_class(made, self.rows)
        self.sampled = None if recipe.sampled_classes is None else self._number_sampled(recipe.sampled_classes)
        if self.sampled is not None:
            by_kind |= {"sphere rows": mj.transforms.on_rows(sphere), "free rows": mj.transforms.on_rows(free)}
            kinds = jax.tree.map(lambda kind, rows: kind + " rows" * rows, kinds, self.by_class)
        self.optimizer = optax.partition(by_kind, {"encoder": "encoder", "heads": kinds})
        self.placement = jax.tree.map_with_path(self._placed, jax.eval_shape(self._initial))
        self.state = jax.jit(self._initial, out_shardings=self.placement)()
        self._compiled: jax.stages.Compiled | None = None

    def _number_sampled(self, share: float) -> int:
        """A multiple of the number of devices, of all classes at most."""
        each = self.mesh.size
        return min(math.ceil(share * self.classes / each), self.classes // each) * each

    def _heads(self, key):
        return losses_by_name.heads(self.recipe.losses, self.classes, self.design.embedding_size, key, self.rows)

    def _initial(self):
        recipe = self.recipe
        _, encoder, rest = split(self.design.network(recipe.seed, recipe.remat))
        params = {"encoder": encoder, "heads": self._heads(jax.random.key(recipe.seed + 1))}
        return {
            "params": params,
            "rest": rest,  # statistics of batch normalisation
            "average": {"params": encoder, "rest": rest},  # over the last steps: what is evaluated
            "optimizer": self.optimizer.init(params),
            "kept": losses_by_name.kept(recipe.losses, self.classes, self.design.embedding_size, self.rows),
            **({"bank": mj.memory.Bank.empty(recipe.bank, self.design.embedding_size)} if recipe.bank else {}),
        }

    def start_from(self, weights) -> None:
        """Put weights and statistics of an encoder of this design in place of the random ones."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        placed, average = (jax.device_put(jax.tree.map(jnp.array, weights), whole) for _ in range(2))
        params = {**self.state["params"], "encoder": placed["params"]}
        self.state = {**self.state, "params": params, "rest": placed["rest"], "average": average}

    def _placed(self, path, leaf) -> NamedSharding:
        """Where an array of the state lies: one with a row for each class is split by class, the bank by its rows."""
        names = {getattr(part, "key", None) for part in path}
        by_class = names & {"heads", "kept"} and leaf.shape[:1] == (self.rows,)
        return NamedSharding(self.mesh, PartitionSpec("data") if by_class or "bank" in names else PartitionSpec())

    def placed(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's part of a batch, as its part of the arrays that all devices share."""
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        return {name: jax.make_array_from_process_local_data(rows, batch[name]) for name in ("images", "labels")}

    def encode(self, params, rest, images):
        """Embeddings before they are projected to the sphere, as some losses look at their length; new statistics."""
        encode = partial(_encode, self.structure)
        if self.recipe.chunk is None:
            return encode((params, rest), images)
        embeddings, rests = mj.cached(encode, self.recipe.chunk, has_aux=True)((params, rest), images)
        return embeddings, jax.tree.map(lambda a: jnp.mean(a, axis=0, dtype=a.dtype), rests)

    def loss(self, params, rest, kept, images, labels, number, key, sampled=None, bank=None):
        embeddings, rest = self.encode(params["encoder"], rest, images)
        of_pairs = {} if self.recipe.miner is None else {"miner": losses_by_name.miner_of(self.recipe.miner)}
        if bank is not None:
            of_pairs |= bank.options(mj.sphere.project(embeddings), labels, use=number >= self.recipe.bank_warm_up)
        given = (self.recipe.losses, embeddings, labels, params["heads"], kept, number, key)
        how = {"classes": self.classes, "sampled": sampled, "mesh": self.mesh, "of_pairs": of_pairs}
        value, kept = losses_by_name.total_loss(*given, **how)
        return value, (kept, rest, embeddings)

    def _step(self, state, number, images, labels):
        """One update; everything random is a function of the seed and the step's number."""
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), number)
        amounts = {name: self.recipe.augment * limit for name, limit in AUGMENTATION.items()}
        images = mj.data.augmented(key, self.design.seen(images), mirror=self.recipe.mirror == "random", **amounts)
        gradient_of = jax.value_and_grad(self.loss, has_aux=True)
        sampled = self._sampled(key, labels)
        params = self._of_sampled(state["params"], sampled)
        given = (state["rest"], state["kept"], images, labels, number, key, sampled, state.get("bank"))
        (value, (kept, rest, embeddings)), gradient = gradient_of(params, *given)
        rows = {} if sampled is None else {"rows": sampled}
        updates, optimizer = self.optimizer.update(gradient, state["optimizer"], params, **rows)
        params = self._updated(state["params"], updates, sampled)
        latest = {"params": params["encoder"], "rest": rest}
        average = optax.incremental_update(latest, state["average"], step_size=0.01)
        bank = {"bank": state["bank"].push(mj.sphere.project(embeddings), labels)} if "bank" in state else {}
        state = {"params": params, "rest": rest, "average": average, "optimizer": optimizer, "kept": kept, **bank}
        return state, {"loss": value, **mj.metrics.health(embeddings, labels)}

    def _sampled(self, key, labels):
        """The classes of this step, each once; None for all."""
        if self.sampled is None:
            return None
        return mj.prototypes.sample(jax.random.fold_in(key, 1), labels, self.classes, self.sampled)

    def _of_sampled(self, params, sampled):
        """The parameters that a step sees."""
        if sampled is None:
            return params
        rows = jax.tree.map(lambda a, rows: a[sampled] if rows else a, params["heads"], self.by_class)
        return {**params, "heads": rows}

    def _updated(self, params, updates, sampled):
        if sampled is None:
            return optax.apply_updates(params, updates)
        change = lambda a, u, rows: mj.transforms.apply_to_rows(a, u, sampled) if rows else optax.apply_updates(a, u)
        heads = jax.tree.map(change, params["heads"], updates["heads"], self.by_class)
        return {"encoder": optax.apply_updates(params["encoder"], updates["encoder"]), "heads": heads}

    def compile(self, batch: dict[str, np.ndarray]) -> float:
        """Compile the step for batches like this one; returns the seconds that took."""
        started = time.perf_counter()
        images = len(batch["labels"]) * jax.process_count()
        if images % self.mesh.size:
            raise ValueError(f"--batch: {images} images; wanted a multiple of the {self.mesh.size} devices")
        if self.recipe.chunk is not None and images % self.recipe.chunk:
            raise ValueError(f"--chunk is {self.recipe.chunk}; wanted a divisor of the {images} images of a batch")
        if self.sampled is not None and self.sampled < min(images, self.classes):
            share = f"--sampled-classes {self.recipe.sampled_classes:g} of {self.classes} are {self.sampled}"
            raise ValueError(f"{share}; wanted one for each of the {images} images of a batch, which may be of any")
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

    def identity(self) -> dict[str, Any]:
        """What a checkpoint and the run that goes on from it must agree on, except `steps`, which may grow."""
        recipe = self.recipe
        word = lambda value: getattr(value, "__name__", str(value))
        named = {name: {k: word(v) for k, v in hyper.items()} for name, hyper in recipe.losses.items()}
        made = {"people": self.classes, "losses": named, **dataclasses.asdict(self.design)}
        names = ["batch", "steps", "seed", "learning_rate", "constraint", "mirror", "augment", "sampled_classes"]
        names += ["class_power", "miner", "bank", "bank_warm_up"]
        return made | {name: getattr(recipe, name) for name in names}

    def descriptions(self) -> dict[str, Any]:
        """What stands beside checkpoints, by the name of the file."""
        return {FILE: self.encoder().description}

    def not_finite(self) -> list[str]:
        """Names of the arrays of the state that hold NaN or infinity."""
        return not_finite(self.state, self.mesh)

    def encoder(self) -> NetworkEncoder:
        return NetworkEncoder(
            self.design, self.structure, self.state["average"], mesh=self.mesh, mirrored=self.mirrored
        )


def _encode(structure, weights, images):
    network = nnx.merge(structure, *weights, copy=True)  # statistics of its own, to update
    network.train()
    embeddings = network.features(images)
    return embeddings, split(network)[2]
