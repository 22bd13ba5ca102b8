"""One rotation of the texts, and of what the ranks sum up for them."""

from collections.abc import Callable
from typing import TypeVar

from siglip_ref.communicator import Arrays, Communicator, Shift
from siglip_ref.ring.shards import Shards
from siglip_ref.types import Array, Int

State = TypeVar("State")

Visit = Callable[[State, Arrays, Int[Array, " m"]], tuple[State, Arrays]]
"""State of a rank, arrays of a shard of texts and their global indices, to the next state and
this rank's part of a sum over all ranks, for each of these texts."""


def rotation(
    visit: Visit[State],
    merge: Callable[[Arrays, Arrays], Arrays],
    state: State,
    held: Arrays,
    texts: Shards,
    comm: Communicator,
) -> tuple[State, Arrays]:
    """The state after every rank's texts came by, and the sum of all ranks for this rank's texts.

    In ring step k = 0 … W - 1 rank r visits the texts of rank r - k. While it does, those of step
    k + 1 travel to it, and the sum that has been collected for its own texts travels one step
    behind them. What a rank finds for its own texts stays at home until that sum arrives, so texts
    and sums make W - 1 hops each, and one rank alone sends nothing.

    A rank holds three shards (visited, coming, going) and three sums (its own, coming, going),
    whatever the number of ranks.
    """
    own: Arrays = ()
    travelling: Shift | None = None
    for step in range(comm.world_size):
        owner = (comm.rank - step) % comm.world_size
        rows = texts.rows((owner - 1) % comm.world_size)
        coming: Shift | None = None
        if step < comm.world_size - 1:
            coming = comm.start_shift(held, rows=rows, step=step)
        state, found = visit(state, held, texts.indices(owner, held[0]))
        if step == 0:
            own = found
        else:
            if travelling is not None:
                found = merge(travelling.wait(), found)
            travelling = comm.start_shift(found, rows=rows, step=step)
        if coming is not None:
            held = coming.wait()
    return state, own if travelling is None else merge(travelling.wait(), own)
