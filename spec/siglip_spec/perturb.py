"""A NumPy namespace in which every inexact operation is disturbed, as rounding would disturb it.

The core is pure array API, so the very code that computes the truth also measures how much rounding
errors move each of its results: run it on `Disturbance(...).asarray(x)` many times and look at the
spread. That is S and A of the tolerance (see `score`).

Two kinds of disturbance, both with independent standard normal numbers ξ for each element:

    relative    out (1 + u ξ); sums of k terms: + √k u √(Σ x²) ξ; products A B: + √k u √(A² B²) ξ
    absolute    out + u ξ where out is not 0

exp, log, log1p and tanh, which libraries give to within a few units only, are disturbed by 4 u ξ.

A result that is exact in every floating-point dtype is left alone: one of at most 8 significant
bits, a product with a power of two, a sum with zero. No disturbance turns the sign of a result.
"""

import math
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, Self

import numpy as np

Kind = Literal["relative", "absolute"]

_COARSE_BITS = 8
_ELEMENTARY = 4.0


class Disturbance:
    """A source of disturbances of one kind and size; `xp` is its array namespace."""

    def __init__(self, kind: Kind, size: float, rng: np.random.Generator) -> None:
        self.kind, self.size, self.rng = kind, size, rng
        self.xp = _namespace(self)

    def asarray(self, array: np.ndarray) -> "DisturbedArray":
        """An array of the namespace; integers stay exact under all operations."""
        return DisturbedArray(np.asarray(array), self)

    def rounded(self, out: np.ndarray, spread: np.ndarray | None, exact: Any) -> np.ndarray:
        """`out` disturbed where it is not exact; `spread` scales it instead of `out` itself."""
        if not np.issubdtype(out.dtype, np.floating):
            return out
        noise = self.size * self.rng.standard_normal(out.shape)
        if self.kind == "relative":
            noise = noise * (out if spread is None else spread)
        turned = np.sign(out + noise) == -np.sign(out)
        keep = exact | (out == 0) | ~np.isfinite(out) | _is_coarse(out) | turned
        return np.asarray(np.where(keep, out, out + noise))


def _is_coarse(x: np.ndarray) -> np.ndarray:
    """Whether a number has at most 8 significant bits."""
    mantissa, _ = np.frexp(np.where(np.isfinite(x), x, 0.0))
    scaled = mantissa * 2.0**_COARSE_BITS
    return np.asarray(scaled == np.round(scaled))


def _is_power_of_two(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(np.frexp(x)[0]) == 0.5)


class DisturbedArray:
    """An array whose operators are the namespace's."""

    __array_priority__ = 1000

    def __init__(self, array: np.ndarray, source: Disturbance) -> None:
        self.array, self.source = array, source

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.source.xp

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.array.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.array.ndim

    @property
    def dtype(self) -> Any:
        """NumPy's dtype."""
        return self.array.dtype

    @property
    def device(self) -> str:
        """The only device there is."""
        return "cpu"

    def __getitem__(self, key: Any) -> "DisturbedArray":
        return self._like(self.array[key])

    def __bool__(self) -> bool:
        return bool(self.array)

    def __float__(self) -> float:
        return float(self.array)

    def __neg__(self) -> "DisturbedArray":
        return self._like(-self.array)

    def __add__(self, other: Any) -> "DisturbedArray":
        return self._sum(operator.add, self.array, _plain(other))

    def __radd__(self, other: Any) -> "DisturbedArray":
        return self._sum(operator.add, _plain(other), self.array)

    def __sub__(self, other: Any) -> "DisturbedArray":
        return self._sum(operator.sub, self.array, _plain(other))

    def __rsub__(self, other: Any) -> "DisturbedArray":
        return self._sum(operator.sub, _plain(other), self.array)

    def __mul__(self, other: Any) -> "DisturbedArray":
        return self._product(self.array, _plain(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "DisturbedArray":
        divisor = _plain(other)
        with np.errstate(divide="ignore", invalid="ignore"):
            out = np.asarray(self.array / divisor)
        return self._rounded(out, _is_power_of_two(divisor))

    def __rtruediv__(self, other: Any) -> "DisturbedArray":
        return self._rounded(np.asarray(_plain(other) / self.array), False)

    def __pow__(self, other: Any) -> "DisturbedArray":
        return self._rounded(np.asarray(self.array ** _plain(other)), False)

    def __matmul__(self, other: Self) -> "DisturbedArray":
        left, right = self.array, other.array
        terms = left.shape[-1]
        spread = math.sqrt(terms) * np.sqrt((left * left) @ (right * right))
        return self._like(self.source.rounded(np.asarray(left @ right), np.asarray(spread), False))

    def __eq__(self, other: object) -> Any:
        return self._like(np.asarray(self.array == _plain(other)))

    def __ne__(self, other: object) -> Any:
        return self._like(np.asarray(self.array != _plain(other)))

    def __gt__(self, other: Any) -> "DisturbedArray":
        return self._like(np.asarray(self.array > _plain(other)))

    def __ge__(self, other: Any) -> "DisturbedArray":
        return self._like(np.asarray(self.array >= _plain(other)))

    def __lt__(self, other: Any) -> "DisturbedArray":
        return self._like(np.asarray(self.array < _plain(other)))

    def __le__(self, other: Any) -> "DisturbedArray":
        return self._like(np.asarray(self.array <= _plain(other)))

    __hash__ = None  # type: ignore[assignment]

    def _like(self, array: np.ndarray) -> "DisturbedArray":
        return DisturbedArray(np.asarray(array), self.source)

    def _rounded(self, out: np.ndarray, exact: Any) -> "DisturbedArray":
        return self._like(self.source.rounded(out, None, exact))

    def _sum(
        self, add: Callable[[Any, Any], Any], left: np.ndarray, right: np.ndarray
    ) -> "DisturbedArray":
        return self._rounded(np.asarray(add(left, right)), (left == 0) | (right == 0))

    def _product(self, left: np.ndarray, right: np.ndarray) -> "DisturbedArray":
        exact = _is_power_of_two(left) | _is_power_of_two(right)
        return self._rounded(np.asarray(left * right), exact)


def _plain(x: Any) -> np.ndarray:
    return x.array if isinstance(x, DisturbedArray) else np.asarray(x)


def _namespace(source: Disturbance) -> SimpleNamespace:
    """The functions of the array API that the core uses."""

    def wrap(array: Any) -> DisturbedArray:
        return DisturbedArray(np.asarray(array), source)

    def inexact(
        function: Callable[[np.ndarray], np.ndarray], units: float
    ) -> Callable[[Any], DisturbedArray]:
        def apply(x: Any) -> DisturbedArray:
            out = np.asarray(function(_plain(x)))
            return wrap(source.rounded(out, units * np.abs(out), False))

        return apply

    def exact(function: Callable[..., Any]) -> Callable[..., DisturbedArray]:
        def apply(*args: Any, **options: Any) -> DisturbedArray:
            options.pop("device", None)
            given = [_unwrapped(x) for x in args]
            return wrap(function(*given, **options))

        return apply

    def total(x: Any, axis: Any = None, keepdims: bool = False) -> DisturbedArray:
        array = _plain(x)
        out = np.asarray(np.sum(array, axis=axis, keepdims=keepdims))
        terms = max(array.size // max(out.size, 1), 1)
        squares = np.sum(np.square(array), axis=axis, keepdims=keepdims)
        return wrap(
            source.rounded(out, np.asarray(math.sqrt(terms) * np.sqrt(squares)), terms == 1)
        )

    def mean(x: Any, axis: Any = None, keepdims: bool = False) -> DisturbedArray:
        added = total(x, axis, keepdims)
        return added / (_plain(x).size / max(added.array.size, 1))

    return SimpleNamespace(
        __name__="disturbed",
        **{name: getattr(np, name) for name in ("float32", "float64", "finfo", "isdtype")},
        **{
            name: inexact(getattr(np, name), _ELEMENTARY)
            for name in ("exp", "log", "log1p", "tanh")
        },
        sqrt=inexact(np.sqrt, 1.0),
        **{
            name: exact(getattr(np, name))
            for name in (
                "abs", "arange", "argsort", "asarray", "astype", "broadcast_to", "concat",
                "expand_dims", "full", "full_like", "matrix_transpose", "max", "maximum", "minimum",
                "ones_like", "permute_dims", "reshape", "searchsorted", "sign", "stack", "take",
                "where", "zeros", "zeros_like",
            )
        },
        sum=total,
        mean=mean,
    )  # fmt: skip


def _unwrapped(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(_unwrapped(child) for child in x)
    return x.array if isinstance(x, DisturbedArray) else x
