"""The factor of the learning rate and the decay over the steps of a run.

Each is a function of the step, 0 for the first, to a number in [0, 1]:

    factor   = min(1, step / warmup) · shape(progress)
    progress = (step - warmup) / (total - warmup), kept within [0, 1]

so the very first step of a run with warmup changes nothing.

Source: big_vision, `utils.py`, `create_learning_rate_schedule`.
"""

import math


def cosine_schedule(step: int, *, total: int, warmup: int = 0) -> float:
    """shape = ½ (1 + cos(π progress)), down to 0."""
    return _warmup(step, warmup) * 0.5 * (1 + math.cos(math.pi * _progress(step, total, warmup)))


def linear_schedule(step: int, *, total: int, warmup: int = 0, end: float = 1e-5) -> float:
    """shape = end + (1 - end) (1 - progress).

    big_vision's `end` is 0 unless given; 1e-5 is that of its forerunner, vision_transformer.
    """
    return _warmup(step, warmup) * (end + (1 - end) * (1 - _progress(step, total, warmup)))


def rsqrt_schedule(step: int, *, warmup: int = 0, timescale: int = 10_000) -> float:
    """shape = 1 / sqrt(1 + after / timescale) with `after` the steps done since the warmup's end.

    It has no end, so a run can go on; big_vision can add a linear cooldown.
    """
    after = max(step - warmup, 0)
    return _warmup(step, warmup) * math.sqrt(timescale / (after + timescale))


def _warmup(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


def _progress(step: int, total: int, warmup: int) -> float:
    if total <= warmup:
        raise ValueError(f"total must be above warmup = {warmup}, got {total}")
    return min(1.0, max(0.0, (step - warmup) / (total - warmup)))
