"""Nested dicts of arrays: the one container for parameters, gradients and optimizer state.

The path of a leaf, `img/block/00/attn/query/kernel`, is its name everywhere: in checkpoints,
in test vectors and in error messages.
"""

from collections.abc import Callable, Mapping
from typing import Any

from siglip_ref.types import Tree


def tree_map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn(leaf, *other_leaves)` to the leaves of trees of equal structure.

    Raises ValueError if the trees differ in structure, naming the paths that differ.
    """
    return tree_map_with_path(lambda _, *leaves: fn(*leaves), tree, *rest)


def tree_map_with_path(
    fn: Callable[..., Any], tree: Tree, *rest: Tree, path: tuple[str, ...] = ()
) -> Tree:
    """Apply `fn(path, leaf, *other_leaves)`, with the path as one string joined by `/`."""
    if not isinstance(tree, Mapping):
        return fn("/".join(path), tree, *rest)
    for other in rest:
        if not isinstance(other, Mapping) or other.keys() != tree.keys():
            found = sorted(other) if isinstance(other, Mapping) else type(other).__name__
            raise ValueError(
                f"trees differ in structure at {'/'.join(path) or 'the root'!r}: "
                f"wanted the keys {sorted(tree)}, got {found}"
            )
    return {
        key: tree_map_with_path(fn, tree[key], *(other[key] for other in rest), path=(*path, key))
        for key in tree
    }


def flatten(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by path: `{"a": {"b": x}}` becomes `{"a/b": x}`."""
    leaves: dict[str, Any] = {}
    tree_map_with_path(lambda path, leaf: leaves.update({path: leaf}), tree)
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """The tree with these leaves: the inverse of `flatten`.

    Raises ValueError if one path is the beginning of another.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"path {path!r} runs through the leaf {parent!r}")
        if name in node:
            raise ValueError(f"path {path!r} is the beginning of another path")
        node[name] = leaf
    return tree
