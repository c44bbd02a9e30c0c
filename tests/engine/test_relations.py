"""Relations between labels, in losses that take each way through the driver."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jax.tree_util import Partial

import metricjax as mj
from tests.helpers import oracle, oracle_pairs
from tests.helpers.batches import each_of, slow_unless
from tests.helpers.programs import value_and_grad

NAMES = ("supcon", "margin", "lifted_structure", "triplet", "triplet-semi-hard", "triplet-all")
cases = each_of(NAMES, ("supcon", "triplet", "triplet-all"))
relations = mj.relations
N, M = 10, 7


def rows(n, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, 4)), jnp.float32)


def integers(highest, shape, seed):
    return jnp.asarray(np.random.default_rng(seed).integers(0, highest, shape))


def same_down_to_1(a, b):
    return a[0] == b[0] and a[1] == b[1]


def no_pair_of_unknown(a, b):
    return a == b and a >= 0, a != b and min(a, b) >= 0


# Labels for n rows by a seed, the relation, and what it says of two labels: whether they are a positive pair, and
# whether a negative one if it is not simply the opposite.
RELATIONS = {
    "share_any": (lambda n, seed: integers(4, (n, 3), seed) < 1, relations.share_any, lambda a, b: any(a & b)),
    "share_all": (
        lambda n, seed: integers(4, (n, 2), seed) < 3, relations.share_all, lambda a, b: list(a) == list(b) and any(a)
    ),
    "same_level": (lambda n, seed: integers(2, (n, 3), seed), relations.same_level(1), same_down_to_1),
    "across_cameras": (
        lambda n, seed: integers(3, (n, 2), seed), relations.across_cameras,
        lambda a, b: (a[0] == b[0] and a[1] != b[1], a[0] != b[0]),
    ),
    "ignoring": (lambda n, seed: integers(4, n, seed) - 1, relations.ignoring(-1), no_pair_of_unknown),
}  # fmt: skip


def lists(says, labels, columns, itself):
    """The columns that are positives of each row, and those that are negatives."""
    positives, negatives = [], []
    for i, a in enumerate(labels):
        told = {j: says(a, b) for j, b in enumerate(columns) if not (itself and i == j)}
        told = {j: v if isinstance(v, tuple) else (v, not v) for j, v in told.items()}
        positives.append([j for j, (positive, _) in told.items() if positive])
        negatives.append([j for j, (_, negative) in told.items() if negative])
    return positives, negatives


def expected(case, says, z, labels, references=None, reference_labels=None):
    itself = references is None
    z, labels = np.asarray(z), np.asarray(labels)
    x, columns = (z, labels) if itself else (np.asarray(references), np.asarray(reference_labels))
    around = {}
    if case.loss is mj.losses.lifted_structure:
        around = {
            "columns": oracle.matrix(case.measure, x, x),
            "column_negatives": lists(says, columns, columns, True)[1],
        }
    scores = oracle.matrix(case.measure, z, x)
    fixed = {**case.fixed, **case.oracle_fixed, **around}
    return case.oracle(scores, *lists(says, labels, columns, itself), **fixed)


def close(actual, wanted, rtol=2e-5, atol=2e-6):
    chex.assert_trees_all_close(
        actual, jax.tree.map(lambda a, b: np.asarray(a, b.dtype), wanted, actual), rtol=rtol, atol=atol
    )


@cases
@pytest.mark.parametrize("name", slow_unless(["share_all", "across_cameras"], RELATIONS))
def test_relation_equals_explicit_lists(case, name):
    make, same, says = RELATIONS[name]
    z, labels = rows(N, 0), make(N, 4)
    wanted = expected(case, says, z, labels)
    assert wanted > 0
    for size in (None, 4):
        close(case(z, labels, same=same, block_size=size), wanted)
    given = {"references": rows(M, 2), "reference_labels": make(M, 3)}
    close(case(z, labels, same=same, block_size=4, **given), expected(case, says, z, labels, **given))


@cases
def test_gradient_with_pairs_of_neither_kind(case):
    make, same, _ = RELATIONS["across_cameras"]
    z, labels = rows(N, 0), make(N, 4)
    dense, panels = (
        jax.jit(jax.grad(lambda z, size=size: case(z, labels, same=same, block_size=size)))(z) for size in (None, 4)
    )
    assert np.any(dense)
    close(panels, dense)


@cases
@pytest.mark.parametrize("size", [None, 4])
def test_ignored_rows_might_as_well_not_exist(case, size):
    """With labels of any shape, and on top of another relation."""
    z, labels = rows(N, 0), integers(4, N, 4) - 1
    wanted = value_and_grad(case, z, labels, where=labels >= 0, block_size=size)
    assert wanted[0] > 0
    coarse_to_fine = jnp.stack([labels, jnp.arange(N)], axis=1)
    for same, y in (
        (relations.ignoring(-1), labels),
        (relations.ignoring(-1, relations.same_level(0)), coarse_to_fine),
    ):
        close(value_and_grad(case, z, y, same=same, block_size=size), wanted)


# --- a relation that holds an array ---------------------------------------------------------------------------------


def same_in(table, a, b):
    return table[a] == table[b]


@cases
@pytest.mark.parametrize("size", [pytest.param(None, marks=pytest.mark.slow), 4])
def test_relation_with_a_traced_table(case, size):
    """A table from class to superclass: one compiled program for all tables, and a vmap over them is a loop."""
    z, labels = rows(N, 0), integers(5, N, 1)
    tables = jnp.array([[0, 0, 1, 1, 1], [0, 1, 2, 0, 1]])
    traces = []

    @jax.jit
    def f(z, table):
        traces.append(None)
        return jax.jit(jax.value_and_grad(lambda z: case(z, labels, same=Partial(same_in, table), block_size=size)))(z)

    loop = [f(z, table) for table in tables]
    assert len(traces) == 1
    for (value, _), table in zip(loop, np.asarray(tables), strict=True):
        close(value, expected(case, lambda a, b, t=table: t[a] == t[b], z, labels))
    close(jax.jit(jax.vmap(f, (None, 0)))(z, tables), jax.tree.map(lambda *a: jnp.stack(a), *loop))


@pytest.mark.parametrize("size", [None, 4])
def test_equal_relations_compile_once(size):
    """A relation that is made anew in every step is the same function, so that nothing is traced again."""
    z, tree, flat = rows(N, 0), integers(2, (N, 3), 1), integers(4, N, 1) - 1
    table = jnp.arange(5)
    step = (
        lambda: mj.losses.supcon(z, tree, same=relations.same_level(1), block_size=size),
        lambda: mj.losses.supcon(z, flat, same=relations.ignoring(-1), block_size=size),
        lambda: mj.losses.supcon(z, tree, same=relations.ignoring(-1, relations.same_level(1)), block_size=size),
        lambda: mj.losses.supcon(z, flat, same=Partial(same_in, table), block_size=size),
        lambda: mj.losses.supcon(z, tree, grade=relations.depth, block_size=size),
    )
    first = [loss() for loss in step]
    with jax.no_tracing(True):
        again = [loss() for loss in step]
    assert first == again


# --- grades ---------------------------------------------------------------------------------------------------------


def jaccard(a, b):
    return sum(a & b) / max(sum(a | b), 1)


def agreeing_levels(a, b):
    count = 0
    while count < len(a) and a[count] == b[count]:
        count += 1
    return count / len(a)


def share_more_than_a_third(a, b):
    return relations.overlap(a, b) > 0.34


GRADES = {
    "overlap": (RELATIONS["share_any"][0], relations.overlap, jaccard, None, lambda a, b: jaccard(a, b) > 0),
    "overlap-narrowed": (
        RELATIONS["share_any"][0], relations.overlap, jaccard, share_more_than_a_third,
        lambda a, b: jaccard(a, b) > 0.34,
    ),
    "depth": (RELATIONS["same_level"][0], relations.depth, agreeing_levels, None, lambda a, b: a[0] == b[0]),
    "depth-two-masks": (
        RELATIONS["across_cameras"][0], relations.depth, agreeing_levels, relations.across_cameras,
        RELATIONS["across_cameras"][2],
    ),
    "depth-widened": (  # some positives have grade 0
        RELATIONS["same_level"][0], relations.depth, agreeing_levels, relations.same_level(-1), lambda a, b: True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", ["out", "in"])
@pytest.mark.parametrize("name", slow_unless(["overlap-narrowed", "depth"], GRADES))
def test_graded_supcon_equals_the_oracle(name, variant):
    make, grade, share, same, says = GRADES[name]
    z, labels = rows(N, 0), make(N, 1)
    options = {"grade": grade, "variant": variant, "same": same}

    def wanted(x, y, itself):
        pairs = lists(says, np.asarray(labels), np.asarray(y), itself)
        weights = [[share(a, b) for b in np.asarray(y)] for a in np.asarray(labels)]
        return oracle_pairs.supcon(oracle.matrix("cosine_similarity", z, x), *pairs, variant=variant, weights=weights)

    dense, panels = (
        jax.jit(jax.value_and_grad(lambda z, size=size: mj.losses.supcon(z, labels, block_size=size, **options)))(z)
        for size in (None, 4)
    )
    assert wanted(z, labels, True) > 0
    close(dense[0], wanted(z, labels, True))
    close(panels, dense)
    x, y = rows(M, 2), make(M, 3)
    over = mj.losses.supcon(z, labels, references=x, reference_labels=y, block_size=4, **options)
    close(over, wanted(x, y, False))


@pytest.mark.parametrize("variant", ["out", "in"])
def test_gradient_of_graded_supcon(variant, x64):
    z, labels = rows(N, 0).astype(jnp.float64), RELATIONS["share_any"][0](N, 1)
    f = lambda z: mj.losses.supcon(jnp.asarray(z), labels, grade=relations.overlap, variant=variant)
    check_grads(f, (z,), order=1, modes=["rev"], eps=1e-6, rtol=1e-6)


def test_grade_of_equal_labels_is_plain_supcon():
    z, labels = rows(N, 0), integers(4, N, 1)
    for variant in ("out", "in"):
        graded, plain = (
            jax.jit(
                jax.value_and_grad(
                    lambda z, how=how, variant=variant: mj.losses.supcon(z, labels, variant=variant, **how)
                )
            )(z)
            for how in ({"grade": lambda a, b: 0.5 * (a == b).astype(jnp.float32)}, {})
        )
        close(graded, plain)
