"""Losses and their hyper-parameters as the command line names them: `--loss cosface+supcon --set margin=0.3`."""

import inspect
from functools import partial

import jax

import metricjax as mj

# What suits a few dozen people; the papers' defaults are for millions of images.
SMALL = {
    "cosface": {"scale": 16.0, "margin": 0.2},
    "arcface": {"scale": 16.0, "margin": 0.2},
    "circle_class": {"scale": 32.0, "margin": 0.25},
    "normalized_softmax": {"temperature": 0.1},
    "circle": {"scale": 32.0, "margin": 0.25},
}


def chosen_losses(names: str, settings: list[str]) -> dict:
    """{name: hyper-parameters} of the losses to add up."""
    known = offered()
    losses: dict[str, dict] = {name: {} for name in names.split("+")}
    for name in losses:
        if name not in known:
            raise ValueError(f"--loss {name} is unknown; wanted one of {', '.join(known)}")
        losses[name] = dict(SMALL.get(name, {}))
    arrays = {"embeddings", "labels", "prototypes", "centers", "options"}
    takes = {name: sorted(inspect.signature(getattr(mj.losses, name)).parameters.keys() - arrays) for name in losses}
    for setting in settings:
        key, _, text = setting.partition("=")
        takers = [name for name in losses if key in takes[name]]
        if not takers:
            raise ValueError(f"--set {setting}: no hyper-parameter {key!r}; the losses take {takes}")
        for name in takers:
            losses[name][key] = value_of(text)
    return losses


def offered() -> list[str]:
    """The losses that need no more than embeddings, labels, and prototypes or centres."""

    def is_one(f) -> bool:
        names = [p.name for p in inspect.signature(f).parameters.values() if p.default is p.empty]
        return names[:2] == ["embeddings", "labels"] and set(names[2:]) <= {"prototypes", "centers", "options"}

    return sorted(name for name, f in vars(mj.losses).items() if inspect.isfunction(f) and is_one(f))


def value_of(text: str):
    """A number, None, True or False; a distance, similarity or selection of triplets by its name; else the text."""
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    for module in (mj.distances, mj.similarities, mj.mining):
        if callable(named := vars(module).get(text)):
            return named
    try:
        return float(text)
    except ValueError:
        return text


def total_loss(losses, embeddings, labels, prototypes, centers):
    """The sum of the losses; center loss counts with its paper's weight."""
    total = 0.0
    for name, hyper in losses.items():
        loss = partial(getattr(mj.losses, name), embeddings, labels, **hyper)
        if name == "center":
            total += 0.003 * loss(centers=jax.lax.stop_gradient(centers))
        elif "prototypes" in inspect.signature(loss.func).parameters:
            total += loss(prototypes=prototypes)
        else:
            total += loss()
    return total
