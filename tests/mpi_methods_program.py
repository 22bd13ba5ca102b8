"""What the methods do that the simulated MPI and mpi4py share: one program for both.

mpiexec -n 3 python mpi_methods_program.py FILE
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

RANKS = 3
MATRIX = np.arange(6.0).reshape(2, 3)


def to_self(mpi, sent, room):
    """What is in a buffer after a message to oneself."""
    receive = mpi.Irecv(room, source=mpi.Get_rank(), tag=5)
    mpi.Isend(sent, dest=mpi.Get_rank(), tag=5).Wait()
    receive.Wait()
    return room.tolist()


def read_only():
    array = np.zeros((2, 3))
    array.flags.writeable = False
    return array


def rank_and_size(mpi):
    return [mpi.Get_rank(), mpi.Get_size()]


def messages_of_a_tag_in_the_order_they_were_sent(mpi):
    rank, right, left = mpi.Get_rank(), (mpi.Get_rank() + 1) % 3, (mpi.Get_rank() - 1) % 3
    sends = [
        mpi.Isend(np.array([10.0 * rank + tag, k]), dest=right, tag=tag)
        for k in range(2)
        for tag in (1, 2)
    ]
    got = []
    for tag in (2, 1, 2, 1):
        room = np.empty(2)
        mpi.Irecv(room, source=left, tag=tag).Wait()
        got.append(room.tolist())
    for send in sends:
        send.Wait()
    return got


def a_request_is_done_when_its_message_is_there(mpi):
    rank, room = mpi.Get_rank(), np.zeros(1)
    mpi.Barrier()
    receive = mpi.Irecv(room, source=(rank - 1) % 3, tag=4)
    before = receive.Test()  # none of the ranks sends before the barrier
    mpi.Barrier()
    mpi.Isend(np.array([float(rank)]), dest=(rank + 1) % 3, tag=4).Wait()
    while not receive.Test():
        time.sleep(1e-3)
    return [bool(before), room.tolist()]


def any_source_and_tag(mpi):
    mpi.Barrier()
    rank = mpi.Get_rank()
    before = mpi.Iprobe(), mpi.Iprobe(source=(rank - 1) % 3, tag=8)
    mpi.Barrier()
    mpi.Isend(np.array([float(rank)]), dest=(rank + 1) % 3, tag=8).Wait()
    while not mpi.Iprobe(source=(rank - 1) % 3, tag=8):
        time.sleep(1e-3)
    after = mpi.Iprobe(), mpi.Iprobe(tag=9)
    room = np.zeros(1)
    mpi.Irecv(room).Wait()
    mpi.Barrier()
    return [*map(bool, before + after), room.tolist()]


def sendrecv(mpi):
    rank, room = mpi.Get_rank(), np.zeros(2)
    mpi.Sendrecv(np.full(2, float(rank)), (rank + 1) % 3, 7, room, (rank - 1) % 3, 7)
    return room.tolist()


def allgather(mpi):
    room = np.zeros((3, 2), dtype=np.int64)
    mpi.Allgather(np.array([mpi.Get_rank(), 7]), room)
    return room.tolist()


def allgather_by_columns(mpi):
    room = np.zeros((3, 2, 3))
    mpi.Allgather(np.asfortranarray(MATRIX + mpi.Get_rank()), room)
    return room.tolist()


def allgather_into_uneven_parts(mpi):
    mpi.Allgather(np.zeros(2), np.zeros(7))


def allreduce(mpi, dtype=np.float64):
    room = np.zeros(2, dtype=dtype)
    mpi.Allreduce(np.array([mpi.Get_rank(), 1], dtype=dtype), room)
    return room.tolist()


def allreduce_by_columns(mpi):
    room = np.zeros(6)
    mpi.Allreduce(np.asfortranarray(MATRIX), room)
    return room.tolist()


def barrier(mpi):
    start = time.monotonic()
    time.sleep(0.3 if mpi.Get_rank() == 1 else 0.0)
    mpi.Barrier()
    return time.monotonic() - start > 0.2


CASES = {
    "the rank and the size": rank_and_size,
    "messages of a tag arrive in order": messages_of_a_tag_in_the_order_they_were_sent,
    "a request is done when its message is there": a_request_is_done_when_its_message_is_there,
    "any source and tag": any_source_and_tag,
    "Sendrecv": sendrecv,
    "Sendrecv into nothing": lambda mpi: mpi.Sendrecv(np.zeros(1), mpi.Get_rank()),
    "Allgather": allgather,
    "Allgather by columns": allgather_by_columns,
    "Allgather into uneven parts": allgather_into_uneven_parts,
    "Allreduce": allreduce,
    "Allreduce in float32": lambda mpi: allreduce(mpi, np.float32),
    "Allreduce of integers": lambda mpi: allreduce(mpi, np.int64),
    "Allreduce by columns": allreduce_by_columns,
    "Allreduce into more": lambda mpi: mpi.Allreduce(np.zeros(2), np.zeros(3)),
    "Allreduce into another dtype": lambda mpi: mpi.Allreduce(np.zeros(2), np.zeros(2, np.float32)),
    "Barrier": barrier,
    "by rows": lambda mpi: to_self(mpi, MATRIX, np.zeros((2, 3))),
    "sent by columns": lambda mpi: to_self(mpi, np.asfortranarray(MATRIX), np.zeros(6)),
    "received by columns": lambda mpi: to_self(mpi, MATRIX, np.zeros((2, 3), order="F")),
    "a message that is shorter": lambda mpi: to_self(mpi, MATRIX[0], np.full(5, -1.0)),
    "a message without a number": lambda mpi: to_self(mpi, np.zeros((0, 3)), np.full(2, -1.0)),
    "one number": lambda mpi: to_self(mpi, np.array(3.0), np.zeros(())),
    "float16": lambda mpi: to_self(mpi, MATRIX.astype(np.float16), np.zeros(6, np.float16)),
    "bytes of another dtype": lambda mpi: to_self(mpi, np.ones(2, np.int32), np.zeros(1, np.int64)),
    "sent in pieces": lambda mpi: mpi.Isend(MATRIX[:, ::2], dest=mpi.Get_rank()),
    "received in pieces": lambda mpi: mpi.Irecv(np.zeros((2, 4))[:, ::2], source=mpi.Get_rank()),
    "received into what is read-only": lambda mpi: mpi.Irecv(read_only(), source=mpi.Get_rank()),
    "a list is sent": lambda mpi: mpi.Isend([1.0, 2.0], dest=mpi.Get_rank()),
    "a number is sent": lambda mpi: mpi.Isend(1.0, dest=mpi.Get_rank()),
    "sent to nobody": lambda mpi: mpi.Isend(MATRIX, dest=99),
    "received from nobody": lambda mpi: mpi.Irecv(np.zeros(2), source=99),
    "a message that is longer": lambda mpi: to_self(mpi, MATRIX, np.zeros(2)),
}


def program(mpi):
    """What each case gives, or the kind of its error."""
    found = {}
    for name, case in CASES.items():
        try:
            found[name] = case(mpi)
        except Exception as error:
            kinds = (BufferError, TypeError, ValueError, RuntimeError)
            found[name] = next(kind.__name__ for kind in kinds if isinstance(error, kind))
    return found


if __name__ == "__main__":
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    everything = world.gather(program(world), root=0)
    if everything is not None:
        Path(sys.argv[1]).write_text(json.dumps(everything))
    world.Barrier()
    if world.Get_rank() == 1:
        world.Abort(3)
    time.sleep(60)  # until another rank's Abort
