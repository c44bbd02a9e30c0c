"""Scores of pairs and what they are worth, by counting."""

import numpy as np


def scores_and_same(kind, rng, n=120):
    same = rng.random(n) < 0.3
    scores = rng.standard_normal(n) + same
    if kind == "ties":
        scores = np.round(scores)
    if kind == "all equal":
        scores = np.zeros(n)
    if kind == "perfect":
        scores = same + rng.random(n) / 2
    return scores, same


KINDS = ("plain", "ties", "all equal", "perfect")


def rates(scores, same):
    """(FAR, TAR) at every threshold, by counting."""
    points = [(0.0, 0.0)]
    for t in sorted(set(scores), reverse=True):
        points.append((float(np.mean(scores[~same] >= t)), float(np.mean(scores[same] >= t))))
    return points
