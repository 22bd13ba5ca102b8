"""Which parameters an update moves, how far, and which of them decay."""

from collections.abc import Callable

from siglip_ref.types import Array, Float

Decays = Callable[[str], bool]
"""Path of a parameter to whether it decays."""

Factor = float | Float[Array, ""]
"""What a whole update is multiplied by, decay included; a 0-d array where a step is compiled."""

Schedule = Factor | Callable[[str], Factor | None]
"""The factor of an update: one for all paths, or one for each.

A path whose factor is None is frozen: it neither moves nor decays, and its state stays the same
object. A factor of 0, as in the first step of a warmup, is no freezing: the moments still take
the gradient in, and only the parameter stays.

Source: big_vision, `optax.py`, where the schedule None freezes.
"""


def kernels_decay(path: str) -> bool:
    """Only linear maps decay: no bias, norm, position, probe, token table, t' or b.

    Source: big_vision, `optax.py`, the default of `wd_mults`.
    """
    return path.endswith("/kernel")


def factor_of(schedule: Schedule, path: str) -> Factor | None:
    """The factor of one path, None if it is frozen."""
    return schedule(path) if callable(schedule) else schedule
