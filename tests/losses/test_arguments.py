"""Arguments of the wrong kind: each gets an error that says what to write instead, at every batch size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import metricjax as mj
from tests.helpers.cases import CLASSES, PAIRS, VIEWS

L, M, D, S = mj.losses, mj.mining, mj.distances, mj.similarities
Z = jnp.asarray(np.random.default_rng(0).standard_normal((12, 4)), jnp.float32)
Y, W = jnp.arange(12) // 3, Z[:4]
HYPER = {"similarity": S.cosine}
SETTINGS = (None, 4)  # dense, and in panels or blocks


class Tensor:
    """What is known of a foreign array from outside."""

    ndim, shape, dtype = 2, (12, 4), "float32"


def foreign(module):
    return type("Tensor", (Tensor,), {"__module__": module})()


TORCH = foreign("torch")
WRONG = {
    "selection's name": (
        lambda: L.triplet(Z, Y, triplets="semi_hard"), "wanted a function, triplets=mj.mining.semi_hard"
    ),
    "unknown name": (
        lambda: L.triplet(Z, Y, triplets="hardest"), "triplets is 'hardest'; .*mj.mining.batch_hard, .*your own"
    ),
    "no selection": (lambda: L.triplet(Z, Y, triplets=None), "triplets is None; .*mj.mining.batch_hard"),
    "parentheses": (lambda: L.triplet(Z, Y, triplets=M.batch_hard()), "as it stands, triplets=mj.mining.batch_hard"),
    "no parentheses": (
        lambda: L.triplet(Z, Y, triplets=M.semi_hard_within), r"triplets=mj.mining.semi_hard_within\(\)"
    ),
    "miner's name": (lambda: L.supcon(Z, Y, miner="multi_similarity"), r"miner=mj.mining.multi_similarity\(\)"),
    "no parentheses of a miner": (lambda: L.supcon(Z, Y, miner=M.rank_range), r"miner=mj.mining.rank_range\(\.\.\.\)"),
    "selection as miner": (
        lambda: L.supcon(Z, Y, miner=M.batch_hard), "which is for `triplets`; wanted .*mj.mining.multi_similarity"
    ),
    "made selection as miner": (lambda: L.supcon(Z, Y, miner=M.semi_hard_within()), "a Selection, which is for"),
    "miner as selection": (lambda: L.triplet(Z, Y, triplets=M.multi_similarity()), "a Miner, which is for `miner`"),
    "one mask": (lambda: L.supcon(Z, Y, miner=lambda d, p, n: p), "miner returned bool.*wanted booleans: the masks"),
    "reduction's name": (
        lambda: L.supcon(Z, Y, reduction="mean"), "mj.with_count.*by default it is the mean"
    ),
    "reduction of classes": (lambda: L.cosface(Z, Y, W, reduction="sum"), "reduction is 'sum'; wanted a function"),
    "reduction of rows": (lambda: L.zero_mean(Z, reduction="none"), "reduction is 'none'; wanted a function"),
    "distance's name": (lambda: L.triplet(Z, Y, distance="cosine"), "distance=mj.distances.cosine"),
    "maker of distances": (lambda: L.triplet(Z, Y, distance=D.lp), r"distance=mj.distances.lp\(\.\.\.\)"),
    "distance called": (lambda: L.triplet(Z, Y, distance=D.chord()), "chord has no settings; give it as it stands"),
    "similarity for distance": (
        lambda: L.triplet(Z, Y, distance=S.cosine), "which is for `similarity`; wanted mj.distances"
    ),
    "distance for similarity": (lambda: L.supcon(Z, Y, similarity=D.lp(3)), "which is for `distance`"),
    "distance in search": (lambda: mj.search.top_k(Z, Z, 1, similarity=D.chord), "which is for `distance`"),
    "similarity in search": (lambda: mj.search.top_k(Z, Z, 1, distance=S.dot), "which is for `similarity`"),
    "distance in retrieval": (lambda: mj.metrics.retrieval(Z, Y, similarity=D.cosine), "which is for `distance`"),
    "distance in clusters": (
        lambda: mj.clusters.connected_components(Z, 0.5, similarity=D.snr), "which is for `distance`"
    ),
    "relation's name": (lambda: L.supcon(Z, Y, same="equal"), "same=mj.relations.equal"),
    "maker of relations": (
        lambda: L.supcon(Z, Y, same=mj.relations.same_level), r"same=mj.relations.same_level\(\.\.\.\)"
    ),
    "grade for relation": (lambda: L.supcon(Z, Y, same=mj.relations.overlap), "which is for `grade`"),
    "relation with numbers": (lambda: L.supcon(Z, Y, same=lambda a, b: a - b), "same returned int.*wanted booleans"),
    "relation of each entry": (
        lambda: L.supcon(Z, Z > 0, same=lambda a, b: a == b), "same returned bool.*one boolean, or two"
    ),
    "names": (
        lambda: L.supcon(Z, np.array(["a"] * 12)),
        r"labels has dtype <U1; .*np.unique\(labels, return_inverse=True\)\[1\]"
    ),
    "names as objects": (lambda: L.cosface(Z, np.array(["a"] * 12, object), W), "labels has dtype object; .*np.unique"),
    "list of names": (lambda: L.supcon(Z, ["a"] * 12), "labels is a list; .*np.unique"),
    "list for where": (lambda: L.supcon(Z, Y, where=[True] * 12), r"where is a list; .*np.asarray\(where\)"),
    "tensor": (lambda: L.supcon(TORCH, Y), r"of torch; .*jnp.asarray\(embeddings.detach\(\).cpu\(\).numpy\(\)\)"),
    "tensor of labels": (lambda: L.supcon(Z, TORCH), "labels is a Tensor of torch"),
    "tensor of prototypes": (lambda: L.adacos(Z, Y, TORCH), "prototypes is a Tensor of torch"),
    "tensor of references": (
        lambda: L.supcon(Z, Y, references=TORCH, reference_labels=Y), "references is a Tensor of torch"
    ),
    "frame": (lambda: L.magface(foreign("pandas.core.frame"), Y, W), r"jnp.asarray\(embeddings.to_numpy\(\)\)"),
    "swapped": (lambda: L.supcon(Y, Z), "wanted the other way round, rows of features and then one label for each"),
    "swapped with prototypes": (lambda: L.cosface(Z, W, Y), "prototypes has shape .* the other way round"),
    "string for rows": (lambda: mj.over_anchors("supcon", Z, Y, **HYPER), "rows is 'supcon'; wanted a function"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_to_write_instead(name, unchecked):
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_ones_own_function_is_taken_as_said(unchecked):
    own = lambda x, y: D.squared_chord(x, y)
    np.testing.assert_allclose(L.triplet(Z, Y, distance=own), L.triplet(Z, Y), rtol=1e-5)
    mj.search.top_k(Z, Z, 1, similarity=own)


# --- numbers that have to be positive -------------------------------------------------------------------------------

NUMBERS = ("temperature", "scale", "sigma", "k_temperature", "gamma", "limit", "alpha", "beta", "epsilon", "power", "b")
FREE = {("ranked_list", "temperature"), ("ranked_list", "alpha"), ("margin", "beta"), ("roadmap", "alpha"),
        ("pnp", "alpha"), ("adaface", "epsilon"), ("alignment_uniformity", "alpha"), ("vicreg", "epsilon"),
        ("barlow_twins", "epsilon"), ("hyperspherical_energy", "power")}  # fmt: skip


def positive_numbers():
    """Of each loss, the hyper-parameters that have to be positive: temperatures, scales and their like."""
    for case in (*PAIRS.values(), *CLASSES.values(), *VIEWS.values()):
        names = getattr(case.loss, "__kwdefaults__", None) or getattr(case.loss.__wrapped__, "__kwdefaults__", None)
        for name in sorted(set(NUMBERS) & set(names or ())):
            if (case.loss.__name__, name) not in FREE:
                yield case, name


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), jnp.zeros(())], ids=str)
def test_numbers_that_are_not_positive_are_refused_by_name(bad):
    tried = set()
    for case, name in positive_numbers():
        if case in CLASSES.values():
            given = Z, Y, (jnp.stack([W, W], axis=1) if case.several else W)
        else:
            given = (Z, Y) if case in PAIRS.values() else [{"x": Z, "y": Z, "labels": Y}[kind] for kind in case.takes]
        if hasattr(case, "fixed"):
            case = case._replace(fixed={key: value for key, value in case.fixed.items() if key != name})
        with pytest.raises(ValueError, match=f"{name} is .*; wanted a positive number"):
            case(*given, **{name: bad})
        tried.add((case.loss.__name__, name))
    assert {("nt_xent", "temperature"), ("cosface", "scale"), ("clip", "scale"), ("koleo", "epsilon")} <= tried
    assert len(tried) > 30


def test_traced_numbers_are_not_checked_and_others_may_be_negative():
    assert np.isfinite(jax.jit(lambda t: L.nt_xent(Z, Y, temperature=t))(0.5))
    assert np.isfinite(L.siglip(Z, Z, bias=-3.0)) and np.isfinite(L.cosface(Z, Y, W, margin=-0.1))


# --- row functions --------------------------------------------------------------------------------------------------


def rows(scores, positives, negatives, *hyper):
    return mj.Mean(jnp.sum(jnp.where(positives, scores, 0), axis=1), jnp.sum(positives, axis=1))


def terms(chosen):
    gaps = jnp.where(chosen.valid, chosen.d_ap - chosen.d_an, 0)
    return mj.Mean(jnp.sum(gaps, axis=1), jnp.sum(chosen.valid, axis=1))


def closing_over(t, size):
    """Calls with a function that closes over t, by what the error calls it."""
    how, cosine = {"block_size": size}, S.cosine
    anchors = functools.partial(mj.over_anchors, **how)
    prototypes = lambda target: mj.over_prototypes(target, lambda s, own: s, Z, Y, W, similarity=cosine, **how)
    return {
        "the row function": lambda: anchors(lambda s, p, n: rows(t * s, p, n), Z, Y, similarity=cosine),
        "similarity or distance": lambda: anchors(rows, Z, Y, similarity=lambda x, y: t * (x @ y.T)),
        "same": lambda: L.supcon(Z, Y, same=lambda a, b: (a == b) & (t > 0), **how),
        "miner": lambda: L.supcon(Z, Y, miner=lambda d, p, n: (p, n & (d < t)), **how),
        "triplets": lambda: L.triplet(Z, Y, triplets=lambda d, p, n: M.batch_hard(t * d, p, n), **how),
        "target": lambda: prototypes(lambda own: t * own),
    }


@pytest.mark.parametrize("name", closing_over(None, None))
@pytest.mark.parametrize("size", SETTINGS)
def test_closures_over_traced_values_are_refused_at_every_size(name, size, unchecked):
    for transformed in (jax.jit, jax.grad):
        with pytest.raises(TypeError, match=f"^{name}.* uses a traced value .*pass it as \\*hyper, or bind it"):
            transformed(lambda t: closing_over(t, size)[name]())(0.5)


def test_values_bound_to_a_partial_may_be_traced():
    near = lambda limit, d, p, n: (p, n & (d < limit))
    loss = lambda t, size: L.supcon(Z, Y, miner=Partial(near, t), block_size=size)
    expected = L.supcon(Z, Y, miner=lambda d, p, n: (p, n & (d < 1.0)))
    for size in SETTINGS:
        np.testing.assert_allclose(jax.jit(loss, static_argnums=1)(1.0, size), expected, rtol=1e-5)


NOT_MEANS = {
    "an array": (lambda s, p, n: jnp.sum(s, axis=1), TypeError, r"returned float32\[13\]; wanted Mean\(total, count\)"),
    "a tuple": (lambda s, p, n: (jnp.sum(s, axis=1), jnp.sum(p, axis=1)), TypeError, "wanted Mean"),
    "nothing": (lambda s, p, n: None, TypeError, "returned None; wanted Mean"),
    "scalars": (lambda s, p, n: mj.Mean(jnp.sum(s), jnp.sum(p)), ValueError, r"total has shape \(\); wanted one entry"),
    "a scalar": (lambda s, p, n: mj.Mean(jnp.sum(s, axis=1), jnp.sum(p)), ValueError, r"count has shape \(\)"),
    "a number": (lambda s, p, n: mj.Mean(jnp.sum(s, axis=1), 1), TypeError, r"Mean\(float32\[13\], 1\)"),
    "of columns": (
        lambda s, p, n: mj.Mean(jnp.sum(s, axis=0), jnp.sum(p, axis=0)), ValueError, r"total has shape \(12,\)"
    ),
    "whole rows": (lambda s, p, n: mj.Mean(s, p), ValueError, r"total has shape \(13, 12\)"),
}  # fmt: skip


@pytest.mark.parametrize("size", SETTINGS)
@pytest.mark.parametrize("name", NOT_MEANS)
def test_what_a_row_function_returns_is_checked(name, size, unchecked):
    function, error, message = NOT_MEANS[name]
    with pytest.raises(error, match=message):
        mj.over_anchors(function, Z, Y, block_size=size, **HYPER)


@pytest.mark.parametrize("size", SETTINGS)
def test_what_other_functions_return_is_checked(size, unchecked):
    scalar = lambda chosen: mj.Mean(jnp.sum(chosen.d_ap), jnp.sum(chosen.valid))
    with pytest.raises(ValueError, match="total has shape"):
        mj.over_triplets(scalar, M.batch_hard, Z, Y, distance=D.chord, block_size=size)
    mj.over_triplets(terms, M.batch_hard, Z, Y, distance=D.chord, block_size=size)
    with pytest.raises(ValueError, match=r"target returned float32\[\] for scores \[5\]"):
        mj.over_prototypes(lambda own: jnp.sum(own), None, Z, Y, W, block_size=size, **HYPER)
