"""The losses on ranks as float64 NumPy loops; arguments as in `oracle.py`."""

import math

import numpy as np


def _sigmoid(t):
    return 1 / (1 + math.exp(-t)) if t >= 0 else math.exp(t) / (1 + math.exp(t))


def _mean_over_anchors(of_anchor, positives, negatives):
    values = [of_anchor(i, ps, ns) for i, (ps, ns) in enumerate(zip(positives, negatives, strict=True)) if ps]
    return sum(values) / len(values) if values else 0.0


def fast_ap(d, positives, negatives, bins=10):
    points, width = [4 * b / bins for b in range(bins + 1)], 4 / bins

    def of_anchor(i, ps, ns):
        histogram = lambda js: [sum(max(0.0, 1 - abs(d[i, j] - point) / width) for j in js) for point in points]
        own, everything = histogram(ps), histogram([*ps, *ns])
        terms = [
            own[b] * sum(own[: b + 1]) / sum(everything[: b + 1]) for b in range(bins + 1) if sum(everything[: b + 1])
        ]
        return 1 - sum(terms) / len(ps)

    return _mean_over_anchors(of_anchor, positives, negatives)


def smooth_ap(s, positives, negatives, temperature=0.01):
    def of_anchor(i, ps, ns):
        terms = []
        for p in ps:
            right = 1 + sum(_sigmoid((s[i, q] - s[i, p]) / temperature) for q in ps if q != p)
            wrong = sum(_sigmoid((s[i, n] - s[i, p]) / temperature) for n in ns)
            terms.append(right / (right + wrong))
        return 1 - sum(terms) / len(ps)

    return _mean_over_anchors(of_anchor, positives, negatives)


def recall_at_k(s, positives, negatives, ks=(1, 2, 4, 8, 16), temperature=0.01, k_temperature=1.0):
    def of_anchor(i, ps, ns):
        ranks = [1 + sum(_sigmoid((s[i, j] - s[i, p]) / temperature) for j in (*ps, *ns) if j != p) for p in ps]
        recalls = [sum(_sigmoid((k - r) / k_temperature) for r in ranks) / min(k, len(ps)) for k in ks]
        return 1 - sum(recalls) / len(ks)

    return _mean_over_anchors(of_anchor, positives, negatives)


def _above(t, temperature, slope, delta):
    """ROADMAP's bound of whether a negative comes before."""
    if t <= 0:
        return _sigmoid(t / temperature)
    if t <= delta:
        return _sigmoid(t / temperature) + 0.5
    return slope * (t - delta) + _sigmoid(delta / temperature) + 0.5


def roadmap(
    s, positives, negatives, temperature=0.01, slope=100.0, delta=0.05,
    positive_margin=0.9, negative_margin=0.6, calibration=0.5, average="active",
):  # fmt: skip
    def of_anchor(i, ps, ns):
        terms = []
        for p in ps:
            right = sum(s[i, q] >= s[i, p] for q in ps)
            terms.append(right / (right + sum(_above(s[i, n] - s[i, p], temperature, slope, delta) for n in ns)))
        return 1 - sum(terms) / len(ps)

    def mean(terms):
        kept = [t for t in terms if t > 0 or average == "valid"]
        return sum(kept) / len(kept) if kept else 0.0

    far = mean([max(positive_margin - s[i, p], 0) for i, ps in enumerate(positives) for p in ps])
    near = mean([max(s[i, n] - negative_margin, 0) for i, ns in enumerate(negatives) for n in ns])
    return (1 - calibration) * _mean_over_anchors(of_anchor, positives, negatives) + calibration * (far + near)


PENALTIES = {
    "O": lambda r, alpha, b: r,
    "Iu": lambda r, alpha, b: (1 + r) * np.log(1 + r),
    "Ib": lambda r, alpha, b: (b * r - np.log(1 + b * r)) / b**2,
    "Ds": lambda r, alpha, b: np.log(1 + r),
    "Dq": lambda r, alpha, b: 1 - 1 / (1 + r) ** alpha,
}


def pnp(s, positives, negatives, variant="Dq", temperature=0.01, alpha=4.0, b=2.0):
    def of_anchor(i, ps, ns):
        counts = [sum(_sigmoid((s[i, n] - s[i, p]) / temperature) for n in ns) for p in ps]
        return sum(PENALTIES[variant](r, alpha, b) for r in counts) / len(ps)

    return _mean_over_anchors(of_anchor, positives, negatives)
