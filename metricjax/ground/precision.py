"""At which precision matrix products are taken: on GPUs and TPUs, a choice between speed and exactness.

There, float32 products are by default those of shorter numbers (TF32 has 11 bits, bfloat16 has 8). That is fast, and
good enough for the gradients of cosines. Differences of products, and whoever ranks or counts, need all 24 bits.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

__all__ = ["EXACT", "AtPrecision", "Precision", "as_precision", "at_precision", "exact_product", "in_force"]

Precision: TypeAlias = str | lax.Precision | lax.DotAlgorithmPreset | None
"""What JAX knows: a name such as "default", "high", "highest" or "BF16_BF16_F32_X3", or the enum's value. Or EXACT."""

EXACT = "exact"  # float32, by the fastest algorithm of the devices at hand that has all of its bits
_PLAIN = (EXACT, "default", "high", "highest", "bfloat16", "tensorfloat32", "float32")


def as_precision(precision: Precision) -> str | None:
    """The name under which `jax.default_matmul_precision` knows it, or EXACT."""
    name = precision
    if isinstance(precision, lax.Precision | lax.DotAlgorithmPreset):
        name = precision.name.lower() if isinstance(precision, lax.Precision) else precision.name
    if name is None or name in _PLAIN or (isinstance(name, str) and name in lax.DotAlgorithmPreset.__members__):
        return name
    wanted = f"None, one of {', '.join(_PLAIN)}, a jax.lax.Precision or a jax.lax.DotAlgorithmPreset"
    raise ValueError(f"precision is {precision!r}; wanted {wanted}")


@dataclass(frozen=True)
class AtPrecision:
    """`f`, whose matrix products are taken at this precision wherever it does not ask for another itself."""

    f: Callable[..., Any]
    precision: str

    def __call__(self, *arrays: Any) -> Any:
        is_exact = self.precision == EXACT
        name = _exact(jnp.result_type(*jax.tree.leaves(arrays))) if is_exact else self.precision
        with jax.default_matmul_precision(name):
            return self.f(*arrays)


def in_force() -> str | None:
    """The precision at which products are taken here."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def at_precision(f: Callable[..., Any], precision: str | None) -> Callable[..., Any]:
    """`f` with its products at this precision; None leaves it to whoever calls."""
    return f if precision is None else AtPrecision(f, precision)


exact_product: Callable[[Array, Array], Array]
exact_product = AtPrecision(jnp.matmul, EXACT)


def _exact(dtype: jnp.dtype) -> str:
    """All bits of float32: six bfloat16 products on tensor cores, which take half the time; elsewhere "highest"."""
    return "BF16_BF16_F32_X6" if dtype == jnp.float32 and _have_tensor_cores() else "highest"


@functools.cache
def _have_tensor_cores() -> bool:
    """Whether all GPUs here are NVIDIA's, Ampere or newer: XLA refuses the six products on others."""
    versions = [str(device.compute_capability) for device in jax.local_devices() if device.platform in ("gpu", "cuda")]
    return bool(versions) and all(v.replace(".", "").isdigit() and float(v) >= 8 for v in versions)
