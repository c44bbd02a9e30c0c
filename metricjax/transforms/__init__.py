"""Optax transformations: parameters that stay on the unit hypersphere, and updates of a few rows of many."""

from metricjax.transforms.rows import apply_to_rows, on_rows
from metricjax.transforms.sphere import project_to_sphere, riemannian_adam, riemannian_gradient, riemannian_sgd

__all__ = [
    "apply_to_rows",
    "on_rows",
    "project_to_sphere",
    "riemannian_adam",
    "riemannian_gradient",
    "riemannian_sgd",
]


def __dir__() -> list[str]:
    return __all__
