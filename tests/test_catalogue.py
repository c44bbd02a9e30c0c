"""The catalogue says what is: of every public loss, its arguments, its paper, what it refuses, and which lengths count."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine.anchors import Batch
from metricjax.losses.catalogue import ARGUMENTS, BESIDE, CATALOGUE, Argument
from tests.cases import ALONE, CLASSES, PAIRS, VIEWS, options_of

N, C, D = 12, 4, 5
names = pytest.mark.parametrize("name", CATALOGUE)
OPTIONS = {
    "where": jnp.ones(N, bool), "weights": jnp.ones(N), "references": jnp.ones((3, D)), "same": mj.relations.equal,
    "reference_labels": jnp.arange(3), "miner": mj.mining.pair_margin, "reduction": mj.with_count, "block_size": 4,
    "ignore_above": 0.9, "num_classes": C, "label_smoothing": 0.1,
}  # fmt: skip


def test_every_public_function_is_a_loss_of_the_catalogue_or_beside_one():
    public = {name for name, f in vars(mj.losses).items() if inspect.isfunction(f)}
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
    several = [p.annotation.dim_str == "c k d" for name, p in parameters.items() if name == "prototypes"]
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
    state = entry.state(C) if callable(entry.state) else entry.state
    known = {"embeddings": x, "x": x, "y": x[::-1] + 0.5 * x, "labels": jnp.arange(N) % C, "prototypes": w, "centers": w}
    known |= {"key": jax.random.key(0)} | ({} if state is None else {"state": jnp.asarray(state)})
    return {array: known[array] for array in entry.takes}


@names
def test_it_refuses_what_the_entry_says_and_nothing_else(name):
    entry, loss = CATALOGUE[name], getattr(mj.losses, name)
    arrays, refused = arrays_of(name, entry), set()
    for option in OPTIONS.keys() & options_of(loss) - {"reference_labels"}:
        given = {key: OPTIONS[key] for key in (option, "reference_labels") if option in (key, "references")}
        try:
            jax.eval_shape(lambda arrays, given=given: loss(**arrays, **given), arrays)
        except TypeError as error:
            assert "takes no" in str(error) or option in str(error)
            refused.add(option)
    assert refused == set(entry.refuses)


@names
def test_lengths_count_where_the_entry_says(name):
    entry, loss = CATALOGUE[name], getattr(mj.losses, name)
    value = lambda arrays: np.ravel(jax.tree.leaves(loss(**arrays))[0])[0]
    arrays = arrays_of(name, entry)
    before = value(arrays)
    for array in entry.takes:
        if array in ARGUMENTS and ARGUMENTS[array].features:
            after = value({**arrays, array: arrays[array] * jnp.linspace(1e-3, 2e-3, len(arrays[array]))[
                (..., *[None] * (arrays[array].ndim - 1))]})  # fmt: skip
            assert np.isclose(after, before, rtol=1e-3) == (array not in entry.lengths), array


def test_arguments_are_what_their_shapes_say():
    """Of every annotation of a loss and of its options."""
    found = {}
    for name in CATALOGUE:
        loss = getattr(mj.losses, name)
        parameters = dict(inspect.signature(loss).parameters)
        shared = getattr(parameters.pop("options", None), "annotation", None)
        annotated = {key: p.annotation for key, p in parameters.items()}
        for bundle in getattr(shared, "__args__", ()):
            annotated |= bundle.__annotations__
        for key, annotation in annotated.items():
            for shape in filter(None, (getattr(a, "dim_str", "") for a in getattr(annotation, "__args__", (annotation,)))):
                each = {"n": "row", "m": "row", "c": "class"}.get(shape.split()[0])
                if each:
                    found[key] = Argument(each, features=shape.split()[-1] == "d")
    assert found == ARGUMENTS
    assert ARGUMENTS.keys() >= set(Batch._fields)


def test_prefixes_of_several_prototypes_are_cut_along_the_features():
    z, labels, w = arrays_of("soft_triple", CATALOGUE["soft_triple"]).values()
    nested = mj.matryoshka(mj.losses.soft_triple, sizes=(2, D))(z, labels, w)
    wanted = mj.losses.soft_triple(z[:, :2], labels, w[..., :2]) + mj.losses.soft_triple(z, labels, w)
    np.testing.assert_allclose(nested, wanted, rtol=1e-6)
