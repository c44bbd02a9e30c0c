"""Programs for platforms that are not here."""

import contextlib
import warnings

import jax


def lowered(platform: str, f, *shapes) -> jax.stages.Lowered:
    """The program for another platform. Triton's kernels are lowered for a device; newer versions ask for which.

    These also say that they will be without Triton one day.
    """
    with _an_h100() if platform == "cuda" else contextlib.nullcontext(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Triton", DeprecationWarning)
        return jax.jit(f).trace(*shapes).lower(lowering_platforms=(platform,))


def _an_h100():
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
