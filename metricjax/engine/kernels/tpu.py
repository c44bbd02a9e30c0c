"""Sweeps on TPUs, by Pallas's Mosaic backend: the grid goes through the columns of each block of rows in order."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jaxtyping import Array

from metricjax.engine.devices import result, varying
from metricjax.engine.kernels.row_sweeps import Operands, Sweep, Tile, laid, masks_of, product, spans, store
from metricjax.engine.sizes import ROWS_IN_TILE_OF_TPU, features_in_tile_of_tpu
from metricjax.engine.tiles import Masks

__all__ = ["Tpu"]

_LANES = 128


@dataclass(frozen=True)
class Tpu:
    """The backend. heavy: of a loss that holds many numbers. interpret: on any platform, with exact products."""

    operands: Operands
    heavy: bool
    interpret: bool = False
    unit = ROWS_IN_TILE_OF_TPU

    def fits(self, d: int) -> bool:
        return d <= features_in_tile_of_tpu(self.heavy)

    def exp(self, x: Array) -> Array:
        return jnp.exp(x)

    def swept(self, sweep: Sweep) -> Any:
        x, scalars, own, others = laid(sweep, self.operands, _LANES)
        (n, d), t = x.shape, self.unit
        scalar = lambda a: pl.BlockSpec(memory_space=tpu.SMEM)
        mine = lambda a: pl.BlockSpec((t, a.shape[1]), lambda i, j: (i, 0))
        theirs = lambda a: pl.BlockSpec((t, a.shape[1]), lambda i, j: (j, 0))
        across = lambda a: pl.BlockSpec((a.shape[0], t), lambda i, j: (0, j))
        places = varying(spans(sweep.rows, t, t), x)
        inputs = [(scalars, scalar), (places, scalar), (x, mine), (x, theirs), (own, mine), (others, across)]
        sums = jax.eval_shape(lambda: sweep.begun(t, (d,)))
        run = pl.pallas_call(
            lambda *refs: _kernel(self, sweep, *refs),  # Pallas hashes a function; a sweep has no hash
            grid=(n // t, n // t),
            in_specs=[jax.tree.map(spec, a) for a, spec in inputs],
            out_specs=[jax.tree.map(mine, sums)],
            out_shape=[jax.tree.map(lambda a: result((n, a.shape[1]), a.dtype, sweep.rows.x), sums)],
            compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=self.interpret,
            name=f"metricjax_sweep_{sweep.products}",
        )
        (found,) = sequential_vmap(run)(*(a for a, _ in inputs))  # scalar memory takes no batch
        return jax.tree.map(lambda a: a[None], found)

    @property
    def precision(self) -> lax.Precision:
        """Of products; the default is one of bfloat16 numbers."""
        rounded = self.operands in ("bfloat16", "default") and not self.interpret
        return lax.Precision.DEFAULT if rounded else lax.Precision.HIGHEST


def _kernel(backend: Tpu, sweep: Sweep, scalars, spans, x, y, own, others, sums) -> None:
    """What a program does: some rows, and one tile of columns."""
    i, j = pl.program_id(0), pl.program_id(1)
    span = jax.tree.map(lambda ref: ref[i], spans)
    meet = ((span.first <= j) & (j < span.end)) | ((span.ragged <= j) & (j < span.last))
    height = x.shape[0]
    pl.when(j == 0)(lambda: store(sums, sweep.begun(height, (x.shape[1],))))

    def visit(mixed: bool):
        (own_class, own_numbers), (classes, numbers) = jax.tree.map(lambda ref: ref[...], (own, others))
        masks = masks_of(i * height, j * height, own_class, classes) if mixed else Masks()
        scores = product(x[...], y[...], (1, 1), backend.precision)
        times = lambda w: (product(w.astype(y.dtype), y[...], (1, 0), backend.precision),)
        tile = Tile(scores, masks, own_numbers, numbers, sweep.hyper_of(scalars), times)
        store(sums, sweep.step(jax.tree.map(lambda ref: ref[...], sums), tile))

    pl.when(meet)(partial(visit, True))
    pl.when((j < span.last) & jnp.logical_not(meet))(partial(visit, False))
