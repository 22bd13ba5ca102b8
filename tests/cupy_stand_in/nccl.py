"""NCCL between threads of this process; each has its own communicator, as ranks have.

Calls return at once, and what they ask for comes to pass on the stream when the others do their
part, as on a device; only a communicator is not there before all ranks ask for theirs. Two of a
group cannot be on one device.

Names, numbers and signatures are those of `cupy_backends.cuda.libs.nccl` in CuPy 14.2, which cannot
be imported without the library itself. tests/adapters/test_cupy_stand_in.py looks for the
signatures in the file of that module, tests/gpu/test_libraries.py asks the module.
"""

import ctypes
import itertools
import threading
from collections import defaultdict, deque

from cupy_stand_in.machine import MACHINE
from cupy_stand_in.signatures import by_name, like
from cupy_stand_in.streams import enqueue

__all__ = [
    "NCCL_BFLOAT16",
    "NCCL_FLOAT16",
    "NCCL_FLOAT32",
    "NCCL_FLOAT64",
    "NCCL_INT32",
    "NCCL_INT64",
    "NCCL_SUM",
    "NcclCommunicator",
    "NcclError",
    "get_unique_id",
    "groupEnd",
    "groupStart",
]

SIGNATURES = by_name(
    "get_unique_id()",
    "groupStart()",
    "groupEnd()",
    "NcclCommunicator(int ndev, bytes commId, int rank, NcclConfig config=None)",
    "NcclCommunicator.send"
    "(self, intptr_t sendbuf, size_t count, int datatype, int peer, intptr_t stream)",
    "NcclCommunicator.recv"
    "(self, intptr_t recvbuf, size_t count, int datatype, int peer, intptr_t stream)",
    "NcclCommunicator.allReduce"
    "(self, intptr_t sendbuf, intptr_t recvbuf, size_t count, int datatype, int op, "
    "intptr_t stream)",
    "NcclCommunicator.check_async_error(self)",
    "NcclCommunicator.abort(self)",
)
NCCL_SUM = 0
NCCL_INT32, NCCL_INT64, NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = 2, 4, 6, 7, 8, 9
_SIZES = {
    NCCL_INT32: 4,
    NCCL_INT64: 8,
    NCCL_FLOAT16: 2,
    NCCL_FLOAT32: 4,
    NCCL_FLOAT64: 8,
    NCCL_BFLOAT16: 2,
}
_FLOATS = {NCCL_FLOAT32: ctypes.c_float, NCCL_FLOAT64: ctypes.c_double}
_ID_BYTES = 128
_group = threading.local()
_worlds = {}
_ids = itertools.count(1)
_lock = threading.Lock()


class NcclError(RuntimeError):
    """What the real one raises, with a code."""


class _World:
    """What the ranks of one unique id share."""

    def __init__(self, world_size):
        self.size = world_size
        self.mail = defaultdict(deque)
        self.parts = defaultdict(dict)
        self.devices = []
        self.all_there = threading.Event()


@like(SIGNATURES)
def get_unique_id():
    return next(_ids).to_bytes(_ID_BYTES, "little")


@like(SIGNATURES)
def groupStart():
    _group.depth = _depth() + 1


@like(SIGNATURES)
def groupEnd():
    if _depth() < 1:
        raise NcclError("NCCL_ERROR_INVALID_USAGE: no group was started")
    _group.depth -= 1


def _depth():
    return getattr(_group, "depth", 0)


@like(SIGNATURES)
class NcclCommunicator:
    """One rank's end."""

    def __init__(self, ndev, commId, rank, config=None):
        if len(commId) != _ID_BYTES:
            raise ValueError(f"commId length {len(commId)} != {_ID_BYTES}.")
        with _lock:
            self._world = _worlds.setdefault(commId, _World(ndev))
            self._world.devices.append(MACHINE.device)
            if len(self._world.devices) == ndev:
                self._world.all_there.set()
        self._world.all_there.wait()
        if len(set(self._world.devices)) < ndev:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: two ranks are on one device")
        self._rank = rank
        self._sums = 0
        self._aborted = False

    def send(self, sendbuf, count, datatype, peer, stream):
        data = ctypes.string_at(sendbuf, count * _SIZES[datatype])
        self._world.mail[self._rank, peer].append(data)

    def recv(self, recvbuf, count, datatype, peer, stream):
        box = self._world.mail[peer, self._rank]

        def receive():
            if not box or self._aborted:
                return False
            data = box.popleft()
            assert len(data) == count * _SIZES[datatype], "the ranks disagree about the size"
            ctypes.memmove(recvbuf, data, len(data))
            return True

        assert _depth(), "a receive outside of a group would block the send"
        enqueue(stream, receive)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        assert op == NCCL_SUM
        kind = _FLOATS[datatype]
        parts = self._world.parts[self._sums]
        self._sums += 1
        parts[self._rank] = [*(kind * count).from_address(sendbuf)]

        def add():
            if len(parts) < self._world.size or self._aborted:
                return False
            columns = zip(*(parts[rank] for rank in range(self._world.size)), strict=True)
            total = (kind * count)(*map(sum, columns))
            ctypes.memmove(recvbuf, total, ctypes.sizeof(total))
            return True

        enqueue(stream, add)

    def check_async_error(self):
        if self._aborted:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: aborted")

    def abort(self):
        self._aborted = True
