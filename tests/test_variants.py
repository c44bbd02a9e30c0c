"""Many variants in one program give what each gives alone; and convolutions as products are convolutions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import metricjax as mj
from metricjax import variants
from metricjax.encoders import SmallConvNet, conv_by_products
from metricjax.variants import Task, Variant
from tests.helpers.compilations import compilations

PEOPLE, EACH, SIZE = 6, 4, 5
STEPS, EVERY = 7, 3
LABELS = jnp.repeat(jnp.arange(PEOPLE), EACH)
IMAGES = jax.random.normal(jax.random.key(7), (PEOPLE, SIZE))[LABELS] + 0.5 * jax.random.normal(
    jax.random.key(8), (PEOPLE * EACH, SIZE)
)


def init(key):
    first, second, third = jax.random.split(key, 3)
    normal = lambda key, *shape: jax.random.normal(key, shape) / shape[0] ** 0.5
    return {"first": normal(first, SIZE, 8), "second": normal(second, 8, 3), "prototypes": normal(third, PEOPLE, 3)}


def batch(seed, step):
    key = jax.random.fold_in(jax.random.key(seed + 100), step)
    rows = jax.random.choice(key, len(LABELS), (10,), replace=False)
    return IMAGES[rows], LABELS[rows]


def hinge(params, z, batch, n):
    """A loss of a user's own."""
    gaps = jnp.sum(jnp.square(z[:, None] - z[None]), axis=-1)
    same = batch[1][:, None] == batch[1][None]
    return jnp.mean(jnp.where(same, gaps, jnp.maximum(n["margin"] - gaps, 0)))


def to_prototypes(params, z, batch, n):
    logits = n["scale"] * (z @ params["prototypes"].T - n["margin"] * jax.nn.one_hot(batch[1], PEOPLE))
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], axis=1))


LOSSES = {
    "hinge": hinge,
    "supcon": lambda params, z, batch, n: mj.losses.supcon(z, batch[1], temperature=n["temperature"]),
    "prototypes": to_prototypes,
    "unused": lambda params, z, batch, n: n["a number that nobody has"],
}
TASK = Task(
    init=init,
    embed=lambda params, batch: jnp.tanh(batch[0] @ params["first"]) @ params["second"],
    losses=LOSSES,
    batch=batch,
    optimizer=lambda n: optax.sgd(n["learning_rate"], momentum=0.9),  # Adam relies on the promotion of types
    watch=lambda z, batch: {"length": jnp.mean(jnp.linalg.norm(z, axis=1)), "first label": batch[1][0]},
)
VARIANTS = [
    Variant("hinge", 0, {"margin": 0.2, "learning_rate": 0.01}),
    Variant("supcon", 3, {"temperature": 0.2, "learning_rate": 0.02}),
    Variant("hinge", 1, {"margin": 0.5, "learning_rate": 0.03}),
    Variant("prototypes", 0, {"margin": 0.1, "scale": 8, "learning_rate": 0.01}),
    Variant("hinge", 0, {"margin": 0.9, "learning_rate": 0.01}),
    Variant("prototypes", 2, {"margin": 0.3, "scale": 16.0, "learning_rate": 0.02}),
    Variant("hinge", 2, {"margin": 0.2, "learning_rate": 0.01}),
]


@pytest.fixture(scope="module")
def alone():
    """Parameters, losses, gradient norms and what is watched of each variant, trained by an ordinary jitted step."""

    def one(variant):
        @jax.jit
        def step(params, state, seed, number, n):
            seen = batch(seed, number)

            def objective(params):
                z = TASK.embed(params, seen)
                return LOSSES[variant.loss](params, z, seen, n)

            loss, gradient = jax.value_and_grad(objective)(params)
            updates, state = TASK.optimizer(n).update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, (loss, optax.tree.norm(gradient), TASK.watch(TASK.embed(params, seen), seen))

        params, seen = init(jax.random.key(variant.seed)), []
        state, n = TASK.optimizer(variant.numbers).init(params), {k: float(v) for k, v in variant.numbers.items()}
        for number in range(STEPS):
            params, state, report = step(params, state, variant.seed, number, n)
            seen.append(report)
        return params, seen

    return [one(variant) for variant in VARIANTS]


def assert_same(found, alone):
    """To 1e-4, in the order of the variants; `found` may be of the first variants only."""
    for i, (params, seen) in enumerate(alone[: found.history["loss"].shape[1]]):
        for name, value in params.items():
            np.testing.assert_allclose(found.params[name][i], value, rtol=1e-4, atol=1e-4, err_msg=name)
        losses, norms, watched = zip(*seen, strict=True)
        ends = [(0, 3), (3, 6), (6, 7)]
        for name, values in {"loss": losses, "gradient norm": norms}.items():
            means = [np.mean(values[start:end]) for start, end in ends]
            np.testing.assert_allclose(found.history[name][:, i], means, rtol=1e-3, atol=1e-4, err_msg=name)
        for name in watched[0]:
            last = [watched[end - 1][name] for _, end in ends]
            np.testing.assert_allclose(found.history[name][:, i], last, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("at_once", "devices", "count"),
    [
        *[(1, 1, 7), (2, 3, 7), (100, 8, 5)],
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(2, 1, 7), (100, 1, 7), (1, 8, 5)]),
    ],
)
def test_variants_are_what_each_is_alone(alone, at_once, devices, count):
    found = variants.train(TASK, VARIANTS[:count], STEPS, every=EVERY, at_once=at_once, devices=jax.devices()[:devices])
    assert found.at_once == at_once
    assert found.steps.tolist() == [3, 6, 7]
    assert {name: values.shape for name, values in found.history.items()} == dict.fromkeys(
        ("loss", "gradient norm", "length", "first label"), (3, count)
    )
    assert all(len(leaf) == count for leaf in jax.tree.leaves(found.params))
    assert set(found.seconds) == {"measuring", "compiling", "training"}
    assert_same(found, alone)


def test_auto_takes_a_size_that_exists(alone):
    found = variants.train(TASK, VARIANTS, STEPS, every=EVERY)
    assert found.at_once in (1, 4)  # four variants of one loss, too few for 8
    assert found.seconds["measuring"] > 0
    assert_same(found, alone)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_training_is_compiled_once(at_once):
    """Whatever the number of variants, of intervals and of steps in them."""
    for count, steps, every in ((1, 3, 3), (5, 8, 3), (7, 9, 1)):
        with compilations() as names:
            variants.train(TASK, VARIANTS[:count], steps, every=every, at_once=at_once)
        assert names.count("jit(here)") == names.count("jit(_initial)") == 1


def test_the_default_is_ten_reports_and_progress_wraps_their_starts():
    seen = []
    progress = lambda starts: seen.extend(starts) or starts
    for steps, done in ((25, [3, 6, 9, 12, 15, 18, 21, 24, 25]), (2, [1, 2])):
        found = variants.train(TASK, VARIANTS[:1], steps, at_once=1, progress=progress)
        assert found.steps.tolist() == done
        assert seen == [0, *done[:-1]]
        seen.clear()


def test_one_seed_sees_the_same_batches():
    """As the loss does not look at the embeddings, what is watched of the batch is all that differs."""
    task = dataclasses.replace(
        TASK,
        losses={"nothing": lambda params, z, batch, n: 0.0, "length": lambda params, z, batch, n: jnp.sum(z**2)},
        watch=lambda z, batch: {"sum": jnp.sum(batch[0])},
    )
    some = [*variants.product(["nothing", "length"], [0, 1], learning_rate=[0.1]), Variant("nothing", 0, {})]
    found = variants.train(task, some, 4, every=1, at_once=1)
    seeds = [v.seed for v in some]
    assert seeds == [0, 1, 0, 1, 0]
    for sums in found.history["sum"]:
        assert [sums[seeds.index(seed)] == s for seed, s in zip(seeds, sums, strict=True)] == [True] * 5
        assert sums[0] != sums[1]
    assert len(np.unique(found.history["sum"])) == 8
    first = np.asarray(found.params["first"])
    np.testing.assert_array_equal(first[0], first[4])
    np.testing.assert_allclose(first[0], init(jax.random.key(0))["first"], rtol=1e-6)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


def test_product():
    found = variants.product(["a", "b"], [3, 4], margin=[0.1, 0.2], scale=[8.0])
    assert len(found) == 8
    assert found[0] == ("a", 3, {"margin": 0.1, "scale": 8.0})
    assert found[-1] == ("b", 4, {"margin": 0.2, "scale": 8.0})
    assert len({(v.loss, v.seed, *v.numbers.values()) for v in found}) == 8


@pytest.mark.slow
def test_a_variant_that_diverges_leaves_the_others_alone(alone):
    wild = Variant("hinge", 0, {"margin": 0.2, "learning_rate": float("nan")})
    for at_once in (1, 2):
        found = variants.train(TASK, [*VARIANTS[:3], wild], STEPS, every=EVERY, at_once=at_once)
        assert np.isnan(found.params["first"][3]).all()
        found = found._replace(history={name: values[:, :3] for name, values in found.history.items()})
        assert_same(found, alone)


@pytest.mark.parametrize("at_once", [1, 3])
def test_losses_of_any_dtype_train_together(at_once):
    losses = {
        "wide": lambda params, z, batch, n: jnp.sum(z**2),
        "narrow": lambda params, z, batch, n: jnp.sum(z.astype(jnp.bfloat16) ** 2),
        "constant": lambda params, z, batch, n: 0,
    }
    task = dataclasses.replace(TASK, losses=losses)
    found = variants.train(task, variants.product(losses, [0], learning_rate=[0.01]), 3, at_once=at_once)
    assert found.history["loss"].dtype == np.float32
    assert np.all(found.history["loss"][-1, :2] < found.history["loss"][0, :2])


def test_in_double_precision(x64):
    task = dataclasses.replace(TASK, batch=lambda seed, step: (IMAGES.astype(float), LABELS))
    found = variants.train(task, VARIANTS[:4], 2, at_once=2)
    assert found.params["first"].dtype == np.float64
    assert found.history["loss"].dtype == np.float64


WRONG = {
    "variants is empty": {"variants": []},
    r"variants name the losses \['huh'\]; wanted some of \['hinge', 'prototypes', 'supcon', 'unused'\]": {
        "variants": [Variant("huh", 0, {})]
    },
    "has the seed 0.5; wanted an int": {"variants": [Variant("hinge", 0.5, {})]},
    "has the seed 4294967296; wanted an int of 32 bits": {"variants": [Variant("hinge", 2**32, {})]},
    "'hinge' has margin = None; wanted a number": {"variants": [Variant("hinge", 0, {"margin": None})]},
    r"has margin = \[0.1\]; wanted a number": {"variants": [Variant("hinge", 0, {"margin": [0.1]})]},
    "steps is 0; wanted an int, at least 1": {"steps": 0},
    "steps is 2.0; wanted an int": {"steps": 2.0},
    "every is 0; wanted None or an int": {"every": 0},
    "every is -1; wanted None or an int": {"every": -1},
    "at_once is 0; wanted 'auto' or a positive int": {"at_once": 0},
    "at_once is 'all'; wanted 'auto' or a positive int": {"at_once": "all"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_refused_before_anything_is_traced(message, unchecked):
    task = dataclasses.replace(TASK, init=None)
    with pytest.raises(ValueError, match=message):
        variants.train(task, **{"variants": VARIANTS, "steps": 2, **WRONG[message]})


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_loss_that_is_no_scalar_is_named(at_once):
    task = dataclasses.replace(TASK, losses={**LOSSES, "supcon": lambda params, z, batch, n: z[:, 0]})
    with pytest.raises(ValueError, match=r"the loss 'supcon' returned shape \(10,\); wanted a scalar"):
        variants.train(task, VARIANTS, 2, at_once=at_once)


# --- the encoder ----------------------------------------------------------------------------------------------------

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 2)], ids=str)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 3)], ids=str)
def test_convolution_by_products(strides, size, padding, rng):
    images = jnp.asarray(rng.normal(size=(2, 8, 7, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*size, 3, 4)), jnp.float32)
    plain = lambda x, w: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=DIMENSIONS)
    values = []
    for conv in (plain, lambda x, w: conv_by_products(x, w, strides, padding)):
        wave = lambda x, w, conv=conv: (jnp.sum(jnp.sin(y := conv(x, w))), y)
        gradient, value = jax.jit(jax.grad(wave, (0, 1), has_aux=True))(images, kernel)
        values.append((value, *gradient))
    for plain, product in zip(*values, strict=True):
        np.testing.assert_allclose(product, plain, rtol=1e-4, atol=1e-4)


def test_convolution_by_products_takes_no_dilation_and_no_groups():
    images, kernel = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 4, 4))
    for name, value, message in (
        ("lhs_dilation", (2, 1), r"lhs_dilation is \(2, 1\); wanted 1"),
        ("rhs_dilation", (2, 2), r"rhs_dilation is \(2, 2\); wanted 1"),
        ("feature_group_count", 2, "feature_group_count is 2; wanted 1"),
        ("batch_group_count", 2, "batch_group_count is 2; wanted 1"),
    ):
        with pytest.raises(ValueError, match=message):
            conv_by_products(images, kernel, (1, 1), "SAME", **{name: value})
    plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1, "batch_group_count": 1}
    assert conv_by_products(images, kernel, (1, 1), "SAME", **plain).shape == (1, 6, 6, 4)
    assert conv_by_products(images, kernel, (1, 1), "SAME", rhs_dilation=None).shape == (1, 6, 6, 4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(9, 8, 1), (6, 7, 3)], ids=str)
def test_the_network_is_that_of_plain_convolutions(shape, rng):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Flax relies on them
        net = SmallConvNet(5, shape, widths=(4, 6, 3), rngs=nnx.Rngs(1))
        images = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
        z, features = net(images), net.features(images)
        assert z.shape == features.shape == (3, 5)
        np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(features / jnp.linalg.norm(features, axis=1, keepdims=True), z, atol=1e-6)
        assert [conv.kernel.shape[:2] for conv in net.convs] == [(5, 5), (3, 3), (3, 3)]
        for conv in net.convs:
            assert conv.conv_general_dilated is conv_by_products
            conv.conv_general_dilated = lax.conv_general_dilated
        np.testing.assert_allclose(net(images), z, rtol=1e-5, atol=1e-5)


def test_networks_train_as_variants():
    """A convolution, its gradient and all, inside the program; one tensor of weights is compared."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        net = lambda key: SmallConvNet(4, (6, 5, 1), widths=(3,), rngs=nnx.Rngs(key))
        graph = nnx.graphdef(nnx.eval_shape(lambda: net(jax.random.key(0))))
        images = jax.random.normal(jax.random.key(0), (8, 6, 5, 1))
        task = Task(
            init=lambda key: nnx.state(net(key), nnx.Param),
            embed=lambda params, batch: nnx.merge(graph, params)(batch),
            losses={"supcon": lambda params, z, batch, n: mj.losses.supcon(z, jnp.arange(8) // 2)},
            batch=lambda seed, step: images,
            optimizer=lambda n: optax.sgd(n["learning_rate"]),
        )
        some = variants.product(["supcon"], [0, 1], learning_rate=[0.1, 1.0])
        found = [variants.train(task, some, 3, at_once=at_once) for at_once in (1, 4)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0].params, found[1].params)
        assert np.all(found[0].history["loss"][-1] < found[0].history["loss"][0])


# --- what comes of them -----------------------------------------------------------------------------------------------


def test_a_summary_counts_what_was_lost_and_pairs_the_rest():
    grid = variants.product(["triplet", "supcon"], seeds=[3, 4, 5, 6], margin=[0.1, 0.2])
    grid = [v for v in grid if v.loss == "triplet" or v.numbers["margin"] == 0.1]  # of supcon there is one
    recall = {("triplet", 0.1): [0.5, 0.6, np.nan, 0.7], ("triplet", 0.2): [0.7, 0.9, 0.8, np.inf]}
    recall[("supcon", 0.1)] = [np.nan] * 4
    values = np.array([recall[v.loss, v.numbers["margin"]][v.seed - 3] for v in grid])
    found = variants.summary({"recall": values, "other": np.ones(len(grid))}, grid, baseline="triplet, margin 0.1")
    assert list(found.metrics["recall"]) == ["triplet, margin 0.1", "supcon", "triplet, margin 0.2"]
    base, none, best = found.metrics["recall"].values()
    assert base.values == [0.5, 0.6, None, 0.7] and (base.seeds, base.lost) == (4, 1)
    assert (base.mean, base.half_width) == pytest.approx(variants.mean_and_half_width([0.5, 0.6, 0.7]))
    assert (none.mean, none.half_width, none.lost, base.difference) == (None, None, 4, None)
    assert none.difference == variants.Difference(None, None, 0, None, None)
    difference = best.difference
    assert (difference.mean, difference.half_width) == pytest.approx(variants.mean_and_half_width([0.2, 0.3]))
    assert difference.pairs == 2 and difference.p == difference.p_corrected == variants.paired_t([0.7 - 0.5, 0.9 - 0.6])
    assert found.metrics["other"]["supcon"].difference.p == 1
    saved = json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert json.loads(saved)["metrics"]["recall"]["supcon"]["values"] == [None] * 4
    lines = str(found).splitlines()
    assert lines[0].split()[:1] == ["recall"] and "less triplet, margin 0.1 ± 95 %" in lines[0]
    assert lines[2].split() == ["supcon", "–", "4", "4", "–", "0", "–", "–"]
    assert lines[4:6] == ["", lines[5]] and lines[5].startswith("other")


def test_differences_are_corrected_for_the_number_of_variants():
    rng = np.random.default_rng(5)
    values = {name: rng.normal(size=6) for name in "abc"}
    for test, p_of in (("t", variants.paired_t), ("wilcoxon", variants.wilcoxon)):
        found = variants.summary({"m": values}, baseline="b", test=test).metrics["m"]
        p = [p_of(values[name] - values["b"]) for name in "ac"]
        assert [found[name].difference.p for name in "ac"] == pytest.approx(p)
        assert [found[name].difference.p_corrected for name in "ac"] == pytest.approx(variants.holm(p))


@pytest.mark.parametrize(
    "words, given",
    [
        ("results is empty", ({},)),
        (r"results\['m'\] has shape \(3,\); grid has 2 variants", ({"m": [1.0] * 3}, VARIANTS[:2])),
        ("'hinge' with seed 0 more than once", ({"m": [1.0] * 2}, [VARIANTS[0]] * 2)),
        ("wanted {variant: numbers}, or a grid", ({"m": [1.0]},)),
        (r"results\['m'\]\['a'\] has 1 seeds, and the baseline 2", ({"m": {"a": [1.0], "b": [1.0, 2.0]}},)),
        ("baseline is 'b'; wanted one of the variants 'a'", ({"m": {"a": [1.0]}},)),
    ],
)
def test_a_summary_of_what_does_not_fit_is_refused(words, given):
    with pytest.raises(ValueError, match=words):
        variants.summary(*given, baseline="b")
