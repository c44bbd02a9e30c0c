"""The losses over classes once more, as float64 NumPy loops written from the papers.

x [n][d] embeddings, y [n] classes, w [c][d] prototypes ([c][K][d] where a class has several); a list of losses, one
for each row, comes back, unless the name says otherwise. Angles are radians.
"""

import math

import numpy as np

from tests.helpers.oracle import _cross_entropy, _log_sum_exp, _mean, _softplus, angle, cosine_similarity, unit


def _norm(v):
    return math.sqrt(sum(float(e) ** 2 for e in v))


def _theta(c):
    return math.acos(min(max(c, -1.0), 1.0))


def _cosines(x, w):
    return [[cosine_similarity(v, p) for p in w] for v in x]


def _targets(x, y, w):
    return [cosine_similarity(v, w[k]) for v, k in zip(x, y, strict=True)]


def _margin_softmax(cosines, y, scale, target, other=lambda c, i: c):
    """Cross entropy of scale · target(cos, row) for the row's class and scale · other(cos, row) for the rest."""
    losses = []
    for i, (row, k) in enumerate(zip(cosines, y, strict=True)):
        losses.append(_cross_entropy([scale * (target if j == k else other)(c, i) for j, c in enumerate(row)], k))
    return losses


def _added(c, margin, easy_margin=False):
    """cos(θ + margin); past π the line that goes on falling, or with easy_margin no margin where cos ≤ 0."""
    turned = math.cos(_theta(c) + margin)
    if easy_margin:
        return turned if c > 0 else c
    return turned if _theta(c) + margin < math.pi else c - margin * math.sin(margin)


# --- multiplied margins ---------------------------------------------------------------------------------------------


def _psi(theta, margin):
    k = math.floor(margin * theta / math.pi)
    return (-1) ** k * math.cos(margin * theta) - 2 * k


def _multiplied(c, margin, annealing):
    return (annealing * c + _psi(_theta(c), margin)) / (1 + annealing)


def large_margin_softmax(x, y, w, margin=4, annealing=0.0):
    losses = []
    for v, k in zip(x, y, strict=True):
        logits = [float(np.dot(np.float64(v), p)) for p in w]
        logits[k] = _norm(w[k]) * _norm(v) * _multiplied(cosine_similarity(v, w[k]), margin, annealing)
        losses.append(_cross_entropy(logits, k))
    return losses


def sphereface(x, y, w, margin=4, annealing=0.0):
    return large_margin_softmax(x, y, [unit(p) for p in w], margin, annealing)


def sphereface_annealing(step, base=1000.0, gamma=0.12, power=1.0, minimum=5.0):
    return max(minimum, base * (1 + gamma * step) ** -power)


def sphereface_r(x, y, w, scale=30.0, margin=1.5, variant="v1"):
    if variant == "v1":
        return _margin_softmax(_cosines(x, w), y, scale, lambda c, i: math.cos(min(margin * _theta(c), math.pi)))
    return _margin_softmax(_cosines(x, w), y, scale, lambda c, i: c, lambda c, i: math.cos(_theta(c) / margin))


def sphereface2_bias(classes, scale=40.0, margin=0.4, power=3.0, balance=0.7):
    """The bias that minimises the loss of a row all of whose cosines are 0.

    Its slope there is (1 − balance)(classes − 1) σ(n + b) − balance σ(−p − b), which rises with b: halve.
    """
    flat = 2 * 0.5**power - 1
    p, n = scale * (flat - margin), scale * (flat + margin)
    sigmoid = lambda v: 1 / (1 + math.exp(-v)) if v > 0 else math.exp(v) / (1 + math.exp(v))
    low, high = -500.0, 500.0
    for _ in range(200):
        middle = (low + high) / 2
        slope = (1 - balance) * (classes - 1) * sigmoid(n + middle) - balance * sigmoid(-p - middle)
        low, high = (middle, high) if slope < 0 else (low, middle)
    return middle


def sphereface2(x, y, w, scale=40.0, margin=0.4, power=3.0, balance=0.7, bias=None):
    b = sphereface2_bias(len(w), scale, margin, power, balance) if bias is None else bias
    g = lambda c: 2 * ((c + 1) / 2) ** power - 1
    losses = []
    for row, k in zip(_cosines(x, w), y, strict=True):
        own = balance * _softplus(-(scale * (g(row[k]) - margin) + b))
        rest = [(1 - balance) * _softplus(scale * (g(c) + margin) + b) for j, c in enumerate(row) if j != k]
        losses.append((own + sum(rest)) / scale)
    return losses


# --- added margins --------------------------------------------------------------------------------------------------


def arcface(x, y, w, scale=64.0, margin=0.5, easy_margin=False):
    return _margin_softmax(_cosines(x, w), y, scale, lambda c, i: _added(c, margin, easy_margin))


def combined_margin(x, y, w, scale=64.0, margins=(1.0, 0.3, 0.2)):
    m1, m2, m3 = margins
    return _margin_softmax(_cosines(x, w), y, scale, lambda c, i: math.cos(m1 * _theta(c) + m2) - m3)


def sub_center_arcface(x, y, w, scale=64.0, margin=0.5):
    cosines = [[max(cosine_similarity(v, p) for p in centers) for centers in w] for v in x]
    return _margin_softmax(cosines, y, scale, lambda c, i: _added(c, margin))


def sub_center_outliers(x, y, w, angle=5 * math.pi / 12):
    """(dominant [c], outlier [n]): the centre that most rows of the class are nearest to (the first of equals, 0 for
    a class without rows), and whether a row lies further than the angle from its class's dominant centre."""
    votes = [[0] * len(centers) for centers in w]
    for v, k in zip(x, y, strict=True):
        votes[k][int(np.argmax([cosine_similarity(v, p) for p in w[k]]))] += 1
    dominant = [int(np.argmax(row)) for row in votes]
    return dominant, [_theta(cosine_similarity(v, w[k][dominant[k]])) > angle for v, k in zip(x, y, strict=True)]


def curricularface(x, y, w, t, scale=64.0, margin=0.5, momentum=0.01):
    """(losses, new t); the new t is already used."""
    own = _targets(x, y, w)
    t = momentum * _mean(own) + (1 - momentum) * t if own else t
    harder = lambda c, i: c * (t + c) if c > math.cos(_theta(own[i]) + margin) else c
    return _margin_softmax(_cosines(x, w), y, scale, lambda c, i: _added(c, margin), harder), t


def adaface(
    x, y, w, mean=20.0, deviation=100.0, scale=64.0, margin=0.4, concentration=0.333, momentum=0.01, epsilon=1e-3
):
    """(losses, (mean, deviation)); the new statistics are already used. One row alone has no deviation to add."""
    norms = [min(max(_norm(v), 0.001), 100.0) for v in x]
    if len(norms) > 1:
        spread = math.sqrt(sum((a - _mean(norms)) ** 2 for a in norms) / (len(norms) - 1))
        deviation = momentum * spread + (1 - momentum) * deviation
    if norms:
        mean = momentum * _mean(norms) + (1 - momentum) * mean
    quality = [min(max(concentration * (a - mean) / (deviation + epsilon), -1.0), 1.0) for a in norms]

    def target(c, i):
        turned = min(max(_theta(c) - margin * quality[i], epsilon), math.pi - epsilon)
        return math.cos(turned) - (margin + margin * quality[i])

    return _margin_softmax(_cosines(x, w), y, scale, target), (mean, deviation)


def magface(x, y, w, scale=64.0, norms=(10.0, 110.0), margins=(0.45, 0.8), regularizer=35.0, easy_margin=True):
    lengths = [min(max(_norm(v), norms[0]), norms[1]) for v in x]
    slope = (margins[1] - margins[0]) / (norms[1] - norms[0])
    target = lambda c, i: _added(c, margins[0] + slope * (lengths[i] - norms[0]), easy_margin)
    losses = _margin_softmax(_cosines(x, w), y, scale, target)
    return [loss + regularizer * (1 / a + a / norms[1] ** 2) for loss, a in zip(losses, lengths, strict=True)]


def elasticface(x, y, w, row_margins, scale=64.0, variant="arc", plus=False):
    """plus: the row farthest from its prototype gets the largest of the margins, and so on down."""
    drawn = [float(m) for m in row_margins]
    if plus:
        own = _targets(x, y, w)
        farthest_first = sorted(range(len(own)), key=lambda i: own[i])
        for i, m in zip(farthest_first, sorted(drawn, reverse=True), strict=True):
            drawn[i] = m
    target = (lambda c, i: _added(c, drawn[i])) if variant == "arc" else (lambda c, i: c - drawn[i])
    return _margin_softmax(_cosines(x, w), y, scale, target)


# --- other functions of the cosines ---------------------------------------------------------------------------------


def adacos_scale(classes):
    return math.sqrt(2) * math.log(classes - 1)


def adacos(x, y, w, scale=None):
    """Losses under the fixed scale; given a scale, (losses, new scale) under the dynamic one, which is used at once."""
    cosines = _cosines(x, w)
    if scale is None:
        return _margin_softmax(cosines, y, adacos_scale(len(w)), lambda c, i: c)
    others = [scale * c for row, k in zip(cosines, y, strict=True) for j, c in enumerate(row) if j != k]
    if others:
        median = float(np.median([_theta(c) for c in _targets(x, y, w)]))
        scale = (_log_sum_exp(others) - math.log(len(x))) / math.cos(min(math.pi / 4, median))
    return _margin_softmax(cosines, y, scale, lambda c, i: c), scale


def uniface(x, y, w, scale=64.0, margin=0.4, bias=None, balance=1.0):
    b = math.log(10 * len(w)) if bias is None else bias
    losses = []
    for row, k in zip(_cosines(x, w), y, strict=True):
        rest = [_softplus(scale * c - b) for j, c in enumerate(row) if j != k]
        losses.append(_softplus(b - scale * (row[k] - margin)) + balance * sum(rest))
    return losses


def p2s_grad(x, y, w):
    return [sum((c - (j == k)) ** 2 for j, c in enumerate(row)) / 2 for row, k in zip(_cosines(x, w), y, strict=True)]


def label_smoothing(logits, y, smoothing):
    losses = []
    for row, k in zip(logits, y, strict=True):
        target = [smoothing / len(row) + (1 - smoothing) * (j == k) for j in range(len(row))]
        losses.append(sum(t * _cross_entropy(row, j) for j, t in enumerate(target)))
    return losses


# --- proxies --------------------------------------------------------------------------------------------------------


def _squared_chords(x, w):
    return [[2 - 2 * c for c in row] for row in _cosines(x, w)]


def proxy_nca(x, y, w):
    losses = []
    for row, k in zip(_squared_chords(x, w), y, strict=True):
        others = [-d for j, d in enumerate(row) if j != k]
        losses.append(row[k] + _log_sum_exp(others) if others else 0.0)
    return losses


def proxy_nca_pp(x, y, w, temperature=1 / 9):
    return [_cross_entropy([-d / temperature for d in row], k) for row, k in zip(_squared_chords(x, w), y, strict=True)]


def proxy_anchor(x, y, w, margin=0.1, scale=32.0):
    """One number for the batch: a mean over the proxies with rows, plus a mean over all proxies."""
    pull, push = [], []
    for j, p in enumerate(w):
        own = [-scale * (cosine_similarity(v, p) - margin) for v, k in zip(x, y, strict=True) if k == j]
        rest = [scale * (cosine_similarity(v, p) + margin) for v, k in zip(x, y, strict=True) if k != j]
        pull += [_softplus(_log_sum_exp(own))] if own else []
        push += [_softplus(_log_sum_exp(rest)) if rest else 0.0]
    return _mean(pull) + _mean(push)


def soft_triple(x, y, w, scale=20.0, gamma=0.1, margin=0.01):
    relaxed = []
    for v in x:
        row = []
        for centers in w:
            s = [cosine_similarity(v, p) for p in centers]
            whole = _log_sum_exp([c / gamma for c in s])
            row.append(sum(math.exp(c / gamma - whole) * c for c in s))
        relaxed.append(row)
    return _margin_softmax(relaxed, y, scale, lambda c, i: c - margin)


# --- regularisers of the prototypes: one number ---------------------------------------------------------------------


def merged_centers(w):
    """Half the mean chord between two centres of one class; 0 where each class has a single centre."""
    total, size = 0.0, len(w[0])
    for centers in w:
        for t in range(size):
            for s in range(t + 1, size):
                total += math.sqrt(max(2 - 2 * cosine_similarity(centers[t], centers[s]), 0.0))
    return total / (len(w) * size * (size - 1)) if size > 1 else 0.0


def hyperspherical_energy(w, weights=None, power=2.0, angular=False):
    """Infinite (or for power 0 undefined) where two prototypes coincide; 0 for a single one."""
    total, count = 0.0, 0.0
    for i in range(len(w)):
        for j in range(len(w)):
            if i != j:
                theta, weight = angle(w[i], w[j]), 1.0 if weights is None else weights[i]
                z = theta if angular else 2 * math.sin(theta / 2)
                total += weight * (z**-power if power > 0 else -math.log(z))
                count += weight
    return total / count if count else 0.0


def regular_face(w, weights=None):
    others = lambda i: [cosine_similarity(w[i], w[j]) for j in range(len(w)) if j != i]
    weights = np.ones(len(w)) if weights is None else weights
    nearest = [max(others(i)) * weights[i] for i in range(len(w))] if len(w) > 1 else []
    return sum(nearest) / sum(weights) if nearest else 0.0
