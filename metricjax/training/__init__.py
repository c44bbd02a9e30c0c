"""Training of encoders: the state and its step, checkpoints, and what surrounds a run."""

from metricjax.ground.extras import extra

with extra("faces"):
    from metricjax.training.batches import Batches
    from metricjax.training.checkpoints import Checkpoints
    from metricjax.training.image_towers import ImageTowers
    from metricjax.training.recipe import Recipe
    from metricjax.training.towers import Tower, TowerRecipe, TowerTrainer
    from metricjax.training.trainer import Trainer

__all__ = ["Batches", "Checkpoints", "ImageTowers", "Recipe", "Tower", "TowerRecipe", "TowerTrainer", "Trainer"]


def __dir__() -> list[str]:
    return __all__
