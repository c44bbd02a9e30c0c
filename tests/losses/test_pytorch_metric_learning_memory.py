"""Against `CrossBatchMemory` of PyTorch Metric Learning 2.9.0, over several steps; and where its result is another.

Skipped without it (`python -m pip install torch pytorch-metric-learning`); "there" is that library.
"""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

import jax.numpy as jnp  # noqa: E402
from pytorch_metric_learning import losses, miners  # noqa: E402

import metricjax as mj  # noqa: E402
from metricjax.memory import Bank  # noqa: E402
from tests.helpers.pytorch_metric_learning import D, L, N, agree, batch, pytestmark  # noqa: E402, F401
from tests.losses.test_pytorch_metric_learning import SAME  # noqa: E402

SUPPORTED = losses.CrossBatchMemory.supported_losses()
# There miners choose among all columns, the row itself too, which is then taken out of what they chose; NCA keeps it.
OTHERS = {"contrastive, hard_fraction", "nt_xent, batch_easy_hard", "nca", "nca, not normalised"}
ALIKE = [
    name for name, case in SAME.items()
    if case.references and type(case.theirs).__name__ in SUPPORTED and name not in OTHERS
]  # fmt: skip
CAPACITY = 2 * N + 5


@pytest.mark.parametrize("name", ALIKE)
def test_steps_with_a_bank(name):
    """Until the bank is full, and over its end; every row has a positive, without which miners there take itself."""
    case = SAME[name]
    memory = losses.CrossBatchMemory(copy.deepcopy(case.theirs), D, CAPACITY, case.miner)
    memory.embedding_memory = memory.embedding_memory.double()
    bank = Bank.empty(CAPACITY, D, dtype=jnp.float64, label_dtype=int)
    for step in range(4):
        z, y = batch(step, alone=False)
        own, theirs = jnp.asarray(y), torch.tensor(y)
        bank = bank.push(jnp.asarray(z), own)
        ours = lambda z, y=own, bank=bank: case.ours(z, y, **bank.options())
        agree(ours, lambda z, y=theirs: memory(case.prepare(z), y), z, rtol=max(case.rtol, 1e-9))
    assert memory.has_been_filled


def test_which_losses_were_compared():
    assert {type(SAME[name].theirs).__name__ for name in ALIKE} == set(SUPPORTED) - {"LiftedStructureLoss", "NCALoss"}


def second_step(theirs, miner=None, outer=None):
    """Its value for the second of two batches, whose classes come in another order; our bank then, and that batch."""
    memory = losses.CrossBatchMemory(theirs, D, CAPACITY, miner)
    z, y = (np.roll(a, 1, axis=0) for a in batch(1))
    rows = torch.tensor(z), torch.tensor(y)
    memory(*map(torch.tensor, batch(0)))
    value = memory(*rows, None if outer is None else outer(*rows))
    bank = Bank.empty(CAPACITY, D, label_dtype=int).push(*map(jnp.asarray, batch(0)))
    z, y = jnp.asarray(z), jnp.asarray(y)
    return value.item(), bank.push(z, y), z, y


def test_nca_counts_the_row_itself_there():
    value, bank, z, y = second_step(losses.NCALoss(softmax_scale=2))
    ours = L("nca", temperature=0.5, distance=mj.distances.squared_chord)
    counted = {**bank.options(), "reference_ids": None}
    np.testing.assert_allclose(ours(z, y, **counted), value, rtol=1e-5)
    assert ours(z, y, **bank.options()) > 1.3 * value


def test_the_easiest_positive_is_the_row_itself_there():
    """It is chosen, and taken out afterwards: no positive is left."""
    value, bank, z, y = second_step(losses.ContrastiveLoss(), miners.BatchEasyHardMiner("easy", "hard"))
    miner = mj.mining.batch_easy_hard("easy", "hard")
    no_positives = lambda *pairs: (jnp.zeros_like(pairs[1]), miner(*pairs)[1])
    ours = lambda miner: mj.losses.contrastive(z, y, squared=False, miner=miner, **bank.options())
    np.testing.assert_allclose(ours(no_positives), value, rtol=1e-5)
    assert ours(miner) > value + 0.1


def test_rows_that_an_outer_miner_found_are_others_of_the_memory_there():
    """Their numbers in the batch are taken for numbers in the memory, where the first batch stands; ours has none."""
    none = torch.zeros(0, dtype=torch.long)

    def positives_of_batch(z, y):
        anchor, positive = np.nonzero((y[:, None] == y[None]).numpy() & ~np.eye(N, dtype=bool))
        return torch.tensor(anchor), torch.tensor(positive), none, none

    value, _, z, y = second_step(losses.ContrastiveLoss(), lambda *rows: (none,) * 4, positives_of_batch)
    (first, labels), pairs = batch(0), np.nonzero((y[:, None] == y[None]) & ~np.eye(N, dtype=bool))
    distances = np.asarray(mj.distances.chord(z, jnp.asarray(first)))[pairs]
    np.testing.assert_allclose(np.mean(distances), value, rtol=1e-6)
    assert np.any(np.asarray(y)[pairs[0]] != labels[pairs[1]])


def test_swapped_triplets_leave_the_memory_there():
    with pytest.raises(IndexError):
        second_step(losses.TripletMarginLoss(0.2, swap=True))
