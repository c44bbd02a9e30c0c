"""Class-based losses that call their prototypes proxies, and those that are not a softmax cross-entropy."""

from typing import Any, Unpack

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from metricjax.anchors import Mean, over_pairs
from metricjax.engine.devices import of_all, row_ids
from metricjax.engine.prototypes import known_labels, targets
from metricjax.engine.reductions import Loss
from metricjax.ground.checks import check_class_batch, check_positive, refuse_options
from metricjax.ground.numerics import logsumexp, softplus
from metricjax.losses.margin_softmax import less_margin, others_scaled
from metricjax.losses.row_values import class_count
from metricjax.prototypes import PrototypeOptions, SoftmaxOptions, over_prototypes
from metricjax.similarities import cosine

__all__ = ["p2s_grad", "proxy_anchor", "proxy_nca", "proxy_nca_pp", "soft_triple", "uniface"]


def _minus_chord(cosine, temperature):
    """−d/T of the squared chord d = 2 − 2 cos θ."""
    return (2 * cosine - 2) / temperature


def _minus_chords(scores, own, temperature):
    return _minus_chord(scores, temperature)


def proxy_nca(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    **options: Unpack[PrototypeOptions],
) -> Loss:
    """Proxy-NCA: mean over rows of d_y + log Σ_{j≠y} exp(−d_j), d = ‖x/‖x‖ − p/‖p‖‖² the squared chord.

    The row's own proxy is not in the sum (`proxy_nca_pp` has it there), so that the loss may be negative. A row without
    other classes counts as 0. Options: `PrototypeOptions`.

    Movshovitz-Attias et al. 2017, arXiv:1703.07464.

    >>> import jax.numpy as jnp
    >>> float(proxy_nca(jnp.eye(3)[:1], jnp.array([0]), jnp.eye(3)))  # 0 + log(2 e^-2)
    -1.3069
    """
    batch, hyper = (embeddings, labels, prototypes), (1.0,)
    return over_prototypes(_minus_chord, _minus_chords, *batch, *hyper, similarity=cosine, join="log_odds", **options)


def proxy_nca_pp(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    temperature: ArrayLike = 1 / 9,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """Proxy-NCA++: mean over rows of −log softmax(−d_j / T)_y, d the squared chord between row and proxy.

    Options: `SoftmaxOptions`.

    Teh, DeVries, Taylor 2020, arXiv:2004.01113 (T = 1/9).

    >>> import jax.numpy as jnp
    >>> float(proxy_nca_pp(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), temperature=1.0))  # log(1 + e^-2)
    0.1269
    """
    check_positive(temperature=temperature)
    batch, hyper = (embeddings, labels, prototypes), (temperature,)
    return over_prototypes(_minus_chord, _minus_chords, *batch, *hyper, similarity=cosine, **options)


def _anchor_rows(pairs, scale, margin):
    pull = softplus(logsumexp(-scale * (pairs.scores - margin), pairs.positives))
    push = softplus(logsumexp(scale * (pairs.scores + margin), pairs.negatives))
    some = jnp.any(pairs.positives, axis=-1)
    return Mean(pull, some), Mean(push, some | jnp.any(pairs.negatives, axis=-1))


def proxy_anchor(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 32.0,
    margin: ArrayLike = 0.1,
    **options: Unpack[PrototypeOptions],
) -> Loss:
    """Proxy-Anchor: each proxy p is an anchor among the batch's embeddings, those of its class (X⁺) and others (X⁻).

        mean over proxies with X⁺ of log(1 + Σ_{X⁺} exp(−α (cos(x, p) − δ)))
        + mean over all proxies of log(1 + Σ_{X⁻} exp(α (cos(x, p) + δ)))

    α is `scale` and δ `margin`. Options: `PrototypeOptions` without `weights` and `ignore_above`, as rows have no
    losses of their own; `reduction` gets a Mean of [c] arrays, and the results for both parts are added.

    Kim et al. 2020, arXiv:2003.13911 (α = 32, δ = 0.1).

    >>> import jax.numpy as jnp
    >>> loss = proxy_anchor(jnp.eye(2)[:1], jnp.array([0]), jnp.eye(2), scale=1.0, margin=0.0)
    >>> float(loss)  # log(1 + e^-1), and (0 + log(1 + e^0)) / 2
    0.6598
    """
    check_positive(scale=scale)
    given = dict[str, Any](options)
    refuse_options("terms of proxy_anchor are those of proxies, not of rows", options, "weights", "ignore_above")
    for name in ("weights", "ignore_above"):
        given.pop(name, None)
    where, classes, number = (given.pop(name, None) for name in ("where", "classes", "num_classes"))
    check_class_batch(embeddings, labels, prototypes, where, None, classes)
    axis = options.get("axis_name")
    to = targets(of_all(labels, axis), len(prototypes), classes, number, axis)
    known = to.known[row_ids(len(embeddings), axis)]
    classes = row_ids(len(prototypes), axis) if classes is None else classes
    classes, labels = known_labels(classes), known_labels(labels)
    given |= {"references": embeddings, "reference_labels": labels, "where": to.real}
    given["reference_where"] = known if where is None else known & where
    return over_pairs(_anchor_rows, prototypes, classes, scale, margin, similarity=cosine, **given)


def _relaxed(scores, scale, gamma, margin):
    """Σ_k softmax(s_k / γ)_k s_k over the prototypes of a class."""
    top = lax.stop_gradient(jnp.max(scores, axis=0))
    weights = jnp.exp((scores - top[None]) / gamma)
    return jnp.sum(weights * scores, axis=0) / jnp.sum(weights, axis=0)


def soft_triple(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c k d"],
    *,
    scale: ArrayLike = 20.0,
    gamma: ArrayLike = 0.1,
    margin: ArrayLike = 0.01,
    **options: Unpack[SoftmaxOptions],
) -> Loss:
    """SoftTriple: softmax over λ S_j with the target λ (S_y − δ), mean over rows; S_j = Σ_k softmax_k(c_jk / γ) c_jk.

    Each class has several prototypes [c, k, d], with cosines c_jk; λ is `scale`, δ `margin`. The paper adds
    0.2 · `merged_centers`, which merges those that a class does not need. Options: `SoftmaxOptions`.

    Qian et al. 2019, arXiv:1909.05235 (λ = 20, γ = 0.1, δ = 0.01, k = 10).

    >>> import jax.numpy as jnp
    >>> prototypes = jnp.stack([jnp.eye(2), -jnp.eye(2)])  # S = ±1 / (1 + e^-10), as γ is 0.1
    >>> float(soft_triple(jnp.eye(2)[:1], jnp.array([0]), prototypes, scale=1.0, margin=0.0))
    0.3133
    """
    check_positive(scale=scale, gamma=gamma)
    batch, hyper = (embeddings, labels, prototypes), (scale, gamma, margin)
    return over_prototypes(less_margin, others_scaled, *batch, *hyper, similarity=cosine, pool=_relaxed, **options)


def _half_square_to_one(own):
    return jnp.square(own - 1) / 2


def _half_squares(scores, own):
    return jnp.square(scores) / 2


def p2s_grad(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    **options: Unpack[PrototypeOptions],
) -> Loss:
    """P2SGrad: mean over rows of ½ Σ_j (cos θ_j − [j = y])².

    Its gradient is the paper's Σ_j (cos θ_j − [j = y]) ∇cos θ_j. It has no hyper-parameter.
    Options: `PrototypeOptions`.

    Zhang et al. 2019, arXiv:1905.02479.

    >>> import jax.numpy as jnp
    >>> float(p2s_grad(jnp.array([[3.0, 4.0]]), jnp.array([0]), jnp.eye(2)))  # (0.4² + 0.8²) / 2
    0.4
    """
    batch = (embeddings, labels, prototypes)
    return over_prototypes(_half_square_to_one, _half_squares, *batch, similarity=cosine, join="sum", **options)


def _uniface_target(own, scale, margin, bias, balance):
    return softplus(bias - scale * (own - margin))


def _uniface_others(scores, own, scale, margin, bias, balance):
    return balance * softplus(scale * scores - bias)


def uniface(
    embeddings: Float[Array, "n d"],
    labels: Integer[Array, " n"],
    prototypes: Float[Array, "c d"],
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.4,
    bias: ArrayLike | None = None,
    balance: ArrayLike = 1.0,
    **options: Unpack[PrototypeOptions],
) -> Loss:
    """UniFace, cross-entropies with one threshold b/s between a row's own class and all others; mean over rows of

        log(1 + exp(b − s (cos θ_y − m))) + λ Σ_{j≠y} log(1 + exp(s cos θ_j − b)).

    λ is `balance`. b is learnt in the paper; None is where it begins, log(10 c), with c the number of classes
    or of sampled ones. Options: `PrototypeOptions`.

    Zhou et al. 2023, "UniFace: unified cross-entropy loss for deep face recognition" (s = 64, m = 0.4, λ = 1; their
    code also keeps each logit inside ±s).

    >>> import jax.numpy as jnp
    >>> float(uniface(jnp.eye(2)[:1], jnp.array([0]), jnp.eye(2), scale=1.0, margin=0.0, bias=0.0))  # and log 2
    1.0064
    """
    check_positive(scale=scale)
    bias = jnp.log(10 * jnp.asarray(class_count(prototypes, options), float)) if bias is None else bias
    batch, hyper = (embeddings, labels, prototypes), (scale, margin, bias, balance)
    return over_prototypes(_uniface_target, _uniface_others, *batch, *hyper, similarity=cosine, join="sum", **options)
