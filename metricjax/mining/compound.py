"""Mask miners that look beyond a row, at the positives' own rows or at the whole batch, and miners made of miners."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array

from metricjax.engine.miners import Masks, Miner, as_miner, prepared
from metricjax.engine.positives import summed_over_positives
from metricjax.engine.selecting import ordered_integers
from metricjax.ground.functions import offered

__all__ = ["angular", "chain", "hard_fraction", "switch"]


@offered("miner", made=True)
def angular(angle: ArrayLike = math.pi / 9) -> Miner:
    """Keeps the pairs of triplets whose angle at the negative is wide: arctan(d_ap / (2 d_cn)) > `angle`.

    c is the middle of anchor and positive, so that d_cn² = (d_an² + d_pn²) / 2 − d_ap² / 4: the distances have to be
    Euclidean (`distances.chord` or `distances.euclidean`). A positive is kept if it makes such a triplet with any
    negative of the anchor, and a negative if it does with any positive. Time grows with the number of positives of an
    anchor. Called directly it also takes `row_of(index [n]) -> distances [n, m]` of columns to all columns, which a
    loss provides.

    The angle is that of Wang et al. 2017, arXiv:1708.01682; the rule and its default, 20 degrees, are those of PyTorch
    Metric Learning's AngularMiner.

    >>> import jax.numpy as jnp
    >>> d = jnp.array([[0.0, 2.0, 1.0], [2.0, 0.0, 3.0], [1.0, 3.0, 0.0]])  # points at 0, 2 and −1
    >>> p, n = jnp.array([[0, 1, 0]]) > 0, jnp.array([[0, 0, 1]]) > 0  # d_cn = 2: an angle of 26.6 degrees
    >>> [bool(jnp.any(angular(jnp.deg2rad(limit))(d[:1], p, n, lambda i: d[i])[1])) for limit in (26, 27)]
    [True, False]
    """
    return Miner(Partial(_angular, angle), reaches=True)


def _angular(angle, distances, positives, negatives, row_of) -> Masks:
    square = jnp.square(jnp.tan(jnp.asarray(angle, distances.dtype)))
    columns = jnp.arange(distances.shape[1], dtype=jnp.int32)[None]

    def pair(there, positive):
        ap = jnp.square(jnp.take_along_axis(distances, positive[:, None], axis=1))
        fourfold = 2 * jnp.square(distances) + 2 * jnp.square(row_of(positive)) - ap  # 4 d_cn²
        wide = negatives & there[:, None] & (ap > square * fourfold)
        kept = (columns == positive[:, None]) & jnp.any(wide, axis=1, keepdims=True)
        return kept.astype(jnp.int32), wide.astype(jnp.int32)

    kept_positives, kept_negatives = summed_over_positives(pair, positives, columns)
    return kept_positives > 0, kept_negatives > 0


@offered("miner", made=True)
def hard_fraction(fraction: ArrayLike = 0.5) -> Miner:
    """Keeps the hardest share of all positive pairs of the batch, and of all negative pairs.

    With n pairs of a kind these are the ⌈fraction · n⌉ farthest positives and the closest negatives, wherever they are
    in the batch, and all that tie with the last of them. A loss finds the two limits exactly before it begins, over all
    panels and devices, at the cost of a few more matrix products; a batch may have 2³¹ pairs of a kind. Called directly
    it takes the rows it gets for the batch.

    Yuan, Yang, Zhang 2017, "Hard-aware deeply cascaded embedding", arXiv:1611.05720; the default is that of PyTorch
    Metric Learning's HDCMiner.

    >>> import jax.numpy as jnp
    >>> d, n = jnp.array([[0.1, 0.2], [0.3, 0.9]]), jnp.ones((2, 2), bool)
    >>> hard_fraction(0.5)(d, ~n, n)[1].tolist()
    [[True, True], [False, False]]
    """
    return Miner(Partial(_hard_fraction, fraction), prepare=_with_limits)


def _hard_fraction(fraction, distances, positives, negatives) -> Masks:
    limits = _hard_limits(fraction, lambda f: f(distances, positives, negatives, None))
    return _as_hard(limits, distances, positives, negatives)


def _with_limits(total, fraction) -> Miner:
    return Miner(Partial(_as_hard, _hard_limits(fraction, total)))


def _as_hard(limits, distances, positives, negatives) -> Masks:
    """Pairs whose hardness, as ordered integers, reaches the limit of their kind."""
    hardness = ordered_integers(distances), ordered_integers(-distances)
    return positives & (hardness[0] >= limits[0]), negatives & (hardness[1] >= limits[1])


def _hard_limits(fraction, total):
    """The hardness of the ⌈fraction · n⌉-th hardest positive and negative, found digit by digit (see `Miner`)."""
    counts = total(lambda d, p, n, _: jnp.stack([jnp.sum(p, dtype=jnp.int32), jnp.sum(n, dtype=jnp.int32)]))
    share = jnp.ceil(jnp.asarray(fraction, jnp.float32) * counts.astype(jnp.float32)).astype(jnp.int32)
    wanted = jnp.clip(share, 0, counts)
    kind = jax.eval_shape(lambda: total(lambda d, p, n, _: ordered_integers(d[0, 0]))).dtype
    limits = jnp.full(2, jnp.iinfo(kind).min, kind)
    for shift in range(jnp.iinfo(kind).bits - _DIGIT, -_DIGIT, -_DIGIT):

        def histogram(d, p, n, _, shift=shift, limits=limits):
            sides = ((ordered_integers(d), p), (ordered_integers(-d), n))
            return jnp.stack([_digits(*side, limit, shift) for side, limit in zip(sides, limits, strict=True)])

        found = total(histogram)
        harder = jnp.cumsum(found[:, ::-1], axis=1)[:, ::-1] - found  # in digits above
        digit = jnp.minimum(jnp.sum(harder >= wanted[:, None], axis=1, dtype=jnp.int32), _SIZE - 1)
        wanted -= jnp.take_along_axis(harder, digit[:, None], axis=1)[:, 0]
        limits += digit.astype(kind) << shift
    return jnp.where(share > 0, limits, jnp.iinfo(kind).max)


_DIGIT = 8  # bits
_SIZE = 2**_DIGIT


def _digits(keys, where, limit, shift):
    """Of the marked keys that agree with the limit above a digit, how many have each value of it."""
    start = keys - limit  # wraps around where the key is far below or above
    digit = lax.shift_right_logical(start, jnp.asarray(shift, keys.dtype))
    inside = where & (digit >= 0) & (digit < _SIZE)
    place = jnp.where(inside, digit, _SIZE).astype(jnp.int32)
    return jnp.zeros(_SIZE + 1, jnp.int32).at[place].add(1)[:_SIZE]


@offered("miner", made=True)
def chain(*miners: Callable[[Array, Array, Array], Masks]) -> Miner:
    """Mask miners one after the other: each gets what the one before it kept.

    >>> import jax.numpy as jnp
    >>> from metricjax.mining import pair_margin, rank_range
    >>> d, n = jnp.array([[0.125, 0.25, 0.5, 1.0]]), jnp.ones((1, 4), bool)
    >>> chain(pair_margin(negative=0.75), rank_range((2, 3)))(d, ~n, n)[1].tolist()
    [[False, True, True, False]]
    """
    parts = _as_miners("chain", miners)
    return Miner(Partial(_chained, parts), reaches=True, prepare=_each_after_the_last if _need_batch(parts) else None)


def _chained(miners, distances, positives, negatives, row_of) -> Masks:
    for miner in miners:
        positives, negatives = miner(distances, positives, negatives, row_of)
    return positives, negatives


def _each_after_the_last(total, miners) -> Miner:
    """Each miner is prepared on what those before it keep."""
    done: tuple[Miner, ...] = ()
    for miner in miners:
        kept = lambda f, done=done: total(
            lambda d, p, n, row_of: f(d, *_chained(row_of.keyed(done), d, p, n, row_of), row_of)
        )
        done = (*done, prepared(miner, kept))
    return Miner(Partial(_chained, done), reaches=True)


@offered("miner", made=True)
def switch(index: ArrayLike, miners: Sequence[Callable[[Array, Array, Array], Masks]]) -> Miner:
    """The mask miner at `index`, which may be traced: a schedule under `jit`.

    An index out of range takes the first or the last. Under `jit` only the chosen one runs; under a `vmap` over the
    index, all do.

    >>> import jax.numpy as jnp
    >>> from metricjax.mining import pair_margin, rank_range
    >>> d, n = jnp.array([[0.125, 0.25, 0.5, 1.0]]), jnp.ones((1, 4), bool)
    >>> miners = [chain(), pair_margin(negative=0.75), rank_range((1, 1))]  # all, then nearer ones, then the hardest
    >>> [int(jnp.sum(switch(step // 10, miners)(d, ~n, n)[1])) for step in (0, 10, 25)]
    [4, 3, 1]
    """
    if not miners:
        raise ValueError("switch got no miners; wanted at least one")
    parts = _as_miners("switch", miners)
    return Miner(Partial(_switched, index, parts), reaches=True, prepare=_all_prepared if _need_batch(parts) else None)


def _switched(index, miners, distances, positives, negatives, row_of) -> Masks:
    branches = [lambda miner=miner: miner(distances, positives, negatives, row_of) for miner in miners]
    return lax.switch(jnp.asarray(index, jnp.int32), branches)


def _all_prepared(total, index, miners) -> Miner:
    return Miner(Partial(_switched, index, tuple(prepared(miner, total) for miner in miners)), reaches=True)


# --- the parts of a miner made of miners ----------------------------------------------------------------------------


def _as_miners(name: str, miners: Sequence[Callable[..., Masks]]) -> tuple[Miner, ...]:
    for miner in miners:
        if not callable(miner):
            raise TypeError(f"{name} got {miner!r}; wanted functions (distances, positives, negatives) -> masks")
    return tuple(map(as_miner, miners))


def _need_batch(miners: tuple[Miner, ...]) -> bool:
    return any(miner.prepare for miner in miners)
