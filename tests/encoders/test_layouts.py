"""Layouts are recognised by their names; what is left out of them is left out by name; positions fit the grid."""

import jax
import numpy as np
import pytest
from flax import nnx

from metricjax.encoders import FaceViT, ResNet, ViT, load_weights
from metricjax.encoders.layouts import face_vit, resnet
from metricjax.encoders.vit_layouts import positions_on, vit
from tests.helpers import clip_names

pytestmark = pytest.mark.usefixtures("standard_promotion")

CLIP = {"patch": 2, "pre_norm": True, "projection": 3, "activation": "quick_gelu"}


def abstract(embedding_size=None, shape=(4, 6, 3), **settings):
    return nnx.eval_shape(lambda: ViT((8, 2, 2), embedding_size, shape, rngs=nnx.Rngs(0), **settings))


def random_weights(rng, layout, positions=7):
    """In the shapes of a layout."""
    shapes = {name: shape for place in layout.places for name, shape in place.shapes.items()}
    draw = lambda shape: rng.normal(size=[n or positions for n in shape]).astype(np.float32)
    return {name: abs(draw(shape)) if "running_var" in name else draw(shape) for name, shape in shapes.items()}


def arrays(model):
    return {jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree.leaves_with_path(nnx.state(model))}


def test_layouts_of_clip_say_the_same(rng):
    weights = random_weights(rng, vit(abstract(**CLIP))[0])
    loaded = []
    for given, where in (
        (weights | {"head.bias": np.zeros(3)}, ""),
        (clip_names.openai(weights), "visual."),
        (clip_names.transformers(weights), ""),
        ({"state_dict": {f"module.{name}": a for name, a in clip_names.openai(weights).items()}}, None),
    ):
        model = abstract(**CLIP)
        found = load_weights(model, given)
        assert found == (where if where is not None else "['state_dict'] module.visual.")
        loaded.append(arrays(model))
    for other in loaded[1:]:
        assert other.keys() == loaded[0].keys()
        jax.tree.map(np.testing.assert_array_equal, loaded[0], other)


def test_registers_of_timm_and_dinov2_say_the_same(rng):
    settings = {"patch": 2, "registers": 2, "layer_scale": 0.1}
    timm, dinov2 = vit(abstract(**settings))
    weights = random_weights(rng, dinov2, 5)  # a grid of 2 × 2
    other = {name: a for name, a in weights.items() if name != "register_tokens"}
    other["reg_token"] = weights["register_tokens"]
    other["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
    other["pos_embed"] = weights["pos_embed"][:, 1:]
    assert other.keys() == {name for place in timm.places for name in place.shapes}
    firsts, rest = [], []
    for given in (weights | {"mask_token": np.zeros((1, 8))}, other | {"head.weight": np.zeros((9, 8))}):
        model = abstract(None, (4, 4, 3), **settings)
        load_weights(model, given)
        firsts.append(model.class_token[...] + model.positions[0])
        rest.append([model.registers[...], model.positions[1:]])
    np.testing.assert_allclose(firsts[1], firsts[0], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, *rest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "layouts"),
    [
        (lambda size: ResNet((1, 2), size, (9, 9, 3), widths=(4, 6), rngs=nnx.Rngs(0)), resnet),
        (lambda size: ViT((8, 1, 2), size, (4, 6, 3), patch=2, rngs=nnx.Rngs(0)), vit),
    ],
)
def test_classifiers_are_not_used_and_other_names_are_not_passed_over(rng, make, layouts):
    model = nnx.eval_shape(lambda: make(None))
    layout = layouts(model)[0]
    weights = random_weights(rng, layout)
    classifier = {"fc.weight": np.zeros((9, 6)), "fc.bias": np.zeros(9)}
    classifier = {name.replace("fc.", layout.unused[-1]): a for name, a in classifier.items()}
    load_weights(model, weights | classifier)
    for name in ("fc2.weight", "fcs", "heads", "fc_norm.weight", "visual.head"):
        with pytest.raises(ValueError, match=rf"^weights: 1 names unknown \({name}\)$"):
            load_weights(model, weights | {name: np.zeros(2)})
    model = nnx.eval_shape(lambda: make(5))
    with pytest.raises(ValueError, match=r"^weights: head.bias, head.kernel are not part of it .* model is abstract$"):
        load_weights(model, weights)
    model = make(5)
    before = arrays(model)
    load_weights(model, weights)
    after = arrays(model)
    assert {name for name in before if np.array_equal(before[name], after[name])} == {
        name for name in before if name.startswith("['head']")
    }


def test_face_vit_of_arcface_torch(rng):
    model = nnx.eval_shape(lambda: FaceViT((4, 1, 2), 5, (18, 27, 3), rngs=nnx.Rngs(0)))
    weights = random_weights(rng, face_vit(model)[0])
    assert weights["feature.0.weight"].shape == (4, 6 * 4)
    load_weights(model, weights | {"mask_token": np.zeros((1, 1, 4)), "feature.1.num_batches_tracked": np.array(3)})
    np.testing.assert_array_equal(model.joined.kernel[...], weights["feature.0.weight"].T)
    np.testing.assert_array_equal(model.positions[...], weights["pos_embed"][0])
    np.testing.assert_array_equal(model.head_norm.var[...], weights["feature.3.running_var"])
    with pytest.raises(ValueError, match=r"names missing \(pos_embed\)"):
        load_weights(model, {name: a for name, a in weights.items() if name != "pos_embed"})


def test_unknown_names_show_the_known_layouts():
    with pytest.raises(ValueError, match=r"^weights: no names of timm, CLIP, transformers, but a, b, c, d, e, …$"):
        load_weights(abstract(patch=2), dict.fromkeys("abcdef", np.zeros(1)))
    with pytest.raises(ValueError, match=r"^weights: no names of timm, DINOv2, but none at all$"):
        load_weights(abstract(patch=2, registers=1), {})


def test_parts_that_the_model_does_not_have_are_not_passed_over(rng):
    weights = random_weights(rng, vit(abstract(**CLIP))[1])
    message = (
        r"^weights: 1 names missing \(conv1.bias\); 2 names unknown \(ln_pre.weight, ln_pre.bias\); "
        r"1 shapes differ \(proj is \(8, 3\), wanted \(8, 4\)\)$"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(abstract(**CLIP | {"projection": 4, "pre_norm": False}), weights)


def test_positions_on_their_own_grid():
    positions = np.arange(7 * 2, dtype=np.float32).reshape(1, 7, 2)
    np.testing.assert_array_equal(positions_on((2, 3), positions), positions[0])
    np.testing.assert_array_equal(positions_on((2, 3), positions[0, 1:])[1:], positions[0, 1:])
    np.testing.assert_array_equal(positions_on((2, 3), positions[0, 1:])[0], np.zeros(2))
    sixteen = np.arange(16, dtype=np.float32)[:, None]  # a square number, and yet one more than 3 × 5
    np.testing.assert_array_equal(positions_on((3, 5), sixteen), sixteen)


def test_positions_of_a_square_grid_are_interpolated():
    rows, columns = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    square = np.stack([rows, columns, np.ones_like(rows)], axis=-1).reshape(64, 3).astype(np.float32)
    for positions in (square, np.concatenate([np.full((1, 3), 7.0, np.float32), square])):
        found = positions_on((16, 4), positions)
        np.testing.assert_array_equal(found[0], np.full(3, 7.0 if len(positions) > 64 else 0.0))
        found = found[1:].reshape(16, 4, 3)
        np.testing.assert_allclose(found[..., 2], 1, rtol=1e-6)
        # Where the edge is far, cubic polynomials give back what is linear: pixels have their centres in the middle.
        np.testing.assert_allclose(found[4:12, 1, 0], (np.arange(4, 12) + 0.5) / 2 - 0.5, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 3, 6, 12])
def test_positions_of_no_grid_are_refused(rng, count):
    weights = random_weights(rng, vit(abstract(patch=2))[0], count)
    with pytest.raises(ValueError, match=rf"^weights: pos_embed: it has {count} positions; wanted 5, or"):
        load_weights(abstract(None, (4, 4, 3), patch=2), weights)
