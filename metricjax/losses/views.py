"""Losses of two views, or two towers: `loss(x, y, *, ...) -> scalar`, where row i of x belongs with row i of y."""

from collections.abc import Callable
from typing import Any, Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from metricjax import distances, similarities
from metricjax.anchors import HOW, Mean, Statistic, over_pairs, over_towers
from metricjax.engine.devices import row_ids, summed
from metricjax.engine.pairs import static_or_traced
from metricjax.engine.reductions import Loss, quotient, reduced, weighted
from metricjax.engine.statistics import declared
from metricjax.ground.checks import check_options, check_per_row, check_positive, check_rows, refuse_options
from metricjax.ground.numerics import existing, normalize, safe_sqrt, softplus, spoilt, widen
from metricjax.ground.precision import Precision, exact_product
from metricjax.losses.regularizers import over_other_rows

__all__ = ["ViewOptions", "alignment_uniformity", "barlow_twins", "clip", "info_nce", "siglip", "vicreg"]


class ViewOptions(TypedDict, total=False):
    """Options of the losses that compare every row of x with every row of y.

    where: [n] bool, pairs that exist, rows of x and of y alike; a padded batch gives exactly the value and gradient of
        the unpadded one.
    weights: [n], multiplies each anchor's total and count (where both directions are averaged, in both).
    groups: [n] integers: rows of one group belong together too, as two captions of one picture do, or one caption
        that comes twice, and are no negatives of each other. Row i of y alone stays the positive of row i of x.
    miner, reduction: as in `AnchorOptions`; `alignment_uniformity` has neither.
    block_size, memory_budget, precision: as in `AnchorOptions`.
    axis_name: mesh axis (or axes) inside `jax.shard_map`, over which x, y, where and weights are split by rows; the
        value and gradient are those of one device.
    """

    where: Bool[Array, " n"] | None
    weights: Float[Array, " n"] | None
    groups: Int[Array, " n"] | None
    miner: Callable[[Array, Array, Array], tuple[Array, Array]] | None
    reduction: Callable[[Mean], Any]
    block_size: int | Literal["auto"] | None
    memory_budget: int
    precision: Precision
    axis_name: str | tuple[str, ...] | None


def _scaled(scores, scale):
    return scale * scores


def _info_nce(row, scale):
    return Mean(jnp.where(row.positives > 0, softplus(row.rest - row.own), 0), row.positives > 0)


_OWN_AND_REST = {"own": Statistic("sum", "positives", _scaled), "rest": Statistic("logsumexp", "negatives", _scaled)}
_INFO_NCE = (_OWN_AND_REST, _info_nce)


def info_nce(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    temperature: ArrayLike = 0.1,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[ViewOptions],
) -> Loss:
    """InfoNCE of x against y: mean over rows of −log(e^{s(x_i, y_i)/τ} / Σ_j e^{s(x_i, y_j)/τ}).

    Negatives are rows of the other view only; `nt_xent` of both views, stacked, also has those of a row's own view. A
    row without negatives adds 0 and counts. Options: `ViewOptions`.

    van den Oord et al. 2018, arXiv:1807.03748 (a learned bilinear s, without τ); over cosines τ = 0.1 in Chen et al.
    2020 (SimCLR), arXiv:2002.05709, and 0.07 in He et al. 2020 (MoCo), arXiv:1911.05722.

    >>> import jax.numpy as jnp
    >>> float(info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0))  # log(1 + 1/e)
    0.3133
    """
    check_positive(temperature=temperature)
    scale = 1 / jnp.asarray(temperature)
    return _over_views(declared(*_INFO_NCE), x, y, scale, similarity=similarity, options=options)


def clip(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    scale: ArrayLike = 1 / 0.07,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[ViewOptions],
) -> Loss:
    """CLIP: half of InfoNCE of x against y plus half of InfoNCE of y against x, with logits `scale`·s(x_i, y_j).

    The default is where the paper starts `scale`, which it learns as e^a and keeps below 100. Options: `ViewOptions`.

    Radford et al. 2021, arXiv:2103.00020.

    >>> import jax.numpy as jnp
    >>> float(clip(jnp.eye(2), jnp.eye(2), scale=1.0))  # log(1 + 1/e) in either direction
    0.3133
    """
    check_positive(scale=scale)
    _check_views(x, y, options)
    return over_towers(*_INFO_NCE, x, y, scale, similarity=similarity, otherwise=_forth_and_back, **options)


def _forth_and_back(x, y, scale, *, similarity, **options):
    each = [
        _over_views(declared(*_INFO_NCE), *views, scale, similarity=similarity, options=options)
        for views in ((x, y), (y, x))
    ]
    return jax.tree.map(lambda a, b: (a + b) / 2, *each)


def _siglip_rows(pairs, scale, bias):
    logits = scale * pairs.scores + bias
    exist = pairs.positives | pairs.negatives
    terms = softplus(jnp.where(pairs.positives, -logits, logits))
    return Mean(jnp.sum(jnp.where(exist, terms, 0), axis=-1), jnp.any(exist, axis=-1))


def siglip(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    scale: ArrayLike = 10.0,
    bias: ArrayLike = -10.0,
    similarity: Callable[[Array, Array], Array] = similarities.cosine,
    **options: Unpack[ViewOptions],
) -> Loss:
    """SigLIP: mean over rows of Σ_j log(1 + e^{−z_ij (t s(x_i, y_j) + b)}), z_ij = 1 where i = j and −1 elsewhere.

    t is `scale` and b is `bias`; the paper learns both (t as e^a) from these defaults. Options: `ViewOptions`.

    Zhai et al. 2023, arXiv:2303.15343.

    >>> import jax.numpy as jnp
    >>> float(siglip(jnp.eye(2), jnp.eye(2), scale=1.0, bias=0.0))  # log(1 + 1/e) + log 2
    1.0064
    """
    check_positive(scale=scale)
    return _over_views(_siglip_rows, x, y, scale, bias, similarity=similarity, options=options)


def _least_rows(pairs):
    others = pairs.positives
    some = jnp.any(others, axis=-1)
    return Mean(jnp.where(some, jnp.min(jnp.where(others, pairs.scores, jnp.inf), axis=-1), 0), some)


def _least(mean: Mean) -> Float[Array, ""]:
    least = jnp.where(mean.count > 0, mean.total / jnp.where(mean.count > 0, mean.count, 1), jnp.inf)
    return jnp.min(least, initial=jnp.inf)


def _gaussian_rows(pairs, t, least):
    others = pairs.positives
    gaps = jnp.where(others, pairs.scores - least, 0)
    return Mean(jnp.sum(jnp.where(others, jnp.exp(-t * gaps), 0), axis=-1), jnp.sum(others, axis=-1))


def alignment_uniformity(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    alpha: ArrayLike = 2.0,
    t: ArrayLike = 2.0,
    uniformity: ArrayLike = 1.0,
    **options: Unpack[ViewOptions],
) -> Loss:
    """Alignment and uniformity: mean of ‖x_i − y_i‖^α + λ/2 · (U(x) + U(y)), U(x) = log mean_{i≠j} e^{−t‖x_i − x_j‖²}.

    Rows are normalised; λ is `uniformity`. U is summed in log-sum-exp form, and 0 with fewer than two rows. A zero row
    is at distance 1 from its partner, and at √2 from all others. Options: `ViewOptions`, without groups, miner and
    reduction.

    Wang & Isola 2020, arXiv:2005.10242 (α = 2, t = 2, λ = 1).

    >>> import jax.numpy as jnp
    >>> float(alignment_uniformity(jnp.eye(2), jnp.eye(2)))  # aligned, and √2 apart: log e^-4
    -4.0
    """
    refuse_options("alignment_uniformity is not a mean over anchors", options, "groups", "miner", "reduction")
    _check_views(x, y, options)
    arrays = x, y, options.get("where"), options.get("weights")
    settings = tuple((name, value) for name, value in options.items() if name in HOW)
    return _alignment_uniformity(settings, arrays, static_or_traced((alpha, t, uniformity), x))


@jax.jit(static_argnums=0, inline=True)
def _alignment_uniformity(settings, arrays, hyper):
    x, y, where, weights = arrays
    alpha, t, uniformity = hyper
    check_per_row("weights", weights, len(x), jnp.floating)
    x = widen(x)
    y = y.astype(x.dtype)
    there = jnp.ones(len(x), bool) if where is None else where
    units = [normalize(existing(view, where)) for view in (x, y)]
    squares = jnp.sum(jnp.square(units[0] - units[1]), axis=-1)
    apart = there & (squares > 0)
    powers = jnp.where(apart, jnp.where(apart, squares, 1) ** (alpha / 2), 0)
    own_weights = None if weights is None else weights.astype(x.dtype)
    powers += sum(map(spoilt, units))
    how = {"axis_name": None, **dict(settings), "where": where, "weights": weights}
    how["distance"] = distances.squared_chord
    alignment = reduced(weighted((Mean(powers, there.astype(x.dtype)),), own_weights), quotient, how["axis_name"])

    def spread(view):
        # The least square is the constant of log-sum-exp: it changes neither the value nor a derivative of any order.
        least = over_other_rows(_least_rows, lax.stop_gradient(view), reduction=_least, **how)
        some = jnp.isfinite(least)
        least = jnp.where(some, least, 0)
        mean = over_other_rows(_gaussian_rows, view, t, least, by_pair=True, **how)
        return jnp.where(some, jnp.log(jnp.where(some, mean, 1)) - t * least, 0)

    return alignment + uniformity * (spread(x) + spread(y)) / 2


def vicreg(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    invariance: ArrayLike = 25.0,
    variance: ArrayLike = 25.0,
    covariance: ArrayLike = 1.0,
    epsilon: ArrayLike = 1e-4,
    where: Bool[Array, " n"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """VICReg: λ·mean (x − y)² + μ/2·Σ_views mean_k [1 − √(C_kk + ε)]₊ + ν/d·Σ_views Σ_{k≠l} C_kl².

    λ, μ, ν are `invariance`, `variance`, `covariance`; C is the unbiased covariance of the features of a view, and its
    terms are 0 with fewer than two rows. The first mean is over rows and features. `where` marks pairs that exist; with
    `axis_name` inside `jax.shard_map`, moments are those of the rows of all devices.

    Bardes, Ponce, LeCun 2022, arXiv:2105.04906, in the form of the authors' code, for which the defaults are: the
    paper writes the first term without 1/d and the second without ½.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0]])  # variances 2, covariance 2
    >>> float(vicreg(x, x))  # 2 views, 2 entries off the diagonal: 2 · 2 · 2² / 2
    8.0
    """
    _check_views(x, y, {"where": where})
    hyper = static_or_traced((invariance, variance, covariance, epsilon), x)
    return _vicreg(axis_name, x, y, where, hyper)


@jax.jit(static_argnums=0, inline=True)
def _vicreg(axis_name, x, y, where, hyper):
    invariance, variance, covariance, epsilon = hyper
    (x, y), views, n, spoil = _centred(axis_name, x, y, where)
    size = n * x.shape[1]
    squares = lax.square(x - y)
    moments = [(jnp.sum(jnp.square(view), axis=0), exact_product(view.T, view)) for view in views]
    squares, moments = summed((jnp.sum(squares), moments), axis_name)
    loss = invariance * squares / jnp.maximum(size, 1) + spoil
    for power, products in moments:
        degrees = jnp.maximum(n - 1, 1)
        hinge = jnp.mean(jnp.maximum(1 - safe_sqrt(power / degrees + epsilon), 0))
        loss += jnp.where(n > 1, variance * hinge / 2, 0)
        loss += covariance * _off_diagonal_squares(products / degrees) / x.shape[1]
    return loss


def barlow_twins(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    redundancy: ArrayLike = 0.005,
    epsilon: ArrayLike = 1e-5,
    where: Bool[Array, " n"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """Barlow Twins: Σ_k (1 − C_kk)² + λ Σ_{k≠l} C_kl², with C_kl the correlation of feature k of x and feature l of y.

    λ is `redundancy`. Features are standardised over the batch as (x − mean) / √(variance + ε); one that does not vary
    has correlation 0. The loss is 0 with fewer than two rows. Squares have to be in range: features below 10¹⁸ in
    float32; where variances are not far above ε, the scale matters. `where` and `axis_name` are as in `vicreg`.

    Zbontar et al. 2021, arXiv:2103.03230 (λ = 0.005; the authors' code: 0.0051). ε is that of the code's batch
    normalisation; the paper has none.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0, 1.0], [-1.0, -1.0]])  # all four correlations are 1
    >>> float(barlow_twins(x, x, redundancy=0.5))
    1.0
    """
    _check_views(x, y, {"where": where})
    return _barlow_twins(axis_name, x, y, where, static_or_traced((redundancy, epsilon), x))


@jax.jit(static_argnums=0, inline=True)
def _barlow_twins(axis_name, x, y, where, hyper):
    redundancy, epsilon = hyper
    _, (x, y), n, spoil = _centred(axis_name, x, y, where)
    powers = [jnp.sum(jnp.square(view), axis=0) for view in (x, y)]
    powers, products = summed((powers, exact_product(x.T, y)), axis_name)
    count = jnp.maximum(n, 1)
    deviations = [safe_sqrt(power / count + epsilon) for power in powers]
    scales = [jnp.where(deviation > 0, 1 / jnp.where(deviation > 0, deviation, 1), 0) for deviation in deviations]
    correlations = products / count * scales[0][:, None] * scales[1][None]
    diagonal = jnp.sum(jnp.square(1 - jnp.diagonal(correlations)))
    return jnp.where(n > 1, diagonal + redundancy * _off_diagonal_squares(correlations), 0) + spoil


# --- what the losses share ------------------------------------------------------------------------------------------


def _check_views(x: Any, y: Any, options: Any) -> None:
    """x and y are two sets of rows of one shape, and the options are those of losses of two views."""
    check_rows("x", x)
    check_rows("y", y)
    if x.shape != y.shape:
        raise ValueError(f"x has shape {x.shape}, y has shape {y.shape}; wanted one shape, row i of y for row i of x")
    check_per_row("where", options.get("where"), len(x))
    check_per_row("groups", options.get("groups"), len(x), jnp.integer)
    check_options("a loss of two views", options, ViewOptions)


def _over_views(rows: Callable[..., Mean], x, y, *hyper, similarity, options: ViewOptions):
    """`over_pairs` with x as anchors and y as references; the labels are the numbers of the rows of all devices."""
    _check_views(x, y, options)
    labels = row_ids(len(x), options.get("axis_name"))
    how: dict[str, Any] = {**options}
    if (groups := how.pop("groups", None)) is not None:
        labels, how["same"] = jnp.stack([labels, groups.astype(labels.dtype)], axis=1), _in_groups
    pairs: dict[str, Any] = {"references": y, "reference_labels": labels, "reference_where": options.get("where")}
    return over_pairs(rows, x, labels, *hyper, similarity=similarity, **pairs, **how)


def _in_groups(a: Array, b: Array) -> tuple[Array, Array]:
    """A relation of [number, group]."""
    return a[0] == b[0], a[1] != b[1]


def _centred(axis_name, x, y, where):
    """Both views, both less the mean of each feature (rows that do not exist are 0), the number of pairs, `spoilt`."""
    x = existing(widen(x), where)
    y = existing(y.astype(x.dtype), where)
    there = jnp.ones_like(x[:, 0]) if where is None else where.astype(x.dtype)
    sums = [jnp.sum(view, axis=0, keepdims=True) for view in (x, y)]
    n, sums, spoil = summed((jnp.sum(there), sums, spoilt(x) + spoilt(y)), axis_name)
    centred = [existing(view - total / jnp.maximum(n, 1), where) for view, total in zip((x, y), sums, strict=True)]
    return (x, y), centred, n, spoil


def _off_diagonal_squares(a: Float[Array, "d d"]) -> Float[Array, ""]:
    return jnp.sum(jnp.square(jnp.where(jnp.eye(len(a), dtype=bool), 0, a)))
