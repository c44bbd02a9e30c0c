"""Memory banks: what is pushed, what of it is compared, and that a loss over a bank is the loss over all rows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metricjax as mj
from metricjax.engine.sizes import LIST
from metricjax.memory import Bank
from tests.helpers.batches import D, N, batch, close, pairs_with
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


@pairs_with("references", ("supcon",))
@pytest.mark.parametrize("block_size", [None, pytest.param(5, marks=SLOW)])
def test_a_row_is_not_compared_with_the_reference_that_it_is(case, block_size):
    z, y, given = rows_among_references()
    value, _ = run(case, z, y, block_size=block_size, weights=jnp.ones(N), **given)
    close(value, case.expected(z, y, **usual(case), **given), rtol=5e-5)


@pairs_with("references", ())
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


@pairs_with("references", ("contrastive",))
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
        n = 16 if step == 8 else 3
        z, y = rng.standard_normal((n, 2)).astype(np.float32), rng.integers(0, 5, n)
        where = rng.random(n) < 0.7
        z[rng.random(n) < 0.2, 1] = rng.choice([np.nan, np.inf])
        bank = push(bank, jnp.asarray(z), jnp.asarray(y), jnp.asarray(where))
        queue.push(z, y, where)
        assert content(bank) == queue.content()
        assert int(bank.filled) == len(queue.rows)
        ages = [age for _, _, age, _ in queue.content()]
        close(bank.staleness(), np.mean(ages) if ages else 0)
    assert not np.any(bank.row[bank.age < 0])
    assert push._cache_size() == 2
