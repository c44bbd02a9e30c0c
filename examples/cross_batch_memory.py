"""What a memory bank is worth where batches are small: faces of people never seen, found with and without one.

python -m pip install -e ".[examples]"
python examples/cross_batch_memory.py   # about two minutes on two cores

A small network learns the first 20 people of the ORL faces from batches of a few photographs, drawn evenly, in which
most have no positive. Every other variant has the same first weights and the same batches: the loss of the batch alone;
cross-batch memory, which adds the loss of the batch among a bank of earlier rows (Wang et al. 2020, arXiv:1912.06798,
whose loss and margins are used); and the loss of batch and bank as one. A batch as large as batch and bank together is
what a bank stands in for, at the encoder's cost. The table has, for the other 20 people, each photograph searched for
among their others, the mean over seeds and its standard error; it is written to runs/benchmarks, too.
"""

import argparse
import json
import os
import pathlib
import platform
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import metricjax as mj
from metricjax import data
from metricjax.data.augmentation import augmented, standardised

SIZE, FEATURES, TRAINED = (28, 23), 64, 20  # of photographs, of embeddings, and people to train with
RATE, WARM_UP = 0.001, 0.1  # of AdamW, and the share of the steps that go by before the bank is used

# Pairs by their cosines: positives are pulled together up to 1, negatives pushed apart down to 0.5.
contrastive = partial(mj.losses.contrastive, distance=mj.distances.cosine, margin=0.5, squared=False)


def alone(z, y, bank, use):
    return contrastive(z, y)


def added(z, y, bank, use):
    """The bank has the batch already, without a gradient; no row is compared with its own copy."""
    return contrastive(z, y) + contrastive(z, y, **bank.push(z, y).options(use=use))


def as_one(z, y, bank, use):
    return contrastive(z, y, **bank.options(z, y, use=use))


def variants(batch: int, capacity: int) -> dict:
    """The loss of each, and the number of photographs in a batch."""
    return {
        f"{batch} photographs": (alone, batch),
        f"{batch}, and {capacity} in a bank, added": (added, batch),
        f"{batch}, and {capacity} in a bank, as one": (as_one, batch),
        f"{batch + capacity} photographs": (alone, batch + capacity),
    }


def network(key) -> nnx.Module:
    return mj.encoders.SmallConvNet(FEATURES, (*SIZE, 1), rngs=nnx.Rngs(key))


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: network(jax.random.key(0))))


def encode(params, images):
    return nnx.merge(GRAPH, params)(images)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def trained(loss, batch: int, capacity: int, steps: int, images, labels, key):
    """The encoder's parameters after all steps, and how old the bank's rows are then."""
    optimizer = optax.adamw(RATE)

    def step(carry, i):
        params, state, bank = carry
        to_choose, to_move = jax.random.split(jax.random.fold_in(key, i))
        rows = jax.random.permutation(to_choose, len(labels))[:batch]
        x, y = augmented(to_move, images[rows], mirror=True), labels[rows]

        def value(params):
            z = encode(params, x)
            return loss(z, y, bank, i >= WARM_UP * steps), bank.push(z, y)

        gradient, bank = jax.grad(value, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state, bank), None

    params = nnx.state(network(key), nnx.Param)
    bank = mj.memory.Bank.empty(capacity, FEATURES)
    (params, _, bank), _ = jax.lax.scan(step, (params, optimizer.init(params), bank), jnp.arange(steps))
    return params, bank.staleness()


def main(argv=None) -> dict[str, dict[str, list[float]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("steps", 600), ("seeds", 5), ("batch", 8), ("capacity", 120)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"), help="folder of the table")
    args, results, rows = parser.parse_args(argv), {}, list[dict[str, str]]()
    faces = data.orl(SIZE)
    images, labels = standardised(jnp.asarray(faces.images, jnp.float32)), jnp.asarray(faces.labels)
    seen = labels < TRAINED
    print(f"{'mean over seeds: ' + str(args.seeds):38}{'recall@1':>16}{'MAP@R':>16}{'staleness':>12}{'s a seed':>10}")
    for name, (loss, batch) in variants(args.batch, args.capacity).items():
        started = time.perf_counter()
        found = results[name] = {what: list[float]() for what in ("recall@1", "map@r", "staleness")}
        for key in map(jax.random.key, range(args.seeds)):
            params, age = trained(loss, batch, args.capacity, args.steps, images[seen], labels[seen], key)
            measured = mj.metrics.retrieval(encode(params, images[~seen]), labels[~seen], ks=(1,))
            for what in ("recall@1", "map@r"):
                found[what].append(float(measured[what]))
            found["staleness"].append(float(age) if loss is not alone else 0.0)
        error = lambda numbers: np.std(numbers, ddof=min(1, len(numbers) - 1)) / len(numbers) ** 0.5
        both = [f"{np.mean(found[what]):8.3f} ± {error(found[what]):.3f}" for what in ("recall@1", "map@r")]
        numbers = np.mean(found["staleness"]), (time.perf_counter() - started) / args.seeds
        print(f"{name:38}{both[0]:>16}{both[1]:>16}{numbers[0]:12.1f}{numbers[1]:10.1f}", flush=True)
        rows.append({"photographs": name, "recall@1": both[0].strip(), "MAP@R": both[1].strip()})
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    machine |= {"python": platform.python_version(), "command": "python examples/cross_batch_memory.py"}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cross_batch_memory.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    return results


if __name__ == "__main__":
    main()
