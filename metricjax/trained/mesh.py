"""The devices that training and embedding use."""

import jax
from jax.sharding import AxisType, Mesh

__all__ = ["data_mesh"]


def data_mesh(devices=None) -> Mesh:
    """All devices (of all processes) in a row, over which rows of batches are split."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
