"""Face embeddings from photographs to a file that recognises people, step by step: to read, to copy, to change.

python -m pip install -e ".[faces]"
python examples/faces_in_one_file.py          # the ORL faces, one or two minutes on two cores
metricjax recognize trial --checkpoint runs/faces_in_one_file/faces.npz

`metricjax train` does the same with any data, loss and encoder, on all devices, with checkpoints. This is what it comes
to: an encoder of Flax, an optimiser of Optax, and losses, samplers and metrics of metricjax, which are plain functions.
"""

import argparse
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import metricjax as mj

EMBEDDING = 128


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/faces_in_one_file"), help="of results")
    return parser.parse_args(argv)


def main(argv=None) -> dict[str, float]:
    args = arguments(argv)

    # Photographs of 40 people: half to train on, half to test on. A mirrored face counts as somebody else's.
    faces = mj.data.orl()
    trained = np.arange(len(faces.people)) < len(faces.people) // 2
    source = mj.data.mirrored(mj.data.ArraySource(faces.of_people(trained)))
    tested = faces.of_people(~trained)
    people = len(source.people)

    # Batches of 40 people and two photographs of each, epoch after epoch, read ahead in threads.
    sampler = partial(mj.samplers.pk_batches, source.labels, people, 2, seed=args.seed)
    batches = mj.data.batches(source, sampler)

    # The encoder, with all that is done to a photograph; its weights are a pytree, and so are the prototypes of people.
    design = mj.trained.Design("small_resnet", EMBEDDING, photograph=(112, 92), image_size=(64, 56), channels=1)
    graph, weights, rest = mj.trained.split(design.network(args.seed))  # structure, parameters, anything else
    prototypes = mj.sphere.random_uniform(jax.random.key(args.seed), (people, EMBEDDING))
    params = {"encoder": weights, "prototypes": prototypes}

    # Prototypes stay on the unit sphere: they are projected to it after each update.
    rate = optax.warmup_cosine_decay_schedule(0, 1e-3, args.steps // 10, args.steps)
    on_sphere = optax.chain(optax.adam(rate), mj.transforms.project_to_sphere())
    by_part = {"encoder": optax.adamw(rate, weight_decay=0.1), "prototypes": on_sphere}
    optimizer = optax.partition(by_part, {"encoder": "encoder", "prototypes": "prototypes"})

    def loss(params, images, labels):
        embeddings = nnx.merge(graph, params["encoder"], rest)(images)
        pulled = mj.losses.cosface(embeddings, labels, params["prototypes"], scale=16.0, margin=0.2)
        return pulled + mj.losses.supcon(embeddings, labels), embeddings

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, average, key, images, labels):
        images = mj.data.augmented(key, design.seen(images))
        (value, embeddings), gradient = jax.value_and_grad(loss, has_aux=True)(params, images, labels)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params["encoder"], average, step_size=0.01)
        return params, state, average, value, mj.metrics.health(embeddings, labels)["spread"]

    state, average = optimizer.init(params), jax.tree.map(jnp.copy, weights)
    keys = jax.random.split(jax.random.key(args.seed), args.steps)
    with tqdm(zip(keys, batches, strict=False), "training", total=args.steps, unit=" steps") as bar:
        for number, (key, batch) in enumerate(bar, 1):
            given = key, batch["images"], batch["labels"]
            params, state, average, value, spread = step(params, state, average, *given)
            if number % 10 == 0 or number == args.steps:
                bar.set_postfix(loss=f"{value:.3f}", spread=f"{spread:.2f}")  # 1: evenly spread; 0: fallen to a point

    # People never seen: all pairs of their photographs, and each photograph's nearest neighbours.
    encoder = mj.trained.NetworkEncoder(design, graph, {"params": average, "rest": rest})
    embeddings = encoder(tested.images)
    scores = mj.metrics.pair_scores(embeddings, tested.labels)
    found = {"EER": scores.roc.equal_error_rate(), "TAR@FAR=0.01": scores.roc.tar_at_far(0.01)}
    found |= {name: mj.metrics.retrieval(embeddings, tested.labels, ks=(1,))[name] for name in ("recall@1", "map@r")}
    print(*(f"{name:14}{value:.3f}" for name, value in found.items()), sep="\n")

    args.out.mkdir(parents=True, exist_ok=True)
    mj.plots.score_histograms({"embeddings": scores}).savefig(args.out / "scores.png", dpi=120)
    encoder.save(args.out / "faces.npz")  # mj.load reads it, and the commands recognize, evaluate and export take it
    return found


if __name__ == "__main__":
    main()
