"""Batches of people with several photographs, and of those with one."""

from functools import partial

import numpy as np
import pytest

from metricjax import samplers
from metricjax.training import batches

LABELS = np.repeat(np.arange(30), [3] * 6 + [2] * 4 + [1] * 20).astype(np.int32)
sampler = partial(batches._people_and_others, LABELS, 8, 2, seed=3)


@pytest.mark.parametrize("labels", [LABELS[LABELS < 10], LABELS[LABELS < 11]], ids=["nobody", "one person"])
def test_with_few_people_of_one_photograph_it_is_the_sampler(labels):
    given = {"seed": 3, "epoch": 2, "shard": 1, "shards": 2}
    found = batches._people_and_others(labels, 8, 2, **given)
    np.testing.assert_array_equal(found, samplers.pk_batches(labels, 8, 2, **given))


@pytest.mark.parametrize("epoch", [0, 5])
def test_a_quarter_of_the_rows_is_of_people_with_one_photograph(epoch):
    found = sampler(epoch=epoch, shard=0, shards=1)
    assert found.shape[1] == 12 + 4
    people, lone = LABELS[found[:, :12]], LABELS[found[:, 12:]]
    assert (people < 10).all() and (lone >= 10).all()
    np.testing.assert_array_equal(people[:, ::2], people[:, 1::2])
    assert all(len(set(row)) == 6 for row in people[:, ::2].tolist())
    assert set(found[:, :12].ravel()) == set(np.flatnonzero(LABELS < 10))
    counts = np.bincount(lone.ravel(), minlength=30)[10:]
    assert counts.max() - counts.min() <= 1  # each as often as the others


def test_parts_are_those_of_the_whole():
    whole = sampler(epoch=1, shard=0, shards=1)
    parts = [sampler(epoch=1, shard=shard, shards=2) for shard in range(2)]
    np.testing.assert_array_equal(np.concatenate([part[:, :6] for part in parts], axis=1), whole[:, :12])
    np.testing.assert_array_equal(np.concatenate([part[:, 6:] for part in parts], axis=1), whole[:, 12:])


def test_how_many_people_of_a_batch():
    found = {people: batches._in_place_of(people, 1000) for people in (1, 3, 4, 7, 12, 24, 32, 40, 100)}
    assert found == {1: 0, 3: 0, 4: 1, 7: 1, 12: 2, 24: 4, 32: 8, 40: 8, 100: 24}
    assert [batches._in_place_of(32, there) for there in (0, 1, 3, 7, 8, 99)] == [0, 1, 2, 4, 8, 8]
