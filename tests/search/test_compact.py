"""Compact embeddings: codes and searches among them, against loops over the values and rows that codes stand for."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import metricjax as mj
from metricjax.engine import sizes
from metricjax.ground.functions import jitted
from metricjax.search import (
    Codes,
    compact,
    neighbours,
    panels,
    ranges,
    top_k,
)
from tests.helpers.meshes import mesh_of

DOT = mj.similarities.dot
D = 12


@pytest.fixture(params=["cpu", pytest.param("accelerator", marks=pytest.mark.slow)])
def form(request, monkeypatch):
    """What runs on a CPU, and what runs on GPUs and TPUs."""
    if request.param == "accelerator":
        monkeypatch.setattr(panels, "by_platform", lambda f: f(False))
        monkeypatch.setattr(sizes, "SORTED_ROW", 16)
        monkeypatch.setattr(sizes, "CANDIDATES_FROM", 4)
        monkeypatch.setattr(neighbours, "_top_k", jitted(neighbours._top_k.__wrapped__))
    return request.param


def integers(rng, n, d=D):
    return jnp.asarray(rng.integers(-3, 4, (n, d)), jnp.float32)


def of_integers(y, step=1.0):
    """Codes that stand for multiples of the step, so that sums are exact."""
    ranges = step * jnp.stack([jnp.full(D, -128.0), jnp.full(D, 127.0)])
    return dataclasses.replace(compact(y, ranges=ranges), scale=jnp.full(D, step), offset=jnp.zeros(D))


def codes_of_loop(x, lowest, highest):
    """Code of each value, and how many were clipped."""
    codes, clipped = np.zeros(x.shape, int), 0
    for i, row in enumerate(np.asarray(x, np.float64)):
        for j, value in enumerate(row):
            clipped += not lowest[j] <= value <= highest[j]
            value = min(max(value, lowest[j]), highest[j])
            width = highest[j] - lowest[j]
            codes[i, j] = (round(255 * (value - lowest[j]) / width) if width else 128) - 128
    return codes, clipped


def first(scores, k, candidates=None):
    """The k best of each row, ties to the lower index, of all or of some; −∞ and −1 where there are fewer."""
    found = np.full((len(scores), k), -1), np.full((len(scores), k), -np.inf)
    for i, row in enumerate(scores):
        some = range(len(row)) if candidates is None else candidates[i]
        order = sorted((j for j in some if j >= 0 and row[j] > -np.inf), key=lambda j: (-row[j], j))[:k]
        found[0][i, : len(order)], found[1][i, : len(order)] = order, row[order]
    return found


def hamming(x, y):
    x, y = np.asarray(x), np.asarray(y)
    return np.array([[sum((a > 0) != (b > 0) for a, b in zip(row, other, strict=True)) for other in y] for row in x])


def signs_of(x):
    return np.where(np.asarray(x) > 0, 1.0, -1.0)


def assert_found(found, wanted):
    np.testing.assert_array_equal(found.indices, wanted[0])
    np.testing.assert_allclose(found.scores, wanted[1], rtol=1e-6)


@pytest.mark.slow
def test_int8_codes_are_those_of_a_loop(rng):
    x = np.asarray(rng.standard_normal((40, D)), np.float32)
    x[:, 3] = 0.25  # does not vary
    x[:, 4] *= 1e30
    x[7, 2], x[9, 0] = np.nan, np.inf
    real = np.isfinite(x).all(axis=1)
    limits = ranges(jnp.asarray(x[:20]))
    lowest, highest = x[:20][real[:20]].min(axis=0), x[:20][real[:20]].max(axis=0)
    np.testing.assert_array_equal(limits, [lowest, highest])
    made = compact(jnp.asarray(x), ranges=limits)
    codes, clipped = codes_of_loop(x[real], lowest.astype(float), highest.astype(float))
    # Where a value lies in the middle between two codes, rounding decides.
    assert np.mean(np.asarray(made.codes)[real] != codes) < 0.01
    assert np.max(np.abs(np.asarray(made.codes)[real].astype(int) - codes)) <= 1
    assert int(made.clipped) == clipped > 0
    np.testing.assert_array_equal(made.exists, real)
    step = (highest - lowest) / 255
    off = np.abs(np.asarray(made.decoded)[real] - np.clip(x[real], lowest, highest))
    assert np.all(off <= 0.5001 * step + 1e-6 * np.abs(highest)) and not np.any(np.asarray(made.decoded)[~real])
    np.testing.assert_array_equal(made.decoded[real][:, 3], 0.25)
    whole = compact(jnp.asarray(x))
    assert int(whole.clipped) == 0
    for ends, extreme in (
        (whole.decoded[real].min(axis=0), x[real].min(axis=0)),
        (whole.decoded[real].max(axis=0), x[real].max(axis=0)),
    ):
        np.testing.assert_allclose(ends, extreme, rtol=1e-5)
    assert (whole.shape, len(whole), whole.precision, whole.bytes_per_row) == ((40, D), 40, "int8", D)


@pytest.mark.slow
def test_binary_codes_are_those_of_packbits(rng):
    x = np.asarray(rng.standard_normal((9, 21)), np.float32)
    x[2, 3], x[4, 4:9] = np.nan, 0
    made = compact(jnp.asarray(x), "binary")
    real = np.arange(9) != 2
    np.testing.assert_array_equal(made.codes[real], np.packbits(x[real] > 0, axis=1))
    np.testing.assert_array_equal(made.decoded, np.where(real[:, None], signs_of(x), 0))
    assert (made.shape, made.precision, made.bytes_per_row) == ((9, 21), "binary", 3)


@pytest.mark.slow
def test_scores_are_those_of_the_rows_that_codes_stand_for(rng, form):
    x, y = integers(rng, 5), integers(rng, 300).at[11].set(jnp.nan)
    codes = of_integers(y)
    scores = np.where(np.arange(300) == 11, -np.inf, np.asarray(x) @ np.nan_to_num(np.asarray(y)).T)
    assert_found(top_k(x, codes, 7, similarity=DOT), first(scores, 7))
    signs = np.where(np.arange(300) == 11, -np.inf, np.asarray(x) @ signs_of(y).T)
    assert_found(top_k(x, compact(y, "binary"), 7, similarity=DOT), first(signs, 7))


@pytest.mark.parametrize("d", [12, pytest.param(70, marks=pytest.mark.slow)])
def test_hamming(d, rng, form):
    x, y = integers(rng, 5, d), integers(rng, 300, d).at[11].set(jnp.nan)
    cosines = np.where(np.arange(300) == 11, -np.inf, 1 - 2 * hamming(x, y) / d)
    found = top_k(compact(x, "binary"), compact(y, "binary"), 9)
    assert_found(found, first(cosines, 9))


def coarse_pass(how, x, y):
    """What a first pass gets, and its scores by a loop."""
    if how == "prefix":
        return 5, np.asarray(x)[:, :5] @ np.asarray(y)[:, :5].T
    if how == "binary":
        return compact(y, "binary"), -hamming(x, y)
    if how == "binary prefix":
        return compact(y[:, :9], "binary"), -hamming(x[:, :9], y[:, :9])
    codes = of_integers(y, 4.0)
    return codes, np.asarray(x) @ np.asarray(codes.decoded).T


@pytest.mark.parametrize(
    "how", ["prefix", "binary", *(pytest.param(how, marks=pytest.mark.slow) for how in ("int8", "binary prefix"))]
)
def test_candidates_of_a_first_pass_are_rescored(how, rng, form):
    x, y = integers(rng, 6), integers(rng, 300)
    coarse, scores = coarse_pass(how, x, y)
    candidates = first(scores, 3 * 5)[0]
    wanted = first(np.asarray(x) @ np.asarray(y).T, 5, candidates)
    found = top_k(x, y, 5, similarity=DOT, coarse=coarse, rescore_multiplier=3)
    assert_found(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["prefix", "binary", "int8"])
def test_enough_candidates_are_exact(how, rng, form):
    x, y = integers(rng, 40), integers(rng, 200).at[::9].set(jnp.nan)
    where = jnp.asarray(rng.random(200) < 0.8)
    coarse = {"prefix": 5, "binary": compact(y, "binary"), "int8": compact(y)}[how]
    for measure in ({"similarity": DOT}, {"distance": mj.distances.squared_euclidean}, {}):
        options = {**measure, "where": where, "block_size": 64}
        found, wanted = top_k(x, y, 5, coarse=coarse, rescore_multiplier=99, **options), top_k(x, y, 5, **options)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5, atol=1e-5)
        if measure == {"similarity": DOT}:
            np.testing.assert_array_equal(found.indices, wanted.indices)
    found = top_k(y, y, 4, similarity=DOT, exclude_self=True, coarse=coarse, rescore_multiplier=99)
    wanted = top_k(y, y, 4, similarity=DOT, exclude_self=True)
    assert_found(found, (wanted.indices, wanted.scores))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "binary"])
@pytest.mark.parametrize("measure", ["cosine", "euclidean", "dot"])
def test_any_score_in_blocks(precision, measure, rng, form):
    """The same as of decoded rows in floats, with masks and prefixes."""
    x = jnp.asarray(rng.standard_normal((33, D)), jnp.float32)
    y = jnp.asarray(rng.standard_normal((500, D)), jnp.float32).at[3].set(jnp.inf)
    codes, where = compact(y, precision), jnp.asarray(rng.random(500) < 0.7)
    how = (
        {"distance": mj.distances.euclidean}
        if measure == "euclidean"
        else {"similarity": getattr(mj.similarities, measure)}
    )
    found = top_k(x, codes, 6, where=where, block_size=128, **how)
    wanted = top_k(x, codes.decoded, 6, where=where & codes.exists, **how)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5, atol=1e-5)
    if precision == "int8":  # signs have many equal scores, which rounding may order
        np.testing.assert_array_equal(found.indices, wanted.indices)
    found = top_k(x, codes, 6, where=where, coarse=5, rescore_multiplier=5, **how)
    wanted = top_k(x, codes.decoded, 6, where=where & codes.exists, coarse=5, rescore_multiplier=5, **how)
    np.testing.assert_allclose(found.scores[:, 0], wanted.scores[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_no_floats_are_kept(rng, form):
    """Yamada et al. 2021: candidates by the Hamming distance, then the float query with the same codes."""
    x, y = integers(rng, 6), integers(rng, 300)
    codes = compact(y, "binary")
    candidates = first(-hamming(x, y), 4 * 5)[0]
    wanted = first(np.asarray(x) @ signs_of(y).T, 5, candidates)
    assert_found(top_k(x, codes, 5, similarity=DOT, coarse=codes), wanted)
    both = top_k(x, of_integers(y), 5, similarity=DOT, coarse=codes)
    assert_found(both, first(np.asarray(x) @ np.asarray(y).T, 5, candidates))


@pytest.mark.slow
def test_jit_vmap_and_bfloat16(rng, unchecked):
    x, y = integers(rng, 6), integers(rng, 300)
    codes = compact(y)
    for leaf, other in zip(*map(jax.tree.leaves, (jax.jit(compact)(y), codes)), strict=True):
        np.testing.assert_array_equal(leaf, other)
    low = compact(y.astype(jnp.bfloat16))
    np.testing.assert_array_equal(low.codes, codes.codes)
    assert low.scale.dtype == jnp.float32
    wanted = top_k(x, codes, 4, similarity=DOT, coarse=5)
    search = lambda x, codes: top_k(x, codes, 4, similarity=DOT, coarse=5)
    assert_found(jax.jit(search)(x, codes), (wanted.indices, wanted.scores))
    over = jax.vmap(search, (0, None))(x.reshape(2, 3, D), codes)
    np.testing.assert_array_equal(over.indices.reshape(6, 4), wanted.indices)
    assert top_k(x.astype(jnp.bfloat16), codes, 4, coarse=compact(y, "binary")).scores.dtype == jnp.float32


@pytest.mark.slow
def test_it_exports_with_any_number_of_queries(rng):
    y = integers(rng, 300)
    codes, bits = compact(y), compact(y, "binary")
    searches = (lambda x: top_k(x, codes, 3, coarse=bits), lambda x: top_k(compact(x, "binary"), bits, 3))
    (n,) = jax.export.symbolic_shape("n")
    for search in searches:
        searched = jax.export.export(jax.jit(search))(jax.ShapeDtypeStruct((n, D), jnp.float32))
        for x in (integers(rng, 1), integers(rng, 150)):
            np.testing.assert_array_equal(searched.call(x).indices, search(x).indices)


@pytest.mark.slow
def test_float64_stays(x64, rng):
    x, y = jnp.asarray(rng.standard_normal((4, D))), jnp.asarray(rng.standard_normal((50, D)))
    codes = compact(y)
    assert codes.scale.dtype == top_k(x, codes, 2, coarse=3).scores.dtype == jnp.float64


@pytest.mark.slow
def test_empty_sets_and_rows_that_do_not_exist(rng):
    none = compact(jnp.zeros((0, D)))
    assert none.shape == (0, D) and none.decoded.shape == (0, D) and not np.any(np.isnan(none.scale))
    assert compact(jnp.zeros((0, D)), "binary").codes.shape == (0, 2)
    y = integers(rng, 30)
    for precision in ("int8", "binary"):
        codes = compact(y, precision)
        assert top_k(jnp.zeros((0, D)), codes, 2, coarse=codes).indices.shape == (0, 2)
        nobody = compact(y, precision, where=jnp.zeros(30, bool))
        assert np.all(top_k(y, nobody, 2, coarse=nobody).indices == -1)
        assert not np.any(np.isnan(nobody.decoded))
    lost = top_k(y.at[3].set(jnp.nan), codes, 2, coarse=codes)
    assert np.all(lost.indices[3] == -1) and np.all(lost.indices[:3] >= 0)
    zero = compact(jnp.zeros((3, D)))
    assert not np.any(zero.decoded) and not np.any(np.isnan(top_k(y, zero, 2).scores))


@pytest.mark.slow
def test_ranges_by_quantiles(rng):
    x = np.asarray(rng.standard_normal((501, 3)), np.float32)
    x[5] = np.nan
    wanted = np.quantile(x[np.arange(501) != 5].astype(np.float64), [0.01, 0.99], axis=0)
    np.testing.assert_allclose(ranges(jnp.asarray(x), 0.98), wanted, rtol=1e-5)
    assert not np.any(ranges(jnp.full((4, 2), jnp.nan)))
    huge = compact(jnp.array([[-3e38], [3e38], [1e38]]))  # whose width is infinite in float32
    np.testing.assert_allclose(huge.decoded, [[-3e38], [3e38], [1e38]], rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_devices(precision, rng, unchecked):
    """Exact searches equal one device's; with a first pass, each device has candidates of its own."""
    x, y = integers(rng, 16), integers(rng, 400)
    codes = of_integers(y) if precision == "int8" else compact(y, "binary")
    mesh, split = mesh_of(AxisType.Auto), PartitionSpec("data")
    places = jax.tree.map(lambda a: split if a.shape[:1] == (400,) else PartitionSpec(), codes)

    def over(**how):
        local = lambda x, codes: top_k(
            x, codes, 3, similarity=DOT, axis_name="data", **({"coarse": codes} if how else {})
        )
        return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(split, places), out_specs=split))(x, codes)

    scores = np.asarray(x) @ np.asarray(codes.decoded).T
    assert_found(over(), first(scores, 3))
    own = -hamming(x, y) if precision == "binary" else scores
    candidates = np.concatenate([part * 50 + first(own[:, part * 50 :][:, :50], 12)[0] for part in range(8)], axis=1)
    assert_found(over(coarse=True), first(scores, 3, candidates))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["int8", "binary", "hamming", "coarse"])
def test_memory_is_that_of_panels(how, unchecked):
    """4096 queries among a million: codes and a panel, no copy of the references in floats."""
    x, y = jax.ShapeDtypeStruct((4096, 128), jnp.float32), jax.ShapeDtypeStruct((1_000_000, 128), jnp.float32)
    codes = jax.eval_shape(lambda y: compact(y, "int8" if how == "int8" else "binary"), y)
    search = lambda x, codes: top_k(
        compact(x, "binary") if how == "hamming" else x, codes, 10, coarse=codes if how == "coarse" else None
    )
    used = jax.jit(search).lower(x, codes).compile().memory_analysis().temp_size_in_bytes
    assert used <= (96 if how == "coarse" else 64) * 2**20  # four times as many are sorted
    prefix = lambda x, y: top_k(x, y, 10, coarse=32)
    assert how != "coarse" or jax.jit(prefix).lower(x, y).compile().memory_analysis().temp_size_in_bytes <= 96 * 2**20


@pytest.mark.slow
def test_errors(unchecked):
    x, codes = jnp.ones((3, 8)), compact(jnp.ones((5, 8)), "binary")
    with pytest.raises(ValueError, match="precision is 'int4'; wanted 'int8' or 'binary'"):
        compact(x, "int4")
    with pytest.raises(TypeError, match="ranges are given for precision 'binary'"):
        compact(x, "binary", ranges=jnp.zeros((2, 8)))
    with pytest.raises(ValueError, match=r"ranges is float32\[8, 2\]; wanted floats \[2, 8\]"):
        compact(x, ranges=jnp.zeros((8, 2)))
    with pytest.raises(ValueError, match="ranges has NaN, or a lowest value above the highest"):
        compact(x, ranges=jnp.array([[1.0], [0.0]]) * jnp.ones((1, 8)))
    with pytest.raises(ValueError, match=r"quantile is 0; wanted a share above 0, up to 1"):
        ranges(x, 0)
    with pytest.raises(ValueError, match="sample has no rows; wanted at least one"):
        ranges(x[:0])
    with pytest.raises(TypeError, match="queries are binary codes and references int8; wanted binary ones"):
        top_k(codes, compact(x), 1)
    with pytest.raises(TypeError, match="queries are binary codes, compared by their Hamming distance"):
        top_k(codes, codes, 1, similarity=DOT)
    with pytest.raises(ValueError, match="queries has 8 features, references 7; they must agree"):
        top_k(x, compact(jnp.ones((5, 7))), 1)
    with pytest.raises(ValueError, match="coarse has 5 rows of 8 features; wanted codes of the 3 references"):
        top_k(x, x, 1, coarse=codes)
    with pytest.raises(
        ValueError, match="coarse is 9; wanted Codes of the references, or a number of features from 1 to 8"
    ):
        top_k(x, x, 1, coarse=9)
    with pytest.raises(ValueError, match="rescore_multiplier is 0; wanted a positive int"):
        top_k(x, x, 1, coarse=2, rescore_multiplier=0)
    assert isinstance(codes, Codes) and "uint8[5, 1]" in repr(codes)
