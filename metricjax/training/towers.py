"""Two towers: encoders of two kinds of input, trained so that what belongs together lies close together.

from metricjax.training import TowerRecipe, TowerTrainer

trainer = TowerTrainer(TowerRecipe("clip", steps=1000, batch=256), image_encoder, text_encoder)
trainer.fit(images, tokens)
mj.metrics.both_ways(trainer.embed_x(new_images), trainer.embed_y(new_tokens))
"""

import dataclasses
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import metricjax as mj
from metricjax.trained import mesh as meshes
from metricjax.trained.design import split
from metricjax.trained.run_folder import not_finite

__all__ = ["LOSSES", "Tower", "TowerRecipe", "TowerTrainer", "tower"]

# Where papers begin to learn the scale and the bias: Radford et al. 2021 at 1/0.07, Zhai et al. 2023 at 10 and −10.
LOSSES: dict[str, dict[str, float]] = {
    "clip": {"scale": 1 / 0.07},
    "siglip": {"scale": 10.0, "bias": -10.0},
    "info_nce": {"scale": 1 / 0.07},
}
ROWS = 256  # that are embedded at a time


@dataclasses.dataclass(frozen=True)
class TowerRecipe:
    """How two towers are trained.

    loss: "clip", "siglip", or "info_nce", whose queries are the rows of x only.
    steps: of the whole training, whose learning rate warms up for a tenth of them and falls by a cosine.
    batch: pairs, of all devices together; each is compared with all others.
    scale, bias: what the learnt scale of the cosines, and SigLIP's bias, begin at; default as in the papers.
    most_scale: the scale is kept between 1 and it, as in the code of CLIP's reproductions, where it is 100 for all
        losses; the paper of SigLIP has no such limit.
    average: of the last 1 / (1 − average) steps or so are the weights that embed, none at 0.
    """

    loss: str
    steps: int
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    scale: float | None = None
    bias: float | None = None
    most_scale: float = 100.0
    average: float = 0.99
    seed: int = 0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; wanted one of {', '.join(LOSSES)}")
        if self.bias is not None and "bias" not in LOSSES[self.loss]:
            raise ValueError(f"bias is {self.bias}; {self.loss} has none")
        if self.scale is not None and not 1 <= self.scale <= self.most_scale:
            raise ValueError(f"scale is {self.scale}; wanted 1 to most_scale, {self.most_scale}")
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")


class Tower(NamedTuple):
    """An encoder as a step sees it.

    apply: `(params, rest, inputs, training) -> (embeddings [n, d], rest)`, of any length.
    params: what is learnt; rest: what else changes, statistics of batch normalisation for example.
    """

    apply: Callable[[Any, Any, Any, bool], tuple[jax.Array, Any]]
    params: Any
    rest: Any = ()


def tower(encoder: Any) -> Tower:
    """The tower of an NNX module, called on the inputs; or of `(function, params)`, as in Linen, Equinox and plain JAX.

    The function is called as `function(params, inputs) -> embeddings [n, d]`. Inputs are any pytree of arrays with one
    row for each example, tokens and their mask for instance.
    """
    if isinstance(encoder, Tower):
        return encoder
    if isinstance(encoder, nnx.Module):
        structure, params, rest = split(encoder)

        def apply(params, rest, inputs, training):
            network = nnx.merge(structure, params, rest, copy=True)
            network.train() if training else network.eval()
            embeddings = network(inputs)
            return embeddings, split(network)[2]

        return Tower(apply, params, rest)
    if isinstance(encoder, tuple) and len(encoder) == 2 and callable(encoder[0]):
        function, params = encoder
        return Tower(lambda params, rest, inputs, training: (function(params, inputs), rest), params)
    raise TypeError(f"an encoder is a {type(encoder).__name__}; wanted an nnx.Module, (function, params), or a Tower")


class TowerTrainer:
    """The state of two towers (`x` and `y`, or one that both inputs go through), and the jitted step that acts on it.

    Rows of a batch are split over the devices, and every row is compared with all rows of all devices; weights are
    everywhere the same. `fit` trains on arrays in memory; a loop of one's own calls `step`, and `Checkpoints(folder,
    trainer)` keeps the state.
    """

    def __init__(
        self,
        recipe: TowerRecipe,
        encoder_x: Any,
        encoder_y: Any = None,
        *,
        prepare: Callable[[jax.Array, Any, Any], tuple[Any, Any]] = lambda key, x, y: (x, y),
        devices=None,
    ):
        """
        Args:
          encoder_x, encoder_y: see `tower`; without the second, the first encodes both.
          prepare: `(key, x, y) -> (x, y)`, called in every step before the encoders: augmentation, for example.
          devices: default all.
        """
        self.recipe, self.prepare, self.mesh = recipe, prepare, meshes.data_mesh(devices)
        towers = {"x": tower(encoder_x)} | ({} if encoder_y is None else {"y": tower(encoder_y)})
        self.of = {"x": "x", "y": "y" if "y" in towers else "x"}  # the tower of either input
        self._apply = {name: each.apply for name, each in towers.items()}
        rate = optax.warmup_cosine_decay_schedule(0, recipe.learning_rate, recipe.steps // 10, recipe.steps)
        by_kind = {"tower": optax.adamw(rate, weight_decay=recipe.weight_decay), "loss": optax.adam(rate)}
        self.optimizer = optax.partition(by_kind, {**dict.fromkeys(towers, "tower"), "loss": "loss"})
        whole = NamedSharding(self.mesh, PartitionSpec())
        weights = {part: {n: getattr(t, part) for n, t in towers.items()} for part in ("params", "rest")}
        self.placement = jax.tree.map(lambda _: whole, jax.eval_shape(self._initial, weights))
        self.state = jax.jit(self._initial, out_shardings=self.placement)(jax.device_put(weights, whole))
        self._compiled: jax.stages.Compiled | None = None
        self._encode = jax.jit(self._encoded, static_argnums=0)

    def _initial(self, weights):
        """The first state, all of it copies: steps give their state away."""
        given = {"scale": self.recipe.scale, "bias": self.recipe.bias}
        first = {n: value if given[n] is None else given[n] for n, value in LOSSES[self.recipe.loss].items()}
        learnt = {"log_scale": jnp.log(jnp.float32(first["scale"]))}
        if "bias" in first:
            learnt["bias"] = jnp.float32(first["bias"])
        own, average = jax.tree.map(jnp.copy, (weights, weights))
        params = {**own["params"], "loss": learnt}
        return {
            "params": params,
            "rest": own["rest"],
            "average": average,  # what embeds
            "optimizer": self.optimizer.init(params),
        }

    # --- a step -------------------------------------------------------------------------------------------------------

    def loss(self, params, rest, x, y, groups=None):
        """The loss of a batch, and the new `rest` and both embeddings."""
        rest, embedded = dict(rest), []
        for side, inputs in (("x", x), ("y", y)):
            name = self.of[side]
            z, rest[name] = self._apply[name](params[name], rest[name], inputs, True)
            embedded.append(z)
        if embedded[0].shape != embedded[1].shape:
            shapes = " and ".join(str(z.shape) for z in embedded)
            raise ValueError(f"the encoders gave embeddings of shapes {shapes}; wanted one shape [n, d]")
        scale, options = jnp.exp(params["loss"]["log_scale"]), {} if groups is None else {"groups": groups}
        hyper = {"temperature": 1 / scale} if self.recipe.loss == "info_nce" else {"scale": scale}
        hyper |= {"bias": params["loss"]["bias"]} if "bias" in params["loss"] else {}
        loss = mj.over_mesh(getattr(mj.losses, self.recipe.loss), "data", self.mesh)
        return loss(*embedded, **hyper, **options), (rest, embedded)

    def _step(self, state, number, batch):
        """One update; everything random is a function of the seed and the step's number."""
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), number)
        x, y = self.prepare(key, batch["x"], batch["y"])
        of_loss = jax.value_and_grad(self.loss, has_aux=True)
        (value, (rest, embedded)), gradient = of_loss(state["params"], state["rest"], x, y, batch.get("groups"))
        updates, optimizer = self.optimizer.update(gradient, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        log_scale = jnp.clip(params["loss"]["log_scale"], 0, np.log(self.recipe.most_scale))
        params = {**params, "loss": {**params["loss"], "log_scale": log_scale}}
        latest = {"params": {name: params[name] for name in self._apply}, "rest": rest}
        share = jnp.maximum(1 - self.recipe.average, 1 / (number + 1))  # all steps alike while there are few
        average = jax.tree.map(partial(_mixed, share), latest, state["average"])
        state = {"params": params, "rest": rest, "average": average, "optimizer": optimizer}
        return state, {"loss": value, "scale": jnp.exp(log_scale), **_seen(*embedded)}

    def placed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """This process's part of a batch, as its part of the arrays that all devices share."""
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        named = {name: batch[name] for name in ("x", "y", "groups") if batch.get(name) is not None}
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(rows, np.asarray(a)), named)

    def compile(self, batch: dict[str, Any]) -> float:
        """Compile the step for batches like this one; returns the seconds that took."""
        started = time.perf_counter()
        pairs = len(jax.tree.leaves(batch["x"])[0]) * jax.process_count()
        if pairs % self.mesh.size:
            raise ValueError(f"batch: {pairs} pairs; wanted a multiple of the {self.mesh.size} devices")
        whole = NamedSharding(self.mesh, PartitionSpec())
        step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.placement, whole))
        self._compiled = step.lower(self.state, np.int32(0), self.placed(batch)).compile()
        return time.perf_counter() - started

    def step(self, number: int, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """One update with this process's part of the batch; returns the numbers to monitor.

        The batch is {"x", "y"}, inputs of which row i belongs with row i, and perhaps "groups", integers: pairs of one
        group are no negatives of each other, as those with equal captions, or of one picture, are none.
        """
        if self._compiled is None:
            self.compile(batch)
        assert self._compiled is not None
        self.state, seen = self._compiled(self.state, np.int32(number), self.placed(batch))
        return seen

    def fit(
        self, x: Any, y: Any, groups: np.ndarray | None = None, progress: Callable = iter
    ) -> dict[str, list[float]]:
        """All steps of the recipe on pairs in memory; returns what was monitored at each.

        `progress`, `tqdm` for example, wraps the range of steps.
        """
        pairs = len(jax.tree.leaves(x)[0])
        if any(len(a) != pairs for a in jax.tree.leaves((x, y, groups))):
            raise ValueError(f"x has {pairs} rows; wanted as many in every array of x, y and groups")
        if self.recipe.batch > pairs:
            raise ValueError(f"batch is {self.recipe.batch}; there are {pairs} pairs, and each comes once in a batch")
        epochs = (
            mj.samplers.uniform_batches(pairs, self.recipe.batch, seed=self.recipe.seed, epoch=e)
            for e in itertools.count()
        )
        batches, seen = itertools.chain.from_iterable(epochs), []
        for number in progress(range(self.recipe.steps)):
            rows = next(batches)
            batch = {"x": x, "y": y} | ({} if groups is None else {"groups": groups})
            numbers = self.step(number, jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], batch))
            # Not a step ahead: virtual devices that share few threads may wait for each other for ever.
            seen.append({name: float(value) for name, value in numbers.items()})
        return {name: [numbers[name] for numbers in seen] for name in seen[0]}

    # --- what comes of it -----------------------------------------------------------------------------------------

    def embed_x(self, inputs: Any) -> np.ndarray:
        """Embeddings [n, d] of length 1."""
        return self._embedded(self.of["x"], inputs)

    def embed_y(self, inputs: Any) -> np.ndarray:
        """Embeddings [n, d] of length 1."""
        return self._embedded(self.of["y"], inputs)

    def _embedded(self, name: str, inputs: Any) -> np.ndarray:
        rows = len(jax.tree.leaves(inputs)[0])
        size = min(ROWS, rows + -rows % self.mesh.size)
        size += -size % self.mesh.size
        split, found = NamedSharding(self.mesh, PartitionSpec("data")), []
        for start in range(0, rows, size):
            index = np.arange(start, start + size).clip(max=rows - 1)
            some = jax.tree.map(lambda a, index=index: _placed(np.asarray(a)[index], split), inputs)
            found.append(np.asarray(self._encode(name, self.state["average"], some)))
        return np.concatenate(found)[:rows]

    def _encoded(self, name, weights, inputs):
        z, _ = self._apply[name](weights["params"][name], weights["rest"][name], inputs, False)
        return jax.lax.with_sharding_constraint(mj.sphere.project(z), NamedSharding(self.mesh, PartitionSpec()))

    def identity(self) -> dict[str, Any]:
        """What a checkpoint and the run that goes on from it must agree on, except `steps`, which may grow."""
        return dataclasses.asdict(self.recipe)

    def descriptions(self) -> dict[str, Any]:
        """What stands beside checkpoints, by the name of the file: nothing, as encoders may be any."""
        return {}

    def not_finite(self) -> list[str]:
        """Names of the arrays of the state that hold NaN or infinity."""
        return not_finite(self.state, self.mesh)


def _placed(rows: np.ndarray, split: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(rows.shape, split, lambda index: rows[index])


def _mixed(share, latest, average):
    """Numbers are averaged; counts and random keys are the latest."""
    return (
        average + (share * (latest - average)).astype(average.dtype)
        if jnp.issubdtype(latest.dtype, jnp.inexact)
        else latest
    )


def _seen(x, y) -> dict[str, jax.Array]:
    """The mean cosine of pairs, and how far the rows of either tower are spread, 0 where they are one point."""
    x, y = mj.sphere.project(x), mj.sphere.project(y)
    spread = lambda z: jnp.sqrt(jnp.sum(jnp.var(z, axis=0)))
    return {"cosine of pairs": jnp.mean(jnp.sum(x * y, axis=-1)), "spread": jnp.minimum(spread(x), spread(y))}
