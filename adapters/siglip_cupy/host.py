"""What the ranks of a ring on devices tell one another on the host: what they send, and faults.

NCCL knows addresses and numbers of elements, no shapes, and what does not fit makes a device wait
for ever. So the hosts compare what goes with what is expected before either is handed to NCCL.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from siglip_ref.communicator import Communicator
from siglip_ref.faults import COLLECTIVE, Notice, Reason, place
from siglip_ref.types import Array

DTYPES = {
    "int32": "NCCL_INT32",
    "int64": "NCCL_INT64",
    "float16": "NCCL_FLOAT16",
    "bfloat16": "NCCL_BFLOAT16",
    "float32": "NCCL_FLOAT32",
    "float64": "NCCL_FLOAT64",
}
"""NCCL's names of the dtypes that it has."""

_NAMES = tuple(DTYPES)
_AXES = 4


class Watch(Protocol):
    """What tells a rank of the faults of others, and them of its own."""

    def check(self) -> None:
        """Raise the RingError with which this ring has stopped, if it has."""

    def until(
        self,
        done: Callable[[], bool],
        others: tuple[int, ...],
        step: int,
        meanwhile: Callable[[], None],
    ) -> None:
        """Return when what needs other ranks is done; `meanwhile` is called between two looks.

        Raises RingError if it takes longer than the timeout of the host's ring, or as soon as any
        rank gives notice that it stops.
        """

    def stop(self, notice: Notice) -> NoReturn:
        """Give notice to all ranks, hear what they say, and raise RingError."""


class Host(Communicator, Protocol):
    """A ring of the same ranks over the memory of the host: `siglip_mpi.MpiCommunicator`."""

    @property
    def watch(self) -> Watch:
        """What knows of faults."""


class Header(NamedTuple):
    """What is sent; of more axes than `_AXES` the number of elements."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Array, rows: int | None = None) -> Self:
        """What an array is, or what one is that has another number of rows.

        Raises TypeError if NCCL has not its dtype.
        """
        name = str(array.dtype)
        if name not in DTYPES:
            raise TypeError(f"array must have a dtype out of {', '.join(DTYPES)}, got {name}")
        shape = tuple(array.shape) if rows is None else (rows, *array.shape[1:])
        return cls(name, shape if len(shape) <= _AXES else (int(np.prod(shape)),))

    def encode(self) -> tuple[int, ...]:
        """The header in numbers, as many for all."""
        padding = (0,) * (_AXES - len(self.shape))
        return (_NAMES.index(self.dtype), len(self.shape), *self.shape, *padding)

    @classmethod
    def decode(cls, numbers: NDArray[np.int64] | tuple[int, ...]) -> Self:
        """The header that was encoded."""
        code, ndim, *sizes = (int(number) for number in numbers)
        return cls(_NAMES[code], tuple(sizes[:ndim]))

    def words(self, step: int) -> str:
        """The header in words."""
        return f"{self.dtype} {self.shape} in {place(step)}"


def agree_on_shift(host: Host, sent: list[Header], expected: list[Header], step: int) -> None:
    """Compare what the left neighbour is about to send with what is expected of it.

    Raises RingError, on all ranks, if it is something else, or if the left neighbour is not there.
    """
    going = np.asarray([header.encode() for header in sent], dtype=np.int64)
    (coming,) = host.start_shift((going,), rows=len(going), step=step).wait()
    left = (int(host.rank) - 1) % host.world_size
    for got, wanted in zip(map(Header.decode, coming), expected, strict=True):
        if got != wanted:
            notice = Notice(int(host.rank), (left,), step, Reason.MISMATCH)
            host.watch.stop(notice._replace(sent=got.words(step), expected=wanted.words(step)))


def agree_on_sum(host: Host, header: Header) -> None:
    """Compare what all ranks are about to add up.

    Raises RingError, on all ranks, if it is not the same everywhere, or if a rank is not there.
    """
    headers = [Header.decode(numbers) for numbers in host.gather(header.encode())]
    usual = Counter(headers).most_common(1)[0][0]
    odd = tuple(rank for rank, got in enumerate(headers) if got != usual)
    if odd:
        notice = Notice(int(host.rank), odd, COLLECTIVE, Reason.MISMATCH)
        sent, expected = (x.words(COLLECTIVE) for x in (headers[odd[0]], usual))
        host.watch.stop(notice._replace(sent=sent, expected=expected))
