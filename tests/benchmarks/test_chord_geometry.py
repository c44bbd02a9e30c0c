"""Gradients of distances through chords are those of the closed forms, and point the same way on the tangent plane."""

import importlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from benchmarks import chord_geometry as geometry
from benchmarks import chord_points as points
from metricjax import sphere


def pairs(n=200, d=5):
    """Points x, and y at angles t from near 0 to near π, in float64."""
    x, v = jax.random.normal(jax.random.key(0), (2, n, d), jnp.float64)
    x, t = sphere.project(x), jnp.linspace(0.01, 3.1, n)
    return x, sphere.exp(x, t[:, None] * sphere.project(sphere.to_tangent(x, v))), np.asarray(t)


def each(distance, x, y):
    return jax.vmap(lambda x, y: distance(x[None], y[None])[0, 0])(x, y)


@pytest.mark.parametrize("name", geometry.DISTANCES)
def test_distances_and_gradients_are_the_closed_forms(name, x64):
    x, y, t = pairs()
    distance = geometry.DISTANCES[name]
    np.testing.assert_allclose(each(distance, x, y), geometry.PROFILES[name](t), rtol=1e-9)
    gradient = jax.vmap(jax.grad(lambda x, y: distance(x[None], y[None])[0, 0]))(x, y)
    tangent = sphere.to_tangent(x, gradient)
    length = partial(jnp.linalg.norm, axis=-1)
    np.testing.assert_allclose(length(gradient), geometry.LENGTHS[name](t), rtol=1e-6)
    np.testing.assert_allclose(length(tangent), geometry.TANGENTIAL[name](t), rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(x * gradient, axis=-1), geometry.RADIAL[name](t), rtol=1e-6)
    away = -sphere.project(sphere.log(x, y))  # the same way for all distances
    np.testing.assert_allclose(jnp.sum(sphere.project(tangent) * away, axis=-1), 1, atol=1e-9)
    slope = np.gradient(geometry.PROFILES[name](t), t)
    np.testing.assert_allclose(geometry.TANGENTIAL[name](t)[1:-1], slope[1:-1], atol=1e-3)


@pytest.mark.parametrize("name", geometry.DISTANCES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_gradients_are_finite_between_equal_and_opposite_points(name, dtype, x64, debug_nans):
    x = sphere.project(jax.random.normal(jax.random.key(1), (50, 3), dtype))
    y = jnp.concatenate([x, -x, -x * (1 + 1e-6), jnp.zeros_like(x)])
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(geometry.DISTANCES[name](x, y)))(x)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


def test_constrained_has_the_three_gradients(x64):
    z = jnp.array([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]])
    g = jnp.array([[1.0, 0.0], [0.0, -2.0], [1.0, 1.0]])
    pulled = lambda how: jax.vjp(lambda z: geometry.constrained(z, how), z)[1](g)[0]
    exact = jax.vjp(sphere.project, z)[1](g)[0]
    tangent = [[0.64, -0.48], [0.96, -0.72], [1.0, 1.0]]
    found = jax.jit(jax.vmap(pulled))(jnp.arange(3))
    np.testing.assert_allclose(found, jnp.stack([exact, g, jnp.array(tangent)]), atol=1e-12)
    np.testing.assert_allclose(geometry.constrained(z, 1), sphere.project(z))


def test_normalised_forward_pass_lengthens_its_vectors(x64):
    """‖z‖² grows by the square of the step, for the gradient is perpendicular to z."""
    z, labels, rate = 2 * sphere.random_uniform(jax.random.key(2), (12, 4), jnp.float64), jnp.arange(12) // 3, 0.7
    gradient = jax.grad(lambda z: mj.losses.triplet(geometry.constrained(z, 0), labels, margin=1.0))(z)
    square = lambda a: jnp.sum(jnp.square(a), axis=1)
    np.testing.assert_allclose(square(z - rate * gradient), square(z) + rate**2 * square(gradient))


@pytest.mark.parametrize("name", geometry.DISTANCES)
@pytest.mark.parametrize("reference", [0.3, np.pi / 2])
def test_margins_are_matched_in_angle(name, reference, x64):
    m, d = geometry.margin(name, 0.45, reference), geometry.DISTANCES[name]
    at = lambda t: jnp.array([[np.cos(t), np.sin(t)]])
    slack = lambda gap: float((d(at(0.0), at(reference + gap / 2)) - d(at(0.0), at(reference - gap / 2)))[0, 0] - m)
    assert slack(0.451) > 0 > slack(0.449)


def test_margin_of_facenet():
    assert geometry.margin("squared chord", 0.4510, 0.4510 / 2) == pytest.approx(0.2, abs=1e-4)


def test_only_the_squared_chord_loses_its_gradient_as_points_draw_together():
    rows = geometry.contraction()[:5]
    spread = np.log([row["spread"] for row in rows])
    power = {name: np.polyfit(spread, np.log([row[name] for row in rows]), 1)[0] for name in geometry.DISTANCES}
    expected = {"squared chord": 1, "cosine": 1, "chord": 0, "geodesic": 0}
    assert power == pytest.approx(expected, abs=0.02)


def test_gradients_of_triplets_differ_in_direction():
    rows = {(row["to positive"], row["to negative"]): row for row in geometry.triplet_directions()}
    # sin 10° against sin 45° is 14 degrees from the tangent that says push and pull equally
    expected = 45 - np.degrees(np.arctan(np.sin(np.radians(10)) / np.sin(np.radians(45))))
    assert rows[10, 45]["squared chord / geodesic"] == pytest.approx(expected)
    assert rows[90, 150]["chord / geodesic"] > 20


@pytest.mark.parametrize("how", range(3))
def test_optimizer_makes_the_step_of_its_constraint(how):
    z, g = sphere.random_uniform(jax.random.key(3), (4, 8)), jnp.ones((4, 8))
    rate = {"rate": jnp.float32(0.1), "constraint": jnp.int32(how)}
    move = points.optimizer(rate).update(g, (), z)[0]
    step = z - jnp.float32(0.1) * g
    along = sphere.exp(z, jnp.float32(-0.1) * sphere.to_tangent(z, g))
    np.testing.assert_allclose(z + move, (step, sphere.project(step), along)[how], atol=1e-6)


def test_starts():
    starts = [points.start(jax.random.key(seed)) for seed in range(4)]
    spreads = [float(jnp.sqrt(jnp.sum(jnp.var(x, axis=0)))) for x in starts]
    assert spreads == pytest.approx([1, 1, 0.02, 0.02], rel=0.3)
    assert [int(jnp.sum(jnp.any(x != 0, axis=0))) for x in starts] == [8, 3, 8, 3]


def test_no_active_triplet_means_in_order():
    """Under every distance, for points just beyond the margin; Euclidean distances near 0 are rounded to 3e-4."""
    x = geometry.LABELS * 0.202
    x = jnp.array(np.stack([np.cos(x), np.sin(x)], axis=1), jnp.float32)
    for name, distance in geometry.DISTANCES.items():
        margin = geometry.matched(name, 0.2, "near")
        assert mj.losses.triplet(x, jnp.asarray(geometry.LABELS), distance=distance, margin=margin) == 0
    assert points.watch(x, ())["ordered"] == 1


def test_since():
    holds = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]], bool)
    assert points.since(holds, np.array([5, 10, 15])).tolist() == [10, 15, np.inf]


RUNS = {
    "chord_geometry": [],
    "chord_points": ["--seeds=3", "--steps=11", "--angles=0.45", "--rates", "1", "10", "--selections", "batch hard"],
}


@pytest.mark.parametrize("name", RUNS)
def test_benchmark_runs(name, monkeypatch, tmp_path, capsys):
    benchmark = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, *RUNS[name]])
    benchmark.main()
    assert name in capsys.readouterr().out
    assert json.loads((tmp_path / f"runs/benchmarks/{name}.json").read_text())["rows"]
    assert (tmp_path / f"runs/benchmarks/{name}.png").stat().st_size > 1000
