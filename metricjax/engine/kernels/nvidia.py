"""Sweeps on NVIDIA GPUs, Ampere and newer, by Pallas's Triton backend: programs keep their rows and sums in registers.

That backend is deprecated since JAX 0.11: where it is missing there is no kernel.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from metricjax.engine.devices import result, varying
from metricjax.engine.kernels.row_sweeps import Operands, Spans, Sweep, Tile, laid, masks_of, product, spans, store
from metricjax.engine.sizes import Tiling, tiling_in_kernel
from metricjax.engine.tiles import Masks
from metricjax.ground.precision import are_ampere, compute_capabilities

try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None  # type: ignore[assignment]

__all__ = ["Nvidia"]

_FEATURES = 128  # of a part of embeddings that is multiplied at a time
_PROGRAMS = 200  # that a chip is to have at least; columns are shared among as many as that takes
_IN_REGISTERS = 2**16  # bytes of embeddings that a program keeps
_LARGE = {"8.0", "9.0", "10.0", "10.3"}  # GPUs that have 160 KiB for a program: those of data centres


@dataclass(frozen=True)
class Nvidia:
    """The backend. heavy: of a loss that holds many numbers. interpret: on any platform, with exact products."""

    operands: Operands
    heavy: bool
    interpret: bool = False
    unit = 128

    def fits(self, d: int) -> bool:
        return triton is not None and are_ampere(compute_capabilities()) and self._tiling(d, 1) is not None

    def exp(self, x: Array) -> Array:
        return jnp.exp(x) if self.interpret or self.operands == "exact" else _fast_exp(x)

    def swept(self, sweep: Sweep) -> Any:
        tiling = self._tiling(sweep.rows.x.shape[1], sweep.products)
        assert tiling is not None
        height, width = tiling.height, tiling.width
        features = min(_FEATURES, max(16, pl.next_power_of_2(sweep.rows.x.shape[1])))
        x, scalars, own, others = laid(sweep, self.operands, features)
        n, d = x.shape
        splits = _splits(n // height, n // width)
        whole = lambda a: pl.BlockSpec(a.shape, lambda i, k: (0,) * a.ndim)
        mine = lambda a: pl.BlockSpec((height, a.shape[1]), lambda i, k: (i, 0))
        share = lambda a: pl.BlockSpec((None, *a.shape), lambda i, k: (k, i, 0))
        places = varying(spans(sweep.rows, height, width), x)
        xt = x.T if tiling.transposed else None
        inputs = [(scalars, whole), (places, whole), (x, mine), (x, whole), (xt, whole), (own, mine), (others, whole)]
        sums = jax.eval_shape(lambda: sweep.begun(height, (features,) * (d // features)))
        kernel = _Kernel(self, sweep, tiling, features, -(-n // (width * splits)))
        (found,) = pl.pallas_call(
            lambda *refs: kernel(*refs),  # Pallas hashes a function; a sweep has no hash
            grid=(n // height, splits),
            in_specs=[jax.tree.map(spec, a) for a, spec in inputs],
            out_specs=[jax.tree.map(share, sums)],
            out_shape=[jax.tree.map(lambda a: result((splits, n, a.shape[1]), a.dtype, sweep.rows.x), sums)],
            compiler_params=triton.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
            interpret=self.interpret,
            name=f"metricjax_sweep_{sweep.products}",
        )(*(a for a, _ in inputs))
        return found

    @property
    def precision(self) -> lax.Precision | lax.DotAlgorithmPreset:
        """Of products; the default is TF32 for float32."""
        if self.interpret:
            return lax.Precision.HIGHEST
        return lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if self.operands == "exact" else lax.Precision.DEFAULT

    def _tiling(self, d: int, products: int) -> Tiling | None:
        small = not _LARGE.issuperset(compute_capabilities())
        return tiling_in_kernel(self.operands, d, products, self.heavy, small)


def _splits(blocks: int, tiles: int) -> int:
    """Programs that share the columns of a block of rows: a power of two, of at most 16 and the number of tiles."""
    wanted = 2 ** math.ceil(math.log2(max(1, _PROGRAMS / blocks)))
    return min(wanted, 16, 2 ** int(math.log2(tiles)))


@dataclass(frozen=True)
class _Kernel:
    """What a program does: some rows, and one share of the columns, of so many tiles."""

    backend: Nvidia
    sweep: Sweep
    tiling: Tiling
    features: int
    tiles: int

    def __call__(self, scalars, spans, x_own, x_all, xt_all, own, others, sums) -> None:
        i, k = pl.program_id(0), pl.program_id(1)
        height, width = self.tiling.height, self.tiling.width
        own_class, own_numbers = jax.tree.map(lambda ref: ref[...], own)
        hyper = self.sweep.hyper_of(scalars)
        parts = [pl.ds(first, self.features) for first in range(0, x_own.shape[1], self.features)]
        held = math.prod(x_own.shape) * x_own.dtype.itemsize <= _IN_REGISTERS
        x = [x_own[:, part] for part in parts] if held else None
        multiply = functools.partial(product, precision=self.backend.precision)

        def visit(mixed: bool, j, sums):
            columns = pl.ds(j * width, width)
            y = [x_all[columns, part] for part in parts]
            rows = [x_own[:, part] for part in parts] if x is None else x
            scores = functools.reduce(jnp.add, (multiply(a, b, (1, 1)) for a, b in zip(rows, y, strict=True)))
            classes, numbers = jax.tree.map(lambda ref: ref[:, columns], others)
            masks = masks_of(i * height, j * width, own_class, classes) if mixed else Masks()

            def times(w):
                w = w.astype(x_all.dtype)
                if xt_all is None:
                    return tuple(multiply(w, b, (1, 0)) for b in y)
                return tuple(multiply(w, xt_all[part, columns], (1, 1)) for part in parts)

            return self.sweep.step(sums, Tile(scores, masks, own_numbers, numbers, hyper, times))

        begun = self.sweep.begun(height, (self.features,) * len(parts))
        found = _visited(visit, begun, k * self.tiles, self.tiles, jax.tree.map(lambda ref: ref[i], spans))
        store(sums, found)


def _visited(visit: Callable, sums: Any, begin, tiles: int, spans: Spans) -> Any:
    """`visit(mixed, j, sums)` for the tiles from `begin` on, so many of them: first those that need masks."""
    stop = jnp.maximum(begin, jnp.minimum(begin + tiles, spans.last))
    first, end, ragged = (jnp.clip(tile, begin, stop) for tile in spans[:3])
    meeting, before = end - first, first - begin
    mixed = lambda t: jnp.where(t < meeting, first + t, ragged + t - meeting)
    plain = lambda t: jnp.where(t < before, begin + t, end + t - before)
    sums = lax.fori_loop(0, meeting + stop - ragged, lambda t, sums: visit(True, mixed(t), sums), sums)
    return lax.fori_loop(0, before + ragged - end, lambda t, sums: visit(False, plain(t), sums), sums)


@jax.custom_jvp
def _fast_exp(x: Array) -> Array:
    """e^x with a relative error of about 1e-7 (1 + |x|): the instruction that GPUs have for powers of two."""
    shape = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    power = functools.partial(triton.elementwise_inline_asm, "ex2.approx.ftz.f32 $0, $1;", constraints="=f,f", pack=1)
    return power(args=[x * math.log2(math.e)], result_shape_dtypes=shape)[0]


@_fast_exp.defjvp
def _fast_exp_jvp(primals, tangents):
    value = _fast_exp(*primals)
    return value, value * tangents[0]
