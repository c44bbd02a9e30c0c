"""At which precision matrix products are taken: on GPUs and TPUs, a choice between speed and exactness.

There, float32 products are by default those of shorter numbers (TF32 has 11 bits, bfloat16 has 8). That is fast, and
good enough for the gradients of cosines. Differences of products, and whoever ranks or counts, need all 24 bits.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from metricjax.ground.functions import own_functions

__all__ = [
    "EXACT",
    "AtPrecision",
    "Precision",
    "are_ampere",
    "as_precision",
    "asked",
    "at_precision",
    "compute_capabilities",
    "exact_product",
    "in_force",
]

Precision: TypeAlias = str | lax.Precision | lax.DotAlgorithmPreset | None
"""What JAX knows: a name such as "default", "high", "highest" or "BF16_BF16_F32_X3", or the enum's value. Or EXACT."""

EXACT = "exact"  # float32, by the fastest algorithm of the devices at hand that has all of its bits


def as_precision(precision: Precision) -> str | None:
    """The name under which `jax.default_matmul_precision` knows it, or EXACT."""
    if isinstance(precision, lax.Precision | lax.DotAlgorithmPreset):
        return precision.name.lower() if isinstance(precision, lax.Precision) else precision.name
    if precision in (None, EXACT):
        return precision
    try:
        with jax.default_matmul_precision(precision):
            return precision
    except (ValueError, TypeError):
        wanted = 'None, "exact", a name that jax.default_matmul_precision takes ("default", "high", "highest" …), a '
        wanted += "jax.lax.Precision or a jax.lax.DotAlgorithmPreset"
        raise ValueError(f"precision is {precision!r}; wanted {wanted}") from None


_ASKED: ContextVar[str | None] = ContextVar("_ASKED", default=None)


@dataclass(frozen=True)
class AtPrecision:
    """`f`, whose matrix products are taken at this precision wherever it does not ask for another itself."""

    f: Callable[..., Any]
    precision: str

    def __call__(self, *arrays: Any) -> Any:
        token = _ASKED.set(self.precision)
        try:
            with jax.default_matmul_precision(_exact(self.f, arrays) if self.precision == EXACT else self.precision):
                return self.f(*arrays)
        finally:
            _ASKED.reset(token)


def at_precision(f: Callable[..., Any], precision: str | None) -> Callable[..., Any]:
    """`f` with its products at this precision; None leaves it to whoever calls."""
    return f if precision is None else AtPrecision(f, precision)


def asked() -> str | None:
    """The precision of the `AtPrecision` that is being called, if any."""
    return _ASKED.get()


def in_force() -> str | None:
    """The precision at which products are taken here."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


exact_product: Callable[[Array, Array], Array]
exact_product = AtPrecision(jnp.matmul, EXACT)


def _exact(f: Callable[..., Any], arrays: Any) -> str:
    """All bits of float32: six bfloat16 products on tensor cores, which take half the time; elsewhere "highest".

    The six are for float32 alone, and would be taken of any other numbers too: only our own functions are known to
    multiply nothing but their arguments.
    """
    in_float32 = all(a.dtype == jnp.float32 for a in jax.tree.leaves(arrays))
    ours = f is jnp.matmul or not own_functions((f,))
    return "BF16_BF16_F32_X6" if in_float32 and ours and _have_tensor_cores() else "highest"


@functools.cache
def compute_capabilities() -> tuple[str, ...]:
    """Of the GPUs here."""
    return tuple(str(device.compute_capability) for device in jax.local_devices() if device.platform in ("gpu", "cuda"))


def are_ampere(capabilities: tuple[str, ...]) -> bool:
    """Whether all of them are NVIDIA's, Ampere or newer."""
    return all(v.replace(".", "").isdigit() and float(v) >= 8 for v in capabilities)


def _have_tensor_cores() -> bool:
    """Whether all GPUs here, if any, have them: XLA refuses the six products on others."""
    return bool(compute_capabilities()) and are_ampere(compute_capabilities())
