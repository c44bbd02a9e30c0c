"""Meshes of eight virtual devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

SPLIT, WHOLE = PartitionSpec("data"), PartitionSpec()
AXES = [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)]
axes = pytest.mark.parametrize("axis", AXES, ids=str)


def mesh_of(axis, shape=(8,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(axis,) * len(shape))


def put(mesh, *arrays):
    return [jax.device_put(a, NamedSharding(mesh, SPLIT)) for a in arrays]


def assert_same(got, wanted):
    scale = max(1, max(np.abs(a).max() for a in jax.tree.leaves(wanted)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale)
