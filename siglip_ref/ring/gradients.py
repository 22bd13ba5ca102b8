"""The gradients of the towers in data-parallel training."""

import math

from array_api_compat import array_namespace

from siglip_ref.communicator import Communicator
from siglip_ref.precision import cast_like
from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Tree


def sum_gradients(grads: Tree, comm: Communicator) -> Tree:
    """The sum over all ranks of a tree of gradients of the same parameters, as one flat array.

    A sum, not a mean: the losses on a ring are divided by the global number of images already. It
    runs in the widest dtype of the leaves, float32 at least. The gradients of t' and b are sums
    over the ranks when a loss returns them, so they do not belong here.

    Raises ValueError on a tree without leaves.
    """
    leaves = flatten(grads)
    if not leaves:
        raise ValueError("grads must have at least one leaf, got an empty tree")
    xp = array_namespace(*leaves.values())
    dtype = xp.result_type(xp.float32, *(leaf.dtype for leaf in leaves.values()))
    total = comm.sum(
        xp.concat([xp.reshape(xp.astype(leaf, dtype), (-1,)) for leaf in leaves.values()])
    )
    summed, start = {}, 0
    for path, leaf in leaves.items():
        end = start + math.prod(leaf.shape)
        summed[path] = cast_like(xp.reshape(total[start:end], leaf.shape), leaf)
        start = end
    return unflatten(summed)
