"""Relations between two labels, for the options `same` and `grade`.

`same(a, b)` says whether two rows match. It returns a boolean, or two: whether they are a positive pair, and whether a
negative one; a pair that is neither is left out. `grade(a, b)` says how well they match, from 0 (a negative pair) up.
Labels have any dtype and trailing shape: a and b are one label each. All of these are ordinary functions of two arrays,
and so are your own.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from metricjax.ground.functions import offered
from metricjax.ground.pairwise import positive_and_negative

__all__ = [
    "Relation",
    "across_cameras",
    "depth",
    "equal",
    "ignoring",
    "overlap",
    "same_level",
    "share_all",
    "share_any",
]


def __dir__() -> list[str]:
    return __all__


Relation = Callable[[Array, Array], Array | tuple[Array, Array]]


@offered("same")
def equal(a: Shaped[Array, "..."], b: Shaped[Array, "..."]) -> Bool[Array, ""]:
    """The same label."""
    return jnp.all(a == b)


@offered("same")
def share_any(a: Bool[Array, " k"], b: Bool[Array, " k"]) -> Bool[Array, ""]:
    """Multi-hot labels with a class in common.

    >>> import jax.numpy as jnp
    >>> bool(share_any(jnp.array([True, True]), jnp.array([False, True])))
    True
    """
    return jnp.any(a & b)


@offered("same")
def share_all(a: Bool[Array, " k"], b: Bool[Array, " k"]) -> Bool[Array, ""]:
    """Multi-hot labels with the same classes, at least one."""
    return jnp.all(a == b) & jnp.any(a)


@offered("grade")
def overlap(a: Bool[Array, " k"], b: Bool[Array, " k"]) -> Float[Array, ""]:
    """A grade of multi-hot labels: classes in common over classes in either, from 0 to 1 (Jaccard index).

    >>> import jax.numpy as jnp
    >>> float(overlap(jnp.array([True, True]), jnp.array([False, True])))
    0.5
    """
    either = jnp.sum(a | b, dtype=jnp.float32)
    return jnp.sum(a & b, dtype=jnp.float32) / jnp.maximum(either, 1)


@offered("same", made=True)
def same_level(level: int) -> Relation:
    """Labels [levels], from coarse to fine: the same down to `level`, counted from 0.

    >>> import jax.numpy as jnp
    >>> [bool(same_level(level)(jnp.array([3, 1]), jnp.array([3, 2]))) for level in (0, 1)]
    [True, False]
    """
    return _same_level(level)


@functools.lru_cache(maxsize=256)
def _same_level(level):
    return lambda a, b: jnp.all(a[: level + 1] == b[: level + 1])


@offered("grade")
def depth(a: Shaped[Array, " levels"], b: Shaped[Array, " levels"]) -> Float[Array, ""]:
    """A grade of labels from coarse to fine: the share of levels on which they agree before they first differ.

    >>> import jax.numpy as jnp
    >>> float(depth(jnp.array([3, 1, 7, 7]), jnp.array([3, 2, 7, 7])))
    0.25
    """
    return jnp.mean(jnp.cumprod((a == b).astype(jnp.float32)))


@offered("same")
def across_cameras(a: Shaped[Array, " 2"], b: Shaped[Array, " 2"]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Labels [person, camera]: the same person seen by another camera, against another person.

    The same person seen by the same camera is left out, as the protocols of re-identification do.
    """
    return (a[0] == b[0]) & (a[1] != b[1]), a[0] != b[0]


@offered("same", made=True)
def ignoring(label: int, same: Relation = equal) -> Relation:
    """`same` where neither label is `label` (−1, say); pairs with it are left out.

    >>> import jax.numpy as jnp
    >>> [bool(v) for v in ignoring(-1)(jnp.array(2), jnp.array(-1))]
    [False, False]
    """
    return _ignoring(label, same)


@functools.lru_cache(maxsize=256)
def _ignoring(label, same):
    def relation(a: Array, b: Array) -> tuple[Array, Array]:
        known = ~jnp.any(a == label) & ~jnp.any(b == label)
        positive, negative = positive_and_negative(same(a, b))
        return positive & known, negative & known

    return relation
