"""Every distance, loss and metric once more, as float64 NumPy loops written from the papers.

Losses over pairs get a matrix of scores and, for each anchor, the lists of its positives and its negatives.
"""

import math

import numpy as np

# --- all-pairs measures ---------------------------------------------------------------------------------------------


def unit(v):
    length = math.sqrt(sum(float(e) ** 2 for e in v))
    return np.array(v, np.float64) / length if length else np.zeros(len(v))


def cosine_similarity(a, b):
    return float(np.dot(unit(a), unit(b)))


def angle(a, b):
    p, q = unit(a), unit(b)
    if not p.any() or not q.any():
        return math.pi / 2
    return 2 * math.atan2(np.linalg.norm(p - q), np.linalg.norm(p + q))


def snr(a, b):
    variance = np.var(np.array(a, np.float64))
    return float(np.var(np.array(a, np.float64) - np.array(b, np.float64)) / variance) if variance else 0.0


def poincare(a, b, c=1.0):
    a, b = np.array(a, np.float64), np.array(b, np.float64)
    gap = lambda v: max(1 - c * float(v @ v), 1e-5)
    return math.acosh(1 + 2 * c * float((a - b) @ (a - b)) / (gap(a) * gap(b))) / math.sqrt(c)


MEASURES = {
    "dot": lambda a, b: float(np.dot(np.float64(a), np.float64(b))),
    "cosine_similarity": cosine_similarity,
    "cosine": lambda a, b: 1 - cosine_similarity(a, b),
    "squared_euclidean": lambda a, b: float(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))),
    "euclidean": lambda a, b: math.sqrt(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))),
    "squared_chord": lambda a, b: max(2 - 2 * cosine_similarity(a, b), 0.0),
    "chord": lambda a, b: math.sqrt(max(2 - 2 * cosine_similarity(a, b), 0.0)),
    "geodesic": angle,
    "lp1": lambda a, b: sum(abs(float(p) - float(q)) for p, q in zip(a, b, strict=True)),
    "lp3": lambda a, b: sum(abs(float(p) - float(q)) ** 3 for p, q in zip(a, b, strict=True)) ** (1 / 3),
    "snr": snr,
    "poincare": poincare,
}


def matrix(measure, x, y):
    return np.array([[MEASURES[measure](a, b) for b in y] for a in x]).reshape(len(x), len(y))


def neighbours(
    labels, where=None, reference_labels=None, reference_where=None, same=lambda a, b: a == b, reference_ids=None
):
    """For each anchor, the columns that are its positives and its negatives."""
    itself = reference_labels is None
    others = labels if itself else reference_labels
    exists = np.ones(len(labels), bool) if where is None else where
    there = exists if itself else (np.ones(len(others), bool) if reference_where is None else reference_where)
    ids = np.arange(len(labels)) if itself else np.full(len(others), -1) if reference_ids is None else reference_ids
    positives, negatives = [], []
    for i in range(len(labels)):
        columns = [j for j in range(len(others)) if exists[i] and there[j] and ids[j] != i]
        positives.append([j for j in columns if same(labels[i], others[j])])
        negatives.append([j for j in columns if not same(labels[i], others[j])])
    return positives, negatives


# --- losses over pairs ----------------------------------------------------------------------------------------------


def _mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def _hinge_mean(terms, average):
    return _mean(t for t in terms if t > 0) if average == "active" else _mean(terms)


def _log_sum_exp(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def _softplus(v):
    return max(v, 0.0) + math.log1p(math.exp(-abs(v)))


def contrastive(d, positives, negatives, margin=1.0, positive_margin=0.0, squared=True, average="active"):
    shape = (lambda t: t * t / 2) if squared else (lambda t: t)
    far = [shape(max(d[i, p] - positive_margin, 0)) for i, ps in enumerate(positives) for p in ps]
    near = [shape(max(margin - d[i, n], 0)) for i, ns in enumerate(negatives) for n in ns]
    return _hinge_mean(far, average) + _hinge_mean(near, average)


def _first(candidates, key):
    best = None
    for c in candidates:
        if best is None or key(c) < key(best):
            best = c
    return best


def batch_hard(row, positives, negatives):
    return [(_first(positives, lambda p: -row[p]), _first(negatives, lambda n: row[n]))]


def easy_positive_hard_negative(row, positives, negatives):
    return [(_first(positives, lambda p: row[p]), _first(negatives, lambda n: row[n]))]


def semi_hard(row, positives, negatives):
    chosen = []
    for p in positives:
        farther = [n for n in negatives if row[n] > row[p]]
        chosen.append((p, _first(farther, lambda n: row[n]) if farther else _first(negatives, lambda n: -row[n])))
    return chosen


def all_triplets(row, positives, negatives):
    return [(p, n) for p in positives for n in negatives]


def triplet(d, positives, negatives, margin=0.2, triplets=batch_hard, average="active"):
    terms = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        for p, n in triplets(d[i], ps, ns) if ps and ns else []:
            gap = d[i, p] - d[i, n]
            terms.append(_softplus(gap) if margin is None else max(gap + margin, 0))
    return _hinge_mean(terms, "valid" if margin is None else average)


def nt_xent(s, positives, negatives, temperature=0.1):
    return _mean(
        _log_sum_exp([s[i, p] / temperature, *(s[i, n] / temperature for n in ns)]) - s[i, p] / temperature
        for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True))
        for p in ps
    )


def supcon(s, positives, negatives, temperature=0.1):
    anchors = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        if ps:
            everything = _log_sum_exp([s[i, j] / temperature for j in (*ps, *ns)])
            anchors.append(_mean(everything - s[i, p] / temperature for p in ps))
    return _mean(anchors)


def multi_similarity(s, positives, negatives, alpha=2.0, beta=50.0, base=0.5):
    anchors = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        if ps or ns:
            pull = _softplus(_log_sum_exp([-alpha * (s[i, p] - base) for p in ps])) / alpha if ps else 0
            push = _softplus(_log_sum_exp([beta * (s[i, n] - base) for n in ns])) / beta if ns else 0
            anchors.append(pull + push)
    return _mean(anchors)


def circle(s, positives, negatives, margin=0.4, scale=80.0):
    anchors = []
    for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)):
        if ps and ns:
            pull = [-scale * max(1 + margin - s[i, p], 0) * (s[i, p] - 1 + margin) for p in ps]
            push = [scale * max(s[i, n] + margin, 0) * (s[i, n] - margin) for n in ns]
            anchors.append(_softplus(_log_sum_exp(pull) + _log_sum_exp(push)))
    return _mean(anchors)


# --- losses over classes --------------------------------------------------------------------------------------------


def _cross_entropy(logits, y):
    return _log_sum_exp(list(logits)) - logits[y]


def softmax(x, y, w, bias=None):
    b = np.zeros(len(w)) if bias is None else bias
    return [_cross_entropy([float(np.dot(v, c)) + b[j] for j, c in enumerate(w)], k) for v, k in zip(x, y, strict=True)]


def _cosine_softmax(x, y, w, logit):
    losses = []
    for v, k in zip(x, y, strict=True):
        losses.append(_cross_entropy([logit(cosine_similarity(v, c), j == k) for j, c in enumerate(w)], k))
    return losses


def normalized_softmax(x, y, w, temperature=0.05):
    return _cosine_softmax(x, y, w, lambda c, _: c / temperature)


def cosface(x, y, w, scale=64.0, margin=0.35):
    return _cosine_softmax(x, y, w, lambda c, target: scale * (c - margin if target else c))


def circle_class(x, y, w, scale=256.0, margin=0.25):
    def logit(c, target):
        if target:
            return scale * max(1 + margin - c, 0) * (c - 1 + margin)
        return scale * max(c + margin, 0) * (c - margin)

    return _cosine_softmax(x, y, w, logit)


def center(x, y, centers):
    return [
        sum((float(a) - float(b)) ** 2 for a, b in zip(v, centers[k], strict=True)) / 2
        for v, k in zip(x, y, strict=True)
    ]


def update_centers(centers, x, y, rate=0.5):
    moved = np.array(centers, np.float64)
    for j in range(len(centers)):
        members = [v for v, k in zip(x, y, strict=True) if k == j]
        moved[j] -= rate * sum((centers[j] - v for v in members), np.zeros(len(centers[j]))) / (1 + len(members))
    return moved
