"""What the circle loss paper says about its general form (Sun et al. 2020, equations 1 to 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests.helpers.batches import batch, close


def test_with_weights_of_one_over_prototypes_it_is_the_additive_margin_softmax():
    z, y, prototypes = batch()
    classes = {"references": prototypes, "reference_labels": jnp.arange(len(prototypes))}

    def general(z, prototypes):
        over = {**classes, "references": prototypes}
        return mj.losses.unified_pair(z, y, scale=16.0, positive_margin=0.9, negative_margin=0.55, **over)

    softmax = lambda z, prototypes: mj.losses.cosface(z, y, prototypes, scale=16.0, margin=0.35)
    value, gradients = jax.jit(jax.value_and_grad(general, (0, 1)))(z, prototypes)
    expected, expected_gradients = jax.jit(jax.value_and_grad(softmax, (0, 1)))(z, prototypes)
    close(value, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        close(gradient, wanted)


@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_a_great_scale_makes_it_the_batch_hard_triplet_loss(margin):
    z, y, _ = batch(1)
    hinge = lambda z: mj.losses.triplet(z, y, margin=margin, distance=mj.distances.cosine, average="valid")
    general = lambda z, scale: mj.losses.unified_pair(z, y, scale=scale, positive_margin=margin) / scale
    expected, expected_gradient = jax.jit(jax.value_and_grad(hinge))(z)
    away = [abs(float(general(z, scale) - expected)) for scale in (10.0, 100.0, 1000.0)]
    assert away[0] > 3 * away[1] > 9 * away[2]
    close(general(z, 1e4), expected, rtol=1e-3)
    close(jax.jit(jax.grad(general))(z, 1e4), expected_gradient, rtol=1e-2, atol=1e-3)


def test_circle_is_the_general_form_with_its_weights():
    z, y, _ = batch(2)
    weights = {
        "positive_weight": lambda s, margin: jnp.maximum(2 - margin - s, 0),
        "negative_weight": lambda s, margin: jnp.maximum(s + margin, 0),
    }
    general = lambda z: mj.losses.unified_pair(z, y, positive_margin=0.75, negative_margin=0.25, scale=64.0, **weights)
    circle = lambda z: mj.losses.circle(z, y, margin=0.25, scale=64.0)
    close(general(z), circle(z))
    close(jax.jit(jax.grad(general))(z), jax.jit(jax.grad(circle))(z))


def test_ambiguous_and_definite_convergence():
    """The triplet loss pulls and pushes equally everywhere; circle loss works on what is farther from its target."""
    anchor, labels = jnp.array([[1.0]]), jnp.array([0])
    over = {"reference_labels": jnp.array([0, 1]), "similarity": mj.similarities.dot}

    def forces(loss, s_p, s_n):
        f = lambda pair: loss(anchor, labels, references=pair[:, None], **over)
        return np.abs(np.asarray(jax.grad(f)(jnp.array([s_p, s_n]))))

    plain = lambda *a, **o: mj.losses.unified_pair(*a, scale=1.0, positive_margin=0.5, **o)
    circle = lambda *a, **o: mj.losses.circle(*a, scale=1.0, margin=0.25, **o)
    for s_p, s_n in ((0.8, 0.8), (0.2, 0.2), (0.75, 0.25)):
        pull, push = forces(plain, s_p, s_n)
        close(pull, push)
    pull, push = forces(circle, 0.8, 0.8)
    close(push / pull, 1.05 / 0.45)
    pull, push = forces(circle, 0.2, 0.2)
    close(push / pull, 0.45 / 1.05)
    pull, push = forces(circle, 0.75, 0.25)  # the target
    close(push, pull)
