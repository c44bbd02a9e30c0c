"""Programs whose matrix products are rounded as accelerators round them, run on a CPU, which never does."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax._src.interpreters import mlir
from jax._src.lax.lax import _dot_general_lower

TF32, BFLOAT16 = 10, 7  # bits of the fraction: what an NVIDIA GPU and a TPU take by default
_HASTY = (None, lax.Precision.DEFAULT, (lax.Precision.DEFAULT, lax.Precision.DEFAULT))


def compiled(f: Callable, bits: int | None, *arguments: Any) -> Callable:
    """`f`, with the operands of products of default precision rounded to so many bits; None rounds nothing."""

    def rule(context, *operands, precision, **parameters):
        if precision in _HASTY:
            short = lambda a: lax.reduce_precision(a, exponent_bits=8, mantissa_bits=bits)
            round_them = mlir.lower_fun(lambda *pair: [short(a) for a in pair], multiple_results=True)
            operands = round_them(context.replace(avals_out=context.avals_in), *operands)
        return _dot_general_lower(context, *operands, precision=precision, platform="cpu", **parameters)

    rules = () if bits is None else ((lax.dot_general_p, rule),)
    parameters = mlir.LoweringParameters(override_lowering_rules=rules)
    return jax.jit(f).trace(*arguments).lower(_private_parameters=parameters).compile()
