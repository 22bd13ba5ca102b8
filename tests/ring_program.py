"""A program for every rank: losses of a batch on a ring, the same under simulation and mpiexec.

mpiexec -n 4 python ring_program.py [fault in mid-ring] [on which rank] [folder for reports]
mpiexec -n 8 python ring_program.py worlds [file for the errors of rings of 1 to 8 ranks]
"""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import siglip_mpi
import siglip_ref as sr

COUNTS = (2, 4, 1, 3)
TIMEOUT = 2.0
SHIFT = 3  # the texts of ring step 2


def batch():
    """The global batch: 10 pairs."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, sum(COUNTS), 5))
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


class Faulty:
    """A communicator that goes wrong in a certain shift."""

    def __init__(self, comm, fault):
        self._comm, self._fault, self._shifts = comm, fault, 0

    def __getattr__(self, name):
        return getattr(self._comm, name)

    def start_shift(self, arrays, *, rows, step):
        self._shifts += 1
        if self._shifts == SHIFT + 1:
            if self._fault in ("killed", "lost"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self._fault == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self._fault == "hangs":
                time.sleep(2 * TIMEOUT)
            if self._fault == "raises":
                raise RuntimeError("out of luck")
            if self._fault == "nan":
                arrays = tuple(array * np.nan for array in arrays)
            if self._fault == "skips":
                self._comm.start_shift(arrays, rows=rows, step=step).wait()
            if self._fault == "dtype":
                arrays = tuple(array.astype(np.float32) for array in arrays)
            if self._fault == "width":
                arrays = tuple(array[:, :3] for array in arrays)
        return self._comm.start_shift(arrays, rows=rows, step=step)


@contextmanager
def reporting(folder, rank):
    """Leave a process's number in a file, and what stopped it in another: mpiexec loses output."""
    if folder is not None:
        (folder / f"{rank}.pid").write_text(str(os.getpid()))
    try:
        yield
    except Exception as error:
        if folder is not None:
            (folder / f"{rank}.txt").write_text(f"{time.time()} {error}")
        raise


def program(mpi, fault="", rank=-1, reports=None):
    """The losses, the gradients of this rank's shards, and a sum over the ranks."""
    with (
        siglip_mpi.communicator(mpi, timeout=TIMEOUT if fault else 30.0) as whole,
        reporting(reports, whole.rank),
    ):
        comm = Faulty(whole, fault) if whole.rank == rank else whole
        zimg, ztxt = (np.split(z, np.cumsum(COUNTS)[:-1])[comm.rank] for z in batch())
        t_prime, b = np.asarray(1.5), np.asarray(-2.0)
        losses = (
            sr.ring.sigmoid_loss(zimg, ztxt, t_prime, b, comm, tile=2),
            sr.ring.softmax_loss(zimg, ztxt, t_prime, comm, tile=2),
            sr.ring.allgather_softmax_loss(zimg, ztxt, t_prime, comm),
        )
        grads = sr.ring.sum_gradients({"kernel": np.full((100, 50), 0.1 * comm.rank)}, comm)
        return (
            int(comm.rank),
            [(float(loss), [np.asarray(g).tolist() for g in grads]) for loss, grads in losses],
            float(np.sum(grads["kernel"])),
        )


def error_of(ranks, whole):
    """How far what the ranks of a ring return is from the loss and gradients of one device."""
    loss, grads = whole
    distances = []
    for found, found_grads in ranks:
        distances.append(abs(found - loss) / max(1, abs(loss)))
        distances += [abs(getattr(found_grads, x) - getattr(grads, x)) for x in grads._fields[2:]]
    for name in ("dzimg", "dztxt"):
        joined = np.concatenate([getattr(found_grads, name) for _, found_grads in ranks])
        distances.append(np.max(np.abs(joined - getattr(grads, name))))
    return float(np.max(distances))


def worlds(world):
    """The errors of uneven rings of 1 to 8 of 8 processes, on rank 0.

    The processes part into a ring of some and a ring of the others, in every way.
    """
    t_prime, b = np.asarray(1.5), np.asarray(-2.0)
    errors = {}
    for first in range(4, 9):
        ring = world.Split(world.Get_rank() < first)
        size, rank = ring.Get_size(), ring.Get_rank()
        rng = np.random.default_rng(size)
        counts, text_counts = ([1 + (k * r) % 4 for r in range(size)] for k in (3, 2))
        zimg, ztxt = (rng.standard_normal((sum(c), 5)) / 2 for c in (counts, text_counts))
        images, texts = (
            np.split(z, np.cumsum(c)[:-1])[rank] for z, c in ((zimg, counts), (ztxt, text_counts))
        )
        with siglip_mpi.communicator(ring, timeout=30.0) as comm:
            found = {
                "sigmoid": sr.ring.sigmoid_loss(images, texts, t_prime, b, comm, tile=2),
                "softmax": sr.ring.softmax_loss(images, texts, t_prime, comm, tile=2),
                "gathered softmax": sr.ring.allgather_softmax_loss(images, texts, t_prime, comm),
            }
        softmax = sr.losses.tiled_softmax_loss(zimg, ztxt, t_prime)
        whole = {
            "sigmoid": sr.losses.tiled_sigmoid_loss(zimg, ztxt, t_prime, b),
            "softmax": softmax,
            "gathered softmax": softmax,
        }
        for name, mine in found.items():
            ranks = ring.allgather(mine)
            errors[f"{name} on {size}"] = error_of(ranks, whole[name])
    return {name: error for part in world.allgather(errors) for name, error in part.items()}


def behind_a_parent():
    """Go on in a child process. If it is killed its parent stays, so that mpiexec sees nothing.

    Otherwise mpiexec kills the other ranks too, often before they notice: this is a lost machine.
    """
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGKILL:
            time.sleep(60)
        os._exit(abs(status))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worlds"]:
        from mpi4py import MPI

        found = worlds(MPI.COMM_WORLD)
        if MPI.COMM_WORLD.Get_rank() == 0:
            Path(sys.argv[2]).write_text(json.dumps(found))
        sys.exit()
    fault, rank = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else ("", -1)
    if fault == "lost":
        behind_a_parent()
    from mpi4py import MPI

    reports = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    everything = MPI.COMM_WORLD.gather(program(MPI.COMM_WORLD, fault, rank, reports), root=0)
    if everything is not None:
        print(repr(everything), flush=True)
