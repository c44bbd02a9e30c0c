"""The errors in docs/guides/precision.md: `python -m tests.helpers.precision_table [LOSS ...]` prints them, in minutes.

Embeddings are such as training makes: tight classes, each with another that looks like it. An error is that of the
value, or the length of that of the gradient in the first argument, as a share of the whole. Operands of products at the
default precision are rounded by `tests.helpers.rounding`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from metricjax.losses.catalogue import CATALOGUE
from tests.helpers.cases import CLASSES, PAIRS, VIEWS
from tests.helpers.rounding import BFLOAT16, TF32, compiled

ROWS, FEATURES, EACH = 128, 128, 4
COLUMNS = ("TF32", "bfloat16", "embeddings in bfloat16")
CASES = {name: case for name, case in {**PAIRS, **CLASSES, **VIEWS}.items() if name in CATALOGUE}


def inputs(name: str) -> list[jax.Array]:
    """What the loss takes, of: embeddings, another view of them, labels, and prototypes."""
    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) // EACH
    centers = rng.standard_normal((ROWS // EACH // 2, FEATURES)).repeat(2, axis=0)
    centers += 0.2 * rng.standard_normal(centers.shape)
    x, y, several = (centers[which] for which in (labels, labels, slice(None)))
    x, y = (a + 0.5 * rng.standard_normal(a.shape) for a in (x, y))
    prototypes = several + 0.2 * rng.standard_normal(several.shape)
    if getattr(CASES[name], "several", False):
        prototypes = np.stack([prototypes, prototypes + 0.2 * rng.standard_normal(prototypes.shape)], axis=1)
    arrays = {"embeddings": x, "x": x, "y": y, "prototypes": prototypes, "centers": prototypes}
    floats = {kind: jnp.asarray(a, jnp.float32) for kind, a in arrays.items()} | {"labels": jnp.asarray(labels)}
    return [floats[kind] for kind in CATALOGUE[name].takes if kind in floats]


def errors(name: str) -> list[tuple[float, float]]:
    """Of value and gradient, for each of COLUMNS."""
    first, *others = inputs(name)
    f = jax.value_and_grad(lambda x, *others: CASES[name](x, *others))
    exact = compiled(f, None, first, *others)(first, *others)
    found = [compiled(f, bits, first, *others)(first, *others) for bits in (TF32, BFLOAT16)]
    short = first.astype(jnp.bfloat16)
    value, gradient = compiled(f, None, short, *others)(short, *others)
    found.append((value, gradient.astype(first.dtype)))
    length = lambda a: float(jnp.linalg.norm(a))
    relative = lambda a, b: length(a - b) / length(b) if length(b) else 0.0
    return [tuple(relative(a, b) for a, b in zip(one, exact, strict=True)) for one in found]


def row(name: str) -> str:
    """A line of the table."""
    numbers = [f"{error:.0e}" if error > 1e-6 else "–" for pair in errors(name) for error in pair]
    return f"| `{name}` | {' | '.join(numbers)} |"


def main() -> None:
    print("| value and gradient of | " + " | ".join(f"{name} | " for name in COLUMNS) + " |")
    print("|---" * 7 + "|")
    for name in sys.argv[1:] or CASES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
