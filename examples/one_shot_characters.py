"""One-shot classification of handwritten characters: which of twenty, of each of which one drawing is known, is this?

python -m pip install -e ".[examples,faces]"
python examples/one_shot_characters.py --hold Greek Latin          # train on three alphabets, test on the two others
python examples/one_shot_characters.py --runs one-shot-classification/all_runs     # train on all, test on Lake's runs

Omniglot (Lake, Salakhutdinov and Tenenbaum 2015, Science 350) has characters of many alphabets, each drawn once by 20
people. In a run, one drawer's drawings of 20 characters of one alphabet are the support; another drawer's drawings of
the same characters are the queries, and each is taken for the character of the nearest of the support. The error is
the share of queries that are taken for another. Nothing of these alphabets is trained on: what is learnt is which
differences between drawings matter.

Of the small background set there are five alphabets only, so a network must be kept from learning them by heart:

- a character turned by 90, 180 or 270 degrees counts as a further character;
- each drawing is turned, stretched, sheared and bent anew in each step, much as another hand would draw it;
- CosFace pulls a character's drawings to its prototype, SupCon to each other; the weights that count are a running
  average;
- the rate falls to 0 by the clock, so that a slower computer takes fewer steps, not longer;
- three networks from different seeds err differently: their embeddings are joined, which averages their cosines;
- in the end each drawing is embedded in several views, slightly moved, and the two closest views of two drawings count.
"""

import argparse
import itertools
import pathlib
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm

import metricjax as mj

SIZE, WAYS, DIMENSIONS = 32, 20, 128  # pixels of a side, characters of a run, length of an embedding
CLASSES, DRAWINGS = 64, 2  # of a batch, and of each of them
RATE, WARM_UP, DECAY, AVERAGE = 0.003, 100, 0.05, 0.995  # of AdamW, and how slowly the average of weights moves
SCALE, MARGIN, TEMPERATURE = 24.0, 0.25, 0.1  # of CosFace, and of SupCon
MOVED = {"turn": 0.25, "stretch": 0.25, "shear": 0.25, "shift": 0.08, "bend": 0.07}  # in training, see `moved`
VIEWS, LESS = 33, 0.8  # how many a drawing has in the end, and how far they are moved, as a share of MOVED; unbent
CHUNK = 32  # drawings embedded at once


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=pathlib.Path, help="folder ALPHABET/characterNN/*.png; by default the small set 2 is downloaded")
    add("--hold", nargs="+", default=[], metavar="ALPHABET", help="alphabets to test on, with 20 characters or more")
    add("--runs", type=pathlib.Path, help="folder of the official runs, run01, run02 …, to test on")
    add("--count", type=int, default=1000, help="random runs over the alphabets held")
    add("--minutes", type=float, default=12.0, help="of training, all networks together")
    add("--networks", type=int, default=3, help="whose similarities are averaged")
    add("--seed", type=int, default=0)
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/one_shot_characters"), help="folder of the figure")
    args = parser.parse_args(argv)
    if not args.hold and args.runs is None:
        parser.error("there is nothing to test on; wanted --hold ALPHABET … or --runs FOLDER")
    for name in ("count", "networks"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; wanted at least 1")
    if not args.minutes > 0:
        parser.error(f"--minutes is {args.minutes}; wanted more than 0")
    return args


# --- runs -----------------------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """images: [n, h, w, 1]; support, queries: [runs, ways], places in images; answers: [runs, ways], of each query."""

    images: np.ndarray
    support: np.ndarray
    queries: np.ndarray
    answers: np.ndarray


def random_runs(drawn: mj.data.Characters, count: int, seed: int) -> Runs:
    """Twenty characters of the one alphabet that was drawn, and two of their drawers, at random."""
    random, characters, drawers = np.random.default_rng(seed), len(drawn.characters), np.unique(drawn.drawer)
    if characters < WAYS:
        raise ValueError(f"{drawn.alphabets[0]} has {characters} characters; wanted {WAYS} or more")
    place = {key: i for i, key in enumerate(zip(drawn.labels.tolist(), drawn.drawer.tolist(), strict=True))}
    runs = []
    for _ in range(count):
        chosen, pair = random.permutation(characters)[:WAYS].tolist(), random.permutation(drawers)[:2].tolist()
        runs.append([[place[character, drawer] for character in chosen] for drawer in pair])
    support, queries = np.array(runs).swapaxes(0, 1)
    return Runs(drawn.images, support, queries, np.tile(np.arange(WAYS), (count, 1)))


def official_runs(folder: pathlib.Path) -> Runs:
    """Lake's runs: each folder runNN holds `class_labels.txt` with a line "runNN/test/… runNN/training/…" a query."""
    images, runs = [], []
    for run in sorted(folder.glob("run[0-9]*/class_labels.txt")):
        pairs = [line.split() for line in run.read_text().splitlines() if line.strip()]
        support = sorted(training for _, training in pairs)
        files = support + [test for test, _ in pairs]
        runs.append([support.index(training) for _, training in pairs])
        images += [
            255 - mj.data.decoded(run.parent.joinpath(*file.split("/")[-2:]), (SIZE, SIZE), "L") for file in files
        ]
    if not runs:
        raise ValueError(f"{folder} holds no runs; wanted folders run01, run02 … with a file class_labels.txt each")
    places = np.arange(len(images)).reshape(len(runs), 2, -1)
    return Runs(np.stack(images), places[:, 0], places[:, 1], np.array(runs))


def taken_for(views, runs: Runs) -> np.ndarray:
    """What each query is taken for, [runs, ways]: the drawing of the support with the closest of all pairs of views.

    views: [n, views, d], of each image.
    """
    views = jnp.asarray(views)

    def one(places):
        queries, support = views[places[0]], views[places[1]]
        similar = mj.similarities.cosine(queries.reshape(-1, queries.shape[-1]), support.reshape(-1, support.shape[-1]))
        closest = jnp.max(similar.reshape(*queries.shape[:2], *support.shape[:2]), axis=(1, 3))
        return jnp.argmax(closest, axis=1)

    return np.asarray(jax.lax.map(one, (jnp.asarray(runs.queries), jnp.asarray(runs.support))))


# --- training -------------------------------------------------------------------------------------------------------


def moved(key, images, turn, stretch, shear, shift, bend):
    """Each drawing turned (radians), stretched along both axes (logarithms), sheared, shifted (share of a side), bent.

    Every amount is drawn evenly up to its limit, either way, for each drawing anew. A bend is a normal displacement of
    4 × 4 points, in halves of a side, and smooth between them.
    """
    n, height, width, _ = images.shape
    keys = jax.random.split(key, 5)
    uniform = lambda key, limit, many: jax.random.uniform(key, (many, n, 1, 1), minval=-limit, maxval=limit)
    y, x = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    down, across = jnp.exp(uniform(keys[1], stretch, 2))
    y, x = down * y[None], across * (x + uniform(keys[2], shear, 1)[0] * y)
    (angle,), offset = uniform(keys[0], turn, 1), 2 * uniform(keys[3], shift, 2)
    waves = bend * jax.image.resize(jax.random.normal(keys[4], (2, n, 4, 4)), (2, n, height, width), "cubic")
    rows = jnp.cos(angle) * y + jnp.sin(angle) * x + offset[0] + waves[0]
    columns = jnp.cos(angle) * x - jnp.sin(angle) * y + offset[1] + waves[1]
    places = [(rows + 1) * (height - 1) / 2, (columns + 1) * (width - 1) / 2]
    take = jax.vmap(partial(jax.scipy.ndimage.map_coordinates, order=1))  # beyond the edge is 0, which is paper
    return take(images[..., 0], places)[..., None]


def network(seed: int) -> nnx.Module:
    return mj.encoders.SmallResNet(DIMENSIONS, (SIZE, SIZE, 1), rngs=nnx.Rngs(seed))


def train(drawn: mj.data.Characters, minutes: float, seeds: range) -> list[nnx.Module]:
    """A network of each seed, after an equal part of the minutes, with the running average of its weights."""
    images = np.concatenate([np.rot90(drawn.images, quarter, axes=(1, 2)) for quarter in range(4)])
    labels = np.concatenate([drawn.labels + quarter * len(drawn.characters) for quarter in range(4)])
    network = lambda seed: mj.encoders.SmallResNet(DIMENSIONS, images.shape[1:], rngs=nnx.Rngs(seed))
    graph = nnx.graphdef(nnx.eval_shape(lambda: network(0)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, weight_decay=DECAY))

    @partial(jax.jit, donate_argnums=0)
    def step(state, key, number, rate, drawings, y):
        params, average, optimizer_state = state
        x = moved(jax.random.fold_in(key, number), shown(drawings), **MOVED)

        def loss(params):
            z, prototypes = nnx.merge(graph, params["network"])(x), params["prototypes"]
            apart = mj.losses.cosface(z, y, prototypes, scale=SCALE, margin=MARGIN)
            return apart + mj.losses.supcon(z, y, temperature=TEMPERATURE)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda update: rate * update, updates))
        average = optax.incremental_update(params["network"], average, jnp.maximum(1 - AVERAGE, 9 / (10 + number)))
        return (params, average, optimizer_state), value

    encoders: list[nnx.Module] = []
    each = 60 * minutes / len(seeds)
    for seed in seeds:
        key, started, weights = jax.random.key(seed), time.perf_counter(), nnx.state(network(seed))
        prototypes = mj.sphere.project(jax.random.normal(key, (4 * len(drawn.characters), DIMENSIONS)))
        params = {"network": weights, "prototypes": prototypes}
        state = (params, jax.tree.map(jnp.copy, weights), optimizer.init(params))
        with tqdm(total=round(each), desc=f"network {len(encoders) + 1} of {len(seeds)}", unit=" s") as progress:
            for number, rows in enumerate(batches(labels, seed)):
                seconds = time.perf_counter() - started
                if seconds >= each:
                    break
                rate = RATE * min(1, (1 + number) / WARM_UP) * (1 + np.cos(np.pi * seconds / each)) / 2
                state, value = step(state, key, number, rate, images[rows], labels[rows])
                progress.set_postfix(step=number, loss=f"{value:.2f}", refresh=False)
                progress.update(round(seconds) - progress.n)
        encoders.append(nnx.merge(graph, state[1]))
    return encoders


def batches(labels: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Places of CLASSES × DRAWINGS drawings each, without end."""
    for epoch in itertools.count():
        yield from mj.samplers.pk_batches(labels, CLASSES, DRAWINGS, seed=seed, epoch=epoch)


def shown(images):
    """Paper is 0, ink 2: strokes are thin, and most of a drawing is paper."""
    return images.astype(jnp.float32) / 127.5


def embedded(encoders: list[nnx.Module], images: np.ndarray, seed: int = 0) -> np.ndarray:
    """[n, views, d]: each drawing as it is, and VIEWS - 1 times moved, not bent; the networks' embeddings joined."""
    split = [nnx.split(encoder) for encoder in encoders]
    less = {name: LESS * limit for name, limit in MOVED.items()} | {"bend": 0.0}

    @jax.jit
    def views(key, x):
        x = shown(x)
        x = jnp.concatenate([x, *(moved(own, x, **less) for own in jax.random.split(key, VIEWS - 1))])
        z = jnp.concatenate([nnx.merge(graph, weights)(x) for graph, weights in split], axis=-1)
        return z.reshape(VIEWS, -1, z.shape[-1]).swapaxes(0, 1)

    padded = np.concatenate([images, np.zeros_like(images, shape=(-len(images) % CHUNK, *images.shape[1:]))])
    keys = jax.random.split(jax.random.key(seed), len(padded) // CHUNK)
    parts = [views(key, part) for key, part in zip(keys, padded.reshape(-1, CHUNK, *images.shape[1:]), strict=True)]
    return np.concatenate(parts)[: len(images)]


# --- what came of it ------------------------------------------------------------------------------------------------


def draw(runs: Runs, taken: np.ndarray) -> Figure:
    """One run: its support, the query of each character below, and what the query was taken for where that is wrong."""
    figure = Figure(figsize=(WAYS / 2, 2), layout="constrained")
    order = np.argsort(runs.answers[0])
    rows = {"support": runs.support[0], "query": runs.queries[0][order], "taken for": runs.support[0][taken[0][order]]}
    wrong = taken[0][order] != runs.answers[0][order]
    for cells, (name, places) in zip(figure.subplots(3, WAYS), rows.items(), strict=True):
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, place, mistaken in zip(cells, places, wrong, strict=True):
            axes.set(xticks=[], yticks=[], box_aspect=1)
            axes.spines[:].set(color="#D55E00" if mistaken else "0.8", linewidth=2 if mistaken else 0.5)
            if mistaken or name != "taken for":
                axes.imshow(runs.images[place, ..., 0], cmap="binary", vmin=0, vmax=255)
    return figure


def main(argv=None) -> dict[str, dict[str, float]]:
    args, started = arguments(argv), time.perf_counter()
    drawn = mj.data.omniglot(args.data, (SIZE, SIZE))
    if unknown := set(args.hold) - set(drawn.alphabets):
        raise ValueError(f"--hold names {', '.join(sorted(unknown))}; wanted some of {', '.join(drawn.alphabets)}")
    names = np.array(drawn.alphabets)
    tests = {name: random_runs(drawn.of_alphabets(names == name), args.count, args.seed) for name in args.hold}
    if args.runs is not None:
        tests["official runs"] = official_runs(args.runs)
    seen = drawn.of_alphabets(~np.isin(names, args.hold))
    print(f"trained on {len(seen.characters)} characters of {', '.join(seen.alphabets)}")
    encoders = train(seen, args.minutes, range(args.seed * args.networks, (args.seed + 1) * args.networks))
    args.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, runs in tests.items():
        views, pixels = embedded(encoders, runs.images), runs.images.reshape(len(runs.images), 1, -1) / np.float32(255)
        taken = {"raw pixels": taken_for(pixels, runs), "one view": taken_for(views[:, :1], runs)}
        taken[f"{VIEWS} views"] = taken_for(views, runs)
        results[name] = {way: float(np.mean(found != runs.answers)) for way, found in taken.items()}
        draw(runs, taken[f"{VIEWS} views"]).savefig(args.out / f"{name.replace(' ', '_')}.png", dpi=150)
    print(f"\n{'errors of 20-way one-shot':30}{'runs':>6}" + "".join(f"{way:>13}" for way in taken))
    for name, errors in results.items():
        print(f"{name:30}{len(tests[name].answers):6}" + "".join(f"{error:13.1%}" for error in errors.values()))
    print(f"{time.perf_counter() - started:.0f} s; a figure of one run of each is in {args.out}")
    return results


if __name__ == "__main__":
    main()
