"""The sampler's laws: distinct groups, no sample twice, as many batches as can be."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_train.sampler import epoch_batches, group_ids

keys = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60)
seeds = st.integers(0, 2**40)
epochs = st.integers(0, 1000)


@st.composite
def groups_and_batch_size(draw):
    groups = group_ids(draw(keys))
    return groups, draw(st.integers(1, np.unique(groups).size))


@given(groups_and_batch_size(), seeds, epochs)
def test_no_two_samples_of_a_batch_share_a_group(case, seed, epoch):
    groups, batch_size = case
    for batch in epoch_batches(groups, batch_size, seed, epoch):
        assert np.unique(groups[batch]).size == batch_size


@given(groups_and_batch_size(), seeds, epochs)
def test_each_sample_is_used_at_most_once_in_an_epoch(case, seed, epoch):
    groups, batch_size = case
    used = epoch_batches(groups, batch_size, seed, epoch).ravel()
    assert np.unique(used).size == used.size
    assert used.min() >= 0
    assert used.max() < groups.size


@given(groups_and_batch_size(), seeds, epochs)
def test_no_order_could_fill_more_batches(case, seed, epoch):
    groups, batch_size = case
    sizes = np.bincount(groups)
    possible = max(
        count
        for count in range(groups.size // batch_size + 1)
        if np.minimum(sizes, count).sum() >= count * batch_size
    )
    assert epoch_batches(groups, batch_size, seed, epoch).shape == (possible, batch_size)


@given(groups_and_batch_size(), seeds, epochs)
def test_fewer_samples_than_a_batch_are_left_out_if_no_group_outnumbers_the_batches(
    case, seed, epoch
):
    groups, batch_size = case
    left_out = groups.size - epoch_batches(groups, batch_size, seed, epoch).size
    if np.bincount(groups).max() <= groups.size // batch_size:
        assert left_out < batch_size


@given(st.integers(1, 200), st.data(), seeds, epochs)
def test_of_unique_groups_fewer_samples_than_a_batch_are_left_out(n, data, seed, epoch):
    batch_size = data.draw(st.integers(1, n))
    batches = epoch_batches(np.arange(n), batch_size, seed, epoch)
    assert n - batches.size == n % batch_size


@given(groups_and_batch_size(), seeds, epochs)
def test_the_order_depends_on_seed_and_epoch_only(case, seed, epoch):
    groups, batch_size = case
    np.testing.assert_array_equal(
        epoch_batches(groups, batch_size, seed, epoch),
        epoch_batches(groups.copy(), batch_size, seed, epoch),
    )


@pytest.mark.parametrize("groups", [np.arange(100), np.arange(100) // 3], ids=["unique", "shared"])
def test_epochs_and_seeds_have_different_orders(groups):
    orders = [epoch_batches(groups, 10, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for one, other in itertools.combinations(orders, 2):
        assert not np.array_equal(one, other)


def test_every_sample_is_used_in_some_epoch():
    groups = np.repeat(np.arange(8), [12, 1, 1, 1, 1, 1, 2, 3])
    used = {int(i) for epoch in range(60) for i in epoch_batches(groups, 5, 0, epoch).ravel()}
    assert used == set(range(groups.size))


def test_members_of_a_group_come_at_times_that_are_spread_over_the_epoch():
    # Two of 300 uniformly random times are 100 apart on average.
    groups = np.arange(6000) // 2
    batches = epoch_batches(groups, 20, 0, 0)
    time = np.empty(6000)
    time[batches.ravel()] = np.repeat(np.arange(len(batches)), 20)
    distance = np.abs(time[0::2] - time[1::2]).mean()
    assert 90 < distance < 110


def test_a_group_that_fills_the_first_places_of_some_batches_fills_the_last_of_any_others():
    # Three groups of four in six pairs: one group has two members first and two second in a pair.
    # Its second members are as likely in any of the pairs, so in pair 2.5 on average.
    groups = np.repeat(np.arange(3), 4)
    times = []
    for seed in range(400):
        first, second = groups[epoch_batches(groups, 2, seed, 0)].T
        (split,) = set(first) & set(second)
        times.extend(np.flatnonzero(second == split))
    assert len(times) == 800
    assert abs(np.mean(times) - 2.5) < 0.25


def test_two_groups_that_meet_in_one_batch_seldom_meet_again():
    # 1000 groups of three in 300 batches of ten; independent placing makes two groups that met
    # once meet again with a chance below 4 / 300.
    groups = np.arange(3000) // 3
    meetings = [
        tuple(sorted(pair))
        for batch in epoch_batches(groups, 10, 0, 0)
        for pair in itertools.combinations(groups[batch].tolist(), 2)
    ]
    again = 1 - len(set(meetings)) / len(meetings)
    assert again < 0.03


def test_equal_keys_get_equal_ids_and_others_differ():
    np.testing.assert_array_equal(group_ids(["cat", "dog", "cat", "owl", "dog"]), [0, 1, 0, 2, 1])


@given(st.lists(st.text(max_size=3)))
def test_ids_are_equal_exactly_where_keys_are(texts):
    ids = group_ids(texts)
    assert (ids[:, None] == ids[None, :]).tolist() == [[a == b for b in texts] for a in texts]


@pytest.mark.parametrize("batch_size", [0, 4])
def test_a_batch_larger_than_the_number_of_groups_is_refused_with_both_numbers(batch_size):
    groups = group_ids(["cat", "dog", "cat", "owl"])
    with pytest.raises(ValueError, match=f"distinct groups, 3, got {batch_size}"):
        epoch_batches(groups, batch_size, 0, 0)


@pytest.mark.parametrize(
    "groups", [np.array([[0, 1]]), np.array([0, -1])], ids=["axes", "negative"]
)
def test_ids_that_are_no_row_of_numbers_from_zero_are_refused(groups):
    with pytest.raises(ValueError, match="groups must be ids"):
        epoch_batches(groups, 1, 0, 0)
