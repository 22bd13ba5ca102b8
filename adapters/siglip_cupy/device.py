"""Which CUDA device is this process's."""

import os

import cupy

from siglip_ref.backend import local_rank


def use_own_device() -> None:
    """Let this thread use device r mod D, with r the local rank and D devices to be seen.

    Without a local rank the current device stays.
    """
    rank = local_rank(os.environ)
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
