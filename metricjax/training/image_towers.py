"""Two towers of images, by the designs of their encoders: what `metricjax train --task pairs` trains."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

import metricjax as mj
from metricjax.data.augmentation import AUGMENTATION
from metricjax.trained.design import Design, split
from metricjax.trained.encoder import NetworkEncoder
from metricjax.training.start import weights_of
from metricjax.training.towers import Tower, TowerRecipe, TowerTrainer

__all__ = ["FILE", "ImageTowers"]

FILE = "towers.json"


class ImageTowers(TowerTrainer):
    """Towers of images [n, height, width, channels] of uint8, which training turns, zooms, shifts, lights and hides.

    designs: of "x", and of "y" unless the tower of x is for both.
    augment: how much images are changed, as in `Recipe`; either image of a pair by amounts of its own.
    weights: files to begin with, of some of the designs, see `weights_of`.
    """

    def __init__(
        self,
        recipe: TowerRecipe,
        designs: Mapping[str, Design],
        *,
        augment: float = 1.0,
        remat: bool = False,
        weights: Mapping[str, pathlib.Path] | None = None,
        devices=None,
    ):
        self.designs, self.augment, self.structures = dict(designs), augment, {}
        towers = []
        for number, (side, design) in enumerate(self.designs.items()):
            seed = recipe.seed + number
            self.structures[side], params, rest = split(design.network(seed, remat))
            first = {"params": params, "rest": rest}
            if weights and side in weights:
                first = weights_of(weights[side], design, seed)
            towers.append(Tower(_applied(design, self.structures[side]), first["params"], first["rest"]))
        super().__init__(recipe, *towers, prepare=self._augmented, devices=devices)

    def _augmented(self, key, x, y):
        amounts = {name: self.augment * limit for name, limit in AUGMENTATION.items()}
        changed = lambda number, side, images: mj.data.augmented(
            jax.random.fold_in(key, number), self.designs[self.of[side]].seen(images), **amounts
        )
        return changed(0, "x", x), changed(1, "y", y)

    def encoders(self, record: dict | None = None) -> dict[str, NetworkEncoder]:
        """The encoder of each tower, as `metricjax.load` gives them; mirror images have no part in embeddings."""
        average = self.state["average"]
        weights = lambda side: {part: average[part][side] for part in ("params", "rest")}
        return {
            side: NetworkEncoder(design, self.structures[side], weights(side), record, self.mesh, mirrored=False)
            for side, design in self.designs.items()
        }

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "augment": self.augment, **self.descriptions()[FILE]}

    def descriptions(self) -> dict[str, Any]:
        return {FILE: {side: dataclasses.asdict(design) for side, design in self.designs.items()}}


def _applied(design: Design, structure: nnx.GraphDef):
    """Training gives images as the network sees them; photographs are seen here."""

    def apply(params, rest, images, training):
        network = nnx.merge(structure, params, rest, copy=True)
        network.train() if training else network.eval()
        return network.features(images if training else design.seen(images)), split(network)[2]

    return apply
