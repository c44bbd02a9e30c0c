"""The geometry of the sphere once more, as NumPy functions of single rows in extended precision, from the textbook.

Rows are normalised first. The formulas cancel near 0 and π, which the further digits make up for.
"""

import numpy as np


def row(v):
    return np.asarray(v, np.longdouble)


def length(v):
    return np.sqrt(np.sum(row(v) ** 2))


def unit(v):
    return row(v) / length(v)


def angle(x, y):
    x, y = unit(x), unit(y)
    return 2 * np.arctan2(length(x - y), length(x + y))


def direction(x, y):
    """The unit tangent at x that leads to y, by Gram and Schmidt, twice."""
    x, n = unit(x), unit(y)
    for _ in range(2):
        n = n - (n @ x) * x
    return unit(n)


def exp(x, v):
    x, v = unit(x), row(v)
    return np.cos(length(v)) * x + np.sin(length(v)) * (unit(v) if v.any() else v)


def log(x, y):
    return angle(x, y) * direction(x, y)


def interpolate(x, y, t):
    a, n = angle(x, y), direction(x, y)
    return np.cos(t * a) * unit(x) + np.sin(t * a) * n


def transport(x, y, v):
    """v turned in the plane of x and y, by the angle between them."""
    a, n, x, v = angle(x, y), direction(x, y), unit(x), row(v)
    return v + (n @ v) * ((np.cos(a) - 1) * n - np.sin(a) * x)


def frechet_mean(points, weights):
    """By gradient descent, which takes its time."""
    weights = row(weights) / np.sum(row(weights))
    mean = unit(weights @ np.stack([unit(p) for p in points]))
    for _ in range(10_000):
        step = sum(w * log(mean, p) for w, p in zip(weights, points, strict=True))
        mean = unit(exp(mean, step))
        if length(step) < 1e-17:
            return mean
    raise RuntimeError("no convergence")
