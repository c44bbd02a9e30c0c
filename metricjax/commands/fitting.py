"""Settings of `metricjax train` that fit the data, for those that the command line leaves open."""

import argparse
from typing import Any

__all__ = ["FEW", "LOSS", "filled", "fit", "fitting"]

FEW = 200  # people, up to whom each photograph and each mirrored face has to teach as much as it can
LOSS = "cosface+supcon"  # for any number of people: prototypes tell all of them apart, pairs those of a batch
BATCH, EPOCHS, LEAST_STEPS, MOST_STEPS = 64, 35, 1000, 20_000


def fitting(people: int, photographs: int) -> dict[str, Any]:
    """Settings for so many people with several photographs, and so many photographs, of others too.

    A few people are learnt by heart in no time: what helps is to see them turned, zoomed, shifted and hidden a lot, and
    their mirror images as twice the people; a hundred steps more or less do not matter. Hundreds of people are enough
    to learn from, and strong changes only keep a small encoder from learning them: it sees weak ones, mirror images of
    the same person, and each photograph EPOCHS times. Seen on ORL (20 people) and on LFW (620 people and more, other
    folds than those reported); nothing between was measured.
    """
    if people <= FEW:
        return {
            "loss": LOSS,
            "encoder": "small_resnet",
            "image_size": (64, 56),
            "mirror": "people",
            "augment": 1.0,
            "batch": (40, 2),
            "steps": 500,
            "learning_rate": 1e-3,
        }
    return {
        "loss": LOSS,
        "encoder": "plain_convnet",
        "image_size": (56, 48),
        "mirror": "random",
        "augment": 0.4,
        "batch": (BATCH // 2, 2),
        "steps": min(max(EPOCHS * photographs // BATCH, LEAST_STEPS), MOST_STEPS),
        "learning_rate": 2e-3,
    }


def fit(args: argparse.Namespace, people: int, lone: int, photographs: int) -> str:
    """Fill in what the command line leaves open (None), and say in a line what that is."""
    settings = fitting(people, photographs)
    there = people * (2 if (args.mirror or settings["mirror"]) == "people" else 1)
    most, each = settings["batch"]
    flags = filled(args, {**settings, "batch": (min(most, there), each)})
    who = f"{people} people" if not lone else f"{people} people and {lone} with one photograph"
    return f"{who} to train on, {photographs} photographs: {flags}"


def filled(args: argparse.Namespace, settings: dict[str, Any]) -> str:
    """Take settings for what the command line leaves open (None); the flags that would say so."""
    chosen = {name: value for name, value in settings.items() if getattr(args, name) is None}
    for name, value in chosen.items():
        setattr(args, name, value)
    shown = lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
    flags = " ".join(f"--{name.replace('_', '-')} {shown(value)}" for name, value in chosen.items())
    return flags or "all settings are given"
