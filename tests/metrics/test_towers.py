"""Retrieval between two towers, against a plain loop."""

import numpy as np
import pytest

import metricjax as mj


def plain(x, y, x_labels, y_labels, k):
    """Shares of queries found within k, and the ranks of their first matches, in float64."""
    ranks = []
    for row, label in zip(x, x_labels, strict=True):
        scores = [float(row @ other) / np.linalg.norm(row) / np.linalg.norm(other) for other in y]
        order = sorted(range(len(y)), key=lambda j: (-scores[j], j))
        places = [place for place, j in enumerate(order, 1) if y_labels[j] == label]
        ranks += places[:1]
    return np.mean(np.array(ranks) <= k), np.median(ranks), len(ranks)


@pytest.mark.slow
def test_both_ways_are_those_of_a_loop(rng):
    y = rng.normal(size=(40, 6))
    x = y + 1.2 * rng.normal(size=(40, 6))
    captions = rng.integers(0, 18, 40), rng.integers(2, 20, 40)  # some without a match
    for given in ((np.arange(40), np.arange(40)), captions):
        labels = {} if given[0] is not captions[0] else {"labels": given[0], "reference_labels": given[1]}
        found = mj.metrics.both_ways(x, y, ks=(1, 4), **labels)
        ways = {"x to y": (x, y, *given), "y to x": (y, x, *given[::-1])}
        for name, arguments in ways.items():
            for k in (1, 4):
                share, median, queries = plain(*arguments, k)
                assert found[name][f"recall@{k}"] == pytest.approx(share)
            assert (found[name]["median_rank"], found[name]["queries"]) == (median, queries)
            assert found[name]["lone"] == 40 - queries


def test_what_does_not_fit_is_refused(unchecked):
    eye = np.eye(3)
    wrong = {
        r"x has shape \(3, 3\), y has shape \(2, 3\); wanted one, or labels": (eye, eye[:2], {}),
        "one is given; wanted both or neither": (eye, eye, {"labels": np.arange(3)}),
        "x has 3 features, y has 2": (eye, eye[:, :2], {"labels": np.arange(3), "reference_labels": np.arange(3)}),
        "none of the 3 queries has a match among": (
            eye, eye, {"labels": np.arange(3), "reference_labels": 3 + np.arange(3)},
        ),
        "y holds NaN": (eye, np.nan * eye, {}),
    }  # fmt: skip
    for message, (x, y, options) in wrong.items():
        with pytest.raises(ValueError, match=message):
            mj.metrics.both_ways(x, y, **options)
