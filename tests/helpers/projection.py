"""An encoder that needs no training."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import metricjax as mj
from metricjax.trained import people_of_run


class Projection(mj.Encoder):
    """Stands in for a trained encoder: a random projection of grey pixels, another for each folder of a run."""

    photograph, channels = (28, 23), 1

    def __init__(self, run: pathlib.Path, mesh=None):
        super().__init__(people_of_run.read(run), mesh)
        self.name, self.digest = run.name, f"the encoder {run.name}"
        self.embedding_size = 3 if "poor" in run.name else 32
        rng = np.random.default_rng(list(run.name.encode()))
        self.matrix = jnp.asarray(rng.normal(size=(28 * 23, self.embedding_size)), jnp.float32)

    def apply(self, images: jax.Array) -> jax.Array:
        pixels = images.reshape(len(images), -1).astype(jnp.float32)
        return mj.sphere.project((pixels - pixels.mean(axis=1, keepdims=True)) @ self.matrix)


class Pixels(mj.Encoder):
    """Pixels less their mean."""

    name, digest, photograph, channels, embedding_size = "pixels", "pixels", (12, 10), 1, 120

    def __init__(self, run: pathlib.Path, mesh=None):
        super().__init__(people_of_run.read(run), mesh)

    def apply(self, images: jax.Array) -> jax.Array:
        flat = images.reshape(len(images), -1).astype(jnp.float32)
        return mj.sphere.project(flat - flat.mean(axis=1, keepdims=True))
