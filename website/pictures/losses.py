"""A loss: its value and gradient, and what a small network learns by it."""

import functools
import inspect
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import metricjax as mj
from benchmarks.losses import of_arrays
from metricjax.losses.catalogue import CATALOGUE
from website.pictures.distances import ANGLES, BASIS


def loss(name: str) -> Figure:
    """Its value where it has two similarities or an angle, and a toy set before and after a training with it."""
    first = of_angle if CATALOGUE[name].kind == "classes" else of_similarities if by_pair(name) else None
    figure = Figure(figsize=(8.4 if first else 5.3, 2.7), layout="constrained")
    *left, before, after = figure.subplots(1, 3 if first else 2, width_ratios=(1.25, 1, 1) if first else None)
    if first:
        first(*left, name)
    of_toy(before, after, name)
    return figure


def by_pair(name: str) -> bool:
    """Whether one positive and one negative of an anchor show what the loss is about."""
    entry = CATALOGUE[name]
    alone = "references" not in entry.refuses and name != "intra_pair_variance"  # of a mean, to which it takes several
    return (entry.kind == "pairs" and alone) or name in ("info_nce", "clip", "siglip")


def called(name: str) -> Callable:
    """The loss of its arrays alone, in a state that shows what it is about."""
    return of_arrays(name, CLASSES, **({"state": EVENLY} if name == "dynamic_soft_margin" else {}))


# --- value and gradient -----------------------------------------------------------------------------------------------

SIMILARITIES = np.linspace(-0.97, 0.97, 65)
EVERY = 5  # similarities between two arrows
LONGEST = 1.6 * EVERY * (SIMILARITIES[1] - SIMILARITIES[0])  # arrow
EVENLY = np.full(41, 1 / 41)  # a state of dynamic_soft_margin in which gaps of all sizes came equally often
ALONE = {"magface": {"regularizer": 0.0}}  # the logit without what is added to the loss
LENGTHS = {"magface": 60.0, "adaface": 20.0, "softmax": 8.0, "large_margin_softmax": 8.0, "sphereface": 8.0}  # of a row


def of_similarities(axes: Axes, name: str) -> None:
    """An anchor's loss over its similarities to one positive and one negative, and which way gradient descent goes."""
    function, towers = called(name), CATALOGUE[name].kind == "views"
    by_number = CATALOGUE[name].note == "continuous labels"
    labels = jnp.array([0, 1, 2]) if by_number else jnp.array([0, 0, 1])  # of anchor, positive, negative

    def value(negative, positive):
        rest = lambda s: jnp.sqrt(jnp.maximum(1 - s * s, 1e-6))
        if towers:  # two pairs whose first rows are orthogonal
            third = jnp.sqrt(jnp.maximum(1 - positive**2 - negative**2, 1e-6))
            y = jnp.stack([jnp.stack([positive, negative, third]), jnp.stack([negative, positive, third])])
            return function(BASIS[:2], y @ BASIS)
        columns = [jnp.stack([positive, rest(positive), 0.0]), jnp.stack([negative, 0.0, rest(negative)])]
        more = {"references": jnp.stack(columns) @ BASIS, "reference_labels": labels[1:]}
        return function(BASIS[:1], labels[:1], **more)

    across = lambda f: jax.vmap(jax.vmap(f, (0, None)), (None, 0))
    with jax.enable_x64(True):
        values, gradient = jax.jit(across(jax.value_and_grad(value, (0, 1))))(SIMILARITIES, SIMILARITIES)
    values, (right, up) = np.array(values), map(np.array, gradient)
    if towers:  # there are no such rows
        values[np.add.outer(SIMILARITIES**2, SIMILARITIES**2) > 1] = np.nan
    mesh = axes.pcolormesh(SIMILARITIES, SIMILARITIES, values, cmap="Blues", rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, pad=0.02)
    some = np.s_[EVERY // 2 :: EVERY]
    hidden = np.isnan(values)[some, some]
    arrows = [np.ma.array(-side[some, some], mask=hidden) for side in (right, up)]
    scale = max(np.hypot(*arrows).max() / LONGEST, 1e-12)
    style = {"color": "black", "width": 0.005, "pivot": "mid", "scale": scale, "scale_units": "x"}
    axes.quiver(SIMILARITIES[some], SIMILARITIES[some], *arrows, **style)
    positive, negative = ("a label 1 away", "a label 2 away") if by_number else ("the positive", "the negative")
    axes.set(title="value, and descent of an anchor", xlabel=f"similarity to {negative}", ylabel=f"to {positive}")


def of_angle(axes: Axes, name: str) -> None:
    """What the own class's logit is, if the loss is a softmax, or else the loss, as a row turns from its prototype."""
    function, length = functools.partial(called(name), **ALONE.get(name, {})), LENGTHS.get(name, 1.0)
    softmax = "SoftmaxOptions" in str(getattr(mj.losses, name).__annotations__.get("options"))
    prototypes = np.array([[1.0, 0, 0], [0, 0, 1]])
    if CATALOGUE[name].several:
        prototypes = np.stack([prototypes, prototypes], axis=1)

    def value(angle):
        row = length * jnp.stack([jnp.cos(angle), jnp.sin(angle), 0.0])
        return function(row[None], jnp.array([0]), prototypes)

    with jax.enable_x64(True):
        values, slopes = map(np.array, jax.jit(jax.vmap(jax.value_and_grad(value)))(np.radians(ANGLES)))
    if softmax:  # of two classes: L = log(1 + exp(other − own)), and the other's logit is that of a right angle
        certain = np.maximum(values, 1e-300)
        axes.plot(ANGLES, -certain - np.log(-np.expm1(-certain)), label="own logit less the other")
        scale = inspect.signature(getattr(mj.losses, name)).parameters.get("scale")
        if scale is not None:
            axes.plot(ANGLES, scale.default * np.cos(np.radians(ANGLES)), "--", color="gray", label="s cos θ")
    else:
        axes.plot(ANGLES, values, label="loss")
    axes.set(xlabel="angle to the own prototype, degrees", xticks=range(0, 181, 45))
    slope = axes.twinx()
    slope.plot(ANGLES, slopes, ":", color="tab:red", label="slope of the loss (right)")
    slope.tick_params(axis="y", colors="tab:red")
    lines = [*axes.lines, *slope.lines]
    axes.legend(lines, [line.get_label() for line in lines], fontsize=6, loc="best")
    axes.set(title="another class's prototype at a right angle")


# --- a toy set --------------------------------------------------------------------------------------------------------

CLASSES, POINTS, STEPS = 5, 24, 300
WIDTHS = (2, 64, 64)


def spiral(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Points in the plane, on the arms of a spiral, each arm a class; `key` moves each a little."""
    arm = jnp.arange(CLASSES).repeat(POINTS)
    along = jnp.tile(jnp.linspace(0.15, 1, POINTS), CLASSES)
    angle = 2 * jnp.pi * arm / CLASSES + 2.5 * along
    points = along[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return points + 0.03 * jax.random.normal(key, points.shape), arm


def initial(features: int, several: bool) -> tuple[list, jax.Array]:
    """Weights of a small network, and prototypes."""
    keys, widths = jax.random.split(jax.random.key(1), len(WIDTHS) + 1), (*WIDTHS, features)
    layers = zip(keys, itertools.pairwise(widths), strict=False)
    network = [(jax.random.normal(key, (a, b)) / np.sqrt(a), jnp.zeros(b)) for key, (a, b) in layers]
    return network, jax.random.normal(keys[-1], (CLASSES, 2, features) if several else (CLASSES, features))


def embedded(network: list, x: jax.Array) -> jax.Array:
    for weight, bias in network[:-1]:
        x = jnp.tanh(2 * (x @ weight + bias))
    return x @ network[-1][0] + network[-1][1]


def trained(name: str, params: tuple) -> tuple:
    """The same after `STEPS` steps of Adam, by the loss with its defaults and nothing else."""
    function, entry = getattr(mj.losses, name), CATALOGUE[name]
    points, labels = spiral(jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, STEPS))

    def value(params, state, key):
        moved = lambda view: embedded(params[0], spiral(jax.random.fold_in(key, view))[0])
        known = {"labels": labels, "state": state, "key": key, "prototypes": params[1], "centers": params[1]}
        known |= {"x": moved(0), "y": moved(1), "embeddings": embedded(params[0], points)}
        result = function(*(known[argument] for argument in entry.takes))
        return result if entry.state is not None else (result, state)

    def step(carry, key):
        params, state, optimizer_state = carry
        (_, state), gradient = jax.value_and_grad(value, has_aux=True)(params, state, key)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), state, optimizer_state), None

    state = entry.first("state", CLASSES) if entry.state is not None else None
    keys = jax.random.split(jax.random.key(2), STEPS)
    return jax.jit(lambda *begin: lax.scan(step, begin, keys)[0][0])(params, state, optimizer.init(params))


def of_toy(before: Axes, after: Axes, name: str) -> None:
    """What a small network, or the prototypes alone, make of the toy set: at first, and after a training."""
    entry = CATALOGUE[name]
    features, alone = 2 if entry.lengths else 3, entry.kind == "prototypes"
    params, (points, labels) = initial(features, entry.several), spiral(jax.random.key(0))
    by_class = {"cmap": "tab10", "vmin": 0, "vmax": 9}
    for axes, (network, prototypes), when in (
        (before, params, "before"),
        (after, trained(name, params), f"after {STEPS} steps"),
    ):
        own = np.array(prototypes).reshape(-1, features)
        if alone:
            axes.scatter(*mapped(own), c=np.arange(len(own)) * CLASSES // len(own), s=30, **by_class)
        else:
            axes.scatter(*mapped(np.array(embedded(network, points))), c=labels, s=8, **by_class)
        if {"prototypes", "centers"} & set(entry.takes) and not alone:
            axes.scatter(*mapped(own), marker="x", c="black", s=20)
        axes.set_title(f"{'prototypes' if alone else 'a toy set'} {when}")
        axes.locator_params(nbins=3)
        if features == 3:
            axes.add_patch(Circle((0, 0), 1, fill=False, color="gray", lw=0.5))
            axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
            axes.axis("off")


def mapped(z: np.ndarray) -> np.ndarray:
    """Directions on Lambert's equal-area map of the sphere, whose rim is one point; two features as they are."""
    if z.shape[1] == 2:
        return z.T
    x, y, up = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)).T
    return np.sqrt(np.maximum(1 - up, 0) / 2) * np.stack([x, y]) / np.maximum(np.hypot(x, y), 1e-12)
