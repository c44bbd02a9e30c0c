"""Trainings with a memory bank, miners and selections by name, and the batches of each sampler."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import metricjax as mj
from metricjax import encoders
from metricjax.data.augmentation import AUGMENTATION
from metricjax.losses.catalogue import CATALOGUE
from metricjax.trained.design import Design
from metricjax.training import Recipe, Trainer, batches, losses_by_name

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
CLASSES, ROWS, FEATURES = 12, 16, 8
PAIRS = sorted(name for name in losses_by_name.offered() if CATALOGUE[name].kind == "pairs")


class Smooth(nnx.Module):
    """No kinks, at which rounding would grow."""

    def __init__(self, size, rngs):
        self.head = nnx.Linear(8 * 8, size, rngs=rngs)

    def features(self, images):
        return jnp.tanh(self.head(images.reshape(len(images), -1)))


@pytest.fixture(autouse=True)
def smooth(monkeypatch):
    monkeypatch.setattr(encoders, "create", lambda name, size, shape, rngs, **_: Smooth(size, rngs))


def trainer_of(devices=1, losses=None, **more):
    losses = {"contrastive": {"margin": 1.5}} if losses is None else losses
    recipe = Recipe(losses=losses, steps=20, learning_rate=0.01, mirror="none", augment=0.0, **more)
    design = Design("smooth", FEATURES, (8, 8), (8, 8), 1)
    return Trainer(recipe, design, CLASSES, jax.devices()[:devices])


def batch_of(number):
    rng = np.random.default_rng(number)
    labels = np.repeat(rng.permutation(CLASSES)[: ROWS // 2], 2).astype(np.int32)
    return {"images": rng.integers(0, 256, (ROWS, 8, 8, 1), dtype=np.uint8), "labels": labels}


def seen_before(trainer, number):
    """Embeddings and labels of a step's batch, by the weights before the step."""
    batch, key = batch_of(number), jax.random.fold_in(jax.random.key(0), number)
    images = trainer.design.seen(jnp.asarray(batch["images"]))
    images = mj.data.augmented(key, images, mirror=False, **dict.fromkeys(AUGMENTATION, 0.0))  # which is its light
    z, _ = trainer.encode(trainer.state["params"]["encoder"], trainer.state["rest"], images)
    return np.asarray(mj.sphere.project(z)), batch["labels"]


def test_the_bank_holds_the_last_rows_and_their_embeddings_when_they_were_made():
    trainer, expected = trainer_of(bank=24), []
    for number in range(4):
        expected.append(seen_before(trainer, number))
        trainer.step(number, batch_of(number))
    bank = trainer.state["bank"]
    order = np.lexsort((bank.row, -np.asarray(bank.age)))
    rows = np.concatenate([z for z, _ in expected])[-24:]
    np.testing.assert_allclose(np.asarray(bank.embeddings)[order], rows, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(bank.labels)[order], np.concatenate([y for _, y in expected])[-24:])


def test_the_loss_is_of_the_batch_and_of_the_bank_after_the_warm_up():
    trainer, none, past = trainer_of(bank=24, bank_warm_up=2), trainer_of(), []
    for number in range(4):
        z, y = seen_before(trainer, number)
        found, without = (float(one.step(number, batch_of(number))["loss"]) for one in (trainer, none))
        if number < 2:
            assert found == pytest.approx(without, abs=1e-6)
        else:  # the batch's rows first, of which none is compared with itself, and the last 24 rows before it
            rows = np.concatenate([z, np.concatenate([old for old, _ in past])[-24:]])
            labels = np.concatenate([y, np.concatenate([old for _, old in past])[-24:]])
            columns = {"references": jnp.asarray(rows), "reference_labels": jnp.asarray(labels)}
            ids = jnp.asarray([*range(ROWS), *[-1] * 24])
            value = mj.losses.contrastive(jnp.asarray(z), jnp.asarray(y), margin=1.5, reference_ids=ids, **columns)
            assert found == pytest.approx(float(value), abs=1e-5)
            assert found != pytest.approx(without, abs=1e-4)
        past.append((z, y))


def test_eight_devices_train_as_one_with_bank_and_miner():
    more = {"bank": 24, "bank_warm_up": 1, "miner": "multi_similarity:epsilon=0.3"}
    one, eight = trainer_of(1, **more), trainer_of(8, **more)
    for number in range(5):
        for trainer in (one, eight):
            trainer.step(number, batch_of(number))
    close = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, eight.state["params"], one.state["params"])
    banks = [sorted(map(tuple, np.asarray(t.state["bank"].embeddings).round(4).tolist())) for t in (one, eight)]
    close(banks[0], banks[1], atol=2e-4)
    assert {shard.data.shape for shard in eight.state["bank"].embeddings.addressable_shards} == {(3, FEATURES)}
    with pytest.raises(ValueError, match="--bank is 12; wanted a multiple of the 8 devices"):
        trainer_of(8, bank=12)


@pytest.mark.parametrize("loss", PAIRS)
def test_every_loss_of_pairs_takes_them_or_is_refused(loss):
    """Traced alone: a miner and a bank are options of each loss that compares embeddings."""
    losses = losses_by_name.chosen_losses(loss, [])
    try:
        losses_by_name.check_of_pairs(losses, "multi_similarity", 24)
    except ValueError as error:
        assert CATALOGUE[loss].refuses and loss in str(error)
        return
    trainer = trainer_of(losses=losses, bank=24, miner="multi_similarity")
    batch = trainer.placed(batch_of(0))
    _, seen = jax.eval_shape(trainer._step, trainer.state, np.int32(0), batch["images"], batch["labels"])
    assert seen["loss"].shape == ()


@pytest.mark.parametrize("selection", ["semi_hard", "semi_hard_within", "distance_weighted"])
@pytest.mark.parametrize("loss", ["triplet", "margin"])
def test_selections_are_made_of_keys_and_sizes(loss, selection):
    if "triplets" not in losses_by_name.parameters(loss):
        pytest.skip(f"{loss} takes no triplets")
    losses = losses_by_name.chosen_losses(loss, [f"triplets={selection}"])
    trainer = trainer_of(losses=losses, bank=24)
    values = [float(trainer.step(number, batch_of(0))["loss"]) for number in range(2)]
    assert np.isfinite(values).all() and max(values) > 0 and trainer.not_finite() == []


def test_miners_by_name():
    made = losses_by_name.miner_of("rank_range:negatives=(1, 3), positives=None")
    d = jnp.asarray([[0.1, 0.2, 0.3, 0.4, 0.5]])
    positives = jnp.asarray([[True, False, False, False, False]])
    np.testing.assert_array_equal(
        made(d, positives, ~positives)[1], mj.mining.rank_range(negatives=(1, 3))(d, positives, ~positives)[1]
    )
    for text in ("chain", "switch", "batch_hard", "nothing"):
        with pytest.raises(ValueError, match=rf"--miner {text} is unknown; wanted one of .*multi_similarity"):
            losses_by_name.miner_of(text)
    with pytest.raises(ValueError, match=r"--miner rank_range: .*negatives"):
        losses_by_name.miner_of("rank_range")


class Classes:
    def __init__(self):
        self.people = [f"{'abc'[i // 4]}/{i}" for i in range(CLASSES)]
        self.labels = np.repeat(np.arange(CLASSES, dtype=np.int32), [10, 6] * 6)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.full((1, 1, 1), index, np.uint8)


def drawn(batch, count, **more):
    recipe = Recipe(losses={}, steps=1, batch=batch, **more)
    assert batches.steps_per_epoch(recipe, Classes()) >= 96 // 16
    iterator = batches.Batches(recipe, Classes())
    return [next(iterator)["labels"] for _ in range(count)]


def test_batches_of_super_classes_and_by_size():
    for labels in drawn((2, 2, 4), 6):
        assert sorted(np.unique(labels // 4, return_counts=True)[1]) == [8, 8]  # two super-classes, two classes of each
        assert set(np.unique(labels, return_counts=True)[1]) == {4}
    count = lambda power: np.bincount(np.concatenate(drawn((8, 2), 60, class_power=power)), minlength=CLASSES)
    large, small = slice(0, None, 2), slice(1, None, 2)
    for power in (0.0, 1.0):
        found = count(power)
        assert found[large].sum() / found[small].sum() == pytest.approx((10 / 6) ** power, rel=0.1)
    flat = Classes()
    flat.people = [f"{i}" for i in range(CLASSES)]
    with pytest.raises(ValueError, match="classes have no super-classes here"):
        batches.steps_per_epoch(Recipe(losses={}, steps=1, batch=(2, 2, 4)), flat)
