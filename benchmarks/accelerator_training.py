"""The jobs of `benchmarks.accelerator` that train: a face encoder with its head, and many small ones in one program."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metricjax as mj
from benchmarks.accelerator_jobs import Job


class Training(NamedTuple):
    """What is trained on one kind of machine."""

    depth: int | tuple[int, ...]
    widths: tuple[int, ...]
    pixels: int
    features: int
    classes: int
    batch: int
    images: int  # in the record file
    seeds: int  # of the variants; four times four are the others' settings
    steps: int  # of each variant


LARGE = Training(50, (64, 128, 256, 512), 112, 512, 93_431, 256, 1024, 4, 50)
SMALL = Training((1, 1, 1, 1), (4, 4, 8, 8), 32, 16, 100, 8, 64, 1, 2)
THREADS = min(16, os.cpu_count() or 1)


def photographs(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth grey images [count, height, width, 1], which take as many bytes as faces do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, -(-height // 8), -(-width // 8)))
    images = np.kron(coarse, np.ones((8, 8), int))[:, :height, :width] + rng.integers(-8, 9, (count, height, width))
    return np.clip(images, 0, 255).astype(np.uint8)[..., None]


# --- a face encoder -------------------------------------------------------------------------------------------------


@cache
def parts(size: Training):
    """The encoder's structure, and shapes of its parameters and of its statistics."""
    from flax import nnx

    shape = (size.pixels, size.pixels, 3)
    make = lambda: mj.encoders.IResNet(
        size.depth, size.features, shape, widths=size.widths, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    return nnx.split(nnx.eval_shape(make), nnx.Param, ...)


def optimizer():
    import optax

    return optax.sgd(0.1, momentum=0.9)


def initial(size: Training, seed):
    """The state of a training, of plain numbers: which ones they are does not change the time; images and labels."""
    _, weights, statistics = parts(size)

    def filled(leaf):
        number = jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape) + seed
        return (0.05 * jnp.sin(number) if leaf.ndim > 1 else jnp.ones(leaf.shape)).astype(leaf.dtype)

    prototypes = jax.ShapeDtypeStruct((size.classes, size.features), jnp.float32)
    params, statistics = jax.tree.map(filled, ({"encoder": weights, "prototypes": prototypes}, statistics))
    images = jax.random.bits(jax.random.key(seed), (size.batch, size.pixels, size.pixels, 3), jnp.uint8)
    labels = jnp.arange(size.batch, dtype=jnp.int32) % size.classes
    return params, statistics, optimizer().init(params), images, labels


def step(size: Training, params, statistics, momentum, images, labels):
    """One update; the value comes first."""
    import optax
    from flax import nnx

    graph = parts(size)[0]

    def loss(params):
        network = nnx.merge(graph, params["encoder"], statistics, copy=True)
        network.train()
        z = network.features((images.astype(jnp.float32) - 127.5) / 127.5)
        return mj.losses.arcface(z, labels, params["prototypes"]), nnx.split(network, nnx.Param, ...)[2]

    (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, momentum = optimizer().update(gradient, momentum, params)
    return value, optax.apply_updates(params, updates), statistics, momentum


STEP = "step alone"


def written(size: Training, folder: pathlib.Path) -> pathlib.Path:
    """A RecordIO set of JPEG images in the folder."""
    from benchmarks.input_pipeline import write_records

    images = photographs(size.images, size.pixels, size.pixels)
    return write_records(folder, mj.data.Faces(images, np.arange(size.images) % size.classes, [], []))


@contextlib.contextmanager
def fed(size: Training, folder, data, programs) -> Iterator[dict]:
    """Batches read and decoded by threads, and the same with a step for each; long enough that none lie ready."""
    source = mj.data.RecordSource(folder, (size.pixels, size.pixels))
    sampler = partial(mj.samplers.uniform_batches, len(source), size.batch, seed=0)
    batches, count = mj.data.batches(source, sampler, threads=THREADS), 4 * THREADS

    def read():
        for _ in range(count):
            next(batches)

    def trained():
        *state, _, _ = data
        for _ in range(count):
            batch = next(batches)
            value, *state = programs[STEP](*state, batch["images"], batch["labels"])
        return value

    try:
        yield {"input alone": (read, count)} | ({"step fed by it": (trained, count)} if STEP in programs else {})
    finally:
        batches.close()


def face_training(size: Training, folder: pathlib.Path) -> Job:
    depth = f"IResNet-{size.depth}" if isinstance(size.depth, int) else "a small IResNet"
    job = Job(f"{depth} + arcface of {size.classes:,}, batch {size.batch}", partial(initial, size))
    job = job._replace(forms={STEP: partial(step, size)}, base=STEP, work=(size.batch, "images/s"))
    value = lambda result: None if result is None else float(jax.tree.leaves(result)[0])
    seen = lambda data, kept: {form: {"loss": loss} for form, loss in kept.items() if loss is not None}
    job = job._replace(kept=value, seen=seen, first_to_compile=True)
    return job._replace(prepare=partial(written, size, folder), others=partial(fed, size))


# --- many small ones ------------------------------------------------------------------------------------------------


def ready(size: Training):
    """The task of benchmarks/variants.py with images of nobody, and a grid; one step is made, which compiles them."""
    from benchmarks import faces
    from benchmarks.variants import LOSSES, one_at_a_time, optimizer

    name = next(iter(LOSSES))
    images = photographs(400, *faces.SIZE) / np.float32(64) - 2
    people = faces.Faces(jnp.asarray(images), np.arange(400) // 10)
    task = faces.task(people, {name: LOSSES[name]}, optimizer, size.seeds, size.steps)
    settings = {"margin": (0.1, 0.2, 0.3, 0.4), "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3)}
    grid = mj.variants.product([name], range(size.seeds), constraint=[0], **settings)
    mj.variants.train(task, grid, 1, at_once=len(grid))
    one_at_a_time(task, grid[:1], 1)
    return task, grid


def trained(size: Training, prepared) -> dict[str, float]:
    """Seconds of a step of one variant."""
    from benchmarks.variants import one_at_a_time

    task, grid = prepared
    together = mj.variants.train(task, grid, size.steps, at_once=len(grid)).seconds["training"]
    some = grid[:: max(1, len(grid) // 4)]
    _, alone, _ = one_at_a_time(task, some, size.steps)
    return {"one program": together / len(grid) / size.steps, "one at a time": alone / len(some) / size.steps}


def many_variants(size: Training) -> Job:
    job = Job(f"{16 * size.seeds} variants of a small network", base="one at a time", work=(1, "variant-steps/s"))
    return job._replace(prepare=partial(ready, size), by_itself=partial(trained, size), first_to_compile=True)
