"""Losses of two views and regularisers through every invariant.

What an invariant changes is an argument of a compiled program, so that it serves the others too.
"""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import metricjax as mj
from tests.helpers import oracle
from tests.helpers.batches import assert_finite, close, slow_unless
from tests.helpers.cases import VIEWS
from tests.helpers.meshes import SPLIT, WHOLE, assert_same, axes, mesh_of, put
from tests.helpers.refusals import refuses

N, D = 12, 5
WEIGHTS = jnp.linspace(0.5, 2.0, N)
NAMES = tuple(VIEWS)
CONTRASTS = ("info_nce", "clip", "siglip")
OFTEN = ("info_nce", "vicreg", "koleo")  # the others are slow tests where many programs are compiled
IN_PANELS = tuple(name for name, case in VIEWS.items() if case.panels)

views = pytest.mark.parametrize("name", NAMES)
in_panels = pytest.mark.parametrize("name", slow_unless(OFTEN, IN_PANELS))
contrasts = pytest.mark.parametrize("name", CONTRASTS)


def inputs(name, seed=0, n=N, dtype=np.float32):
    """What the loss takes, of: two views of rows of uneven lengths, and labels of uneven frequency."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4] * (n // 12 + 1))[:n]
    x = rng.standard_normal((5, D))[labels] + rng.standard_normal((n, D))
    y = x + 0.7 * rng.standard_normal((n, D))
    arrays = {"x": jnp.asarray(x, dtype), "y": jnp.asarray(y, dtype), "labels": jnp.asarray(labels)}
    return [arrays[kind] for kind in VIEWS[name].takes]


def floats(arrays):
    """The views among the arrays, and a function that puts others in their place."""
    own = [a for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    return own, lambda views: [*views, *arrays[len(own) :]]


@functools.cache
def program(name, **static):
    def loss(views, hyper, others, given):
        return VIEWS[name](*views, *others, **hyper, **given, **static)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def value_and_grad(name, arrays, hyper=None, where=None, weights=None, **static):
    """Value and gradient of the views and of the hyper-parameters in `hyper`."""
    own, filled = floats(arrays)
    given = {key: a for key, a in {"where": where, "weights": weights}.items() if a is not None}
    return program(name, **static)(
        own, {key: jnp.asarray(a, own[0].dtype) for key, a in (hyper or {}).items()}, filled([]), given
    )


def weights_of(name):
    return {"weights": WEIGHTS} if VIEWS[name].weighted else {}


def first_values(name):
    return {key: values[0] for key, values in VIEWS[name].varied.items()}


# --- values and derivatives -----------------------------------------------------------------------------------------


@views
def test_equals_the_oracle(name):
    case, arrays = VIEWS[name], inputs(name)
    close(case(*arrays), case.expected(*arrays))
    for key, values in case.varied.items():
        for value in values:
            close(case(*arrays, **{key: value}), case.expected(*arrays, **{key: value}), atol=1e-5)
    given = {"where": jnp.arange(N) % 4 != 1, **weights_of(name)}
    close(case(*arrays, **given), case.expected(*arrays, **given))


@pytest.mark.parametrize("name", slow_unless(OFTEN, NAMES))
def test_float64_stays_and_gradients_match_finite_differences(name, x64):
    """Of the views, and of every hyper-parameter; in panels, forward mode and second derivatives are the dense ones."""
    case, arrays = VIEWS[name], inputs(name, 1, dtype=np.float64)
    own, filled = floats(arrays)
    hyper = {key: np.float64(values[-1]) for key, values in case.varied.items()}
    assert case(*arrays).dtype == jnp.float64
    close(case(*arrays), case.expected(*arrays), rtol=1e-10)
    f = lambda v, h: value_and_grad(name, filled(list(map(jnp.asarray, v))), h)
    value, gradients = f(own, hyper)
    close(value, case.expected(*arrays, **hyper), rtol=1e-10)
    rng = np.random.default_rng(0)
    for _ in range(3):
        steps = jax.tree.map(lambda a: 1e-6 * rng.standard_normal(np.shape(a)), (own, hyper))
        moved = [f(*jax.tree.map(lambda a, step, s=sign: a + s * step, (own, hyper), steps))[0] for sign in (1, -1)]
        along = sum(np.sum(g * s) for g, s in zip(jax.tree.leaves(gradients), jax.tree.leaves(steps), strict=True))
        close((moved[0] - moved[1]) / 2e-6, along / 1e-6, rtol=1e-4, atol=1e-6)
    if case.panels:
        along = [jnp.cos(a) for a in own]

        def derivatives(size):
            """Along a direction: the derivative, and that of the gradient."""
            f = lambda v: case(*filled(v), **hyper, block_size=size)
            return jax.jit(lambda v: (jax.jvp(f, (v,), (along,))[1], *jax.jvp(jax.grad(f), (v,), (along,))))(own)

        slope, _, curved = derivatives(4)
        _, gradient, dense_curved = derivatives(None)
        close(slope, sum(np.sum(g * a) for g, a in zip(gradient, along, strict=True)), rtol=1e-9, atol=1e-12)
        chex.assert_trees_all_close(curved, dense_curved, rtol=1e-8, atol=1e-10)


@in_panels
def test_panels_equal_dense(name):
    arrays, given = inputs(name, 2), {"where": jnp.arange(N) != 3, **weights_of(name)}
    dense = value_and_grad(name, arrays, first_values(name), block_size=None, **given)
    for size in (4, N + 5):
        blocked = value_and_grad(name, arrays, first_values(name), block_size=size, **given)
        chex.assert_trees_all_close(blocked, dense, rtol=2e-5, atol=2e-6)


@views
def test_where_equals_the_smaller_batch(name):
    """Padding may hold anything, NaN included."""
    arrays, where = inputs(name, 3), jnp.arange(N) < 8
    own, filled = floats(arrays)
    padded = filled([jnp.where(where[:, None], a, jnp.nan) for a in own])
    value, (gradient, _) = value_and_grad(name, padded, where=where)
    small, (small_gradient, _) = value_and_grad(name, [a[:8] for a in arrays])
    close(value, small)
    for got, wanted in zip(gradient, small_gradient, strict=True):
        close(got, np.concatenate([wanted, np.zeros((4, D))]))


@pytest.mark.slow
@views
def test_order_of_the_batch_does_not_matter(name):
    arrays, order = inputs(name, 4), np.random.default_rng(0).permutation(N)
    value, (gradient, _) = value_and_grad(name, arrays)
    permuted, (permuted_gradient, _) = value_and_grad(name, [a[order] for a in arrays])
    close(permuted, value)
    for got, wanted in zip(permuted_gradient, gradient, strict=True):
        close(got, wanted[order], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if VIEWS[name].varied])
def test_vmap_over_hyper_parameters_equals_a_loop(name):
    """Each varies in turn, in one program."""
    case, arrays = VIEWS[name], inputs(name, 5)
    settings = [{**first_values(name), key: value} for key, values in case.varied.items() for value in values]
    options = {"block_size": 4} if case.panels else {}
    f = lambda hyper: value_and_grad(name, arrays, hyper, **options)
    loop = jax.tree.map(lambda *a: np.stack(a), *[f(hyper) for hyper in settings])
    mapped = jax.jit(jax.vmap(f))({key: jnp.array([hyper[key] for hyper in settings]) for key in case.varied})
    chex.assert_trees_all_close(mapped, loop, rtol=1e-4, atol=1e-5)


@views
def test_bfloat16_is_close_to_float32(name):
    own, filled = floats(inputs(name, 6))
    half = [a.astype(jnp.bfloat16) for a in own]
    value, (gradient, _) = value_and_grad(name, filled(half))
    wanted, (wanted_gradient, _) = value_and_grad(name, filled([a.astype(jnp.float32) for a in half]))
    assert value.dtype == jnp.float32
    close(value, wanted)
    for got, expected in zip(gradient, wanted_gradient, strict=True):
        assert got.dtype == jnp.bfloat16
        close(got, expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())


@views
def test_eager_calls_compile_once(name):
    arrays, given = inputs(name, 7), {"where": jnp.arange(N) != 3, **weights_of(name), **first_values(name)}
    VIEWS[name](*arrays, **given)
    with jax.no_tracing(True):
        VIEWS[name](*arrays, **given)


@pytest.mark.parametrize("name", ["clip", "vicreg", "koleo"])
def test_no_leaked_tracers(name, young_objects):
    own, filled = floats(inputs(name, 8))
    options = {"block_size": 4} if VIEWS[name].panels else {}
    with jax.checking_leaks():
        jax.eval_shape(jax.grad(lambda v: VIEWS[name](*filled(v), **options)), own)


# --- degenerate batches ---------------------------------------------------------------------------------------------

SIGNS = jnp.where(jnp.arange(N)[:, None] % 2 == 0, 1.0, -1.0)
DEGENERATE = {
    "all masked": (lambda x: x, {"where": jnp.zeros(N, bool)}),
    "one row": (lambda x: x, {"where": jnp.arange(N) == 4}),
    "two rows": (lambda x: x, {"where": jnp.arange(N) < 2}),
    "duplicates": (jnp.ones_like, {}),
    "zero vectors": (lambda x: jnp.where(jnp.arange(N)[:, None] < 4, 0, x), {}),
    "all zero": (jnp.zeros_like, {}),
    "opposite": (lambda x: SIGNS * jnp.ones_like(x), {}),
    "a feature that does not vary": (lambda x: x.at[:, 0].set(3.3), {}),
    "tiny": (lambda x: x * 1e-4, {}),
    "huge": (lambda x: x * 1e4, {}),
}
NOTHING_ALONE = ("info_nce", "clip", "barlow_twins", "koleo", "spread_out")


@views
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_batches(name, kind, debug_nans):
    make, options = DEGENERATE[kind]
    own, filled = floats(inputs(name, 9))
    check_degenerate(name, kind, filled([make(a) for a in own]), **{"where": jnp.ones(N, bool), **options})


@views
def test_batches_of_one_row(name, debug_nans):
    check_degenerate(name, "one row", [a[:1] for a in inputs(name, 9)])


def check_degenerate(name, kind, arrays, **options):
    """In dense form, and in panels with weights and hyper-parameters."""
    weights = {"weights": jnp.arange(len(arrays[0]), dtype=jnp.float32) % 3} if VIEWS[name].weighted else {}
    for hyper, size, given in (({}, None, {}), (first_values(name), 4, weights)):
        size = {"block_size": size} if VIEWS[name].panels else {}
        found = value_and_grad(name, arrays, hyper, **options, **size, **given)
        assert_finite(found)
        if kind == "all masked" or (kind == "one row" and name in NOTHING_ALONE):
            assert all(not np.any(a) for a in jax.tree.leaves(found))


def test_equal_views_and_opposite_views_are_finite(debug_nans):
    for name in ("alignment_uniformity", "vicreg", "barlow_twins", *CONTRASTS):
        (x, _) = inputs(name, 10)
        for y in (x, -x):
            assert_finite(value_and_grad(name, [x, y], first_values(name)))


@pytest.mark.parametrize("name, hyper", [("info_nce", {"temperature": 1e-3}), ("clip", {"scale": 1e3})])
def test_sharp_softmaxes_neither_saturate_nor_lose_the_gradient(name, hyper):
    x, y = jnp.array([[1.0, 0], [0, 1]]), jnp.array([[0.0, 1], [1, 0]])
    value, ((gradient, _), _) = value_and_grad(name, [x, y + 0.2 * x], **hyper)
    close(value, VIEWS[name].expected(x, y + 0.2 * x, **hyper))
    assert np.abs(gradient).max() > 100


def test_uniformity_does_not_underflow():
    x, y = inputs("alignment_uniformity", 11)
    value, ((gradient, _), _) = value_and_grad("alignment_uniformity", [x, y], t=2e3)
    close(value, VIEWS["alignment_uniformity"].expected(x, y, t=2e3), rtol=1e-4)
    assert np.abs(gradient).max() > 1


def test_koleo_of_near_duplicates_is_exact():
    """From cosines, whose rounding is 1e-7, a distance of 1e-4 could not be told from 0."""
    x = inputs("koleo", 12)[0]
    x = x.at[1].set(x[0] + 1e-4 * jnp.arange(D, dtype=x.dtype))
    for size in (None, 4):
        close(mj.losses.koleo(x, block_size=size), VIEWS["koleo"].expected(x), rtol=1e-4)


def test_gradients_at_zero():
    zero = jnp.zeros((2, 3))
    for loss in (mj.losses.zero_mean, mj.losses.embedding_norm, lambda z: mj.losses.embedding_norm(z, target=2.0)):
        assert not np.any(jax.jit(jax.grad(loss))(zero))
    close(jax.jit(jax.grad(mj.losses.embedding_norm))(zero + 1.5), zero + 1.5)


# --- options --------------------------------------------------------------------------------------------------------


def test_info_nce_is_nt_xent_of_rows_against_the_other_view():
    x, y = inputs("info_nce", 13)
    number = jnp.arange(N)
    wanted = mj.losses.nt_xent(x, number, references=y, reference_labels=number)
    close(mj.losses.info_nce(x, y), wanted)
    close(mj.losses.clip(x, y, scale=10.0), (wanted + mj.losses.info_nce(y, x)) / 2)


def near_negatives(distances, positives, negatives):
    """A miner that keeps the negatives at a cosine above 0."""
    return positives, negatives & (distances < 1)


@contrasts
@pytest.mark.parametrize("block_size", [None, 4])
def test_miner_and_count(name, block_size):
    x, y = inputs(name, 14)
    s = 5 * oracle.matrix("cosine_similarity", x, y)

    def mined(s):
        kept = [[j for j in range(N) if j == i or s[i, j] > 0] for i in range(N)]
        if name == "siglip":
            return np.mean(
                [sum(math.log1p(math.exp(s[i, j] * (-1 if i == j else 1))) for j in kept[i]) for i in range(N)]
            )
        return np.mean([math.log(sum(math.exp(s[i, j]) for j in kept[i])) - s[i, i] for i in range(N)])

    hyper = {"info_nce": {"temperature": 0.2}, "clip": {"scale": 5.0}, "siglip": {"scale": 5.0, "bias": 0.0}}[name]
    wanted = (mined(s) + mined(s.T)) / 2 if name == "clip" else mined(s)
    options = {"miner": near_negatives, "block_size": block_size, **hyper}
    close(VIEWS[name](x, y, **options), wanted)
    value, count = VIEWS[name](x, y, reduction=mj.with_count, weights=2 * jnp.ones(N), **options)
    close([value, count], [wanted, 2 * N])


@pytest.mark.parametrize("name", slow_unless(("clip",), CONTRASTS))
def test_rows_of_a_group_are_no_negatives_of_each_other(name):
    """Against the loss that leaves them out by a loop; in panels, and over devices."""
    x, y = inputs(name, 17, n=16)
    groups = jnp.asarray([0, 1, 0, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0])
    s = 5 * oracle.matrix("cosine_similarity", x, y)
    kept = [[j for j in range(16) if j == i or groups[i] != groups[j]] for i in range(16)]

    def expected(s):
        if name == "siglip":
            return np.mean(
                [sum(math.log1p(math.exp(s[i, j] * (-1 if i == j else 1))) for j in kept[i]) for i in range(16)]
            )
        return np.mean([math.log(sum(math.exp(s[i, j]) for j in kept[i])) - s[i, i] for i in range(16)])

    hyper = {"info_nce": {"temperature": 0.2}, "clip": {"scale": 5.0}, "siglip": {"scale": 5.0, "bias": 0.0}}[name]
    wanted = (expected(s) + expected(s.T)) / 2 if name == "clip" else expected(s)
    for size in (None, 4):
        close(VIEWS[name](x, y, groups=groups, block_size=size, **hyper), wanted)
    over = jax.jit(mj.over_mesh(VIEWS[name], "data", mesh_of(AxisType.Auto)))
    close(over(x, y, groups=groups, **hyper), wanted)


@pytest.mark.parametrize("name", [*CONTRASTS, "embedding_norm", "zero_mean", "koleo"])
def test_reduction_gets_one_mean_for_each_row(name):
    arrays = inputs(name, 15)
    by_hand = lambda mean: jnp.sum(mean.total) / jnp.maximum(jnp.sum(mean.count), 1)
    for size in ({}, {"block_size": 4}) if VIEWS[name].panels else ({},):
        found = value_and_grad(name, arrays, weights=WEIGHTS, reduction=by_hand, **size)
        chex.assert_trees_all_close(found, value_and_grad(name, arrays, weights=WEIGHTS), rtol=1e-4, atol=1e-6)


X, Y = inputs("clip")
WRONG = {
    "shapes": (lambda: mj.losses.clip(X, Y[:5]), ValueError, r"x has shape \(12, 5\), y has shape \(5, 5\)"),
    "features": (lambda: mj.losses.vicreg(X, Y[:, :2]), ValueError, r"x has shape \(12, 5\), y has shape \(12, 2\)"),
    "rank": (lambda: mj.losses.siglip(X, Y[0]), ValueError, r"y has shape \(5,\); wanted \[rows, features\]"),
    "list": (lambda: mj.losses.info_nce([[1.0]], Y), TypeError, "x is a list"),
    "dtype": (lambda: mj.losses.barlow_twins(X, Y > 0), TypeError, "y has dtype bool"),
    "where of moments": (lambda: mj.losses.vicreg(X, Y, where=X[0] > 0), ValueError, r"where has shape \(5,\)"),
    "where of a view": (lambda: mj.losses.clip(X, Y, where=X[0] > 0), ValueError, r"where has shape \(5,\)"),
    "weights": (lambda: mj.losses.clip(X, Y, weights=X[0]), ValueError, r"weights has shape \(5,\)"),
    "groups": (lambda: mj.losses.clip(X, Y, groups=X[:, 0]), TypeError, "groups has dtype float32; wanted integers"),
    "references": (lambda: mj.losses.clip(X, Y, references=Y), TypeError, r"unknown options \['references'\].*where"),
    "miner of uniformity": (
        lambda: mj.losses.alignment_uniformity(X, Y, miner=near_negatives), TypeError, "miner is given; alignment",
    ),
    "weights of uniformity": (
        lambda: mj.losses.alignment_uniformity(X, Y, weights=X[0]), ValueError, r"weights has shape \(5,\)",
    ),
    "weights of moments": (lambda: mj.losses.vicreg(X, Y, weights=WEIGHTS), TypeError, "weights"),
    "block_size": (lambda: mj.losses.clip(X, Y, block_size=0), ValueError, "block_size is 0"),
    "rank of embeddings": (lambda: mj.losses.koleo(X[0]), ValueError, r"embeddings has shape \(5,\)"),
    "list of embeddings": (lambda: mj.losses.zero_mean([[1.0]]), TypeError, "embeddings is a list"),
    "where of rows": (lambda: mj.losses.embedding_norm(X, where=X[0] > 0), ValueError, r"where has shape \(5,\)"),
    "weights of koleo": (lambda: mj.losses.koleo(X, weights=X[0]), ValueError, r"weights has shape \(5,\)"),
    "unknown option of rows": (lambda: mj.losses.zero_mean(X, labels=X), TypeError, "labels"),
    "reduction of spread_out": (
        lambda: mj.losses.spread_out(X, jnp.arange(N), reduction=mj.with_count), TypeError, "reduction is given",
    ),
}  # fmt: skip


test_wrong_arguments_are_named = refuses(WRONG)


# --- devices and memory ---------------------------------------------------------------------------------------------


@axes
@pytest.mark.parametrize("name", slow_unless(OFTEN, NAMES))
def test_eight_devices_equal_one(name, axis):
    """Value and gradient, of hyper-parameters too; the gradient taken outside `shard_map` and inside."""
    case, n = VIEWS[name], 16
    arrays = inputs(name, 20, n=n)
    own, filled = floats(arrays)
    where, weights = jnp.arange(n) < 11, jnp.linspace(0.5, 2.0, n)  # some devices hold nothing that exists
    hyper = {key: jnp.float32(value) for key, value in first_values(name).items()}
    how = lambda where, weights: {"where": where, **({"weights": weights} if case.weighted else {})}
    one = value_and_grad(name, arrays, hyper, **how(where, weights))
    mesh = mesh_of(axis)
    arrays, (where, weights) = put(mesh, *arrays), put(mesh, where, weights)
    own, filled = floats(arrays)
    sizes = ({"block_size": 3}, {"block_size": None})[: 2 if axis is AxisType.Auto else 1]
    for size in sizes if case.panels else ({},):
        local = lambda v, h, rest, w, s, o=size: case(*v, *rest, axis_name="data", **h, **how(w, s), **o)
        specs = SPLIT, WHOLE, SPLIT, SPLIT, SPLIT
        over = lambda f, out, specs=specs: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out))
        given = own, hyper, filled([]), where, weights
        assert_same(jax.jit(jax.value_and_grad(over(local, WHOLE), (0, 1)))(*given), one)
        assert_same(over(jax.grad(local), SPLIT)(*given), one[1][0])


@contrasts
def test_over_mesh_equals_one_device(name):
    mesh = mesh_of(AxisType.Auto, (4, 2), ("data", "model"))
    arrays = inputs(name, 21, n=16)
    spread = jax.jit(jax.value_and_grad(mj.over_mesh(VIEWS[name], ("data", "model"), mesh)))
    assert_same(spread(*put(mesh, *arrays)), jax.jit(jax.value_and_grad(VIEWS[name]))(*arrays))


@pytest.mark.parametrize("name", slow_unless(OFTEN, [*CONTRASTS, "alignment_uniformity", "koleo", "spread_out"]))
def test_temporaries_are_linear_in_the_batch(name):
    """At most three arrays (for the two directions of clip: five) of the size of each that comes in, and 32 MiB."""
    takes, most = VIEWS[name].takes, 5 if name == "clip" else 3
    own = [kind for kind in takes if kind != "labels"]
    for n in (4096, 32768):
        arrays = {kind: jax.ShapeDtypeStruct((n, 128), jnp.float32) for kind in own}
        arrays["labels"] = jax.ShapeDtypeStruct((n,), jnp.int32)
        f = jax.value_and_grad(VIEWS[name], tuple(range(len(own))))
        program = jax.jit(f).lower(*(arrays[kind] for kind in takes)).compile()
        assert program.memory_analysis().temp_size_in_bytes <= most * len(own) * n * 128 * 4 + 32 * 2**20
        shapes = re.findall(r"[a-z]+[0-9]*\[([0-9,]+)\]", program.as_text())
        assert max(math.prod(map(int, shape.split(","))) for shape in shapes) <= max(n * n / 64, 2**20)
