"""Losses of two views and regularisers once more, as float64 NumPy loops written from the papers.

Every row that they get exists. `weights` multiply the terms of a row in a mean over rows.
"""

import math

import numpy as np

from tests.helpers.oracle import _log_sum_exp, _softplus, cosine_similarity, unit


def _weighted_mean(values, weights=None):
    weights = [1.0] * len(values) if weights is None else [float(w) for w in weights]
    total = sum(weights)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / total if total else 0.0


def _squared(a, b):
    return sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))


# --- two views ------------------------------------------------------------------------------------------------------


def info_nce(x, y, weights=None, temperature=0.1):
    terms = []
    for i, a in enumerate(x):
        logits = [cosine_similarity(a, b) / temperature for b in y]
        terms.append(_log_sum_exp(logits) - logits[i])
    return _weighted_mean(terms, weights)


def clip(x, y, weights=None, scale=1 / 0.07):
    return (info_nce(x, y, weights, 1 / scale) + info_nce(y, x, weights, 1 / scale)) / 2


def siglip(x, y, weights=None, scale=10.0, bias=-10.0):
    terms = []
    for i, a in enumerate(x):
        logits = [scale * cosine_similarity(a, b) + bias for b in y]
        terms.append(sum(_softplus(-z if i == j else z) for j, z in enumerate(logits)))
    return _weighted_mean(terms, weights)


def alignment_uniformity(x, y, weights=None, alpha=2.0, t=2.0, uniformity=1.0):
    w = [1.0] * len(x) if weights is None else [float(v) for v in weights]
    distances = [math.sqrt(_squared(unit(a), unit(b))) for a, b in zip(x, y, strict=True)]
    loss = _weighted_mean([d**alpha for d in distances], w)
    for view in (x, y):
        pairs = [(i, j) for i in range(len(view)) for j in range(len(view)) if i != j]
        logs = [math.log(w[i]) - t * (2 - 2 * cosine_similarity(view[i], view[j])) for i, j in pairs]
        loss += uniformity / 2 * (_log_sum_exp(logs) - math.log(sum(w[i] for i, _ in pairs)))
    return loss


def vicreg(x, y, invariance=25.0, variance=25.0, covariance=1.0, epsilon=1e-4):
    n, d = len(x), len(x[0])
    loss = invariance * sum(_squared(a, b) for a, b in zip(x, y, strict=True)) / (n * d)
    for view in (x, y):
        c = np.cov(np.array(view, np.float64), rowvar=False)
        loss += variance / 2 * sum(max(1 - math.sqrt(c[k, k] + epsilon), 0) for k in range(d)) / d
        loss += covariance * sum(c[k, m] ** 2 for k in range(d) for m in range(d) if k != m) / d
    return loss


def barlow_twins(x, y, redundancy=0.005, epsilon=1e-5):
    x, y = np.array(x, np.float64), np.array(y, np.float64)
    d, loss = x.shape[1], 0.0
    for k in range(d):
        for m in range(d):
            a, b = x[:, k] - x[:, k].mean(), y[:, m] - y[:, m].mean()
            c = np.mean(a * b) / math.sqrt((np.mean(a * a) + epsilon) * (np.mean(b * b) + epsilon))
            loss += (1 - c) ** 2 if k == m else redundancy * c**2
    return loss


# --- regularisers ---------------------------------------------------------------------------------------------------


def embedding_norm(x, weights=None, target=0.0):
    return _weighted_mean([(math.sqrt(sum(float(e) ** 2 for e in v)) - target) ** 2 for v in x], weights)


def zero_mean(x, weights=None):
    return _weighted_mean([abs(sum(float(e) for e in v)) for v in x], weights)


def koleo(x, weights=None, epsilon=1e-8):
    rows = [unit(v) for v in x]
    nearest = [min(math.sqrt(_squared(a, b)) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
    return _weighted_mean([-math.log(d + epsilon) for d in nearest], weights)


def spread_out(x, labels, weights=None):
    w = [1.0] * len(x) if weights is None else [float(v) for v in weights]
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if labels[i] != labels[j]]
    cosines, own = [cosine_similarity(x[i], x[j]) for i, j in pairs], [w[i] for i, _ in pairs]
    first, second = _weighted_mean(cosines, own), _weighted_mean([s**2 for s in cosines], own)
    return first**2 + max(second - 1 / len(x[0]), 0)
