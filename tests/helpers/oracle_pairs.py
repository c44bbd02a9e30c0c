"""More losses over pairs, as float64 NumPy loops written from the papers.

Like those of `oracle`, they get a matrix of scores and, for each anchor, the lists of its positives and its
negatives. Those that compare columns with each other also get the scores `columns` of every column against every other,
and `column_negatives`, the list of each column's negatives. `held` is where weights without a gradient are evaluated:
scores at a point that finite differences of the loss leave alone (None: the scores themselves).
"""

import math

import numpy as np

from tests.helpers.oracle import MEASURES, _first, _hinge_mean, _log_sum_exp, _mean, _softplus, batch_hard


def _pairs(lists):
    return [(i, j) for i, js in enumerate(lists) for j in js]


# --- terms for each pair --------------------------------------------------------------------------------------------


def margin(d, positives, negatives, margin=0.2, beta=1.2, nu=0.0, average="active", row_labels=None):
    boundary = lambda i: float(beta if np.ndim(beta) == 0 else beta[row_labels[i]])
    terms = [(max(d[i, p] - boundary(i) + margin, 0), boundary(i)) for i, p in _pairs(positives)]
    terms += [(max(boundary(i) - d[i, n] + margin, 0), boundary(i)) for i, n in _pairs(negatives)]
    return _hinge_mean([t for t, _ in terms], average) + nu * _mean(b for t, b in terms if average == "valid" or t > 0)


def signal_to_noise(d, positives, negatives, margin=1.0, positive_margin=0.0, average="active"):
    far = [max(d[i, p] - positive_margin, 0) for i, p in _pairs(positives)]
    near = [max(margin - d[i, n], 0) for i, n in _pairs(negatives)]
    return _hinge_mean(far, average) + _hinge_mean(near, average)


def zero_mean(z):
    """The regulariser beside the signal-to-noise loss."""
    return _mean(abs(sum(float(e) for e in row)) for row in z)


def threshold_consistent_margin(
    s, positives, negatives, positive_margin=0.9, negative_margin=0.5, positive_weight=1.0, negative_weight=1.0
):
    low = [positive_margin - s[i, p] for i, p in _pairs(positives) if s[i, p] <= positive_margin]
    high = [s[i, n] - negative_margin for i, n in _pairs(negatives) if s[i, n] >= negative_margin]
    return positive_weight * _mean(low) + negative_weight * _mean(high)


def intra_pair_variance(s, positives, negatives, positive_epsilon=0.01, negative_epsilon=0.01):
    own = [s[i, p] for i, p in _pairs(positives)]
    other = [s[i, n] for i, n in _pairs(negatives)]
    floor, ceiling = (1 - positive_epsilon) * _mean(own), (1 + negative_epsilon) * _mean(other)
    return _mean(max(floor - v, 0) ** 2 for v in own) + _mean(max(v - ceiling, 0) ** 2 for v in other)


def ranked_list(
    d, positives, negatives, margin=0.4, alpha=1.2, temperature=10.0, positive_temperature=0.0, balance=0.5, held=None
):
    weights_at = d if held is None else held

    def weighted_mean(violations, weights):
        return sum(w * v for w, v in zip(weights, violations, strict=True)) / sum(weights) if violations else 0.0

    anchors = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        if ps or ns:
            far = [p for p in ps if d[i, p] > alpha - margin]
            near = [n for n in ns if d[i, n] < alpha]
            pull = [math.exp(positive_temperature * (weights_at[i, p] - (alpha - margin))) for p in far]
            push = [math.exp(temperature * (alpha - weights_at[i, n])) for n in near]
            pulled = weighted_mean([d[i, p] - (alpha - margin) for p in far], pull)
            pushed = weighted_mean([alpha - d[i, n] for n in near], push)
            anchors.append((1 - balance) * pulled + balance * pushed)
    return _mean(anchors)


def histogram(s, positives, negatives, bins=100):
    own, other = ([s[i, j] for i, j in _pairs(lists)] for lists in (positives, negatives))
    if not own or not other:
        return 0.0
    width = 2 / bins

    def share(values):
        nodes = [0.0] * (bins + 1)
        for v in values:
            for r in range(bins + 1):
                nodes[r] += max(1 - abs(min(max(v, -1.0), 1.0) - (r * width - 1)) / width, 0) / len(values)
        return nodes

    own, other = share(own), share(other)
    return sum(other[r] * sum(own[: r + 1]) for r in range(bins + 1))


# --- exponentials of an anchor's pairs ------------------------------------------------------------------------------


def _tuplets(s, positives, negatives, exponent):
    """Mean over positive pairs of log(1 + Σ_n exp(exponent(anchor, p, n)))."""
    terms = []
    for i, p in _pairs(positives):
        terms.append(_softplus(_log_sum_exp([exponent(i, p, n) for n in negatives[i]])) if negatives[i] else 0.0)
    return _mean(terms)


def n_pairs(s, positives, negatives):
    return _tuplets(s, positives, negatives, lambda i, p, n: s[i, n] - s[i, p])


def tuplet_margin(s, positives, negatives, margin=0.1, scale=64.0):
    turned = lambda c: math.cos(math.acos(min(max(c, -1.0), 1.0)) - margin)
    return _tuplets(s, positives, negatives, lambda i, p, n: scale * (s[i, n] - turned(s[i, p])))


def angular(s, positives, negatives, columns, angle=math.pi / 4):
    square = math.tan(angle) ** 2

    def exponent(i, p, n):
        return 4 * square * (s[i, n] + columns[p, n]) - 2 * (1 + square) * s[i, p]

    return _tuplets(s, positives, negatives, exponent)


def supcon(s, positives, negatives, temperature=0.1, variant="out", weights=None):
    anchors = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        grades = [1.0 if weights is None else float(weights[i][p]) for p in ps]
        if sum(grades) > 0:
            everything = _log_sum_exp([s[i, j] / temperature for j in (*ps, *ns)])
            chosen = [(w / sum(grades), s[i, p] / temperature) for w, p in zip(grades, ps, strict=True) if w > 0]
            if variant == "out":
                anchors.append(sum(w * (everything - logit) for w, logit in chosen))
            else:
                anchors.append(everything - _log_sum_exp([math.log(w) + logit for w, logit in chosen]))
    return _mean(anchors)


def decoupled_contrastive(s, positives, negatives, temperature=0.1, sigma=None, held=None):
    pairs = [(i, p) for i, p in _pairs(positives) if negatives[i]]
    weights = [1.0] * len(pairs)
    if sigma is not None and pairs:
        exponents = [(s if held is None else held)[i, p] / sigma for i, p in pairs]
        mean = _log_sum_exp(exponents) - math.log(len(pairs))
        weights = [2 - math.exp(e - mean) for e in exponents]
    return _mean(
        -w * s[i, p] / temperature + _log_sum_exp([s[i, n] / temperature for n in negatives[i]])
        for w, (i, p) in zip(weights, pairs, strict=True)
    )


def nca(d, positives, negatives, temperature=1.0):
    anchors = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        if ps:
            own = _log_sum_exp([-d[i, p] / temperature for p in ps])
            anchors.append(_log_sum_exp([-d[i, j] / temperature for j in (*ps, *ns)]) - own)
    return _mean(anchors)


def lifted_structure(d, positives, negatives, columns, column_negatives, margin=1.0):
    terms = []
    for i, j in _pairs(positives):
        near = [margin - d[i, n] for n in negatives[i]] + [margin - columns[j, n] for n in column_negatives[j]]
        if near:
            terms.append(max(_log_sum_exp(near) + d[i, j], 0) ** 2 / 2)
    return _mean(terms)


def generalized_lifted_structure(d, positives, negatives, margin=1.0):
    anchors = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        if ps and ns:
            pull = _log_sum_exp([d[i, p] for p in ps])
            anchors.append(max(pull + _log_sum_exp([margin - d[i, n] for n in ns]), 0))
    return _mean(anchors)


def unified_pair(
    s,
    positives,
    negatives,
    scale,
    positive_weight,
    negative_weight,
    positive_margin,
    negative_margin,
    held=None,
):
    """The weights are functions of a similarity and its margin Δ."""
    at = s if held is None else held
    anchors = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        if ps and ns:
            exponents = []
            for n in ns:
                for p in ps:
                    push = negative_weight(at[i, n], negative_margin) * (s[i, n] - negative_margin)
                    pull = positive_weight(at[i, p], positive_margin) * (s[i, p] - positive_margin)
                    exponents.append(scale * (push - pull))
            anchors.append(_softplus(_log_sum_exp(exponents)))
    return _mean(anchors)


# --- triplets and quadruplets ---------------------------------------------------------------------------------------


def _triplet_mean(gaps, margin, average):
    if margin is None:
        return _mean(_softplus(g) for g in gaps)
    return _hinge_mean([max(g + margin, 0) for g in gaps], average)


def triplet_swap(d, positives, negatives, columns, margin=0.2, triplets=batch_hard, average="active"):
    gaps = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        for p, n in triplets(d[i], ps, ns) if ps and ns else []:
            gaps.append(d[i, p] - min(d[i, n], columns[p, n]))
    return _triplet_mean(gaps, margin, average)


def quadruplet(d, positives, negatives, columns, column_negatives, margin=1.0, second_margin=0.5, average="active"):
    first, second = [], []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        if ps and ns:
            p, n = _first(ps, lambda j, i=i: -d[i, j]), _first(ns, lambda j, i=i: d[i, j])
            first.append(max(d[i, p] - d[i, n] + margin, 0))
            third = [j for j in column_negatives[n] if j in ns]
            if third:
                nearest = _first(third, lambda j, n=n: columns[n, j])
                second.append(max(d[i, p] - columns[n, nearest] + second_margin, 0))
    return _hinge_mean(first, average) + _hinge_mean(second, average)


def centroid_triplet(z, y, margin=0.5, hardest=False, measure="squared_euclidean", average="active"):
    distance = MEASURES[measure]
    z = np.array(z, np.float64)
    gaps = []
    for i in range(len(z)):
        mates = [z[j] for j in range(len(z)) if y[j] == y[i] and j != i]
        others = sorted({int(k) for k in y} - {int(y[i])})
        if mates and others:
            far = distance(z[i], sum(mates) / len(mates))
            members = [[z[j] for j in range(len(z)) if y[j] == k] for k in others]
            near = [distance(z[i], sum(rows) / len(rows)) for rows in members]
            gaps += [far - v for v in ([min(near)] if hardest else near)]
    return _triplet_mean(gaps, margin, average)


def dynamic_soft_margin(gaps, histogram, momentum=0.01, limit=2.0):
    """Loss and new histogram, from gaps d_ap − d_an. A histogram of zeros has seen nothing yet."""
    gaps, histogram = [float(g) for g in gaps], [float(h) for h in histogram]
    if not gaps:
        return 0.0, np.array(histogram)
    nodes = len(histogram)
    width = 2 * limit / (nodes - 1)
    places = [(min(max(g, -limit), limit) + limit) / width for g in gaps]
    below = [min(math.floor(place), nodes - 1) for place in places]
    seen = [0.0] * nodes
    for place, low in zip(places, below, strict=True):
        seen[low] += (1 - (place - low)) / len(gaps)
        seen[min(low + 1, nodes - 1)] += (place - low) / len(gaps)
    kept = 1 - momentum if any(histogram) else 0.0
    histogram = [kept * h + (1 - kept) * v for h, v in zip(histogram, seen, strict=True)]
    weights = [sum(histogram[: low + 1]) / sum(histogram) for low in below]
    return _mean(w * g for w, g in zip(weights, gaps, strict=True)), np.array(histogram)


def log_ratio(d, label_distances, others, epsilon=1e-6):
    """`others` lists, for each anchor, the columns that are compared: all but its own."""
    log = lambda v: math.log(v + epsilon)
    terms = []
    for a, columns in enumerate(others):
        for i in columns:
            for j in columns:
                if i != j:
                    found = log(d[a, i]) - log(d[a, j])
                    wanted = log(label_distances[a][i]) - log(label_distances[a][j])
                    terms.append((found - wanted) ** 2)
    return _mean(terms)
