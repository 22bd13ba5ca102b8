"""A program for every rank: the loss of a batch on a ring, the same under simulation and mpiexec.

mpiexec -n 4 python ring_program.py [what goes wrong] [on which rank]
"""

import os
import sys
import time

import numpy as np

import siglip_mpi
import siglip_ref as sr

COUNTS = (2, 4, 1, 3)
TIMEOUT = 3.0


def batch():
    """The global batch: 10 pairs."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, sum(COUNTS), 5))
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def program(mpi, fault="", rank=-1):
    """The loss and the gradients of this rank's shards."""
    comm = siglip_mpi.communicator(mpi, timeout=TIMEOUT)
    zimg, ztxt = (np.split(z, np.cumsum(COUNTS)[:-1])[comm.rank] for z in batch())
    if comm.rank == rank:
        if fault == "dies":
            os._exit(3)
        if fault == "hangs":
            time.sleep(10 * TIMEOUT)
        if fault == "raises":
            raise RuntimeError("out of luck")
        if fault == "nan":
            ztxt = ztxt * np.nan
        if fault == "skips":
            comm.start_shift((ztxt,)).wait()
        if fault == "dtype":
            ztxt = ztxt.astype(np.float32)
        if fault == "width":
            zimg, ztxt = zimg[:, :3], ztxt[:, :3]
    loss, grads = sr.ring.sigmoid_loss(zimg, ztxt, np.asarray(1.5), np.asarray(-2.0), comm, tile=2)
    return comm.rank, float(loss), [np.asarray(g).tolist() for g in grads]


if __name__ == "__main__":
    from mpi4py import MPI

    fault, rank = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else ("", -1)
    try:
        everything = MPI.COMM_WORLD.gather(program(MPI.COMM_WORLD, fault, rank), root=0)
        if everything is not None:
            print(repr(everything), flush=True)
    except Exception as error:
        print(f"rank {MPI.COMM_WORLD.Get_rank()} stopped: {error}", file=sys.stderr, flush=True)
        os._exit(1)
