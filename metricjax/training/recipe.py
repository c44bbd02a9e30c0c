"""How an encoder is trained."""

import dataclasses
from typing import Any

__all__ = ["Recipe"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an encoder is trained.

    losses: {name: hyper-parameters} of the losses to add up, see `losses_by_name.chosen_losses`.
    steps: of the whole training, whose learning rate warms up for a tenth of them and falls by a cosine.
    batch: people (classes) and images of each, or one number of images drawn evenly, or super-classes, classes of each
        and images of each.
    class_power: with people and images of each, classes come in proportion to their number of images to this power.
    constraint: where prototypes are brought to the sphere, one of `losses_by_name.CONSTRAINTS`.
    mirror: "people" (a mirrored face is another person), "random" (each image or not, by chance), or "none".
    augment: how much photographs are turned, zoomed, shifted and hidden, as a multiple of the limits of
        `data.augmented`; their light changes as it says there.
    sampled_classes: the share of classes, those of the batch among them, that a step looks at and changes (Partial FC);
        None for all.
    miner: of the losses that compare embeddings with each other, see `losses_by_name.miner_of`.
    bank: rows of a memory bank that they look at, too, after the first `bank_warm_up` steps.
    remat: compute blocks again going backwards; chunk: images encoded at a time, None for the whole batch.
    """

    losses: dict[str, dict[str, Any]]
    steps: int
    batch: tuple[int, ...] = (40, 2)
    learning_rate: float = 1e-3
    constraint: str = "update"
    mirror: str = "people"
    augment: float = 1.0
    seed: int = 0
    sampled_classes: float | None = None
    class_power: float | None = None
    miner: str | None = None
    bank: int = 0
    bank_warm_up: int = 0
    remat: bool = False
    chunk: int | None = None
