"""The catalogue is right: about each loss's arguments and paper, what it refuses, and which lengths count."""

import inspect
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine.anchors import Batch
from metricjax.losses.catalogue import ARGUMENTS, BESIDE, CATALOGUE, Argument
from tests.helpers.cases import ALONE, CLASSES, PAIRS, VIEWS, options_of

N, C, D = 12, 4, 5
names = pytest.mark.parametrize("name", CATALOGUE)
OPTIONS = {
    "references": jnp.ones((3, D)), "same": mj.relations.equal,
    "reference_labels": jnp.arange(3), "miner": mj.mining.pair_margin(), "reduction": mj.with_count, "block_size": 4,
    "groups": jnp.arange(N) // 2, "ignore_above": 0.9, "num_classes": C, "label_smoothing": 0.1,
}  # fmt: skip


def test_every_public_function_is_a_loss_of_the_catalogue_or_beside_one():
    public = {name for name in mj.losses.__all__ if callable(getattr(mj.losses, name))}
    assert public == CATALOGUE.keys() | BESIDE.keys()
    assert CATALOGUE.keys() >= {name for served in BESIDE.values() for name in served}


def test_every_loss_has_a_case():
    cases = (*PAIRS.values(), *CLASSES.values(), *VIEWS.values())
    assert CATALOGUE.keys() == {case.loss.__name__ for case in cases} | set(ALONE)


def test_the_catalogue_cannot_be_changed():
    for table in (CATALOGUE, BESIDE, ARGUMENTS):
        with pytest.raises(TypeError):
            table["triplet"] = None  # type: ignore[index]


def check_entry(loss, entry):
    """The entry agrees with the signature and the docstring of the loss."""
    parameters = inspect.signature(loss).parameters
    assert entry.takes == tuple(name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
    assert (entry.state is not None) == ("state" in entry.takes)
    assert entry.bias is None or "bias" in parameters
    several = [shape_of(p.annotation) == "c k d" for name, p in parameters.items() if name == "prototypes"]
    assert entry.several == any(several)
    assert set(entry.lengths) <= set(entry.takes)
    assert set(entry.refuses) <= options_of(loss)
    assert entry.added_to in ("", *CATALOGUE, *(other.kind for other in CATALOGUE.values()))
    words = " ".join(inspect.getdoc(loss).split())
    assert all(paper in words for paper in entry.paper.split("; "))


@names
def test_entry_agrees_with_signature_and_docstring(name):
    check_entry(getattr(mj.losses, name), CATALOGUE[name])


@pytest.mark.parametrize("name", ["center", "koleo", "merged_centers"])
def test_weights_are_those_of_docstrings(name):
    words = inspect.getdoc(getattr(mj.losses, name))
    assert f"weight {CATALOGUE[name].weight}" in words or f"weight ({CATALOGUE[name].weight} " in words


def arrays_of(name, entry):
    """What the loss takes, of embeddings of uneven lengths."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((N, D), (C, 3, D)))
    w = w if entry.several else w[:, 0]
    known = {
        "embeddings": x,
        "x": x,
        "y": x[::-1] + 0.5 * x,
        "labels": jnp.arange(N) % C,
        "prototypes": w,
        "centers": w,
    }
    known |= {"key": jax.random.key(0)} | ({"state": entry.first("state", C)} if "state" in entry.takes else {})
    return {array: known[array] for array in entry.takes}


@pytest.mark.slow
@names
def test_it_refuses_what_the_entry_says_and_nothing_else(name):
    entry, loss = CATALOGUE[name], getattr(mj.losses, name)
    arrays, refused = arrays_of(name, entry), set()
    rows = len(arrays[entry.takes[0]])
    options = OPTIONS | {"where": jnp.ones(rows, bool), "weights": jnp.ones(rows)}
    for option in options.keys() & options_of(loss) - {"reference_labels"}:
        given = {key: options[key] for key in (option, "reference_labels") if option in (key, "references")}
        try:
            jax.eval_shape(lambda arrays, given=given: loss(**arrays, **given), arrays)
        except TypeError as error:
            assert "takes no" in str(error) or option in str(error)
            refused.add(option)
    assert refused == set(entry.refuses)


@pytest.mark.slow
@names
def test_lengths_count_where_the_entry_says(name):
    entry, loss = CATALOGUE[name], getattr(mj.losses, name)
    value = lambda arrays: np.ravel(jax.tree.leaves(loss(**arrays))[0])[0]
    arrays = arrays_of(name, entry)
    for array in entry.takes:
        if array in ARGUMENTS and ARGUMENTS[array].features:
            values = [value({**arrays, array: factor * arrays[array]}) for factor in (1, 1e-3, 30)]
            assert np.allclose(values[1:], values[0], rtol=1e-4) == (array not in entry.lengths), array


def shape_of(annotation) -> str:
    """Of a jaxtyping annotation, or the one in a union; nothing of another."""
    return next((a.dim_str for a in get_args(annotation) or [annotation] if hasattr(a, "dim_str")), "")


def test_arguments_are_what_their_shapes_say():
    """Of every annotation of a loss and of its options."""
    found = {}
    for name in CATALOGUE:
        parameters = dict(inspect.signature(getattr(mj.losses, name)).parameters)
        options = parameters.pop("options").annotation if "options" in parameters else None
        annotations = {key: p.annotation for key, p in parameters.items()}
        for key, annotation in annotations.items() | {x for b in get_args(options) for x in b.__annotations__.items()}:
            first, *rest = shape_of(annotation).split() or [""]
            if each := {"n": "row", "m": "row", "c": "class"}.get(first):
                found[key] = Argument(each, features=rest[-1:] == ["d"])
    assert found == ARGUMENTS
    assert ARGUMENTS.keys() >= set(Batch._fields)


def test_prefixes_of_several_prototypes_are_cut_along_the_features():
    z, labels, w = arrays_of("soft_triple", CATALOGUE["soft_triple"]).values()
    nested = mj.matryoshka(mj.losses.soft_triple, sizes=(2, D))(z, labels, w)
    wanted = mj.losses.soft_triple(z[:, :2], labels, w[..., :2]) + mj.losses.soft_triple(z, labels, w)
    np.testing.assert_allclose(nested, wanted, rtol=1e-6)


def test_views_given_by_name_are_split_over_a_mesh():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    views = arrays_of("clip", CATALOGUE["clip"])
    split = jax.jit(mj.over_mesh(mj.losses.clip, "data", mesh))(**views)
    np.testing.assert_allclose(split, mj.losses.clip(**views), rtol=1e-6)
