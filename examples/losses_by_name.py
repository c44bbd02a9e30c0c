"""Losses and their hyper-parameters as the command line names them: `--loss cosface+supcon --set margin=0.3`.

What a loss needs besides embeddings and labels is made here too: prototypes and biases, which are learnt (`heads`), and
centres and states, which are carried from step to step (`kept`).
"""

import ast
import inspect

import jax
import jax.numpy as jnp
import optax

import metricjax as mj

_project, _tangential = mj.transforms.project_to_sphere, mj.transforms.riemannian_gradient

# What suits a few dozen people; the papers' defaults are for millions of images.
_MARGIN = {"scale": 16.0, "margin": 0.2}
SMALL: dict[str, dict] = {
    "cosface": _MARGIN,
    "arcface": _MARGIN,
    "sub_center_arcface": _MARGIN,
    "combined_margin": {"scale": 16.0, "margins": (1.0, 0.1, 0.1)},
    "sphereface_r": {"scale": 16.0, "margin": 1.2},
    "sphereface2": {"scale": 16.0, "margin": 0.2},
    "curricularface": _MARGIN,
    "adaface": {**_MARGIN, "momentum": 0.05},
    "magface": {"scale": 16.0, "norms": (1.0, 20.0), "margins": (0.1, 0.3), "regularizer": 1.0},
    "elasticface": {**_MARGIN, "deviation": 0.02},
    "uniface": _MARGIN,
    "circle_class": {"scale": 32.0, "margin": 0.25},
    "normalized_softmax": {"temperature": 0.1},
    "circle": {"scale": 32.0, "margin": 0.25},
}
NO_LOSS = {"sub_center_outliers"}
CONSTRAINTS = {  # where prototypes are brought to the sphere: optimisers, given a learning rate; losses project anyway
    "forward": optax.adam,
    "update": lambda rate: optax.chain(optax.adam(rate), _project()),
    "gradient": lambda rate: optax.chain(_tangential(), optax.adam(rate), _project()),
}
SEVERAL = 3  # prototypes of each person, for losses that want several
LENGTHS_OF_EMBEDDINGS = {"softmax", "large_margin_softmax", "sphereface", "adaface", "magface", "center"}  # they matter
LENGTHS_OF_PROTOTYPES = {"softmax", "large_margin_softmax"}
STATES = {"curricularface": 0.0, "adaface": (20.0, 100.0), "dynamic_soft_margin": (0.0,) * 41}  # before the first step
ADDED = {"center": 0.003, "soft_triple": 0.2}  # the papers' weights of center loss, and of merging prototypes


def chosen_losses(names: str, settings: list[str]) -> dict:
    """{name: hyper-parameters} of the losses to add up."""
    known = offered()
    losses: dict[str, dict] = {name: {} for name in names.split("+")}
    for name in losses:
        if name not in known:
            raise ValueError(f"--loss {name} is unknown; wanted one of {', '.join(known)}")
        losses[name] = {**SMALL.get(name, {})}
    made = {"embeddings", "labels", "prototypes", "centers", "state", "key", "options"}
    takes = {name: sorted(parameters(name) - made) for name in losses}
    for setting in settings:
        key, _, text = setting.partition("=")
        takers = [name for name in losses if key in takes[name]]
        if not takers:
            raise ValueError(f"--set {setting}: no hyper-parameter {key!r}; the losses take {takes}")
        for name in takers:
            losses[name][key] = value_of(text)
    return losses


def parameters(name: str) -> set[str]:
    return set(inspect.signature(getattr(mj.losses, name)).parameters)


def offered() -> list[str]:
    """The losses that need no more than embeddings, labels, and what is made here."""

    def is_one(f) -> bool:
        names = [p.name for p in inspect.signature(f).parameters.values() if p.default is p.empty]
        rest = {"prototypes", "centers", "state", "key", "options"}
        return names[:2] == ["embeddings", "labels"] and set(names[2:]) <= rest

    found = (name for name, f in vars(mj.losses).items() if inspect.isfunction(f) and is_one(f))
    return sorted(set(found) - NO_LOSS)


def value_of(text: str):
    """A distance, similarity or selection of triplets by name; a number, tuple, None, True or False; or the text."""
    for module in (mj.distances, mj.similarities, mj.mining):
        if callable(named := vars(module).get(text)):
            return named
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return float(value) if type(value) is int else value


def heads(losses: dict, classes: int, size: int, key, rows: int | None = None) -> dict:
    """{name: what of a class-based loss is learnt}: prototypes on the sphere, and the bias where papers learn it.

    Prototypes are filled up to `rows`, so that they can be split over devices.
    """
    made = {}
    filled = lambda a: jnp.pad(a, [(0, (rows or classes) - classes), *[(0, 0)] * (a.ndim - 1)], mode="edge")
    for i, name in enumerate(losses):
        if "prototypes" in (takes := parameters(name)):
            shape = (classes, SEVERAL, size) if name in ("sub_center_arcface", "soft_triple") else (classes, size)
            made[name] = {"prototypes": filled(mj.sphere.project(jax.random.normal(jax.random.fold_in(key, i), shape)))}
            if "bias" in takes and "bias" not in losses[name]:
                bias = first_bias(name, losses[name], classes)
                made[name]["bias"] = filled(bias) if bias.ndim else bias
    return made


def first_bias(name: str, hyper: dict, classes: int):
    if name == "softmax":
        return jnp.zeros(classes)
    if name == "uniface":
        return jnp.log(10.0 * classes)
    return mj.losses.sphereface2_bias(classes, **{key: value for key, value in hyper.items() if key != "bias"})


def kinds(made: dict) -> dict:
    """What each part of `heads` is: "sphere" or "free"."""
    kind = lambda name, part: "sphere" if part == "prototypes" and name not in LENGTHS_OF_PROTOTYPES else "free"
    return {name: {part: kind(name, part) for part in parts} for name, parts in made.items()}


def kept(losses: dict, classes: int, size: int, rows: int | None = None) -> dict:
    """{name: what a loss carries from step to step}; centres are filled up to `rows`."""
    states = {name: jnp.array(STATES[name]) for name in losses if name in STATES}
    if "adacos" in losses:
        states["adacos"] = mj.losses.adacos_scale(classes)
    return states | ({"center": jnp.zeros((rows or classes, size))} if "center" in losses else {})


def total_loss(losses: dict, embeddings, labels, made: dict, carried: dict, number, key, *, classes: int, mesh=None):
    """The sum of the losses at step `number`, and what is carried on; embeddings come unnormalised.

    Over a mesh, rows of embeddings are split over its axis "data", and so are prototypes, by class.
    """
    total, carried = 0.0, dict(carried)
    for i, (name, hyper) in enumerate(losses.items()):
        loss, takes = getattr(mj.losses, name), parameters(name)
        loss = loss if mesh is None else mj.over_mesh(loss, "data", mesh)
        x = embeddings if name in LENGTHS_OF_EMBEDDINGS else mj.sphere.project(embeddings)
        given = {**hyper, **made.get(name, {})}
        if takes & {"prototypes", "centers"}:
            given["num_classes"] = classes
        if "key" in takes:
            given["key"] = jax.random.fold_in(key, i)
        if "annealing" in takes and "annealing" not in hyper:
            given["annealing"] = mj.losses.sphereface_annealing(number)
        if name == "center":
            total += ADDED[name] * loss(x, labels, jax.lax.stop_gradient(carried[name]), **given)
            carried[name] = mj.losses.update_centers(carried[name], jax.lax.stop_gradient(x), labels)
        elif name in carried:
            value, carried[name] = loss(x, labels, state=carried[name], **given)
            total += value
        else:
            total += loss(x, labels, **given)
        if name == "soft_triple":
            total += ADDED[name] * mj.losses.merged_centers(given["prototypes"][:classes])
    return total, carried
