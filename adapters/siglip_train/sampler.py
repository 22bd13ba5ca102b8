"""The order of the samples: batches of distinct groups, as a function of seed and epoch."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def group_ids(keys: Iterable[str]) -> Ints:
    """Ids 0, 1, ... in order of first appearance, (n,): equal strings get equal ids."""
    seen: dict[str, int] = {}
    return np.fromiter((seen.setdefault(key, len(seen)) for key in keys), np.int64)


def epoch_batches(groups: Ints, batch_size: int, seed: int, epoch: int) -> Ints:
    """Indices of the samples of one epoch, (batches, batch_size), no two of a group in a batch.

    `groups` (n,) holds an id of what a sample shows, such as its concept, from `group_ids` (gaps
    do no harm). Plain SigLIP labels every pair off the diagonal as a negative, so two samples of
    one group in a batch would push an image away from a text that describes it. Keeping them apart
    leaves the paper's loss as it is; the alternative is to mark them as positives
    (`siglip_ref.losses.same_group`).

    Every sample is used at most once. With K batches a group can be used at most K times, so K
    batches need sum_g min(|g|, K) >= K * batch_size; K is the largest number for which that holds,
    and no order could fill more batches. Hence, if no group is larger than n // batch_size (in
    particular if all are unique), fewer than batch_size samples are left out. Which ones differs
    from epoch to epoch.

    How: groups in random order, each cut to K random members, laid out one after the other in
    batch_size rows of K; column k is batch k. A group takes part in at most two rows, one after
    the other; each row is permuted at random, but for a group's rest, which avoids the columns
    that the group already has.

    Time O(n log n), memory a few arrays of n.

    Raises ValueError if batch_size is not in 1 ... the number of groups.
    """
    if groups.ndim != 1 or (groups < 0).any():
        raise ValueError(
            f"groups must be ids on one axis, none below 0; got shape {groups.shape}, "
            f"least {groups.min(initial=0)}"
        )
    sizes = np.bincount(groups)
    distinct = np.count_nonzero(sizes)
    if not 1 <= batch_size <= distinct:
        raise ValueError(
            f"batch_size must be from 1 to the number of distinct groups, {distinct}, "
            f"got {batch_size}"
        )
    batches = _most_batches(sizes, batch_size)
    used = batches * batch_size
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    order = rng.permutation(groups.size)
    if distinct == groups.size:
        return order[:used].reshape(batches, batch_size)
    by_rank = rng.permutation(sizes.size)
    rank = np.empty_like(by_rank)
    rank[by_rank] = np.arange(sizes.size)
    order = order[np.argsort(rank[groups[order]], kind="stable")]
    sizes = sizes[by_rank]
    member = np.arange(groups.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = order[member < batches][:used]
    return _deal(order.reshape(batch_size, batches), groups, rng)


def _most_batches(sizes: Ints, batch_size: int) -> int:
    """The largest K with sum_g min(|g|, K) >= K * batch_size.

    The difference of the two sides is concave in K and 0 at K = 0, so it holds up to some K.
    """
    holds, fails = 1, int(sizes.sum()) // batch_size + 1
    while fails - holds > 1:
        middle = (holds + fails) // 2
        if np.minimum(sizes, middle).sum() >= middle * batch_size:
            holds = middle
        else:
            fails = middle
    return holds


def _deal(rows: Ints, groups: Ints, rng: np.random.Generator) -> Ints:
    """Permute each row at random, with no group twice in a column; the result is transposed.

    The members of a group follow one another in `rows` and are at most as many as columns.
    """
    dealt = np.empty_like(rows)
    columns = rng.permutation(rows.shape[1])
    last = -1
    taken = columns[:0]
    for row, members in enumerate(rows):
        of = groups[members]
        shared = np.count_nonzero(of == last)
        head = rng.permutation(_others(taken, columns.size))[:shared]
        columns = np.concatenate([head, rng.permutation(_others(head, columns.size))])
        dealt[row, columns] = members
        last = of[-1]
        taken = columns[of == last]
    return np.ascontiguousarray(dealt.T)


def _others(taken: Ints, size: int) -> Ints:
    """The numbers below `size` that are not in `taken`."""
    free = np.ones(size, np.bool_)
    free[taken] = False
    return np.flatnonzero(free)
