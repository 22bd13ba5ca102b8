"""NCCL between threads of this process; each has its own communicator, as ranks have.

Numbers are those of `cupy_backends.cuda.libs.nccl` in CuPy 14.2.
"""

import ctypes
import queue
import threading
from collections import defaultdict

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
_lock = threading.Lock()


class NcclError(RuntimeError):
    """What the real one raises, with a code."""


class _World:
    """What the ranks of one unique id share."""

    def __init__(self, world_size):
        self.mail = defaultdict(queue.Queue)
        self.barrier = threading.Barrier(world_size)
        self.board = [None] * world_size


def get_unique_id():
    return threading.get_ident(), len(_worlds)


def groupStart():
    _group.receives = []


def groupEnd():
    receives, _group.receives = _group.receives, None
    for receive in receives:
        receive()


class NcclCommunicator:
    """One rank's end. A message that does not come within `patience` seconds never does."""

    patience = 5.0

    def __init__(self, ndev, commId, rank):
        with _lock:
            self._world = _worlds.setdefault(commId, _World(ndev))
        self._rank = rank
        self.aborted = False

    def send(self, sendbuf, count, datatype, peer, stream):
        data = ctypes.string_at(sendbuf, count * SIZES[datatype])
        self._world.mail[self._rank, peer].put(data)

    def recv(self, recvbuf, count, datatype, peer, stream):
        def receive():
            try:
                data = self._world.mail[peer, self._rank].get(timeout=self.patience)
            except queue.Empty:
                LATE.set()
                return
            assert len(data) == count * SIZES[datatype], "the ranks disagree about the size"
            ctypes.memmove(recvbuf, data, len(data))

        assert _group.receives is not None, "a receive outside of a group would block the send"
        _group.receives.append(receive)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        assert op == NCCL_SUM
        kind = {NCCL_FLOAT32: ctypes.c_float, NCCL_FLOAT64: ctypes.c_double}[datatype]
        everyone = self._everyone([*(kind * count).from_address(sendbuf)])
        total = (kind * count)(*(sum(column) for column in zip(*everyone, strict=True)))
        ctypes.memmove(recvbuf, total, ctypes.sizeof(total))

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):
        data = ctypes.string_at(sendbuf, count * SIZES[datatype])
        together = b"".join(self._everyone(data))
        ctypes.memmove(recvbuf, together, len(together))

    def check_async_error(self):
        if self.aborted:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: aborted")

    def abort(self):
        self.aborted = True

    def _everyone(self, mine):
        world = self._world
        world.board[self._rank] = mine
        world.barrier.wait(self.patience)
        found = list(world.board)
        world.barrier.wait(self.patience)
        return found


LATE = threading.Event()
"""Set once a message has not come: events recorded from then on do not come to pass."""
