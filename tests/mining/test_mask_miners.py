import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from tests.helpers import oracle_mining
from tests.helpers.batches import masks

mining = mj.mining
LABELS = np.array([0, 0, 1, 1, 1, 2, 3, 0, 3, 3])  # 2 is alone
STRATEGIES = ("easy", "semi_hard", "hard", "all")
REFUSED = {("semi_hard", "semi_hard"), ("semi_hard", "all"), ("all", "semi_hard")}
PAIRS_OF_STRATEGIES = [(p, n) for p in STRATEGIES for n in STRATEGIES if (p, n) not in REFUSED]
KINDS = ("all", "hard", "semi_hard", "easy")

# Name of the miner and of its oracle, and the settings of the one and of the other.
CASES = {
    "multi_similarity": ("multi_similarity", (0.25,)),
    "pair_margin": ("pair_margin", (0.25, 0.75)),
    **{f"{p}-{n}": ("batch_easy_hard", (p, n)) for p, n in PAIRS_OF_STRATEGIES},
    **{f"{p}-{n}-in-ranges": ("batch_easy_hard", (p, n, (0.25, 0.75), (0.25, 0.5))) for p, n in PAIRS_OF_STRATEGIES},
    "ranks": ("rank_range", ((2, 4),)),
    "ranks-of-both": ("rank_range", ((1, 2), (2, 3))),
    "ranks-of-positives": ("rank_range", (None, (2, 99))),
    **{f"margin-{kind}": ("triplet_margin", (0.25, kind)) for kind in KINDS},
}
NUMBERS = {  # for each miner with numbers: a maker, and values that matter
    "multi_similarity": (mining.multi_similarity, (0.1, 0.5)),
    "pair_margin": (lambda v: mining.pair_margin(v, 1 - v), (0.1, 0.5)),
    "ranges": (lambda v: mining.batch_easy_hard("hard", "hard", (0.0, 1 - v), (v, 1.0)), (0.1, 0.5)),
    "first rank": (lambda v: mining.rank_range((v, 4)), (1, 3)),
    "last rank": (lambda v: mining.rank_range((1, v), (1, v)), (1, 3)),
    **{k: (lambda v, kind=k: mining.triplet_margin(v, kind), (0.05, 0.4)) for k in KINDS if k != "hard"},
    "hard": (lambda v: mining.chain(mining.triplet_margin(0.3, "hard"), mining.pair_margin(v)), (0.1, 0.5)),
    "chain": (lambda v: mining.chain(mining.multi_similarity(v), mining.triplet_margin(v)), (0.1, 0.5)),
    "switch": (lambda v: mining.switch(v, [mining.chain(), mining.pair_margin(0.5, 0.5)]), (0, 1)),
}


run = jax.jit(lambda miner, *arrays: miner(*arrays))


def distances(ties, rng, shape=(10, 10)):
    d = rng.integers(0, 5, shape) / 4 if ties else rng.random(shape)
    return jnp.asarray(d, jnp.float32)


def oracle_rows(name, d, positives, negatives, settings):
    rule = getattr(oracle_mining, name)
    return [rule(row, ps, ns, *settings) for row, ps, ns in zip(np.asarray(d), positives, negatives, strict=True)]


def kept(lists):
    """Rows of kept columns as a mask [n, m]."""
    return np.array([[j in row for j in range(len(LABELS))] for row in lists])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_keeps_what_the_oracle_keeps(case, ties, rng):
    name, settings = CASES[case]
    d = distances(ties, rng, (40, 10))
    positives, negatives, p, n = masks(LABELS)
    positives, negatives, p, n = positives * 4, negatives * 4, jnp.tile(p, (4, 1)), jnp.tile(n, (4, 1))
    positives[7], p = [], p.at[7].set(False)  # row 5 has no positives either, row 8 no negatives
    negatives[8], n = [], n.at[8].set(False)
    expected = oracle_rows(name, d, positives, negatives, settings)
    got = run(getattr(mining, name)(*settings), d, p, n)
    for side in (0, 1):
        np.testing.assert_array_equal(got[side], kept([row[side] for row in expected]))


@pytest.mark.parametrize("case", CASES)
def test_each_row_by_itself(case, rng):
    """Rows in any number and columns that are neither side change nothing."""
    name, settings = CASES[case]
    miner, d = getattr(mining, name)(*settings), distances(True, rng)
    _, _, p, n = masks(LABELS)
    whole = run(miner, d, p, n)
    in_parts = [run(miner, d[i : i + 5], p[i : i + 5], n[i : i + 5]) for i in (0, 5)]
    chex.assert_trees_all_equal(whole, jax.tree.map(lambda *a: jnp.concatenate(a), *in_parts))
    more = lambda a, value: jnp.pad(a, [(0, 0), (2, 3)], constant_values=value)
    padded = run(miner, more(d, 0), more(p, False), more(n, False))
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[:, 2:-3], padded), whole)


@pytest.mark.parametrize("case", CASES)
def test_nothing_there_and_no_nan(case, debug_nans):
    name, settings = CASES[case]
    miner = getattr(mining, name)(*settings)
    empty = jnp.zeros((3, 4), bool)
    for value in (0.0, 1e30):
        for p, n in ((empty, empty), (empty, ~empty), (~empty, empty)):
            got = run(miner, jnp.full((3, 4), value), p, n)
            assert not np.any(got[0] & ~p) and not np.any(got[1] & ~n)


@pytest.mark.parametrize("margin", [0.25, float("inf")])
def test_all_violating_triplets_need_both_sides(margin):
    full, empty = jnp.ones((2, 3), bool), jnp.zeros((2, 3), bool)
    for p, n in ((full, empty), (empty, full)):
        assert not np.any(mining.triplet_margin(margin)(jnp.ones((2, 3)), p, n))


def test_an_anchor_with_fewer_keeps_what_is_in_range():
    d, n = jnp.array([[0.3, 0.1, 0.2]]), jnp.ones((1, 3), bool)
    for ranks, expected in (((2, 9), [1, 0, 1]), ((3, 4), [1, 0, 0]), ((4, 9), [0, 0, 0])):
        np.testing.assert_array_equal(mining.rank_range(ranks)(d, ~n, n)[1], [expected])


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_traced(case, rng):
    """Leaves of a tree: one compiled program for all values, and a vmap over them is a loop."""
    make, values = NUMBERS[case]
    d = distances(False, rng)
    _, _, p, n = masks(LABELS)
    assert jax.tree.structure(make(values[0])) == jax.tree.structure(make(values[1]))
    loop = [make(v)(d, p, n) for v in values]
    assert any(np.any(a != b) for a, b in zip(*loop, strict=True))  # or nothing would be tested
    traces = []
    counted = jax.jit(lambda miner: traces.append(0) or miner(d, p, n))
    chex.assert_trees_all_equal([counted(make(v)) for v in values], loop)
    assert len(traces) == 1
    inside = jax.jit(lambda v: make(v)(d, p, n))
    chex.assert_trees_all_equal([inside(v) for v in values], loop)
    mapped = jax.vmap(lambda v: make(v)(d, p, n))(jnp.asarray(values))
    chex.assert_trees_all_equal(mapped, jax.tree.map(lambda *a: jnp.stack(a), *loop))


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_of_any_dtype(case, rng):
    """What traces the leaves may cast them to the dtype of the embeddings, and distances may be float64."""
    make, values = NUMBERS[case]
    d = distances(False, rng)
    _, _, p, n = masks(LABELS)
    cast = lambda dtype: jax.tree.map(lambda v: jnp.asarray(v, dtype), make(values[1]))
    expected = run(make(values[1]), d, p, n)
    chex.assert_trees_all_equal(run(cast(jnp.float32), d, p, n), expected)
    with jax.enable_x64(True):
        chex.assert_trees_all_equal(run(make(values[1]), d.astype(jnp.float64), p, n), expected)
        chex.assert_trees_all_equal(run(cast(jnp.float64), d, p, n), expected)


def test_settings_that_are_no_numbers_are_structure():
    structure = jax.tree.structure
    assert structure(mining.triplet_margin(kind="all")) != structure(mining.triplet_margin(kind="easy"))
    assert structure(mining.batch_easy_hard("hard", "easy")) != structure(mining.batch_easy_hard("easy", "hard"))
    assert structure(mining.batch_easy_hard("hard", "easy")) == structure(mining.batch_easy_hard("hard", "easy"))
    assert structure(mining.rank_range((1, 2))) != structure(mining.rank_range((1, 2), (1, 2)))
    assert jax.tree.leaves(mining.batch_easy_hard()) == []
    assert jax.tree.leaves(mining.chain(_nearer_than_half, mining.pair_margin(1, 2))) == [1, 2]


def _nearer_than_half(distances, positives, negatives):
    return positives, negatives & (distances < 0.5)


def test_chain_is_composition(rng):
    d = distances(False, rng)
    _, _, p, n = masks(LABELS)
    parts = (_nearer_than_half, mining.rank_range((2, 3)), mining.multi_similarity(0.3))
    expected = parts[2](d, *parts[1](d, *parts[0](d, p, n)))
    chex.assert_trees_all_equal(mining.chain(*parts)(d, p, n), expected)
    chex.assert_trees_all_equal(mining.chain(mining.chain(*parts[:2]), parts[2])(d, p, n), expected)
    chex.assert_trees_all_equal(mining.chain()(d, p, n), (p, n))


def test_switch_takes_the_miner_at_the_index(rng):
    d = distances(False, rng)
    _, _, p, n = masks(LABELS)
    parts = [mining.pair_margin(0.3), _nearer_than_half, mining.chain(_nearer_than_half, mining.rank_range((1, 2)))]
    run = jax.jit(lambda index: mining.switch(index, parts)(d, p, n))
    for index, part in ((0, 0), (1, 1), (2, 2), (-1, 0), (7, 2)):
        chex.assert_trees_all_equal(run(index), parts[part](d, p, n))
    for index in range(3):
        chex.assert_trees_all_equal(mining.switch(index, parts)(d, p, n), parts[index](d, p, n))
    mapped = jax.vmap(lambda index: mining.switch(index, parts)(d, p, n))(jnp.arange(3))
    chex.assert_trees_all_equal(mapped, jax.tree.map(lambda *a: jnp.stack(a), *(part(d, p, n) for part in parts)))


@pytest.mark.parametrize("case", ["multi_similarity", "easy-semi_hard", "ranks-of-both", "margin-semi_hard"])
def test_a_loss_sees_what_is_kept_in_panels_too(case, rng):
    name, settings = CASES[case]
    z, y = jnp.asarray(rng.standard_normal((10, 4)), jnp.float32), jnp.asarray(LABELS)
    positives, negatives, *_ = masks(LABELS)
    d = mj.distances.chord(z, z)
    rows = oracle_rows(name, d, positives, negatives, settings)
    terms = [np.maximum(1 - d[i, j], 0) ** 2 / 2 for i, (_, ns) in enumerate(rows) for j in ns]
    terms += [d[i, j] ** 2 / 2 for i, (ps, _) in enumerate(rows) for j in ps]
    for size in (None, 3):
        loss = lambda z, size=size: mj.losses.contrastive(
            z, y, miner=getattr(mining, name)(*settings), block_size=size, reduction=lambda mean: jnp.sum(mean.total)
        )
        np.testing.assert_allclose(loss(z), sum(terms), rtol=1e-5)


def test_what_is_refused(unchecked):
    for p, n in REFUSED:
        with pytest.raises(ValueError, match=f"positive is '{p}' and negative '{n}'"):
            mining.batch_easy_hard(p, n)
    with pytest.raises(ValueError, match="positive is 'semihard'; wanted one of"):
        mining.batch_easy_hard("semihard")
    with pytest.raises(ValueError, match="negative is 'hardest'; wanted one of"):
        mining.batch_easy_hard("easy", "hardest")
    with pytest.raises(ValueError, match="kind is 'semihard'; wanted one of"):
        mining.triplet_margin(kind="semihard")
    with pytest.raises(ValueError, match="no miners"):
        mining.switch(0, [])
    for make in (lambda: mining.chain(0.5), lambda: mining.switch(0, [None])):
        with pytest.raises(TypeError, match="wanted functions"):
            make()
