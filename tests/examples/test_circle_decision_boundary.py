"""The figure of circle loss's boundary and gradients: drawn, and as the paper has it."""

import contextlib
import io

import jax
import numpy as np
import pytest
from PIL import Image

MARGIN, GRID = 0.25, 40
TRIPLET, AM_SOFTMAX, CIRCLE = "Triplet loss", "AM-softmax (CosFace)", "Circle loss"


@pytest.fixture(scope="module")
def example():
    import circle_decision_boundary

    return circle_decision_boundary


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    """What a run returns, what it prints, and its folder."""
    out, printed = tmp_path_factory.mktemp("figures"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        panels = example.main(["--margin", str(MARGIN), "--grid", str(GRID), "--out", str(out)])
    return panels, printed.getvalue(), out


@pytest.fixture(scope="module")
def panels(run):
    return run[0]


def contour(example, panel):
    from matplotlib.figure import Figure

    drawn = example.draw_boundary(Figure().subplots(), panel, GRID)
    return np.concatenate(drawn.allsegs[0])


def forces(example, name, *points):
    """(|∂L/∂s_n|, |∂L/∂s_p|) at each point (s_n, s_p): how hard s_n is pushed down and s_p pulled up."""
    gradient = jax.vmap(jax.grad(example.LOSSES[name]), in_axes=(0, None, None))
    slopes = np.asarray(jax.jit(gradient)(np.array(points, np.float32), MARGIN, 80.0))
    assert (slopes[:, 0] >= 0).all()
    assert (slopes[:, 1] <= 0).all()
    return np.abs(slopes)


def test_a_run_leaves_two_figures_and_a_table(run):
    panels, printed, out = run
    assert list(panels) == [TRIPLET, AM_SOFTMAX, CIRCLE]
    assert all(name in printed for name in (*panels, str(out)))
    for name in ("boundaries", "gradients"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 500


def test_boundaries_are_those_of_the_paper(example, panels):
    for name in (TRIPLET, AM_SOFTMAX):
        s_n, s_p = contour(example, panels[name]).T
        assert len(s_n) > GRID / 2
        np.testing.assert_allclose(s_p - s_n, 1 - 2 * MARGIN, atol=1 / GRID)
    s_n, s_p = contour(example, panels[CIRCLE]).T
    assert len(s_n) > GRID / 2
    np.testing.assert_allclose(np.hypot(s_n, s_p - 1), MARGIN * 2**0.5, atol=1 / GRID)
    for name, panel in panels.items():
        drawn = example.closed_form(name, MARGIN)
        apart = np.linalg.norm(contour(example, panel)[:, None] - drawn[None], axis=-1)
        assert apart.min(axis=1).max() < 1 / GRID


@pytest.mark.parametrize("name", [TRIPLET, AM_SOFTMAX])
def test_triplet_and_am_softmax_push_and_pull_alike_everywhere(example, panels, name):
    found = panels[name].gradients
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[..., 0], -found[..., 1], atol=1e-5)
    far, near = forces(example, name, (0.8, 0.2), (0.4, 0.8))
    np.testing.assert_allclose(far, near, rtol=1e-2)  # as hard near the boundary as far from it


def test_circle_works_on_what_is_worse_and_eases_off(example):
    high, low = forces(example, CIRCLE, (0.8, 0.8), (0.2, 0.2))
    np.testing.assert_allclose(high, [0.8 + MARGIN, 1 + MARGIN - 0.8], rtol=1e-4)
    np.testing.assert_allclose(low, [0.2 + MARGIN, 1 + MARGIN - 0.2], rtol=1e-4)
    assert high[0] > 2 * high[1]
    assert low[1] > 2 * low[0]
    towards = forces(example, CIRCLE, *((s, 1 - s) for s in (0.9, 0.7, 0.5, 0.4, MARGIN, 0.1)))
    assert (np.diff(towards, axis=0) < 0).all()
    np.testing.assert_allclose(towards[4], MARGIN, rtol=1e-4)  # at T: half of the weight 2m


def test_circle_narrows_the_passage(example, panels):
    crossing = {name: example.spread_and_distance(panel.crossings, MARGIN) for name, panel in panels.items()}
    end = {name: example.spread_and_distance(panel.paths[-1], MARGIN) for name, panel in panels.items()}
    for found in (crossing, end):
        for other in (TRIPLET, AM_SOFTMAX):
            assert found[CIRCLE][0] < 0.7 * found[other][0]
            assert found[CIRCLE][1] < 0.8 * found[other][1]
    middle = len(example.STARTS) // 2
    np.testing.assert_allclose(panels[CIRCLE].crossings[middle], [MARGIN, 1 - MARGIN], atol=3e-3)


def test_paths_of_circle_are_straight_to_where_both_weights_vanish(example, panels):
    """So that T is not where they lead."""
    inner = panels[CIRCLE].paths[:, :6]
    inner = np.where((inner < 0.99).all(axis=-1, keepdims=True), inner, inner[0])  # before s_p stops at 1
    goal = np.array([-MARGIN, 1 + MARGIN])
    directions = (inner - goal) / np.linalg.norm(inner - goal, axis=-1, keepdims=True)
    np.testing.assert_allclose(directions, np.broadcast_to(directions[:1], directions.shape), atol=2e-3)


def test_wrong_margin(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--margin", "0.5"])
    assert "--margin is 0.5" in capsys.readouterr().err
