"""Which parameters an update moves, how far, and which of them decay."""

from collections.abc import Callable

Decays = Callable[[str], bool]
"""Path of a parameter to whether it decays."""

Schedule = float | Callable[[str], float]
"""The factor of a whole update, decay included: one number, or one for each path.

A path whose factor is the Python number 0 is frozen: it neither moves nor decays, and its state
stays the same object.
"""


def kernels_decay(path: str) -> bool:
    """Only linear maps decay: no bias, norm, position, probe, token table, t' or b.

    Source: big_vision, `optax.py`, the default of `wd_mults`.
    """
    return path.endswith("/kernel")


def factor_of(schedule: Schedule, path: str) -> float:
    """The factor of one path."""
    return schedule(path) if callable(schedule) else schedule


def is_frozen(factor: float) -> bool:
    """Whether a factor is the number 0; a traced or array factor never freezes."""
    return isinstance(factor, (int, float)) and factor == 0
