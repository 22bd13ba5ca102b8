"""Which CUDA device is this process's."""

import os
from collections.abc import Mapping

import cupy

LOCAL_RANK = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
"""Where torchrun, Open MPI, MPICH and Slurm's srun number the processes of a machine, from 0."""


def local_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """The number of this process among those of its machine; None if no launcher gave it one."""
    return next((int(environ[name]) for name in LOCAL_RANK if name in environ), None)


def use_own_device() -> None:
    """Let this thread use device r mod D, with r the local rank and D devices to be seen.

    Without a local rank the current device stays.
    """
    rank = local_rank()
    if rank is not None:
        cupy.cuda.Device(rank % cupy.cuda.runtime.getDeviceCount()).use()


def require_device() -> None:
    """Raise RuntimeError, saying what to do, unless CuPy finds a CUDA device."""
    wanted = "CuPy needs a CUDA device"
    advice = (
        "install the NVIDIA driver, or show this process a device (CUDA_VISIBLE_DEVICES), or use "
        "another backend"
    )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"{wanted}, got {error}; {advice}") from error
    if count < 1:
        raise RuntimeError(f"{wanted}, got 0 devices; {advice}")
