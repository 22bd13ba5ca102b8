"""How far an answer is from the truth, in units of what rounding explains.

    tolerance = λ (u max(S, u rms(S)) + η A)         element by element
    score     = max |got - want| / tolerance          passes if at most 1

u is the unit roundoff of the dtype that the subject computes in and η its smallest subnormal
number. S (`scale`) is how far the element moves if every operation on the way is rounded with
relative errors of standard deviation 1, and A (`underflow`) how far if every result is moved by an
absolute 1: both measured by running the reference under a perturbing namespace (`perturb`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from siglip_ref.types import Float

DType = Literal["float64", "float32", "bfloat16", "float16"]

LAMBDA = 8.0
"""The one factor of every tolerance."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Unit roundoff and smallest subnormal number of a dtype, and what NumPy holds it in."""

    unit_roundoff: float
    smallest: float
    storage: type[np.floating]


PRECISIONS: dict[DType, Precision] = {
    "float64": Precision(2.0**-53, 2.0**-1074, np.float64),
    "float32": Precision(2.0**-24, 2.0**-149, np.float32),
    "bfloat16": Precision(2.0**-8, 2.0**-133, np.float32),
    "float16": Precision(2.0**-11, 2.0**-24, np.float16),
}


class Score(NamedTuple):
    """The worst element: its error in tolerances, where it is, and what was there."""

    value: float
    worst_index: tuple[int, ...]
    got: float
    want: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.value <= 1


def tolerance(
    scale: Float[np.ndarray, "*shape"],
    underflow: Float[np.ndarray, "*shape"],
    dtype: DType,
    lam: float = LAMBDA,
) -> Float[np.ndarray, "*shape"]:
    """λ (u max(S, u rms(S)) + η A) of every element."""
    precision = PRECISIONS[dtype]
    s = np.asarray(scale, dtype=np.float64)
    floor = precision.unit_roundoff * float(np.sqrt(np.mean(s * s))) if s.size else 0.0
    a = np.asarray(underflow, dtype=np.float64)
    relative = precision.unit_roundoff * np.maximum(s, floor)
    return np.asarray(lam * (relative + precision.smallest * a))


def score(
    got: Float[np.ndarray, "*shape"],
    want: Float[np.ndarray, "*shape"],
    scale: Float[np.ndarray, "*shape"],
    underflow: Float[np.ndarray, "*shape"],
    dtype: DType,
    lam: float = LAMBDA,
) -> Score:
    """The worst element of `got`, which has the shape of `want`.

    Anything not finite where the truth is finite scores infinity. Where the tolerance is 0 the
    answer must be exact.
    """
    want = np.asarray(want, dtype=np.float64)
    got = np.asarray(got, dtype=np.float64)
    if got.shape != want.shape:
        raise ValueError(f"got must have the shape {want.shape}, got {got.shape}")
    allowed = tolerance(scale, underflow, dtype, lam)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = np.abs(got - want)
        ratio = np.where(error == 0, 0.0, error / allowed)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    if not ratio.size:
        return Score(0.0, (), 0.0, 0.0, 0.0)
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
    return Score(
        float(ratio[worst]), worst, float(got[worst]), float(want[worst]), float(allowed[worst])
    )
