import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine import sizes
from metricjax.metrics.levels import Counts


def counted(levels, scores, which):
    """By the letter."""
    chosen = [float(score) for score, counts in zip(scores.ravel(), which.ravel(), strict=True) if counts]
    below = [sum(score < level for score in chosen) for level in levels.tolist()]
    return below, [sum(score <= level for score in chosen) for level in levels.tolist()], len(chosen)


SCORES = {
    "on a grid": lambda rng: rng.integers(-4, 5, (24, 20)) / 4,
    "anywhere": lambda rng: rng.standard_normal((24, 20)),
    "zeros": lambda rng: rng.choice([-0.0, 0.0, -1.0, 1.0], (24, 20)),
    "far outside": lambda rng: rng.choice([-3e38, 3e38, 0.25], (24, 20)),
}
LEVELS = {
    "few": lambda rng: [-0.5, 0.25],
    "on the grid": lambda rng: np.arange(-4, 5) / 4,
    "one": lambda rng: [0.25],
    "none": lambda rng: [],
    "close together, and one far away": lambda rng: np.r_[0.25 + 1e-6 * np.arange(40), 1e6],
    "far apart": lambda rng: [-3e38, 0.25, 3e38],
    "many": lambda rng: rng.standard_normal(300),
}


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sized", [(2**12, 2**16), (512, 64), (4, 64)])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("scores", SCORES)
def test_counts_equal_loops(scores, levels, sized, dtype, rng, monkeypatch, x64):
    """Tiles by a table, by one with few buckets, without one; and lists."""
    monkeypatch.setattr(sizes, "levels_and_buckets", lambda n: sized)
    monkeypatch.setattr(sizes, "rows_in_tally", lambda columns: 7)
    monkeypatch.setattr(sizes, "scores_sorted_at_once", lambda: 100)
    levels = np.unique(np.asarray(LEVELS[levels](rng), dtype))
    tile, other = SCORES[scores](rng).astype(dtype), SCORES[scores](rng).astype(dtype)
    which = rng.random(tile.shape) < 0.7
    found = Counts(levels)
    for some, mask in ((tile, which), (other, None)):
        mask = None if mask is None else jnp.asarray(mask)
        found.add_tile(found.started(jnp.multiply, jnp.asarray(some), jnp.ones_like(some), mask))
    found.add(tile[0])
    every = np.concatenate([tile, other, tile[:1]])
    below, at_most, total = counted(levels, every, np.concatenate([which, np.ones((25, 20), bool)]))
    assert (found.below(levels).tolist(), found.at_most(levels).tolist(), found.total) == (below, at_most, total)
    assert found.below(levels[1:]).tolist() == below[1:]


def test_curves_by_a_table_and_by_sorting_are_the_same(rng, monkeypatch):
    z, y = rng.integers(-2, 3, (300, 4)).astype(np.float32), rng.integers(0, 60, 300)
    by_table = mj.metrics.pair_scores(z, y)
    monkeypatch.setattr(sizes, "levels_and_buckets", lambda n: (1, 64))
    by_sorting = mj.metrics.pair_scores(z, y)
    for a, b in zip((*by_table.roc, *by_table[1:]), (*by_sorting.roc, *by_sorting[1:]), strict=True):
        np.testing.assert_array_equal(a, b)
