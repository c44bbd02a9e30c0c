"""What benchmarks that train encoders of faces have in common: arguments, data, task, evaluation.

The ORL faces, 32 × 28 pixels: people s1 to s20 to train on, with mirrored faces as twenty more, s21 to s40 to test on.
Each image to train on comes in twenty copies, turned, shifted, lit differently and partly hidden.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

import metricjax as mj
from metricjax.trained.baseline import raw_pixels as flattened
from metricjax.training import many_trainings
from metricjax.variants import Task, Trained

SIZE, FEATURES = (32, 28), 64
PEOPLE, IMAGES = 20, 3  # of a batch, and of each of its people
COPIES = 20
AUGMENTATION = {"turn": 0.2, "zoom": 0.15, "shift": 0.1, "light": 0.2, "hide": 0.5}
COLLAPSED = 0.1  # embeddings of less spread count as collapsed; those that lie evenly have a spread of 1


class Faces(NamedTuple):
    images: jax.Array  # [n, 32, 28, 1]
    labels: np.ndarray


def load() -> tuple[Faces, Faces]:
    """The faces to train on, and those to test on."""
    faces = mj.data.orl()
    trained = np.arange(len(faces.people)) < len(faces.people) // 2
    seen, unseen = (faces.of_people(people) for people in (trained, ~trained))
    images, labels = many_trainings.with_mirror_images(seen)
    small = lambda images: mj.data.scaled(jnp.asarray(images), SIZE)
    return Faces(small(images), labels), Faces(small(unseen.images), unseen.labels)


def network(key) -> nnx.Module:
    return mj.encoders.SmallConvNet(FEATURES, (*SIZE, 1), rngs=nnx.Rngs(key))


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: network(jax.random.key(0))))


def features(params, images):
    """Embeddings of any length."""
    return nnx.merge(GRAPH, params).features(images)


def task(
    faces: Faces, losses: Mapping[str, Callable], optimizer: Callable, seeds: int, steps: int, strength: float = 1.0
) -> Task:
    """Losses `(embeddings, labels, numbers) -> scalar`; variants of one seed begin alike and see the same batches.

    `strength` multiplies what `data.augmented` changes at most.
    """
    index = many_trainings.batches(faces.labels, PEOPLE, IMAGES, range(seeds), steps)
    labels = jnp.asarray(faces.labels)
    limits = {name: strength * limit for name, limit in AUGMENTATION.items()}
    augmented = jax.jit(lambda key: mj.data.augmented(key, faces.images, **limits))
    copies = jnp.stack([augmented(key) for key in jax.random.split(jax.random.key(0), COPIES)])

    def batch(seed, step):
        chosen = index[seed, step]
        copy = jax.random.randint(jax.random.fold_in(jax.random.key(seed), step), chosen.shape, 0, COPIES)
        return copies[copy, chosen], labels[chosen]

    return Task(
        init=lambda key: nnx.state(network(key), nnx.Param),
        embed=lambda params, batch: features(params, batch[0]),
        losses={name: lambda params, z, batch, n, f=f: f(z, batch[1], n) for name, f in losses.items()},
        batch=batch,
        optimizer=optimizer,
        watch=lambda z, batch: mj.metrics.health(z, batch[1]),
    )


def evaluated(trained: Trained, faces: Faces) -> dict[str, np.ndarray]:
    """Verification and retrieval of people never seen, spread, and whether it collapsed, for each variant."""
    embeddings = jax.jit(lambda params: jax.lax.map(lambda p: mj.sphere.project(features(p, faces.images)), params))
    rows = []
    for z in tqdm(np.asarray(embeddings(trained.params)), "evaluating", unit=" variants", leave=False):
        if not np.all(np.isfinite(z)):
            rows.append({"diverged": 1.0})
            continue
        spread = float(np.sqrt(np.sum(np.var(z, axis=0))))
        found = many_trainings.measured(z, faces.labels)
        rows.append(found | {"spread": spread, "collapsed": float(spread < COLLAPSED), "diverged": 0.0})
    names = ("EER", "TAR@FAR=0.01", "recall@1", "MAP@R", "spread", "collapsed", "diverged")
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def raw_pixels(faces: Faces) -> float:
    """The baseline's equal error rate: pixels less the mean image."""
    return many_trainings.measured(flattened(np.asarray(faces.images)), faces.labels)["EER"]


def parser(description: str | None, seeds: int) -> argparse.ArgumentParser:
    """With the arguments that these benchmarks share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=int, default=200)
    made.add_argument("--seeds", type=int, default=seeds)
    at_once = "number of variants under one vmap; auto measures which is fastest"
    made.add_argument("--at-once", type=number_or_auto, default="auto", help=at_once)
    made.add_argument("--devices", type=int, help="default: all there are; a CPU counts as one for each core")
    return made


def number_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)
