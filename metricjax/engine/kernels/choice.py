"""Which platforms have kernels, for which embeddings, and at which precision their products are taken."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metricjax.engine.kernels.row_sweeps import Backend, Operands
from metricjax.engine.pairs import PairLoss
from metricjax.ground.pairwise import Pairwise
from metricjax.ground.precision import in_force

__all__ = ["INTERPRETED", "Kernels", "kernels_for", "kernels_for_statistics"]

INTERPRETED: Literal["cuda", "tpu"] | None = None  # for tests: the backend that CPUs interpret

_OPERANDS: dict[str, Operands] = {
    "default": "default", "fastest": "default",
    "bfloat16": "bfloat16", "BF16_BF16_F32": "bfloat16",
    "tensorfloat32": "tensorfloat32", "high": "tensorfloat32", "TF32_TF32_F32": "tensorfloat32",
}  # fmt: skip


class Kernels(NamedTuple):
    """The kernels for one loss and embeddings of so many features. heavy: a program holds many numbers of a pair."""

    operands: Operands
    features: int
    heavy: bool
    interpreted: Literal["cuda", "tpu"] | None = None

    def backends(self) -> dict[str, Backend]:
        """By platforms. Pallas, which takes a while to import, is imported here: where kernels are asked for."""
        from metricjax.engine.kernels import nvidia, tpu

        kinds: dict[str, Callable[..., Backend]] = {"cuda": nvidia.Nvidia, "tpu": tpu.Tpu}
        found = {platform: kind(self.operands, self.heavy) for platform, kind in kinds.items()}
        if self.interpreted is not None:
            found["cpu"] = kinds[self.interpreted](self.operands, self.heavy, interpret=True)
        return {platform: backend for platform, backend in found.items() if backend.fits(self.features)}


def kernels_for_statistics(loss: PairLoss, columns: Array, hyper: tuple, in_bfloat16: bool) -> Kernels | None:
    """The kernels for a declared loss of these rows, which came in bfloat16 or not; None where there are none."""
    numbers = all(jnp.issubdtype(h.dtype, jnp.floating) for h in jax.tree.leaves(hyper))  # and no random keys
    statistics = loss.rows.statistics  # type: ignore[attr-defined]
    heavy = len(statistics) > 3 or any(s.given for _, s in statistics) or not loss.score.product
    return kernels_for(loss.score, columns, in_bfloat16, heavy) if numbers and not loss.towers else None


def kernels_for(score: Pairwise, columns: Array, in_bfloat16: bool, heavy: bool = False) -> Kernels | None:
    """The kernels for scores of these rows; None where there are none.

    Products of bfloat16 numbers are taken if these are asked for, or if embeddings come as such and nothing is asked.
    """
    if score.of_product is None or not (columns.dtype == jnp.float32 or INTERPRETED is not None):
        return None
    precision = score.precision or in_force()
    operands: Operands = "bfloat16" if in_bfloat16 else "default"
    if precision is not None:
        operands = _OPERANDS.get(precision, "exact")
    return Kernels(operands, columns.shape[1], heavy, INTERPRETED)
