"""What center loss is known for, on handwritten digits: features that are separable, and features that discriminate.

python -m pip install -e ".[examples]"
python examples/center_loss_features.py   # a minute or two on two cores

A small network with two outputs is trained with five losses, all at once: one program under `jax.vmap`. For each seed
all five begin with the same weights and see the same batches of scikit-learn's `load_digits`, so that only the loss
differs. `features.png` has the features of digits that training never saw (seed 0), as figures 2 and 3 of Wen et al.
2016, "A discriminative feature learning approach for deep face recognition". The table and `features.json` have

- within: how far features are from the mean of their digit, on average;
- between: how far the mean of a digit is from the nearest mean of another, on average over digits;
- ratio: within / between, the less the more discriminative;

all three with Euclidean distances, which center loss shortens, and with angles at the origin, in degrees, all that
SphereFace, CosFace and ArcFace look at: ten digits around a circle are 36 degrees apart at best. In angles, means are
those of directions; features around the origin, where center loss may put a digit, have none to speak of. Accuracy is
that of the classifier trained with the features.
"""

import argparse
import json
import pathlib
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import metricjax as mj

DIGITS, PIXELS = 10, 64
BATCH, RATE, DECAY = 128, 0.003, 0.01  # images in a step, of AdamW the first learning rate and the weight decay
NOISE = 0.2  # standard deviation of what is added to training images, which are few; black to white is 1
CHUNK = 50  # steps between two movements of the progress bar


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=3000)
    add("--seeds", type=int, default=3, help="number of trainings of which the table is the mean")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/center_loss_features"), help="folder of the results")
    args = parser.parse_args(argv)
    for name in ("steps", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; wanted at least 1")
    return args


# --- losses of features z, digits y, prototypes w, their biases b, centres c, and the number of the step ------------


def softmax(z, y, w, b, c, step):
    return mj.losses.softmax(z, y, w, bias=b)


def softmax_and_center(z, y, w, b, c, step, weight):
    return mj.losses.softmax(z, y, w, bias=b) + weight * mj.losses.center(z, y, c)


def sphereface(z, y, w, b, c, step, margin, annealing):
    schedule = mj.losses.sphereface_annealing(step, base=annealing[0], minimum=annealing[1])
    return mj.losses.sphereface(z, y, w, margin=margin, annealing=schedule)


def cosface(z, y, w, b, c, step, scale, margin):
    return mj.losses.cosface(z, y, w, scale=scale, margin=margin)


def arcface(z, y, w, b, c, step, scale, margin):
    return mj.losses.arcface(z, y, w, scale=scale, margin=margin)


# Ten neighbours around a circle have cosines of 0.81: CosFace has room for a margin of 0.19, ArcFace for 0.63.
# SphereFace's annealing for faces, from 1000 to 5, leaves little of its margin here.
LOSSES = {
    "softmax": partial(softmax),
    "softmax + center loss": partial(softmax_and_center, weight=0.3),
    "SphereFace": partial(sphereface, margin=4, annealing=(100, 0.5)),
    "CosFace": partial(cosface, scale=16, margin=0.15),
    "ArcFace": partial(arcface, scale=16, margin=0.3),
}
ANGULAR = ("SphereFace", "CosFace", "ArcFace")  # no lengths of prototypes, no biases


# --- training -------------------------------------------------------------------------------------------------------


def network(seed) -> nnx.Sequential:
    """An image to two numbers. Nothing follows the last layer: a feature may point anywhere and have any length."""
    layer = partial(nnx.Linear, rngs=nnx.Rngs(jax.random.key(seed)))
    return nnx.Sequential(layer(PIXELS, 256), nnx.PReLU(), layer(256, 128), nnx.PReLU(), layer(128, 2))


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: network(0)))


def initial(seed) -> dict:
    """Prototypes begin evenly around the circle: in a plane, two that begin too close can hardly pass a third."""
    angle = jnp.linspace(0, 2 * jnp.pi, DIGITS, endpoint=False)
    prototypes = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return {"encoder": nnx.state(network(seed), nnx.Param), "prototypes": prototypes, "bias": jnp.zeros(DIGITS)}


def features(params, images):
    return nnx.merge(GRAPH, params["encoder"])(images)


class State(NamedTuple):
    """What training changes. Leading axis: all seeds of the first loss, then all seeds of the second …"""

    params: dict
    optimizer: optax.OptState
    centers: jax.Array


def train(args, images, labels) -> State:
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, args.steps), weight_decay=DECAY)
    which = jnp.repeat(jnp.arange(len(LOSSES)), args.seeds)
    seeds = jnp.tile(jnp.arange(args.seeds), len(LOSSES))

    def one(step, state: State, which, seed) -> State:
        to_choose, to_blur = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
        rows = jax.random.randint(to_choose, (BATCH,), 0, len(labels))
        x, y = images[rows] + NOISE * jax.random.normal(to_blur, (BATCH, PIXELS)), labels[rows]

        def loss(params):
            z = features(params, x)
            inputs = (z, y, params["prototypes"], params["bias"], state.centers, step)
            return jax.lax.switch(which, list(LOSSES.values()), *inputs), z

        gradient, z = jax.grad(loss, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        centers = mj.losses.update_centers(state.centers, z, y)
        return State(optax.apply_updates(state.params, updates), optimizer_state, centers)

    all_at_once = jax.vmap(one, in_axes=(None, 0, 0, 0))
    several = jax.jit(partial(jax.lax.fori_loop, body_fun=lambda step, state: all_at_once(step, state, which, seeds)))

    params = jax.vmap(initial)(seeds)
    state = State(params, jax.vmap(optimizer.init)(params), jnp.zeros_like(params["prototypes"]))
    for start in tqdm(range(0, args.steps, CHUNK), "training", unit=f" x {CHUNK} steps"):
        state = jax.block_until_ready(several(start, min(start + CHUNK, args.steps), init_val=state))
    return state


# --- what came of it ------------------------------------------------------------------------------------------------


def spread(z, labels, means, distance) -> list[float]:
    """within, between, and their ratio."""
    within = jnp.mean(distance(z, means)[jnp.arange(len(z)), labels])
    between = jnp.mean(jnp.min(jnp.fill_diagonal(distance(means, means), jnp.inf, inplace=False), axis=1))
    return [float(within), float(between), float(within / between)]


def measured(z, labels, prototypes, bias) -> dict[str, float]:
    accuracy = jnp.mean(jnp.argmax(z @ prototypes.T + bias, axis=1) == labels)
    means = [mj.prototypes.class_means(z, labels, DIGITS, normalize=on_circle) for on_circle in (False, True)]
    degrees = lambda x, y: jnp.rad2deg(mj.distances.geodesic(x, y))
    numbers = spread(z, labels, means[0], mj.distances.euclidean) + spread(z, labels, means[1], degrees)
    names = [f"{space} {what}" for space in ("Euclidean", "angular") for what in ("within", "between", "ratio")]
    return dict(zip([*names, "accuracy"], [*numbers, float(accuracy)], strict=True))


def draw(axes: Axes, z, labels, directions, centers) -> dict:
    """Features, the running centre of each digit, the ray of its prototype, and the digit. Returns a legend."""
    middle, half = (z.max(axis=0) + z.min(axis=0)) / 2, 0.6 * np.max(np.ptp(z, axis=0))
    (x, y), rays = np.stack([middle - half, middle + half], axis=1), 9 * half * directions
    axes.set(xlim=x, ylim=y, aspect="equal")
    axes.locator_params(nbins=5)
    for digit in range(DIGITS):
        own, color = z[labels == digit], f"C{digit}"
        (ray,) = axes.plot(*np.stack([0 * rays[digit], rays[digit]]).T, color="0.85", lw=0.8, zorder=0)
        axes.plot(*own.T, "o", ms=2.5, mew=0, alpha=0.7, color=color)
        (mark,) = axes.plot(*centers[digit], "k+", ms=6, mew=1.2, zorder=3)
        outward = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
        place = outward * (np.quantile(np.linalg.norm(own, axis=1), 0.95) + 0.13 * half)
        axes.text(place[0], place[1], str(digit), color=color, weight="bold", ha="center", va="center")
    return {"running centre of a digit": mark, "direction of its prototype": ray}


def table(results: dict[str, dict[str, list[float]]], seeds: int) -> str:
    lines = [f"{'':22}{'Euclidean':>27}{'angular (degrees)':>27}"]
    lines += [f"mean over seeds: {seeds:<5}" + f"{'within':>9}{'between':>9}{'ratio':>9}" * 2 + f"{'accuracy':>9}"]
    for name, found in results.items():
        lines += [f"{name:22}" + "".join(f"{np.mean(numbers):9.3f}" for numbers in found.values())]
    return "\n".join(lines)


def main(argv=None) -> dict[str, dict[str, list[float]]]:
    args, started = arguments(argv), time.perf_counter()
    images, labels = load_digits(return_X_y=True)
    arrays = jnp.asarray(images / 16 - 0.5, jnp.float32), jnp.asarray(labels, jnp.int32)
    seen, held_out, seen_labels, y = train_test_split(*arrays, test_size=1 / 3, stratify=labels, random_state=0)
    state = train(args, seen, seen_labels)
    z = jax.vmap(features, in_axes=(0, None))(state.params, held_out)
    w, b, c = state.params["prototypes"], state.params["bias"], state.centers
    figure, results = Figure(figsize=(16, 4.35), layout="constrained"), {}
    for i, (axes, name) in enumerate(zip(figure.subplots(1, len(LOSSES)), LOSSES, strict=True)):
        first, unit = i * args.seeds, mj.sphere.project(w)
        found = [measured(z[k], y, (unit if name in ANGULAR else w)[k], b[k]) for k in range(first, first + args.seeds)]
        results[name] = {what: [numbers[what] for numbers in found] for what in found[0]}
        legend = draw(axes, *(np.asarray(a) for a in (z[first], y, unit[first], c[first])))
        axes.set_title("\n".join([name, ", ".join(f"{key} {value}" for key, value in LOSSES[name].keywords.items())]))
        axes.set_xlabel("within / between {Euclidean ratio:.2f},\nin angles {angular ratio:.2f}".format(**found[0]))
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=2, frameon=False)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "features.png", dpi=150)
    report = {"steps": args.steps, "losses": {name: loss.keywords for name, loss in LOSSES.items()}, "results": results}
    (args.out / "features.json").write_text(json.dumps(report, indent=1))
    print(f"\n{table(results, args.seeds)}\n\n{time.perf_counter() - started:.0f} s; the figure is in {args.out}")
    return results


if __name__ == "__main__":
    main()
