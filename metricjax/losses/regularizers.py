"""Regularisers, to be added to a loss with a small weight: they shape all embeddings, whatever their labels."""

from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from metricjax import distances, similarities
from metricjax.anchors import AnchorOptions, Mean, over_pairs
from metricjax.engine.devices import mine, of_all
from metricjax.engine.implementations import Settings
from metricjax.engine.reductions import Loss, as_mean, as_reduction, quotient, reduced, weighted
from metricjax.engine.selecting import first_largest
from metricjax.ground.checks import (
    check_array,
    check_options,
    check_per_row,
    check_positive,
    check_rows,
    refuse_options,
)
from metricjax.ground.functions import jitted
from metricjax.ground.numerics import existing, norm, normalize, spoilt, widen
from metricjax.ground.pairwise import Pairwise
from metricjax.ground.precision import Precision

__all__ = [
    "OtherRowOptions",
    "RowOptions",
    "embedding_norm",
    "hyperspherical_energy",
    "koleo",
    "merged_centers",
    "over_other_rows",
    "regular_face",
    "spread_out",
    "zero_mean",
]


class RowOptions(TypedDict, total=False):
    """Options of the regularisers that take a mean over rows.

    where: [n] bool, rows that exist; a padded batch gives exactly the value and gradient of the unpadded one.
    weights: [n], multiplies each row's total and count.
    reduction: function of the `Mean` of [n] totals and counts; default Σ total / Σ count.
    axis_name: mesh axis (or axes) inside `jax.shard_map`, over which embeddings, masks and weights are split by rows.
    """

    where: Bool[Array, " n"] | None
    weights: Float[Array, " n"] | None
    reduction: Callable[[Mean], Any]
    axis_name: str | tuple[str, ...] | None


class OtherRowOptions(RowOptions, total=False):
    """Options of the regularisers that compare each row with the others: `RowOptions`, and

    block_size (rows per panel), memory_budget, precision: as in `AnchorOptions`.
    """

    block_size: int | Literal["auto"] | None
    memory_budget: int
    precision: Precision


def over_other_rows(rows: Callable[..., Mean], x: Float[Array, "n d"], *hyper: Any, **options: Any) -> Loss:
    """`over_pairs` with all other rows of `x` as the positives of each, and no negatives."""
    return over_pairs(rows, x, jnp.zeros(len(x), jnp.int32), *hyper, **options)


def _squared_gap(x, target):
    return jnp.square(norm(x)[:, 0] - target)


def embedding_norm(embeddings: Float[Array, "n d"], *, target: ArrayLike = 0.0, **options: Unpack[RowOptions]) -> Loss:
    """Regulariser of lengths: mean over rows of (‖x‖ − r)², with r the `target`; ‖x‖² by default.

    At a zero row the gradient is 0, whatever r is. Options: `RowOptions`.

    r = 0: Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective", keeps embeddings short.
    r > 0 is the ring loss (Zheng, Pal, Savvides 2018, arXiv:1803.00130), which has a factor ½ and learns r.

    >>> import jax.numpy as jnp
    >>> float(embedding_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    12.5
    """
    check_rows("embeddings", embeddings)
    return _over_rows(_squared_gap, embeddings, (target,), options)


def _absolute_sum(x):
    total = jnp.sum(x, axis=-1)
    return total * lax.stop_gradient(jnp.sign(total))  # the gradient of JAX's abs is 1 at 0


def zero_mean(embeddings: Float[Array, "n d"], **options: Unpack[RowOptions]) -> Loss:
    """Regulariser towards features of mean 0 in each embedding: mean over rows of |Σ_k x_k|, with gradient 0 at 0.

    With it the `snr` distance, which subtracts the mean, measures the embeddings as they are. Options: `RowOptions`.

    Yuan et al. 2019, arXiv:1904.02616.

    >>> import jax.numpy as jnp
    >>> float(zero_mean(jnp.array([[3.0, -4.0], [1.0, 1.0]])))
    1.5
    """
    check_rows("embeddings", embeddings)
    return _over_rows(_absolute_sum, embeddings, (), options)


def _nearest_rows(pairs):
    index = first_largest(jnp.where(pairs.positives, -pairs.scores, -jnp.inf))
    return Mean(index.astype(pairs.scores.dtype), jnp.any(pairs.positives, axis=-1))  # exact up to 2²⁴


def koleo(embeddings: Float[Array, "n d"], *, epsilon: ArrayLike = 1e-8, **options: Unpack[OtherRowOptions]) -> Loss:
    """KoLeo, the Kozachenko-Leonenko entropy: mean over rows of −log(‖x_i − x_nn(i)‖ + ε), nn the nearest other row.

    Rows are normalised. The neighbour is selected in panels, by cosine and without a gradient; the distance to it is
    that of the difference, exact for near duplicates. Between equal rows it is 0, with gradient 0; ε keeps the
    logarithm finite. A row alone adds 0. Options: `OtherRowOptions`.

    Sablayrolles et al. 2019, arXiv:1806.03198 (the authors' code adds a constant, −log n); ε and form as in DINOv2
    (Oquab et al. 2023, arXiv:2304.07193; weight 0.1).

    >>> import jax.numpy as jnp
    >>> float(koleo(jnp.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])))  # -log √2
    -0.3466
    """
    check_positive(epsilon=epsilon)
    check_rows("embeddings", embeddings)
    check_options("koleo", options, OtherRowOptions)
    rest = dict[str, Any](options)
    where, weights, reduction = (rest.pop(name, None) for name in ("where", "weights", "reduction"))
    distance = distances.cosine.at(rest.pop("precision", None))
    how = Settings(quotient if reduction is None else as_reduction(reduction), **rest)
    return _koleo((how, distance), embeddings, epsilon, where, weights)


@jitted
def _koleo(static: tuple[Settings, Pairwise], embeddings, epsilon, where, weights):
    how, distance = static
    n, axis_name = len(embeddings), how.axis_name
    options = {**how._asdict(), "where": where, "reduction": as_mean}
    fixed = lax.stop_gradient(embeddings)
    index, some = over_other_rows(_nearest_rows, fixed, distance=distance, **options)
    x = normalize(existing(widen(embeddings), where))
    columns = of_all(x, axis_name)
    index, some = mine((index, some), n, axis_name)
    gaps = norm(x - columns[index.astype(jnp.int32)])[:, 0]
    terms = -jnp.log(gaps + jnp.asarray(epsilon, x.dtype)) + spoilt(columns)
    return _mean_of(terms, some > 0, weights, how)


def _negative_rows(pairs, squared):
    values = jnp.square(pairs.scores) if squared else pairs.scores
    return Mean(jnp.sum(jnp.where(pairs.negatives, values, 0), axis=-1), jnp.sum(pairs.negatives, axis=-1))


def spread_out(
    embeddings: Float[Array, "n d"], labels: Shaped[Array, "n ..."], **options: Unpack[AnchorOptions]
) -> Loss:
    """Global orthogonal regularisation: M₁² + [M₂ − 1/d]₊, with M₁ and M₂ the means of s and s² over negative pairs.

    s is the cosine. Points that lie uniformly on the sphere have M₁ = 0 and M₂ = 1/d. 0 without negative pairs.
    Options: `AnchorOptions` without reduction, as the loss is not a mean over anchors.

    Zhang et al. 2017, arXiv:1708.06320, over all negative pairs of the batch instead of one sampled for each anchor.

    >>> import jax.numpy as jnp
    >>> float(spread_out(jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.array([0, 1])))  # 1 + 1 - 1/2
    1.5
    """
    refuse_options("spread_out is a function of two means over all negative pairs", options, "reduction")
    how: Any = {"similarity": similarities.cosine, "by_pair": True, **options}
    first, second = (over_pairs(_negative_rows, embeddings, labels, squared, **how) for squared in (False, True))
    return jnp.square(first) + jnp.maximum(second - 1 / embeddings.shape[1], 0)


def _over_rows(terms: Callable[..., Array], rows: Array, hyper: tuple, options: RowOptions) -> Loss:
    """The mean of `terms(x [n, ...], *hyper) -> [n]` over rows."""
    check_options("a regulariser of rows", options, RowOptions)
    how = Settings(as_reduction(options.get("reduction", quotient)), axis_name=options.get("axis_name"))
    return _mean_over_rows((terms, how), rows, hyper, options.get("where"), options.get("weights"))


@jitted
def _mean_over_rows(static, rows, hyper, where, weights):
    terms, how = static
    check_per_row("where", where, len(rows))
    x = existing(widen(rows), where)
    there = jnp.ones(len(x), bool) if where is None else where
    values = terms(x, *(jnp.asarray(h, x.dtype) for h in hyper))
    return _mean_of(values + spoilt(x), there, weights, how)


def _mean_of(terms, there, weights, how: Settings):
    """The reduced mean of terms [n] over the rows that are there."""
    check_per_row("weights", weights, len(terms), jnp.floating)
    mean = Mean(jnp.where(there, terms, 0), there.astype(terms.dtype))
    weights = None if weights is None else weights.astype(terms.dtype)
    return reduced(weighted((mean,), weights), how.reduction, how.axis_name)


# --- of prototypes --------------------------------------------------------------------------------------------------


def _energy_rows(pairs, power):
    others, z = pairs.positives, jnp.maximum(pairs.scores, 1e-4)
    energy = jnp.where(power > 0, z**-power, -jnp.log(z))
    return Mean(jnp.sum(jnp.where(others, energy, 0), axis=-1), jnp.sum(others, axis=-1))


def hyperspherical_energy(
    prototypes: Float[Array, "c d"],
    *,
    power: ArrayLike = 2.0,
    angular: bool = False,
    **options: Unpack[OtherRowOptions],
) -> Loss:
    """Minimum hyperspherical energy (MHE): mean over pairs of prototypes of z^−s, z = ‖ŵ_i − ŵ_j‖ the chord.

    It spreads prototypes evenly. s is the `power`; for 0 the energy is −log z. With `angular`, z is the angle instead:
    SphereFace+ adds this, over the classes of the batch (which `where` marks). z counts as 10⁻⁴ where it is less. Taken
    in panels of rows. Options: `OtherRowOptions`.

    Liu et al. 2018, arXiv:1805.09298 (s = 2).

    >>> import jax.numpy as jnp
    >>> float(hyperspherical_energy(jnp.eye(3)))  # chords of √2
    0.5
    """
    check_rows("prototypes", prototypes)
    check_options("hyperspherical_energy", options, OtherRowOptions)
    distance = distances.geodesic if angular else distances.chord
    return over_other_rows(_energy_rows, prototypes, power, distance=distance, by_pair=True, **options)


def _greatest_rows(pairs):
    some = jnp.any(pairs.positives, axis=-1)
    return Mean(jnp.where(some, jnp.max(pairs.scores, axis=-1, where=pairs.positives, initial=-1), 0), some)


def regular_face(prototypes: Float[Array, "c d"], **options: Unpack[OtherRowOptions]) -> Loss:
    """RegularFace's exclusive regularisation: mean over prototypes of max_{j≠i} cos(w_i, w_j).

    Taken in panels of rows. Options: `OtherRowOptions`.

    Zhao, Xu, Cheng 2019, "RegularFace: deep face recognition via exclusive regularization".

    >>> import jax.numpy as jnp
    >>> float(regular_face(jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])))
    0.0
    """
    check_rows("prototypes", prototypes)
    check_options("regular_face", options, OtherRowOptions)
    return over_other_rows(_greatest_rows, prototypes, similarity=similarities.cosine, **options)


def _half_mean_chord(x):
    """Of the chords between the [k, d] prototypes of one class, Σ_{t<s} / (k (k − 1))."""
    k = x.shape[1]
    unit = normalize(x)
    chords = lambda shift: jnp.sum(norm(unit - jnp.roll(unit, shift, axis=1)), axis=(1, 2))  # do not cancel
    return sum(map(chords, range(1, k)), start=jnp.zeros(len(x), x.dtype)) / (2 * max(k * (k - 1), 1))


def merged_centers(prototypes: Float[Array, "c k d"], **options: Unpack[RowOptions]) -> Loss:
    """SoftTriple's regulariser: mean over classes of Σ_{t<s} ‖ŵ_t − ŵ_s‖ / (k (k − 1)), over its k prototypes.

    It merges prototypes of one class, and is half their mean chord; 0 for a single one. Equal prototypes have gradient
    0. Options: `RowOptions`, where rows are classes.

    Qian et al. 2019, arXiv:1909.05235 (weight 0.2).

    >>> import jax.numpy as jnp
    >>> float(merged_centers(jnp.stack([jnp.eye(2), jnp.ones((2, 2))])))  # (√2 / 2 + 0) / 2
    0.3536
    """
    check_array("prototypes", prototypes, "an array [classes, prototypes of each, features]")
    if prototypes.ndim != 3:
        raise ValueError(f"prototypes has shape {prototypes.shape}; wanted [classes, prototypes of each, features]")
    return _over_rows(_half_mean_chord, prototypes, (), options)
