import numpy as np
import pytest

from metricjax.samplers import (
    class_folds,
    class_split,
    hierarchical_batches,
    pk_batches,
    uniform_batches,
    weighted_batches,
)

EVEN = np.repeat(np.arange(20), 10)
UNEVEN = np.repeat(np.array([7, 3, 9, 1, 4]), [1, 2, 5, 11, 30])


@pytest.mark.parametrize(
    ("labels", "p", "k"), [(EVEN, 8, 4), (EVEN, 20, 2), (UNEVEN, 3, 4), (UNEVEN, 5, 1), (UNEVEN, 2, 7)]
)
def test_batches_are_p_classes_of_k_images_and_cover_all(labels, p, k):
    batches = pk_batches(labels, p, k, seed=0)
    assert batches.shape[1] == p * k
    for batch in batches:
        classes = labels[batch].reshape(p, k)
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0])) == p
        for row in batch.reshape(p, k):
            available = np.sum(labels == labels[row[0]])
            assert len(set(row)) == min(k, available)
    assert set(batches.ravel()) == set(range(len(labels)))


def test_no_more_batches_than_needed():
    assert len(pk_batches(EVEN, 10, 5, seed=0)) == 4
    groups = [-(-n // 4) for n in (1, 2, 5, 11, 30)]
    assert len(pk_batches(UNEVEN, 3, 4, seed=0)) == max(groups)  # the largest class is in every batch


def test_a_function_of_seed_and_epoch_only():
    first = pk_batches(EVEN, 8, 4, seed=1, epoch=2)
    np.testing.assert_array_equal(first, pk_batches(EVEN, 8, 4, seed=1, epoch=2))
    for other in (pk_batches(EVEN, 8, 4, seed=1, epoch=3), pk_batches(EVEN, 8, 4, seed=2, epoch=2)):
        assert not np.array_equal(first[0], other[0])


def test_shards_are_the_parts_of_a_batch():
    whole = pk_batches(EVEN, 8, 4, seed=0)
    parts = [pk_batches(EVEN, 8, 4, seed=0, shard=i, shards=4) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classes": 21}, ValueError, "classes is 21; wanted 1 to 20"),
        ({"per_class": 0}, ValueError, "per_class is 0"),
        ({"shards": 3}, ValueError, "shard 0 of 3 with 8 classes"),
        ({"shard": 2, "shards": 2}, ValueError, "shard 2 of 2"),
        ({"labels": EVEN * 1.0}, TypeError, "labels has shape .* dtype float64"),
    ],
)
def test_wrong_arguments(change, error, message):
    with pytest.raises(error, match=message):
        pk_batches(**{"labels": EVEN, "classes": 8, "per_class": 4, "seed": 0, **change})


def test_no_two_batches_of_classes_that_go_together():
    """Classes meet each other anew in every round of the epoch."""
    together = np.zeros((20, 20))
    for batch in pk_batches(np.repeat(np.arange(20), 40), 10, 1, seed=0):
        there = np.isin(np.arange(20), batch // 40)
        together += np.outer(there, there)
    others = together[~np.eye(20, dtype=bool)]  # 40 batches of each class, half of which a given other one is in
    assert others.min() >= 8
    assert others.max() <= 32


def test_many_classes_take_no_time():
    """The work grows with the images: where each batch looked at all classes, this took minutes."""
    labels = np.arange(200_000) // 5
    batches = pk_batches(labels, 8, 5, seed=0)
    assert batches.shape == (5000, 40)
    np.testing.assert_array_equal(np.sort(batches, axis=None), np.arange(200_000))


def test_uniform_batches_hold_every_image():
    batches = uniform_batches(10, 4, seed=3)
    assert batches.shape == (3, 4)
    np.testing.assert_array_equal(np.sort(batches.ravel()[:10]), np.arange(10))
    np.testing.assert_array_equal(batches.ravel()[10:], batches.ravel()[:2])
    assert uniform_batches(3, 8, seed=0).shape == (1, 8)
    parts = [uniform_batches(10, 4, seed=3, shard=i, shards=2) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), batches)
    for other in (uniform_batches(10, 4, seed=3, epoch=1), uniform_batches(10, 4, seed=4)):
        assert not np.array_equal(other, batches)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"images": 0}, "images is 0"), ({"shards": 3}, "shard 0 of 3 with batches of 4"), ({"shard": 1}, "shard 1 of 1")],
)
def test_uniform_batches_with_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        uniform_batches(**{"images": 10, "size": 4, "seed": 0, **change})


SUPER = {7: 20, 3: 10, 9: 20, 1: 20, 4: 30}  # a super-class of three classes, two of one
KINDS = np.array([SUPER[label] for label in UNEVEN.tolist()])


@pytest.mark.parametrize(
    ("labels", "kinds", "s", "p", "k"),
    [
        (EVEN, EVEN // 5, 2, 4, 3),
        (EVEN, EVEN // 5, 4, 5, 10),
        (EVEN, EVEN // 7, 3, 3, 4),
        (UNEVEN, KINDS, 2, 1, 4),
        (UNEVEN, KINDS, 3, 1, 1),
        (EVEN, np.zeros_like(EVEN), 1, 4, 5),  # one super-class
        (np.zeros(3, int), np.ones(3, int), 1, 1, 2),  # one class
        (np.arange(12), np.arange(12) // 4, 2, 3, 2),  # one image in each class
    ],
)
def test_hierarchical_batches_are_super_classes_of_classes_of_images_and_cover_all(labels, kinds, s, p, k):
    batches = hierarchical_batches(labels, kinds, s, p, k, seed=0)
    assert batches.shape[1] == s * p * k
    for batch in batches.reshape(-1, s, p, k):
        assert len({*kinds[batch[:, 0, 0]]}) == s
        assert (kinds[batch] == kinds[batch[:, :1, :1]]).all()
        assert (labels[batch] == labels[batch[:, :, :1]]).all()
        assert all(len({*part}) == p for part in labels[batch[:, :, 0]])
        for row in batch.reshape(-1, k):
            assert len(set(row)) == min(k, np.sum(labels == labels[row[0]]))
    assert set(batches.ravel()) == set(range(len(labels)))


def test_super_classes_with_too_few_classes_give_more_images_of_those():
    labels = np.repeat([0, 1, 2, 3], 6)
    kinds = np.repeat([0, 0, 0, 1], 6)
    batches = hierarchical_batches(labels, kinds, 2, 3, 2, seed=0).reshape(-1, 2, 3, 2)
    assert set(batches.ravel()) == set(range(24))
    few = batches[kinds[batches[:, :, 0, 0]] == 1]
    assert all(len(set(part.ravel())) == 6 for part in few)
    np.testing.assert_array_equal(
        np.sort(hierarchical_batches(np.zeros(1, int), np.zeros(1, int), 1, 3, 2, seed=0)), [[0] * 6]
    )


def test_no_more_hierarchical_batches_than_needed():
    assert len(hierarchical_batches(EVEN, EVEN // 5, 2, 5, 5, seed=0)) == 4
    np.testing.assert_array_equal(
        np.sort(hierarchical_batches(EVEN, EVEN * 0, 1, 10, 5, seed=0), axis=None), np.arange(len(EVEN))
    )


EPOCHS = {
    "hierarchical": lambda **a: hierarchical_batches(EVEN, EVEN // 5, 2, 4, 3, **a),
    "weighted": lambda **a: weighted_batches(UNEVEN, 24, power=0.5, per_class=2, **a),
}


@pytest.mark.parametrize("name", EPOCHS)
def test_epochs_are_functions_of_their_arguments_and_shards_are_parts(name):
    epoch = EPOCHS[name]
    whole = epoch(seed=1, epoch=2)
    np.testing.assert_array_equal(whole, epoch(seed=1, epoch=2))
    for other in (epoch(seed=1, epoch=3), epoch(seed=2, epoch=2)):
        assert not np.array_equal(whole[0], other[0])
    parts = [epoch(seed=1, epoch=2, shard=i, shards=4) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"superclasses": 5}, ValueError, "superclasses is 5; wanted 1 to 4"),
        ({"classes": 0}, ValueError, "classes is 0 and per_class 3; wanted at least 1"),
        ({"shards": 3}, ValueError, "shard 0 of 3 with 2 × 4 classes per batch"),
        ({"shards": 0}, ValueError, "shard 0 of 0"),
        ({"superlabels": EVEN * 1.0}, TypeError, "superlabels has shape .* dtype float64"),
        ({"superlabels": EVEN[:-1] // 5}, ValueError, "superlabels has 199 images and labels 200"),
        ({"superlabels": np.arange(200) // 19}, ValueError, r"superlabels of class 1 are \[0, 1\]; wanted one"),
    ],
)
def test_hierarchical_batches_with_wrong_arguments(change, error, message):
    given = {"superlabels": EVEN // 5, "superclasses": 2, "classes": 4, "per_class": 3, "seed": 0}
    with pytest.raises(error, match=message):
        hierarchical_batches(EVEN, **{**given, **change})


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_weighted_batches_hold_each_class_as_often_as_is_due(power):
    sizes = np.bincount(UNEVEN)
    due = 50 * sizes**power / np.sum(sizes[sizes > 0] ** power) * (sizes > 0)
    counts = np.array(
        [
            np.bincount(UNEVEN[weighted_batches(UNEVEN, 10, power=power, seed=0, epoch=e)].ravel(), minlength=10)
            for e in range(400)
        ]
    )
    assert (np.abs(counts - due) < 1).all()
    np.testing.assert_allclose(counts.mean(0), due, atol=0.1)  # 4 standard deviations of ½/√400


def test_weighted_batches_use_all_images_of_a_class_before_any_again():
    for epoch in range(5):
        batches = weighted_batches(UNEVEN, 8, power=0, per_class=2, seed=0, epoch=epoch)
        assert batches.shape == (7, 8)
        pairs = batches.reshape(-1, 2)
        assert (UNEVEN[pairs[:, 0]] == UNEVEN[pairs[:, 1]]).all()
        times = np.bincount(batches.ravel(), minlength=len(UNEVEN))
        for label in np.unique(UNEVEN):
            assert np.ptp(times[label == UNEVEN]) <= 1
    seen = np.unique([weighted_batches(UNEVEN, 7, power=0, seed=0, epoch=epoch) for epoch in range(20)])
    np.testing.assert_array_equal(seen, np.arange(len(UNEVEN)))


def test_weighted_batches_of_power_one_hold_every_image_once():
    np.testing.assert_array_equal(
        np.sort(weighted_batches(UNEVEN, 7, power=1, seed=0), axis=None), np.arange(len(UNEVEN))
    )
    assert set(weighted_batches(UNEVEN, 30, power=1, seed=0).ravel()) == set(range(len(UNEVEN)))
    np.testing.assert_array_equal(weighted_batches(np.array([5]), 3, power=0, seed=0), [[0, 0, 0]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 0}, ValueError, "49 labels, size 0 and per_class 1"),
        ({"labels": UNEVEN[:0]}, ValueError, "got 0 labels"),
        ({"per_class": 3}, ValueError, "size is 10; wanted a multiple of per_class, 3"),
        ({"power": -0.5}, ValueError, "power is -0.5; wanted a number from 0"),
        ({"power": float("nan")}, ValueError, "power is nan"),
        ({"shards": 2, "per_class": 2}, ValueError, "shard 0 of 2 with 5 × 2 images per batch"),
        ({"labels": EVEN * 1.0}, TypeError, "labels has shape .* dtype float64"),
    ],
)
def test_weighted_batches_with_wrong_arguments(change, error, message):
    with pytest.raises(error, match=message):
        weighted_batches(**{"labels": UNEVEN, "size": 10, "power": 0.5, "seed": 0, **change})


def test_splits_keep_classes_whole():
    shuffled = np.random.default_rng(0).permutation(UNEVEN)
    for part in (class_split(shuffled, seed=1), class_folds(shuffled, 3), class_folds(shuffled, 2, seed=1)):
        assert part.shape == shuffled.shape
        assert all(len(set(part[shuffled == label])) == 1 for label in shuffled)
    np.testing.assert_array_equal(class_split(shuffled), shuffled <= 4)  # 1, 3 and 4 of five
    np.testing.assert_array_equal(class_split(shuffled, 2), shuffled <= 3)
    np.testing.assert_array_equal(class_split(shuffled, 0.25), shuffled == 1)
    assert class_split(np.arange(100), 0.29).sum() == 29  # which is 28.999999999999996 as a product of floats
    for label in shuffled:  # super-classes as labels
        kinds = np.array([SUPER[one] for one in shuffled.tolist()])
        assert len(set(class_split(kinds)[shuffled == label])) == 1


def test_the_usual_halves_and_quarters():
    cub, cars, products = (np.arange(classes) for classes in (200, 196, 22_634))
    assert class_split(cub).tolist() == [True] * 100 + [False] * 100
    assert class_split(cars).tolist() == [True] * 98 + [False] * 98
    assert np.bincount(class_split(products, 11_318)).tolist() == [11_316, 11_318]
    np.testing.assert_array_equal(class_folds(cub[class_split(cub)], 4), np.repeat(np.arange(4), 25))
    # scikit-learn: KFold(4).split(range(98)) holds out 25, 25, 24 and 24
    np.testing.assert_array_equal(class_folds(cars[:98], 4), np.repeat(np.arange(4), [25, 25, 24, 24]))


def test_splits_by_seed():
    for split in (class_split, lambda labels, seed: class_folds(labels, 4, seed=seed)):
        sizes = np.bincount(split(EVEN, seed=0)[::10])
        assert set(sizes) == {20 // len(sizes)}
        np.testing.assert_array_equal(split(EVEN, seed=3), split(EVEN, seed=3))
        assert len({split(EVEN, seed=seed).tobytes() for seed in range(8)}) == 8
        assert not np.array_equal(split(EVEN, seed=0), split(EVEN, seed=None))


@pytest.mark.parametrize("train", [0, 0.0, 20, 1.0, -1, 0.01, 0.99])
def test_splits_without_a_class_on_one_side(train):
    with pytest.raises(ValueError, match=f"train is {train}"):
        class_split(EVEN, train)


def test_folds_of_wrong_number():
    for folds in (1, 21):
        with pytest.raises(ValueError, match=f"folds is {folds}; wanted 2 to 20"):
            class_folds(EVEN, folds)
    with pytest.raises(ValueError, match="wanted 2 to 0"):
        class_folds(EVEN[:0], 2)
    with pytest.raises(TypeError, match=r"labels has shape \(1, 2\)"):
        class_split(np.zeros((1, 2), int))
