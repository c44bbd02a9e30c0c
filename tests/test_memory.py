"""Memory banks: what is pushed, what of it is compared, and that a loss over a bank is the loss over all rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import metricjax as mj
from metricjax.engine.sizes import LIST
from metricjax.memory import Bank
from tests.helpers import oracle
from tests.helpers.batches import D, N, batch, close, paths_with
from tests.helpers.cases import PAIRS
from tests.helpers.meshes import SPLIT, WHOLE, assert_same, axes, mesh_of, put
from tests.helpers.programs import run, usual, value_and_grad

SLOW = pytest.mark.slow


def filled(capacity=11, pushed=9, seed=2, **options):
    """A bank of rows of another batch, in two pushes, and some free places."""
    z, y, _ = batch(seed, n=pushed)
    half = pushed // 2
    return Bank.empty(capacity, D, **options).push(z[:half], y[:half]).push(z[half:], y[half:])


# --- which rows of the batch references are ---------------------------------------------------------------------------


def rows_among_references(seed=1):
    """A batch, and references of which some are rows of it, in no order, one twice, and some are masked."""
    z, y, _ = batch(seed)
    others, labels, _ = batch(seed + 1, n=9)
    ids = jnp.array([-1, 12, -1, 3, -1, 0, 12, -7, 5], jnp.int32)
    is_row = ids >= 0
    return z, y, {
        "references": jnp.where(is_row[:, None], z[ids], others),
        "reference_labels": jnp.where(is_row, y[ids], labels),
        "reference_where": jnp.arange(9) != 2,
        "reference_ids": ids,
    }  # fmt: skip


@paths_with("references", ("supcon",))
@pytest.mark.parametrize("block_size", [None, pytest.param(5, marks=SLOW)])
def test_a_row_is_not_compared_with_the_reference_that_it_is(case, block_size):
    z, y, given = rows_among_references()
    # Where they are not known to be rows, they are near them: rounding decides whether a distance of 0 is one.
    near = {
        "references": given["references"] * jnp.linspace(0.5, 1.5, D)[None],
        "reference_ids": jnp.full(9, -1, jnp.int32),
    }
    for one in (given, {**given, **near}):
        value, _ = run(case, z, y, block_size=block_size, weights=jnp.ones(N), **one)
        close(value, case.expected(z, y, **usual(case), **one), rtol=5e-5)


@paths_with("references", ())
@pytest.mark.parametrize("block_size", [None, 5])
def test_loss_over_batch_and_bank_is_that_over_all_rows(case, block_size):
    """Of which those of the batch are anchors; free places and rows that do not exist do not count."""
    z, y, _ = batch(1)
    where, bank = jnp.arange(N) % 5 != 4, filled()
    z = jnp.where(where[:, None], z, jnp.nan)
    how = {"block_size": block_size, **usual(case)}
    one = lambda z: case(z, y, where=where, **how, **bank.options(z, y, where=where))
    value, gradient = jax.jit(jax.value_and_grad(one))(z)
    labels, there = jnp.concatenate([y, bank.labels]), jnp.concatenate([where, bank.age >= 0])
    weights = jnp.concatenate([jnp.ones(N), jnp.zeros(len(bank.age))])
    every = lambda z: case(jnp.concatenate([z, bank.embeddings]), labels, where=there, weights=weights, **how)
    expected, expected_gradient = jax.jit(jax.value_and_grad(every))(z)
    close(value, expected)
    scale = max(1.0, np.abs(expected_gradient).max())
    close(gradient, expected_gradient, rtol=1e-4, atol=1e-5 * scale)
    assert np.any(gradient)


@paths_with("references", ())
def test_an_empty_bank_and_one_that_waits_change_nothing(case):
    z, y, _ = batch(3)

    @jax.jit
    def loss(bank, use):
        return jax.value_and_grad(lambda z: case(z, y, **usual(case), **bank.options(z, y, use=use)))(z)

    alone = value_and_grad(case, z, y, **usual(case))
    for bank, use in ((Bank.empty(11, D), True), (filled(), False)):
        chex.assert_trees_all_close(loss(bank, use), alone, rtol=2e-5, atol=1e-6)
    assert abs(loss(filled(), True)[0] - alone[0]) > 1e-3


@SLOW
@pytest.mark.parametrize("loss", ["supcon", "angular", "triplet"])
def test_lists_of_positives_leave_the_row_itself_out(loss, rng):
    """Where it stands at another number among the references, and where it is there twice."""
    y = jnp.asarray(rng.permutation(LIST + 8) // 6)
    z = jnp.asarray(rng.standard_normal((len(y), D)), jnp.float32)
    ids = jnp.asarray(rng.permutation(len(y)))
    ids = ids.at[5].set(ids[4])
    given = {"references": z[ids], "reference_labels": y[ids], "reference_ids": ids.at[:4].set(-1), "block_size": 30}
    select = {"triplets": mj.mining.semi_hard} if loss == "triplet" else {}
    f = lambda z, **how: getattr(mj.losses, loss)(z, y, **select, **given, **how)
    by_lists, by_masks = value_and_grad(f, z), value_and_grad(f, z, same=mj.relations.equal)
    chex.assert_trees_all_close(by_lists, by_masks, rtol=1e-4, atol=1e-5)


@SLOW
@pytest.mark.parametrize("block_size", [None, 5])
def test_the_obvious_recipe_counts_the_row_itself(block_size):
    """Batch and bank as references, of which nobody says that the first are the rows: its loss is another."""
    (z, y, _), bank = batch(1), filled(9)
    right = bank.options(z, y)
    obvious = {name: right[name] for name in ("references", "reference_labels")}
    rows, labels = np.concatenate([z, bank.embeddings]), np.concatenate([y, bank.labels])
    scores = oracle.matrix("cosine_similarity", z, rows)
    with_itself = oracle.neighbours(y, None, labels)
    lists = [[[j for j in row if j != i] for i, row in enumerate(side)] for side in with_itself]
    loss = lambda given: mj.losses.supcon(z, y, temperature=0.5, block_size=block_size, **given)
    close(loss(right), oracle.supcon(scores, *lists, temperature=0.5))
    close(loss(obvious), oracle.supcon(scores, *with_itself, temperature=0.5))
    assert loss(right) > loss(obvious) + 0.05


@SLOW
def test_losses_made_of_losses_take_a_bank():
    """Prefixes, weighted sums, and a batch that is encoded in chunks."""
    (z, y, _), bank = batch(1), filled()
    one = lambda z, loss, size=D: loss(z[:, :size], y, **cut(bank.options(z, y), size))
    cut = lambda options, size: {**options, "references": options["references"][:, :size]}
    supcon, triplet = mj.losses.supcon, mj.losses.triplet
    both = mj.weighted_sum(supcon, triplet, weights=(1.0, 0.5))(z, y, **bank.options(z, y))
    close(both, one(z, supcon) + 0.5 * one(z, triplet))
    prefixes = mj.matryoshka(supcon, (2, D))(z, y, **bank.options(z, y))
    close(prefixes, one(z, supcon, 2) + one(z, supcon))
    w, x = first_weights(0), jax.random.normal(jax.random.key(1), (N, 5))
    loss = lambda w, encode: one(encode(w, x), supcon)
    close(*(jax.grad(loss)(w, f) for f in (encode, mj.cached(encode, 7))), rtol=1e-4)


@SLOW
def test_empty_sides():
    z, y, bank = jnp.zeros((0, D)), jnp.zeros(0, jnp.int32), filled()
    value, gradient = jax.value_and_grad(lambda z: mj.losses.supcon(z, y, **bank.options(z, y)))(z)
    assert (value, gradient.shape) == (0, (0, D))
    chex.assert_trees_all_equal(bank.push(z, y)._replace(age=bank.age), bank)
    rows, labels, _ = batch(1)
    none = {"references": z, "reference_labels": y, "reference_ids": y}
    assert mj.losses.supcon(rows, labels, **none) == 0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"reference_ids": np.arange(3)}, "reference_ids describe references"),
        ({"references": np.eye(3), "reference_labels": np.arange(3), "reference_ids": np.arange(2)}, "wanted \\(3,\\)"),
        ({"references": np.eye(3), "reference_labels": np.arange(3), "reference_ids": np.ones(3)}, "wanted integers"),
    ],
)
def test_ids_that_describe_nothing_are_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mj.losses.supcon(jnp.eye(3), jnp.arange(3), **given)


# --- miners, selections, relations ------------------------------------------------------------------------------------

MINERS = {
    "angular": mj.mining.angular(0.6),
    "batch_easy_hard": mj.mining.batch_easy_hard("semi_hard", "hard"),
    "chain": mj.mining.chain(mj.mining.pair_margin(0.1, 1.1), mj.mining.multi_similarity()),
    "hard_fraction": mj.mining.hard_fraction(0.4),
    "multi_similarity": mj.mining.multi_similarity(),
    "pair_margin": mj.mining.pair_margin(0.2, 0.9),
    "rank_range": mj.mining.rank_range((1, 6)),
    "switch": mj.mining.switch(1, [mj.mining.pair_margin(), mj.mining.rank_range((2, 4))]),
    "triplet_margin": mj.mining.triplet_margin(0.2),
}
SELECTIONS = {
    "all_triplets": mj.mining.all_triplets,
    "batch_hard": mj.mining.batch_hard,
    "distance_weighted": mj.mining.distance_weighted(jax.random.key(0), D),
    "easy_positive_hard_negative": mj.mining.easy_positive_hard_negative,
    "semi_hard": mj.mining.semi_hard,
    "semi_hard_of_hardest": mj.mining.semi_hard_of_hardest,
    "semi_hard_within": mj.mining.semi_hard_within(0.5),
}


def test_every_miner_is_tried():
    of_a_corpus = {"HardNegatives", "hard_negatives"}
    assert {*MINERS, *SELECTIONS, *of_a_corpus, "Miner", "Selection", "Triplets"} == set(mj.mining.__all__)


def by_hand(z, y, bank, measure):
    """Distances and masks of the batch against itself and the bank, and what gives distances of columns."""
    columns = np.concatenate([z, bank.embeddings])
    labels, there = np.concatenate([y, bank.labels]), np.concatenate([y == y, bank.age >= 0])
    there = there & ~np.eye(N, len(labels), dtype=bool)
    match = y[:, None] == labels[None]
    among = jnp.asarray(oracle.matrix(measure, columns, columns), jnp.float32)
    return among[:N], jnp.asarray(match & there), jnp.asarray(~match & there), lambda index: among[index]


@SLOW
@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("name", MINERS)
def test_miner_keeps_of_batch_and_bank_what_it_keeps_of_their_distances(name, block_size):
    (z, y, _), bank, miner = batch(4), filled(), MINERS[name]
    d, p, n, row_of = by_hand(z, np.asarray(y), bank, "cosine")
    kept = miner(d, p, n, row_of)
    assert any(np.sum(mask) < np.sum(side) for mask, side in zip(kept, (p, n), strict=True))
    lists = ([np.flatnonzero(row) for row in mask] for mask in kept)
    loss = lambda **options: mj.losses.contrastive(z, y, distance=mj.distances.cosine, margin=1.5, **options)
    expected = oracle.contrastive(np.asarray(d), *lists, margin=1.5)
    close(loss(miner=miner, block_size=block_size, **bank.options(z, y)), expected, rtol=1e-4)


@SLOW
@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("name", SELECTIONS)
def test_selection_takes_of_batch_and_bank_what_it_takes_of_their_distances(name, block_size):
    (z, y, _), bank, select = batch(4), filled(), SELECTIONS[name]
    d, p, n, _ = by_hand(z, np.asarray(y), bank, "chord")
    anchor, positive, negative = (np.asarray(a)[np.asarray(select(d, p, n).valid)] for a in select(d, p, n)[:3])
    terms = np.asarray(d)[anchor, positive] - np.asarray(d)[anchor, negative] + 0.4
    loss = mj.losses.triplet(
        z, y, margin=0.4, triplets=select, distance=mj.distances.chord, block_size=block_size, **bank.options(z, y)
    )
    close(loss, np.mean(terms[terms > 0]), rtol=1e-4)


@SLOW
def test_labels_of_any_shape_and_relation():
    """Multi-hot labels, which match where they share one."""
    z, y, _ = batch(3)
    several = jnp.stack([y == 0, y == 1, (y == 2) | (y == 0), y >= 3], axis=1)
    bank = Bank.empty(6, D, label_shape=(4,), label_dtype=bool).push(z[:5], several[:5])
    share = lambda a, b: (a & b).any()
    case = PAIRS["multi_similarity"]
    given = bank.options(z, several)
    close(case(z, several, same=share, **given), case.expected(z, several, same=share, **given), rtol=1e-4)
    with pytest.raises(TypeError, match=r"labels is int32\[rows\]; wanted bool\[rows, 4\]"):
        bank.push(z, y)


# --- transformations --------------------------------------------------------------------------------------------------


def encode(w, x):
    return jnp.tanh(x @ w)


def stream(seed, steps=6, n=8):
    """Steps of a training: images, labels, which rows are pushed, and whether the bank counts yet."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((steps, n, 5)), jnp.float32)
    y, where = jnp.asarray(rng.integers(0, 4, (steps, n)), jnp.int32), jnp.asarray(rng.random((steps, n)) < 0.8)
    return x, y, where, jnp.arange(steps) >= 2


def step(carry, given):
    w, bank = carry
    x, y, where, use = given

    def loss(w):
        z = encode(w, x)
        return mj.losses.supcon(z, y, temperature=0.5, **bank.options(z, y, use=use)), bank.push(z, y, where)

    (value, bank), gradient = jax.value_and_grad(loss, has_aux=True)(w)
    return (w - 0.1 * gradient, bank), value


def first_weights(seed):
    return jax.random.normal(jax.random.key(seed), (5, D))


@SLOW
def test_a_training_in_a_scan_is_that_of_a_loop():
    """In which one program is compiled, and no gradient goes into the bank."""
    carry, values, traces = (first_weights(0), Bank.empty(20, D)), [], []
    one = jax.jit(lambda carry, given: (traces.append(None), step(carry, given))[1])
    for given in zip(*stream(0), strict=True):
        carry, value = one(carry, given)
        values.append(value)
    assert len(traces) == 1
    scanned = jax.lax.scan(step, (first_weights(0), Bank.empty(20, D)), stream(0))
    chex.assert_trees_all_close(scanned, (carry, jnp.stack(values)), rtol=1e-5, atol=1e-6)
    unused = jax.lax.scan(step, (first_weights(0), Bank.empty(20, D)), (*stream(0)[:3], jnp.zeros(6, bool)))
    np.testing.assert_allclose(scanned[1][:2], unused[1][:2])
    assert np.all(np.abs(scanned[1][2:] - unused[1][2:]) > 1e-3)

    def later(w):
        z = encode(w, stream(1)[0][0])
        return mj.losses.supcon(jnp.ones((2, D)), jnp.arange(2), **Bank.empty(8, D).push(z, jnp.arange(8)).options())

    assert not np.any(jax.grad(later)(first_weights(0)))


@SLOW
def test_many_banks_by_vmap():
    w, banks = jax.vmap(first_weights)(jnp.arange(3)), jax.tree.map(lambda a: jnp.stack([a] * 3), Bank.empty(20, D))
    given = jax.tree.map(lambda *a: jnp.stack(a), *(stream(seed) for seed in range(3)))
    together = jax.vmap(lambda *carry_and_given: jax.lax.scan(step, carry_and_given[:2], carry_and_given[2:]))
    found = together(w, banks, *given)
    for i in range(3):
        alone = jax.lax.scan(step, (first_weights(i), Bank.empty(20, D)), stream(i))
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], found), alone, rtol=1e-4, atol=1e-5)
    staleness = jax.vmap(Bank.staleness)(found[0][1])
    close(staleness, [jax.tree.map(lambda a, i=i: a[i], found[0][1]).staleness() for i in range(3)])


@SLOW
def test_a_checkpoint_goes_on_where_it_was(tmp_path):
    """Unlike that of libraries whose queue's place is not in it."""
    import orbax.checkpoint as orbax

    given = stream(0)
    part = lambda begin, end: jax.tree.map(lambda a: a[begin:end], given)
    whole = jax.lax.scan(step, (first_weights(0), Bank.empty(20, D)), given)[0]
    half = jax.lax.scan(step, (first_weights(0), Bank.empty(20, D)), part(0, 3))[0]
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "half", jax.tree.map(jnp.zeros_like, half))
    assert isinstance(restored[1], Bank)
    chex.assert_trees_all_equal(restored, half)
    chex.assert_trees_all_close(jax.lax.scan(step, restored, part(3, 6))[0], whole, rtol=1e-6, atol=1e-6)


@SLOW
def test_half_precision_in_the_bank_and_in_the_batch():
    z, y, _ = batch(5)
    bank = filled(dtype=jnp.bfloat16)
    rounded = bank._replace(embeddings=bank.embeddings.astype(jnp.float32))
    assert bank.push(z, y).embeddings.dtype == jnp.bfloat16
    f = jax.value_and_grad(lambda z, bank: mj.losses.supcon(z, y, **bank.options(z, y)))
    chex.assert_trees_all_close(f(z, bank), f(z, rounded), rtol=1e-5)
    half = z.astype(jnp.bfloat16)
    value, gradient = f(half, bank)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    expected, expected_gradient = f(half.astype(jnp.float32), bank)
    close(value, expected)
    close(gradient, expected_gradient, rtol=1e-2, atol=1e-2 * np.abs(expected_gradient).max())
    too_large = jnp.where(jnp.arange(N)[:, None] == 3, 1e5, z)
    assert Bank.empty(N, D, dtype=jnp.float16).push(too_large, y).filled == N - 1


# --- momentum ---------------------------------------------------------------------------------------------------------


def test_keys_are_compared_with_their_queries(rng):
    """Momentum contrast: −log(e^{q·k₊/τ} / Σ e^{q·k/τ}) over the own key and the queue (He et al. 2020, eq. 1)."""
    q, keys, queue = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.standard_normal((3, 4, D)))
    y = jnp.arange(4)
    bank = Bank.empty(6, D).push(jnp.asarray(queue, jnp.float32), y + 4)
    q, keys = jnp.asarray(q, jnp.float32), jnp.asarray(keys, jnp.float32)
    given = {**bank.options(keys, y), "reference_ids": None}
    logits = np.concatenate([q @ keys.T, q @ queue.T], axis=1) / 0.2  # the other keys are negatives, too
    expected = np.mean(np.log(np.sum(np.exp(logits), axis=1)) - np.diagonal(logits))
    close(mj.losses.nt_xent(q, y, temperature=0.2, **given), expected)


# --- what is pushed ---------------------------------------------------------------------------------------------------


class Queue:
    """The same in plain Python: a list of (row, label, number of the push, row of the push), the oldest first."""

    def __init__(self, capacity):
        self.capacity, self.rows, self.pushes = capacity, [], 0

    def push(self, z, y, where):
        for i, (x, label) in enumerate(zip(z, y, strict=True)):
            if where[i] and np.all(np.isfinite(x)):
                self.rows.append((tuple(x), int(label), self.pushes, i))
        self.rows, self.pushes = self.rows[-self.capacity :], self.pushes + 1

    def content(self):
        return sorted((x, label, self.pushes - 1 - number, i) for x, label, number, i in self.rows)


def content(bank):
    rows = zip(*(np.asarray(a) for a in (bank.embeddings, bank.labels, bank.age, bank.row)), strict=True)
    return sorted((tuple(x), int(label), int(age), int(i)) for x, label, age, i in rows if age >= 0)


def test_first_in_first_out(rng):
    """Pushes of rows that are not all there, some with NaN, and one of more rows than places."""
    bank, queue = Bank.empty(7, 2), Queue(7)
    push = jax.jit(Bank.push)
    for step in range(12):
        z, y = rng.standard_normal((9, 2)).astype(np.float32), rng.integers(0, 5, 9)
        where = rng.random(9) < (0.3 if step != 8 else 2)
        z[rng.random(9) < (0.2 if step != 8 else 0), 1] = rng.choice([np.nan, np.inf])
        bank = push(bank, jnp.asarray(z), jnp.asarray(y), jnp.asarray(where))
        queue.push(z, y, where)
        assert content(bank) == queue.content()
        assert int(bank.filled) == len(queue.rows)
        ages = [age for _, _, age, _ in queue.content()]
        close(bank.staleness(), np.mean(ages) if ages else 0)
    assert not np.any(bank.row[bank.age < 0])
    assert push._cache_size() == 1


# --- devices ----------------------------------------------------------------------------------------------------------


def pushed_in_steps(push):
    """After three pushes into a bank of 24 places: the bank, and the batch of the last one."""
    bank = Bank.empty(24, D)
    for seed in range(3):
        z, y, _ = batch(seed)
        z, y = jnp.concatenate([z, z[:2] + 1]), jnp.concatenate([y, y[:2]])
        bank = push(bank, z, y, jnp.arange(16) % 5 != seed)
    return bank, z, y


@SLOW
@axes
def test_each_device_pushes_its_own_rows_and_the_loss_is_over_all(axis):
    mesh = mesh_of(axis)
    split = lambda f, specs, out: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out))
    push = split(lambda bank, *rows: bank.push(*rows, axis_name="data"), (SPLIT,) * 4, SPLIT)
    bank, z, y = pushed_in_steps(lambda bank, *rows: push(*put(mesh, bank, *rows)))
    whole = jax.device_get(bank)
    latest = whole.age == 0
    assert sorted(whole.row[latest].tolist()) == [i for i in range(16) if i % 5 != 2]
    np.testing.assert_array_equal(whole.embeddings[latest], np.asarray(z)[whole.row[latest]])

    def forms(bank, z, y, axis_name=None):
        """The batch and the bank, before it is pushed, and the bank alone, after it is."""
        both = mj.losses.supcon(z, y, axis_name=axis_name, **bank.options(z, y, axis_name=axis_name))
        return both, mj.losses.multi_similarity(z, y, axis_name=axis_name, **bank.options())

    gradients = jax.jacrev(forms, argnums=1)
    expected = forms(whole, z, y), gradients(whole, z, y)
    everywhere = split(lambda *given: forms(*given, axis_name="data"), (SPLIT,) * 3, WHOLE)
    given = put(mesh, bank, z, y)
    assert_same((everywhere(*given), jax.jit(jax.jacrev(everywhere, argnums=1))(*given)), expected)


@SLOW
@axes
def test_whole_arrays_over_a_mesh(axis):
    """What `jit` splits by itself, or where it is told to, with `over_mesh` for the loss."""
    mesh = mesh_of(axis)
    expected, z, y = pushed_in_steps(Bank.push)

    def loss(z, y, bank, wrap=lambda loss: loss):
        both = wrap(mj.losses.supcon)(z, y, **bank.options(z, y))
        return both + wrap(mj.losses.triplet)(z, y, triplets=mj.mining.semi_hard, **bank.options())

    with jax.set_mesh(mesh):
        push = jax.jit(Bank.push, out_shardings=NamedSharding(mesh, SPLIT) if axis == AxisType.Auto else None)
        bank, *_ = pushed_in_steps(lambda bank, *rows: push(*put(mesh, bank, *rows)))
        assert all(a.sharding.spec[0] == "data" for a in bank)
        chex.assert_trees_all_equal(jax.device_get(bank), jax.device_get(expected))
        over = jax.jit(jax.value_and_grad(lambda *given: loss(*given, lambda loss: mj.over_mesh(loss, "data"))))
        found = over(*put(mesh, z, y, bank))
    assert_same(found, jax.value_and_grad(loss)(z, y, expected))


# --- memory -----------------------------------------------------------------------------------------------------------


@SLOW
@pytest.mark.parametrize("name", ["contrastive", "supcon", "triplet"])
def test_memory_of_a_large_bank_is_linear(name):
    """No array has an entry for each pair of a row and one of 65,536 places."""
    n, capacity = 512, 65_536
    bank = jax.eval_shape(lambda: Bank.empty(capacity, 32))
    z, y = jax.ShapeDtypeStruct((n, 32), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    loss = lambda z, y, bank: getattr(mj.losses, name)(z, y, **bank.options(z, y))
    analysis = jax.jit(jax.value_and_grad(loss)).lower(z, y, bank).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * n * capacity
