"""Trees: nested dicts and their paths."""

from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_ref.tree import flatten, tree_map, tree_map_with_path, unflatten

KEYS = st.text("abc_0", min_size=1, max_size=3)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        st.integers(), lambda child: st.dictionaries(KEYS, child, min_size=1), max_leaves=8
    ),
    min_size=1,
)


@given(TREES)
def test_unflatten_is_the_inverse_of_flatten(tree):
    assert unflatten(flatten(tree)) == tree


@given(TREES)
def test_a_map_keeps_the_paths_and_their_order(tree):
    doubled = tree_map(lambda x: 2 * x, tree)
    assert list(flatten(doubled).items()) == [(path, 2 * x) for path, x in flatten(tree).items()]


@given(TREES)
def test_a_map_over_two_trees_meets_equal_paths(tree):
    named = tree_map_with_path(lambda path, _: path, tree)
    assert flatten(named) == {path: path for path in flatten(tree)}
    assert tree_map(add, tree, tree) == tree_map(lambda x: 2 * x, tree)


@given(TREES)
def test_a_map_leaves_its_argument_alone(tree):
    before = flatten(tree)
    tree_map(lambda x: x + 1, tree)
    assert flatten(tree) == before


def test_a_leaf_by_itself_is_a_tree():
    assert tree_map(add, 1, 2) == 3
    assert flatten(5) == {"": 5}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": {"c": 1}}, r"at 'a': wanted the keys \['b'\], got \['c'\]"),
        ({"a": {"b": 1}, "d": 2}, r"at 'the root': wanted the keys \['a'\], got \['a', 'd'\]"),
        ({"a": 1}, r"at 'a': wanted the keys \['b'\], got int"),
    ],
)
def test_trees_of_other_structure_are_refused_by_path(other, message):
    with pytest.raises(ValueError, match=message):
        tree_map(add, {"a": {"b": 1}}, other)


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b", "a"], ["a/b/c", "a/b"]])
def test_a_path_that_runs_through_a_leaf_is_refused(paths):
    with pytest.raises(ValueError, match=r"path 'a.*' (runs through the leaf|is the beginning of)"):
        unflatten(dict.fromkeys(paths, 1))
