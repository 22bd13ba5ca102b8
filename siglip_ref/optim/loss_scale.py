"""Dynamic loss scaling: float16 gradients kept above underflow and below overflow."""

from typing import NamedTuple


class LossScale(NamedTuple):
    """The cotangent of the loss, and how many updates in a row were finite with it."""

    scale: float = 2.0**16
    finite_steps: int = 0


def loss_scale_update(
    state: LossScale, *, finite: bool, interval: int = 2000, largest: float = 2.0**24
) -> LossScale:
    """The scale of the next step, from whether the gradients of this one were finite.

        finite:      twice the scale after `interval` such steps in a row, at most `largest`
        not finite:  half the scale, and the update is to be left out

    Only powers of 2, so that scaling a gradient and back changes no bit of a normal number.

    Raises ValueError if the gradients are not finite at a scale below 1: then they would not be
    with any.

    Source: arXiv:1710.03740, section 3.2; 2000 is the interval of Torch's GradScaler.
    """
    if not finite:
        if state.scale < 1:
            raise ValueError(
                f"gradients must be finite at some loss scale, got none down to {state.scale:g}"
            )
        return LossScale(state.scale / 2, 0)
    if state.finite_steps + 1 < interval:
        return LossScale(state.scale, state.finite_steps + 1)
    return LossScale(min(2 * state.scale, largest), 0)
