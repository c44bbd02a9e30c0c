"""Momentum contrast: an encoder of faces from photographs without names, by two views of each and a queue of keys.

python -m pip install -e ".[examples]"
python examples/momentum_contrast.py   # about two minutes on two cores

He et al. 2020, arXiv:1911.05722: of each photograph two views are drawn; one goes through the encoder and is a query,
the other through the running average of the encoder and is its key. The query has to find its own key among those of
the batch and of a queue, a bank of the keys of earlier batches. Training sees the first 20 people of the ORL faces and
no name; only which photograph is which, so that an older key of the same one is not taken for a stranger's.

The table is of the other 20 people: each photograph is searched for among their others, as they are, and with every
photograph turned, shifted and lit anew. Pixels as they are, and the encoder before its training, are to be beaten. The
queue is worth something while batches are small; with `--batch 16` it is worth next to nothing here.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import metricjax as mj
from metricjax import data
from metricjax.data.augmentation import augmented, standardised

SIZE, FEATURES, TRAINED = (28, 23), 64, 20  # of photographs, of embeddings, and people to train with
RATE, MOMENTUM, TEMPERATURE = 0.001, 0.99, 0.1  # of AdamW, of the running average, and of the loss
VIEWS: dict[str, Any] = {"turn": 0.2, "zoom": 0.2, "shift": 0.1, "light": 0.4, "hide": 0.3, "mirror": True}
MOVED: dict[str, Any] = {
    "turn": 0.2,
    "zoom": 0.1,
    "shift": 0.05,
    "light": 0.4,
    "hide": 0.0,
}  # for the second half of the table


def network(key) -> nnx.Module:
    return mj.encoders.SmallConvNet(FEATURES, (*SIZE, 1), rngs=nnx.Rngs(key))


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: network(jax.random.key(0))))


def encode(params, images):
    return nnx.merge(GRAPH, params)(images)


@partial(jax.jit, static_argnums=(0, 1, 2))
def trained(batch: int, capacity: int, steps: int, images, key):
    """The encoder's parameters after all steps."""
    optimizer = optax.adamw(RATE)

    def step(carry, i):
        params, average, state, queue = carry
        to_choose, *to_view = jax.random.split(jax.random.fold_in(key, i), 3)
        numbers = jax.random.permutation(to_choose, len(images))[:batch]
        views = [augmented(key, images[numbers], **VIEWS) for key in to_view]
        keys = encode(average, views[1])

        def loss(params):
            queries = encode(params, views[0])
            # A key is not the query itself: the two are compared.
            options = {**queue.options(keys, numbers, use=capacity > 0), "reference_ids": None}
            return mj.losses.nt_xent(queries, numbers, temperature=TEMPERATURE, **options)

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 1 - MOMENTUM)
        return (params, average, state, queue.push(keys, numbers)), None

    params = nnx.state(network(key), nnx.Param)
    queue = mj.memory.Bank.empty(max(1, capacity), FEATURES)
    carry = params, params, optimizer.init(params), queue
    return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]


def embedders(args, images, key) -> dict[str, Callable[[jax.Array], jax.Array]]:
    learnt = lambda capacity: partial(encode, trained(args.batch, capacity, args.steps, images, key))
    return {
        "pixels": lambda x: x.reshape(len(x), -1),
        "before training": partial(encode, nnx.state(network(key), nnx.Param)),
        f"{args.batch} keys": learnt(0),
        f"{args.batch} keys, {args.capacity} in a queue": learnt(args.capacity),
    }


def main(argv=None) -> dict[str, np.ndarray]:
    """For each way, [seeds, 4]."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("steps", 1000), ("seeds", 5), ("batch", 4), ("capacity", 128)):
        parser.add_argument(f"--{name}", type=int, default=number)
    args, started = parser.parse_args(argv), time.perf_counter()
    faces = data.orl(SIZE)
    images, labels = standardised(jnp.asarray(faces.images, jnp.float32)), jnp.asarray(faces.labels)
    seen, found = labels < TRAINED, defaultdict[str, list[list[float]]](list)
    for key in map(jax.random.key, range(args.seeds)):
        shown = images[~seen], augmented(jax.random.fold_in(key, args.steps), images[~seen], **MOVED)
        for name, embed in embedders(args, images[seen], key).items():
            measured = [mj.metrics.retrieval(embed(x), labels[~seen], ks=(1,)) for x in shown]
            found[name].append([float(one[what]) for one in measured for what in ("recall@1", "map@r")])
    titles = ("recall@1", "MAP@R", "moved: recall@1", "MAP@R")
    print(f"{'mean over seeds: ' + str(args.seeds):28}" + "".join(f"{title:>17}" for title in titles))
    for name, numbers in found.items():
        errors = np.std(numbers, axis=0, ddof=min(1, args.seeds - 1)) / args.seeds**0.5
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(np.mean(numbers, axis=0), errors, strict=True)]
        print(f"{name:28}" + "".join(f"{cell:>17}" for cell in cells))
    print(f"\n{time.perf_counter() - started:.0f} s")
    return {name: np.array(numbers) for name, numbers in found.items()}


if __name__ == "__main__":
    main()
