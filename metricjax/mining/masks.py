"""Miners from masks to masks: `f(distances, positives, negatives) -> (positives, negatives)`, which keep some pairs.

They are the option `miner` of the losses. A rule that compares with the closest or farthest pair of a row keeps all
that tie with it.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from metricjax.engine.miners import Masks, Miner
from metricjax.engine.selecting import as_floats, first_greater, ordered_integers
from metricjax.ground.functions import offered

__all__ = ["Range", "Strategy", "batch_easy_hard", "multi_similarity", "pair_margin", "rank_range", "triplet_margin"]

Range: TypeAlias = tuple[ArrayLike, ArrayLike]
Strategy: TypeAlias = Literal["easy", "semi_hard", "hard", "all"]


def _closest(distances: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Float[Array, "n 1"]:
    return jnp.min(distances, axis=1, keepdims=True, where=where, initial=jnp.inf)


def _farthest(distances: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Float[Array, "n 1"]:
    return jnp.max(distances, axis=1, keepdims=True, where=where, initial=-jnp.inf)


@offered("miner", made=True)
def multi_similarity(epsilon: ArrayLike = 0.1) -> Miner:
    """Keeps positives with d_ap + ε > min_n d_an and negatives with d_an − ε < max_p d_ap.

    For a similarity s = 1 − d these are s_ap − ε < max_n s_an and s_an + ε > min_p s_ap. An anchor without positives
    or without negatives keeps nothing.

    Wang et al. 2019, arXiv:1904.06627 (ε = 0.1, cosine similarity).

    >>> import jax.numpy as jnp
    >>> d, p = jnp.array([[0.25, 0.5, 0.5, 1.0]]), jnp.array([[1, 1, 0, 0]]) > 0
    >>> p, n = multi_similarity(0.125)(d, p, ~p)
    >>> p.tolist(), n.tolist()
    ([[False, True, False, False]], [[False, False, True, False]])
    """
    return Miner(Partial(_multi_similarity, epsilon))


def _multi_similarity(epsilon, distances, positives, negatives) -> Masks:
    epsilon = jnp.asarray(epsilon, distances.dtype)
    hard_positives = positives & (distances + epsilon > _closest(distances, negatives))
    return hard_positives, negatives & (distances - epsilon < _farthest(distances, positives))


@offered("miner", made=True)
def pair_margin(positive: ArrayLike = 0.2, negative: ArrayLike = 0.8) -> Miner:
    """Keeps positives with d_ap > `positive` and negatives with d_an < `negative`, each pair by itself.

    The defaults are those of PyTorch Metric Learning's PairMarginMiner.

    >>> import jax.numpy as jnp
    >>> d, p = jnp.array([[0.25, 0.5, 0.5, 0.75]]), jnp.array([[1, 1, 0, 0]]) > 0
    >>> p, n = pair_margin(0.25, 0.75)(d, p, ~p)
    >>> p.tolist(), n.tolist()
    ([[False, True, False, False]], [[False, False, True, False]])
    """
    return Miner(Partial(_pair_margin, positive, negative))


def _pair_margin(positive, negative, distances, positives, negatives) -> Masks:
    positive, negative = (jnp.asarray(a, distances.dtype) for a in (positive, negative))
    return positives & (distances > positive), negatives & (distances < negative)


@offered("miner", made=True)
def batch_easy_hard(
    positive: Strategy = "easy",
    negative: Strategy = "semi_hard",
    positive_range: Range | None = None,
    negative_range: Range | None = None,
) -> Miner:
    """Keeps one positive and one negative of each anchor, with what ties with them, by a strategy for each.

    "easy" is the closest positive or the farthest negative, "hard" the farthest positive or the closest negative, and
    "all" keeps all. "semi_hard" is the hardest that is strictly easier than what the other side chose: the closest
    negative farther than the chosen positive, or the farthest positive nearer than the chosen negative. Only one
    side can have it, and not beside "all". Ranges (lowest, highest) of allowed distances, limits included, leave out
    pairs before anything is chosen, even where the strategy is "all". An anchor for which either side finds nothing
    keeps nothing; with "all", each side stands by itself.

    Xuan, Stylianou, Pless 2020, arXiv:1904.04370 (easy positives with hard or semi-hard negatives); the other
    strategies and the ranges are those of PyTorch Metric Learning, whose "all" disregards the ranges.

    >>> import jax.numpy as jnp
    >>> d, p = jnp.array([[0.5, 0.75, 0.25, 0.625, 1.0]]), jnp.array([[1, 1, 0, 0, 0]]) > 0
    >>> [mask.tolist() for mask in batch_easy_hard()(d, p, ~p)]
    [[[True, False, False, False, False]], [[False, False, False, True, False]]]
    """
    for name, strategy in (("positive", positive), ("negative", negative)):
        if strategy not in get_args(Strategy):
            raise ValueError(f"{name} is {strategy!r}; wanted one of {get_args(Strategy)}")
    if "semi_hard" in (positive, negative) and (positive == negative or "all" in (positive, negative)):
        raise ValueError(
            f"positive is {positive!r} and negative {negative!r}; 'semi_hard' needs 'easy' or 'hard' on the other side"
        )
    return Miner(Partial(_EasyHard(positive, negative), positive_range, negative_range))


@dataclass(frozen=True)
class _EasyHard:
    """The rule of two strategies: equal if they are, as the function of a `Partial` has to be."""

    positive: str
    negative: str

    def __call__(self, positive_range, negative_range, distances, positives, negatives) -> Masks:
        positives = _allowed(positive_range, distances, positives)
        negatives = _allowed(negative_range, distances, negatives)
        if self.positive == "semi_hard":
            negatives = _hardest(self.negative, -distances, negatives)
            positives = _hardest("hard", distances, positives & (distances < _closest(distances, negatives)))
        else:
            positives = _hardest(self.positive, distances, positives)
            if self.negative == "semi_hard":
                negatives &= distances > _farthest(distances, positives)
            negatives = _hardest(self.negative, -distances, negatives)
        if "all" in (self.positive, self.negative):
            return positives, negatives
        both = jnp.any(positives, axis=1, keepdims=True) & jnp.any(negatives, axis=1, keepdims=True)
        return positives & both, negatives & both


def _allowed(limits, distances, where):
    if limits is None:
        return where
    lowest, highest = (jnp.asarray(a, distances.dtype) for a in limits)
    return where & (distances >= lowest) & (distances <= highest)


def _hardest(strategy, hardness, where):
    if strategy == "all":
        return where
    hardness = -hardness if strategy == "easy" else hardness
    return where & (hardness == _farthest(hardness, where))


@offered("miner", made=True)
def rank_range(negatives: Range | None, positives: Range | None = None) -> Miner:
    """Keeps the first-th to last-th hardest of each anchor's negatives, and of its positives: `(first, last)` each.

    1 is the hardest: the closest negative, the farthest positive. `None` keeps all of that side. Leaving out the very
    hardest, as (2, 5) does, leaves out wrong labels. Distances from the first-th hardest to the last-th are kept,
    with all that tie with these; an anchor that has fewer keeps those in range. The sides do not depend on each other.

    After the N-hard miner of Open Metric Learning, whose ranges count likewise and default to (1, 1).

    >>> import jax.numpy as jnp
    >>> d, n = jnp.array([[0.5, 0.125, 0.25, 0.25, 1.0, 0.75]]), jnp.array([[1, 1, 1, 1, 1, 0]]) > 0
    >>> rank_range((2, 3))(d, ~n, n)[1].tolist()
    [[False, False, True, True, False, False]]
    """
    return Miner(Partial(_rank_range, negatives, positives))


def _rank_range(of_negatives, of_positives, distances, positives, negatives) -> Masks:
    return _ranked(of_positives, -distances, positives), _ranked(of_negatives, distances, negatives)


def _ranked(limits, distances, where):
    """The marked entries of each row from the first-th to the last-th closest."""
    if limits is None:
        return where
    keys = ordered_integers(distances)
    nothing = jnp.iinfo(keys.dtype).max  # after every distance, and where ranks beyond a row point to
    ordered = jnp.sort(jnp.where(where, keys, nothing), axis=1)
    ordered = jnp.pad(ordered, [(0, 0), (0, 1)], constant_values=nothing)
    at = lambda rank: ordered[:, jnp.clip(jnp.asarray(rank, jnp.int32) - 1, 0, distances.shape[1]), None]
    first, last = limits
    return where & (keys >= at(first)) & (keys <= at(last))


@offered("miner", made=True)
def triplet_margin(margin: ArrayLike = 0.2, kind: Literal["all", "hard", "semi_hard", "easy"] = "all") -> Miner:
    """Keeps the pairs that are part of a triplet of one kind, told by t = d_an − d_ap.

    "all": t ≤ margin, the triplets that violate the margin. "hard": t ≤ 0. "semi_hard": 0 < t ≤ margin. "easy":
    t > margin. A positive is kept if it makes such a triplet with any negative of the anchor, and a negative if it does
    with any positive; a loss then combines all that are kept. An anchor without positives or negatives keeps nothing.

    Schroff et al. 2015, arXiv:1503.03832, for the words; as in PyTorch Metric Learning (margin 0.2), whose
    TripletMarginMiner returns the triplets themselves.

    >>> import jax.numpy as jnp
    >>> d, p = jnp.array([[0.5, 1.0, 0.75, 1.25, 2.0]]), jnp.array([[1, 1, 0, 0, 0]]) > 0
    >>> [mask.tolist() for mask in triplet_margin(0.25, "semi_hard")(d, p, ~p)]
    [[[True, True, False, False, False]], [[False, False, True, True, False]]]
    """
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}; wanted one of {tuple(_KINDS)}")
    return Miner(Partial(_KINDS[kind], 0.0 if kind == "hard" else margin))


def _at_most(margin, distances, positives, negatives) -> Masks:
    margin = _finite(margin, distances)
    kept_positives = positives & (_closest(distances, negatives) - distances <= margin)
    return kept_positives, negatives & (distances - _farthest(distances, positives) <= margin)


def _above_zero_at_most(margin, distances, positives, negatives) -> Masks:
    margin = _finite(margin, distances)
    kept_positives = positives & (_next_larger(distances, negatives) - distances <= margin)
    return kept_positives, negatives & (distances + _next_larger(-distances, positives) <= margin)


def _more_than(margin, distances, positives, negatives) -> Masks:
    margin = _finite(margin, distances)
    kept_positives = positives & (_farthest(distances, negatives) - distances > margin)
    return kept_positives, negatives & (distances - _closest(distances, positives) > margin)


_KINDS = {"all": _at_most, "hard": _at_most, "semi_hard": _above_zero_at_most, "easy": _more_than}


def _finite(margin, distances):
    """The margin, kept below ∞, which is the distance of what is not there."""
    return jnp.minimum(jnp.asarray(margin, distances.dtype), jnp.finfo(distances.dtype).max)


def _next_larger(distances: Float[Array, "n m"], where: Bool[Array, "n m"]) -> Float[Array, "n m"]:
    """For each entry the smallest marked one of its row that is strictly larger, ∞ where there is none."""
    marked = jnp.pad(jnp.where(where, distances, jnp.inf), [(0, 0), (0, 1)], constant_values=jnp.inf)
    ordered = jnp.sort(ordered_integers(marked), axis=1)
    following = first_greater(ordered, ordered_integers(distances))
    return as_floats(jnp.take_along_axis(ordered, following, axis=1), distances.dtype)
