"""One compiled program of each loss and way through the engine, which all invariants share.

Compiling takes nearly all of the tests' time, and what is jitted anew, called with another shape or not jitted at all
compiles anew. So whatever an invariant changes is an argument here: which rows exist, weights, prototypes, references,
the hyper-parameter that varies.
"""

import inspect
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np

PROGRAMS = {}


def usual(case):
    """The hyper-parameter that varies, at its default where that is a number."""
    if not case.varied:
        return {}
    default = inspect.signature(case.loss).parameters[case.varied].default
    is_number = isinstance(default, Real) and case.varied not in case.fixed
    return {case.varied: float(default if is_number else case.values[0])}


def program(case, block_size=None, **static):
    """(floats, others, labels) -> the value, and its gradients in the floats."""
    key = (id(case), block_size, *static.items())  # cases hold dictionaries, and live as long as the tests
    if key not in PROGRAMS:
        options = static if block_size is None else {"block_size": block_size, **static}

        def loss(floats, others, labels):
            given = {name: a for name, a in floats.items() if name not in ("z", "prototypes", "varied")}
            rest = [floats["prototypes"]] if "prototypes" in floats else []
            return case(floats["z"], labels, *rest, **given, **others, **floats["varied"], **options)

        PROGRAMS[key] = jax.jit(jax.value_and_grad(loss))
    return PROGRAMS[key]


def run(case, z, labels, prototypes=None, where=None, block_size=None, static=None, **options):
    """The value, and a dictionary of gradients: in z, prototypes, weights, references, and `varied`, as they are given.

    All rows exist without `where`. options: weights, references with their labels and mask, the hyper-parameter that
    varies; static: others, which are compiled in.
    """
    wide = np.float64 if z.dtype == np.float64 else np.float32
    number = {name: options.pop(name) for name in (case.varied,) if name in options} or usual(case)
    floats = {"z": z, "varied": {name: jnp.asarray(a, wide) for name, a in number.items()}}
    floats |= {"prototypes": prototypes} if prototypes is not None else {}
    floats |= {name: options.pop(name) for name in ("weights", "references") if name in options}
    others = {"where": jnp.ones(len(z), bool) if where is None else jnp.asarray(where), **options}
    return program(case, block_size, **(static or {}))(floats, others, labels)


def value_and_grad(case, z, *arguments, **options):
    """The value, and its gradient in z, by a program of these shapes that is compiled for this call alone."""
    return jax.jit(jax.value_and_grad(lambda z: case(z, *arguments, **options)))(z)
