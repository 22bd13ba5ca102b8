"""Which CUDA device is this process's."""

import os

import torch

from siglip_ref.backend import local_rank


def use_own_device() -> None:
    """Let this thread use device r mod D, with r the local rank and D devices to be seen.

    Without a local rank the current device stays; without a device nothing happens.
    """
    if not torch.cuda.is_available():
        return
    rank = local_rank(os.environ)
    if rank is not None:
        torch.cuda.set_device(rank % torch.cuda.device_count())
