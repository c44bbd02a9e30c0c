"""metricjax's half of benchmarks/reality_check.py, and what both halves begin with."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import metricjax as mj

SIZE, FEATURES = (28, 28), 64
CONVOLUTIONS = ((5, 16), (3, 32), (3, 64))  # kernel and channels, each with stride 2
CLASSES, IMAGES = 16, 4  # of a batch, and of each of its classes
RATES = {"network": 1e-3, "prototypes": 1e-2}
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
MARGIN, SCALE = 0.5, 16.0  # of ArcFace
EPSILON = 1e-5  # of the norms
THREADS = 2


# --- what both begin with -------------------------------------------------------------------------------------------


class Convolution(NamedTuple):
    """With stride 2, then each image's norm over positions and channels, and GELU."""

    kernel: Any  # [height, width, in, out]
    scale: Any
    bias: Any


class Network(NamedTuple):
    convolutions: list[Convolution]
    kernel: Any  # [positions × channels, features]
    bias: Any


def initial(seed: int, classes: int) -> dict[str, Any]:
    """Weights of the network and a prototype of each class, in NumPy."""
    rng, before, size = np.random.default_rng(seed), 1, np.array(SIZE)

    def kernel(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    convolutions = []
    for width, channels in CONVOLUTIONS:
        scale, bias = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        convolutions.append(Convolution(kernel(width, width, before, channels), scale, bias))
        before, size = channels, -(-size // 2)
    head = kernel(before * int(np.prod(size)), FEATURES), np.zeros(FEATURES, np.float32)
    prototypes = rng.standard_normal((classes, FEATURES)).astype(np.float32)
    return {"network": Network(convolutions, *head), "prototypes": prototypes}


# --- metricjax ------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A loss of features and labels, or with prototypes of these too."""

    loss: Callable
    prototypes: bool = False


LOSSES = {
    "contrastive": Case(functools.partial(mj.losses.contrastive, squared=False, average="valid")),
    "triplet, batch-hard": Case(functools.partial(mj.losses.triplet, distance=mj.distances.chord, margin=None)),
    "multi-similarity, its miner": Case(
        functools.partial(mj.losses.multi_similarity, miner=mj.mining.multi_similarity())
    ),
    "SupCon": Case(mj.losses.supcon),
    "ProxyAnchor": Case(mj.losses.proxy_anchor, prototypes=True),
    "ArcFace": Case(functools.partial(mj.losses.arcface, margin=MARGIN, scale=SCALE), prototypes=True),
}
ENCODER = "encoder alone"  # a loss that costs nothing
ALL = {**LOSSES, ENCODER: Case(lambda z, y: jnp.mean(jnp.square(z)))}
OPTIMIZER = optax.partition(
    {name: optax.adam(rate, **ADAM) for name, rate in RATES.items()}, lambda params: {name: name for name in params}
)


def features(network: Network, images: jax.Array) -> jax.Array:
    """Embeddings of any length: losses and metrics project them."""
    x = images
    for kernel, scale, bias in network.convolutions:
        around = [(width // 2, width // 2) for width in kernel.shape[:2]]
        x = lax.conv_general_dilated(x, kernel, (2, 2), around, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.standardize(x, axis=(1, 2, 3), epsilon=EPSILON) * scale[None, None, None]
        x = jax.nn.gelu(x + bias[None, None, None], approximate=True)
    return x.reshape(len(x), -1) @ network.kernel + network.bias[None]


@functools.partial(jax.jit, static_argnames="name", donate_argnames="state")
def step(name: str, state, images, labels, chosen):
    params, optimizer_state = state

    def loss(params):
        z = features(params["network"], images[chosen])
        return ALL[name].loss(z, labels[chosen], *([params["prototypes"]] if ALL[name].prototypes else []))

    value, gradient = jax.value_and_grad(loss)(params)
    updates, optimizer_state = OPTIMIZER.update(gradient, optimizer_state, params)
    return (optax.apply_updates(params, updates), optimizer_state), value


embeddings = jax.jit(features)


class Ours:
    """A training by metricjax: `step` with the indices of a batch gives the loss before the step."""

    def __init__(self, name: str, params: dict, images: np.ndarray, labels: np.ndarray):
        kept = {key: params[key] for key in ("network", *(["prototypes"] if ALL[name].prototypes else []))}
        params = jax.tree.map(jnp.array, kept)
        self.name, self.state = name, (params, OPTIMIZER.init(params))
        self.data = jnp.asarray(images), jnp.asarray(labels)

    def step(self, chosen: np.ndarray) -> jax.Array:
        self.state, value = step(self.name, self.state, *self.data, chosen)
        return value

    def embed(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(embeddings(self.state[0]["network"], images))


def our_loss(name: str, z: np.ndarray, y: np.ndarray, prototypes: np.ndarray) -> Callable:
    """Value and gradient of a loss alone, to be timed."""
    arrays = (jnp.asarray(z), jnp.asarray(prototypes)) if ALL[name].prototypes else (jnp.asarray(z),)
    labels = jnp.asarray(y)
    loss = lambda arrays: ALL[name].loss(arrays[0], labels, *arrays[1:])
    graded = jax.jit(jax.value_and_grad(loss))
    return lambda: graded(arrays)
