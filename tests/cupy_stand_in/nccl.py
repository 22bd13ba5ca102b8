"""NCCL between threads of this process; each has its own communicator, as ranks have.

Calls return at once, and what they ask for comes to pass on the stream when the others do their
part, as on a device. Numbers are those of `cupy_backends.cuda.libs.nccl` in CuPy 14.2.
"""

import ctypes
import itertools
import threading
from collections import defaultdict, deque

from cupy_stand_in.streams import enqueue

NCCL_SUM = 0
NCCL_INT32, NCCL_INT64, NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = 2, 4, 6, 7, 8, 9
SIZES = {
    NCCL_INT32: 4,
    NCCL_INT64: 8,
    NCCL_FLOAT16: 2,
    NCCL_FLOAT32: 4,
    NCCL_FLOAT64: 8,
    NCCL_BFLOAT16: 2,
}
available = True
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


def get_unique_id():
    return (next(_ids), *(0,) * 127)


def groupStart():
    _group.open = True


def groupEnd():
    _group.open = False


class NcclCommunicator:
    """One rank's end."""

    def __init__(self, ndev, commId, rank):
        with _lock:
            self._world = _worlds.setdefault(commId, _World(ndev))
        self._rank = rank
        self._sums = 0
        self.aborted = False

    def send(self, sendbuf, count, datatype, peer, stream):
        data = ctypes.string_at(sendbuf, count * SIZES[datatype])
        self._world.mail[self._rank, peer].append(data)

    def recv(self, recvbuf, count, datatype, peer, stream):
        box = self._world.mail[peer, self._rank]

        def receive():
            if not box or self.aborted:
                return False
            data = box.popleft()
            assert len(data) == count * SIZES[datatype], "the ranks disagree about the size"
            ctypes.memmove(recvbuf, data, len(data))
            return True

        assert _group.open, "a receive outside of a group would block the send"
        enqueue(stream, receive)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        assert op == NCCL_SUM
        kind = {NCCL_FLOAT32: ctypes.c_float, NCCL_FLOAT64: ctypes.c_double}[datatype]
        parts = self._world.parts[self._sums]
        self._sums += 1
        parts[self._rank] = [*(kind * count).from_address(sendbuf)]

        def add():
            if len(parts) < self._world.size or self.aborted:
                return False
            columns = zip(*(parts[rank] for rank in range(self._world.size)), strict=True)
            total = (kind * count)(*map(sum, columns))
            ctypes.memmove(recvbuf, total, ctypes.sizeof(total))
            return True

        enqueue(stream, add)

    def check_async_error(self):
        if self.aborted:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: aborted")

    def abort(self):
        self.aborted = True
