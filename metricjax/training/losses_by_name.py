"""Losses and their hyper-parameters as the command line names them: `--loss cosface+supcon --set margin=0.3`.

What a loss needs besides embeddings and labels is made here too: prototypes and biases, which are learnt (`heads`), and
centres and states, which are carried from step to step (`kept`).
"""

import ast
import inspect
import re

import jax
import jax.numpy as jnp
import optax

import metricjax as mj
from metricjax.losses.catalogue import CATALOGUE

__all__ = [
    "CONSTRAINTS",
    "SMALL",
    "by_class",
    "check_of_pairs",
    "chosen_losses",
    "heads",
    "kept",
    "kinds",
    "miner_of",
    "offered",
    "parameters",
    "total_loss",
    "value_of",
]

_project, _tangential = mj.transforms.project_to_sphere, mj.transforms.riemannian_gradient

# What suits a few dozen people; the papers' defaults are for millions of images.
_MARGIN = {"scale": 16.0, "margin": 0.2}
SMALL: dict[str, dict] = {
    **dict.fromkeys(("cosface", "arcface", "sub_center_arcface", "curricularface", "uniface"), _MARGIN),
    "circle_class": {"scale": 32.0, "margin": 0.25},
    "circle": {"scale": 32.0, "margin": 0.25},
    "normalized_softmax": {"temperature": 0.1},
    "combined_margin": {"scale": 16.0, "margins": (1.0, 0.1, 0.1)},
    "sphereface_r": {"scale": 16.0, "margin": 1.2},
    "sphereface2": {"scale": 16.0, "margin": 0.2},
    "adaface": {**_MARGIN, "momentum": 0.05},
    "magface": {"scale": 16.0, "norms": (1.0, 20.0), "margins": (0.1, 0.3), "regularizer": 1.0},
    "elasticface": {**_MARGIN, "deviation": 0.02},
}
CONSTRAINTS = {  # where prototypes are brought to the sphere: optimisers, given a learning rate; losses project anyway
    "forward": optax.adam,
    "update": lambda rate: optax.chain(optax.adam(rate), _project()),
    "gradient": lambda rate: optax.chain(_tangential(), optax.adam(rate), _project()),
}
SEVERAL = 3  # prototypes of each person, for losses that want several


def chosen_losses(names: str, settings: list[str]) -> dict:
    """{name: hyper-parameters} of the losses to add up."""
    known = offered()
    losses: dict[str, dict] = {name: {} for name in names.split("+")}
    for name in losses:
        if name not in known:
            raise ValueError(f"--loss {name} is unknown; wanted one of {', '.join(known)}")
        losses[name] = {**SMALL.get(name, {})}
    takes = {name: sorted(parameters(name)) for name in losses}
    for setting in settings:
        key, _, text = setting.partition("=")
        takers = [name for name in losses if key in takes[name]]
        if not takers:
            raise ValueError(f"--set {setting}: no hyper-parameter {key!r}; the losses take {takes}")
        for name in takers:
            losses[name][key] = value_of(text)
    return losses


def offered() -> list[str]:
    """The losses that need no more than embeddings, labels, and what is made here."""
    return sorted(name for name, entry in CATALOGUE.items() if entry.takes[:2] == ("embeddings", "labels"))


def parameters(name: str) -> set[str]:
    """The hyper-parameters of a loss."""
    return set(inspect.signature(getattr(mj.losses, name)).parameters) - {*CATALOGUE[name].takes, "options"}


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


def miner_of(text: str):
    """A miner by its name, with settings after a colon: "multi_similarity", "rank_range:negatives=(0, 5)"."""
    name, _, settings = text.partition(":")
    known = [name for name in mj.mining.__all__ if _is_made(vars(mj.mining)[name], "miner")]
    if name not in known:
        raise ValueError(f"--miner {name} is unknown; wanted one of {', '.join(known)}; triplets: --set triplets=NAME")
    parts = [part.partition("=") for part in re.split(r",(?![^(]*\))", settings) if part]
    try:
        return vars(mj.mining)[name](**{key.strip(): value_of(value.strip()) for key, _, value in parts})
    except (TypeError, ValueError) as error:
        raise ValueError(f"--miner {text}: {error}") from None


def check_of_pairs(losses: dict, miner: str | None, bank: int) -> None:
    """A miner and a bank are for losses that compare embeddings with each other; ValueError where none does."""
    compare = [name for name in losses if CATALOGUE[name].kind == "pairs"]
    for flag, given, refused in (("--miner", miner, "miner"), ("--bank", bank, "references")):
        if given and not compare:
            raise ValueError(f"{flag} is for losses that compare embeddings with each other; --loss has none")
        if given and (unfit := [name for name in compare if refused in CATALOGUE[name].refuses]):
            raise ValueError(f"{flag} is not for {', '.join(unfit)}, which takes no {refused}")
    if miner:
        miner_of(miner)


def _is_made(f, role: str) -> bool:
    """Whether `f` is a function that makes a miner, or a selection of triplets, of numbers, words and keys."""
    return getattr(f, "makes", None) == role and "miners" not in inspect.signature(f).parameters


def heads(losses: dict, classes: int, size: int, key, rows: int | None = None) -> dict:
    """{name: what of a class-based loss is learnt}: prototypes on the sphere, and the bias where papers learn it.

    Prototypes are filled up to `rows`, so that they can be split over devices.
    """
    made = {}
    filled = lambda a: jnp.pad(a, [(0, (rows or classes) - classes), *[(0, 0)] * (a.ndim - 1)], mode="edge")
    for i, (name, hyper) in enumerate(losses.items()):
        entry = CATALOGUE[name]
        if "prototypes" in entry.takes:
            shape = (classes, SEVERAL, size) if entry.several else (classes, size)
            made[name] = {"prototypes": filled(mj.sphere.project(jax.random.normal(jax.random.fold_in(key, i), shape)))}
        if entry.bias and "bias" not in hyper:
            bias = entry.first("bias", classes, **hyper)
            made[name]["bias"] = filled(bias) if bias.ndim else bias
    return made


def kinds(made: dict) -> dict:
    """What each part of `heads` is: "sphere" or "free"."""
    on_sphere = lambda name, part: part == "prototypes" and part not in CATALOGUE[name].lengths
    return {name: {part: "sphere" if on_sphere(name, part) else "free" for part in made[name]} for name in made}


def by_class(made: dict, rows: int) -> dict:
    """Of each part of `heads` whether it has a row for each class."""
    return jax.tree.map(lambda a: a.shape[:1] == (rows,), made)


def kept(losses: dict, classes: int, size: int, rows: int | None = None) -> dict:
    """{name: what a loss carries from step to step}; centres are filled up to `rows`."""
    entries = {name: CATALOGUE[name] for name in losses}
    centers = {name: jnp.zeros((rows or classes, size)) for name, entry in entries.items() if "centers" in entry.takes}
    return centers | {n: entry.first("state", classes) for n, entry in entries.items() if "state" in entry.takes}


def total_loss(
    losses: dict,
    embeddings,
    labels,
    made: dict,
    carried: dict,
    number,
    key,
    *,
    classes: int,
    sampled=None,
    mesh=None,
    of_pairs: dict | None = None,
):
    """The sum of the losses at step `number`, and what is carried on; embeddings come unnormalised.

    Over a mesh, rows of embeddings are split over its axis "data", and so are prototypes, by class. If classes are
    `sampled`, `made` has their rows only. `of_pairs` are options of the losses that compare embeddings with each other.
    """
    total, carried = 0.0, dict(carried)
    for i, (name, hyper) in enumerate(losses.items()):
        entry, loss = CATALOGUE[name], getattr(mj.losses, name)
        loss = loss if mesh is None else mj.over_mesh(loss, "data", mesh)
        as_it_is = entry.kind == "classes" and "embeddings" in entry.lengths  # pairs are compared on the sphere
        x = embeddings if as_it_is else mj.sphere.project(embeddings)
        given = {**hyper, **made.get(name, {}), **({"num_classes": classes} if entry.kind == "classes" else {})}
        given |= {} if sampled is None or name not in made else {"classes": sampled}
        given |= (of_pairs or {}) if entry.kind == "pairs" else {}
        if "key" in entry.takes:
            given["key"] = jax.random.fold_in(key, i)
        if _is_made(given.get("triplets"), "triplets"):
            takes = inspect.signature(given["triplets"]).parameters
            drawn = {"key": jax.random.fold_in(key, i), "dimension": x.shape[-1]}
            given["triplets"] = given["triplets"](**{k: value for k, value in drawn.items() if k in takes})
        if "annealing" in parameters(name) and "annealing" not in hyper:
            given["annealing"] = mj.losses.sphereface_annealing(number)
        if "state" in entry.takes:
            value, carried[name] = loss(x, labels, state=carried[name], **given)
        elif "centers" in entry.takes:
            value = loss(x, labels, carried[name], **given)
            carried[name] = mj.losses.update_centers(carried[name], jax.lax.stop_gradient(x), labels)
        else:
            value = loss(x, labels, **given)
        total += entry.weight * value
        for other, addition in CATALOGUE.items():
            if addition.added_to == name and addition.kind == "prototypes":
                here = given["prototypes"][:classes] if sampled is None else given["prototypes"]
                total += addition.weight * getattr(mj.losses, other)(here)
    return total, carried
