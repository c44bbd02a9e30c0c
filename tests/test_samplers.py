import numpy as np
import pytest

from metricjax.samplers import pk_batches, uniform_batches

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
