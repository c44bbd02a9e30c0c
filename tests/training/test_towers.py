"""Two towers: a small text encoder learns captions; the learnt scale; devices; encoders of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import metricjax as mj
from metricjax.training import Checkpoints, TowerRecipe, TowerTrainer
from tests.helpers import captions, oracle_views

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]


class Text(nnx.Module):
    """Words to vectors, their mean, a layer: filled places do not count."""

    def __init__(self, words, size, *, rngs):
        self.table = nnx.Embed(words, 32, rngs=rngs)
        self.hidden, self.last = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, size, rngs=rngs)

    def __call__(self, tokens):
        there = (tokens > 0)[..., None].astype(jnp.float32)
        mean = jnp.sum(self.table(tokens) * there, axis=1) / jnp.sum(there, axis=1)
        return self.last(jax.nn.silu(self.hidden(mean)))


def linear(key, rows, size=8):
    """A plain function of its parameters, a matrix."""
    return (lambda w, inputs: inputs @ w), jax.random.normal(jax.random.key(key), (rows, size)) / rows**0.5


def pairs(seed, n=32):
    """Two linear views of one thing."""
    rng = np.random.default_rng(seed)
    things, views = rng.normal(size=(n, 5)), np.random.default_rng(99).normal(size=(2, 5, 6))
    return tuple((things @ view + 0.05 * rng.normal(size=(n, 6))).astype(np.float32) for view in views)


def test_a_small_text_encoder_learns_what_pictures_show():
    image = mj.encoders.SmallConvNet(16, (captions.SIZE, captions.SIZE, 3), rngs=nnx.Rngs(0))
    text = Text(len(captions.WORDS), 16, rngs=nnx.Rngs(1))
    trainer = TowerTrainer(
        TowerRecipe("clip", 300, batch=48, learning_rate=5e-3), image, text, devices=jax.devices()[:1]
    )
    pictures, tokens, numbers = captions.captioned(np.random.default_rng(0), 40)
    history = trainer.fit(pictures, tokens, groups=numbers)
    assert history["loss"][-1] < history["loss"][0] / 2 and history["scale"][-1] != history["scale"][0]
    new, _, shown = captions.captioned(np.random.default_rng(1), 2)
    every = np.stack([captions.tokens(caption) for caption in captions.CAPTIONS])
    labels = {"labels": shown, "reference_labels": np.arange(len(every))}
    found = mj.metrics.both_ways(trainer.embed_x(new), trainer.embed_y(every), **labels)
    assert found["x to y"]["recall@1"] > 0.6 and found["y to x"]["recall@1"] > 0.6  # by chance 1/48


@pytest.mark.parametrize("loss", ["clip", "siglip", "info_nce"])
def test_a_step_follows_the_gradient_of_the_papers_formula(loss):
    """Of the first step: its loss is the oracle's, and scale and bias move against the oracle's slopes."""
    (x, y), recipe = pairs(0), TowerRecipe(loss, 40, batch=32, learning_rate=0.05)
    (f, v), (g, w) = linear(0, 6), linear(1, 6)
    trainer = TowerTrainer(recipe, (f, v), (g, w), devices=jax.devices()[:1])
    first = {"clip": (1 / 0.07,), "siglip": (10.0, -10.0), "info_nce": (0.07,)}[loss]
    seen = [trainer.step(i, {"x": x, "y": y}) for i in range(2)]  # the learning rate of the first is 0
    name = {"clip": ("scale",), "siglip": ("scale", "bias"), "info_nce": ("temperature",)}[loss]
    expected = lambda *hyper: getattr(oracle_views, loss)(
        x @ np.asarray(v), y @ np.asarray(w), **dict(zip(name, hyper, strict=True))
    )
    assert float(seen[0]["loss"]) == pytest.approx(expected(*first), rel=1e-4)
    slopes = [
        (expected(*(h + 1e-3 * (i == j) for j, h in enumerate(first))) - expected(*first)) / 1e-3
        for i in range(len(first))
    ]
    learnt = trainer.state["params"]["loss"]
    moved = np.exp(float(learnt["log_scale"])) - (1 / first[0] if loss == "info_nce" else first[0])
    slope = -slopes[0] if loss == "info_nce" else slopes[0]
    assert np.sign(moved) == -np.sign(slope)
    assert ("bias" in learnt) == (loss == "siglip")
    if loss == "siglip":
        assert np.sign(float(learnt["bias"]) + 10) == -np.sign(slopes[1])


def test_the_scale_is_learnt_up_to_its_limit():
    x, y = pairs(1)
    recipe = TowerRecipe("clip", 60, batch=32, learning_rate=0.1, scale=3.0, most_scale=6.0, average=0.0)
    trainer = TowerTrainer(recipe, linear(0, 6), linear(1, 6), devices=jax.devices()[:1])
    scale = trainer.fit(x, y)["scale"]
    assert scale[0] == pytest.approx(3) and max(scale) == pytest.approx(6)
    found = mj.metrics.both_ways(trainer.embed_x(x), trainer.embed_y(y))
    assert found["x to y"]["recall@1"] == found["y to x"]["recall@1"] == 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_eight_devices_train_as_one(loss, shared):
    """Batch normalisation too is of the whole batch."""

    class Normalised(nnx.Module):
        def __init__(self, seed):
            self.norm, self.last = nnx.BatchNorm(6, rngs=nnx.Rngs(seed)), nnx.Linear(6, 8, rngs=nnx.Rngs(seed))

        def __call__(self, inputs):
            return self.last(self.norm(inputs))

    x, y = pairs(2)
    groups = np.arange(32, dtype=np.int32) // 3
    states = []
    for devices in (1, 8):
        encoders = (Normalised(0),) if shared else (Normalised(0), linear(1, 6))
        trainer = TowerTrainer(TowerRecipe(loss, 12, batch=16), *encoders, devices=jax.devices()[:devices])
        trainer.fit(x, y, groups=groups)
        states.append((trainer.state, trainer.embed_x(x), trainer.embed_y(y[:5])))
        assert states[-1][2].shape == (5, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), *states)
    one, _, _ = states[0]
    assert ("y" in one["params"]) != shared
    assert np.any(np.asarray(jax.tree.leaves(one["rest"]["x"])[0]))  # the means have moved


def test_an_encoder_with_chance_in_it_is_trained_with_and_asked_without():
    class Dropped(nnx.Module):
        def __init__(self):
            self.drop, self.last = nnx.Dropout(0.5, rngs=nnx.Rngs(3)), nnx.Linear(6, 8, rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            return self.last(self.drop(inputs))

    x, y = pairs(3)
    encoder = Dropped()
    trainer = TowerTrainer(TowerRecipe("clip", 8, batch=32), encoder, linear(1, 6), devices=jax.devices()[:1])
    trainer.fit(x, y)
    np.testing.assert_array_equal(trainer.embed_x(x), trainer.embed_x(x))
    assert not trainer.not_finite() and np.all(np.isfinite(encoder.last.kernel[...]))  # the user's own is still there


def test_any_towers_go_on_from_a_checkpoint(tmp_path):
    class Text(nnx.Module):
        def __init__(self):
            self.norm, self.last = nnx.BatchNorm(6, rngs=nnx.Rngs(1)), nnx.Linear(6, 8, rngs=nnx.Rngs(0))
            self.drop = nnx.Dropout(0.3, rngs=nnx.Rngs(2))

        def __call__(self, inputs):
            return self.last(self.drop(self.norm(inputs)))

    x, y = pairs(6)
    made = lambda loss="siglip": TowerTrainer(
        TowerRecipe(loss, 6, batch=32), Text(), linear(1, 6), devices=jax.devices()[:1]
    )
    whole, part, later = made(), made(), made()
    whole.fit(x, y)
    batches = [mj.samplers.uniform_batches(32, 32, seed=0, epoch=epoch)[0] for epoch in range(6)]
    for number in range(4):
        part.step(number, {"x": x[batches[number]], "y": y[batches[number]]})
    kept = Checkpoints(tmp_path, part)
    kept.save(4, {"loss": [1.0]}, None, None)
    kept.finish()
    step, history, _ = Checkpoints(tmp_path, later).restore()
    assert (step, history) == (4, {"loss": [1.0]})
    for number in range(step, 6):
        later.step(number, {"x": x[batches[number]], "y": y[batches[number]]})
    jax.tree.map(np.testing.assert_array_equal, later.state["params"], whole.state["params"])
    np.testing.assert_array_equal(later.embed_x(x), whole.embed_x(x))
    with pytest.raises(ValueError, match="the checkpoint was made with loss siglip, not clip"):
        Checkpoints(tmp_path, made("clip")).restore()


def test_inputs_may_be_trees_and_be_prepared():
    x, y = pairs(4)
    masked = lambda w, inputs: (inputs["values"] * inputs["mask"]) @ w
    doubled = lambda key, x, y: ({**x, "values": 2 * x["values"]}, y)
    encoder = masked, jnp.eye(6)
    trainer = TowerTrainer(
        TowerRecipe("clip", 4, batch=32), encoder, linear(1, 6, 6), prepare=doubled, devices=jax.devices()[:1]
    )
    tree = {"values": x, "mask": (x > 0).astype(np.float32)}
    trainer.fit(tree, y)
    assert trainer.embed_x(tree).shape == (32, 6)


def test_what_cannot_be_trained_is_refused(unchecked):
    x, y = pairs(5)
    made = lambda recipe=None, *encoders: TowerTrainer(
        recipe or TowerRecipe("clip", 4, batch=16), *(encoders or (linear(0, 6), linear(1, 6)))
    )
    wrong = {
        "loss is 'triplet'; wanted one of clip, siglip, info_nce": lambda: TowerRecipe("triplet", 4),
        "bias is -1; clip has none": lambda: TowerRecipe("clip", 4, bias=-1),
        "scale is 200; wanted 1 to most_scale, 100": lambda: TowerRecipe("clip", 4, scale=200),
        "steps is 0; wanted at least 1": lambda: TowerRecipe("clip", 0),
        "an encoder is a function; wanted an nnx.Module": lambda: made(None, lambda x: x),
        "batch is 64; there are 32 pairs": lambda: made(TowerRecipe("clip", 4, batch=64)).fit(x, y),
        "x has 32 rows; wanted as many in every array": lambda: made().fit(x, y[:30]),
        "batch: 12 pairs; wanted a multiple of the 8 devices": lambda: made().step(0, {"x": x[:12], "y": y[:12]}),
        r"embeddings of shapes \(16, 8\) and \(16, 7\); wanted one shape": lambda: made(
            None, linear(0, 6), linear(1, 6, 7)
        ).fit(x, y),
    }
    for message, act in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            act()
