"""Which pairs match."""

import numpy as np
import pytest
from hypothesis import given

from siglip_ref.losses import diagonal, from_matrix, reweighted, same_group
from siglip_ref.losses.pairs import check_counts
from strategies import TARGETS, distinct, seeds, targets


@given(distinct("n", "m", most=9), seeds)
def test_the_diagonal_matches_equal_indices_and_no_others(sizes, seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(12)[: sizes["n"]], rng.permutation(12)[: sizes["m"]]
    labels, weights = diagonal(rows, columns)
    assert weights is None
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            assert labels[i, j] == (1 if row == column else -1)


@given(distinct("n", "m", most=9), seeds)
def test_members_of_one_group_match(sizes, seed):
    n, m = sizes.values()
    rng = np.random.default_rng(seed)
    image_groups, text_groups = rng.integers(0, 3, n), rng.integers(0, 3, m)
    labels, weights = same_group(image_groups, text_groups)(np.arange(n), np.arange(m))
    assert weights is None
    want = [[1 if one == other else -1 for other in text_groups] for one in image_groups]
    np.testing.assert_array_equal(labels, want)


@given(seeds)
def test_groups_of_one_are_the_diagonal(seed):
    ids = np.random.default_rng(seed).permutation(6)
    rows, columns = np.arange(6)[2:], np.arange(6)[:5]
    np.testing.assert_array_equal(
        same_group(ids, ids)(rows, columns).labels, diagonal(rows, columns).labels
    )


@pytest.mark.parametrize("kind", TARGETS)
@given(sizes=distinct("n", "m", most=9), seed=seeds)
def test_a_block_of_a_matrix_is_cut_by_rows_and_columns(kind, sizes, seed):
    n, m = sizes.values()
    rng = np.random.default_rng(seed)
    labels, weights = targets(rng, n, m, kind)
    rows, columns = rng.integers(0, n, 5), rng.integers(0, m, 4)
    block = from_matrix(labels, weights)(rows, columns)
    np.testing.assert_array_equal(block.labels, labels[np.ix_(rows, columns)])
    if weights is None:
        assert block.weights is None
    else:
        np.testing.assert_array_equal(block.weights, weights[np.ix_(rows, columns)])


@pytest.mark.parametrize("kind", TARGETS)
@given(sizes=distinct("n", "m", most=9), seed=seeds)
def test_reweighting_splits_a_label_into_a_match_and_a_mismatch(kind, sizes, seed):
    n, m = sizes.values()
    rng = np.random.default_rng(seed)
    labels, weights = targets(rng, n, m, kind)
    got = reweighted(from_matrix(labels, weights), 3.0, 0.25)(np.arange(n), np.arange(m))
    factor = 1.0 if weights is None else weights
    # What a pair pulls with, as a match and as a mismatch.
    match, mismatch = (got.weights * (1 + sign * got.labels) / 2 for sign in (1, -1))
    np.testing.assert_allclose(match, 3 * factor * (1 + labels) / 2, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(mismatch, factor * (1 - labels) / 8, rtol=1e-14, atol=1e-15)


def test_equal_weights_of_one_change_no_label():
    rows = np.arange(4)
    got = reweighted(diagonal, 1.0, 1.0)(rows, rows)
    np.testing.assert_array_equal(got.labels, diagonal(rows, rows).labels)
    np.testing.assert_array_equal(got.weights, np.ones((4, 4)))


def test_pairs_are_the_same_everywhere(backend):
    groups = backend.asarray(np.asarray([0, 1, 1, 2]))
    labels = backend.asarray(np.linspace(-1, 1, 16).reshape(4, 4).astype(np.float32))
    rows = backend.asarray(np.asarray([3, 1]))

    def blocks(groups, labels, rows):
        columns = groups * 0 + groups  # any four indices
        return (
            diagonal(rows, columns).labels,
            same_group(groups, groups)(rows, columns).labels,
            from_matrix(labels, labels)(rows, columns),
            reweighted(from_matrix(labels), 2.0, 0.5)(rows, columns),
        )

    want = blocks(*(backend.to_numpy(x) for x in (groups, labels, rows)))
    got = backend.call(blocks, groups, labels, rows)
    np.testing.assert_array_equal(backend.to_numpy(got[0]), want[0])
    np.testing.assert_array_equal(backend.to_numpy(got[1]), want[1])
    for block, wanted in zip(got[2:], want[2:], strict=True):
        for part, wanted_part in zip(block, wanted, strict=True):
            np.testing.assert_allclose(backend.to_numpy(part), wanted_part, rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_weights_of_another_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"weights must have the shape of labels, \(2, 3\).*\(3, 2"
    ):
        from_matrix(np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["positive", "negative"])
def test_a_weight_that_is_not_above_zero_is_refused(name, value):
    weights = {"positive": 1.0, "negative": 1.0, name: value}
    with pytest.raises(ValueError, match=f"{name} must be a weight above 0, got {value!r}"):
        reweighted(diagonal, **weights)


def test_images_and_texts_must_be_as_many_unless_it_is_said_which_of_them_match():
    images, texts = np.zeros((4, 2, 2, 3)), np.zeros((3, 5))
    with pytest.raises(
        ValueError,
        match="as many images as texts unless pairs is given, got 4 images and 3 texts",
    ):
        check_counts(diagonal, images, texts)
    check_counts(diagonal, images[:3], texts)
    check_counts(same_group(np.arange(4), np.arange(3)), images, texts)
