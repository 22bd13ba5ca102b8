"""Forms of an operation that an adapter has for its own arrays.

The formula in the core is what an operation means. An array library may have a form that runs
several of its steps at once; the adapter registers it for its array type, and calls with such
arrays take it. Nothing changes for arrays of any other type.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_formulas: dict[Callable[..., Any], Callable[..., Any]] = {}
_forms: dict[tuple[Callable[..., Any], type], Callable[..., Any]] = {}


def fusable(formula: Callable[P, R]) -> Callable[P, R]:
    """`formula`, giving way to the form registered for the type of its first array."""

    @wraps(formula)
    def operation(*args: P.args, **kwargs: P.kwargs) -> R:
        kinds = _array_type(args).__mro__
        forms = (_forms[operation, kind] for kind in kinds if (operation, kind) in _forms)
        form: Callable[P, R] = next(forms, formula)
        return form(*args, **kwargs)

    _formulas[operation] = formula
    return operation


def register_form(operation: Callable[P, R], array_type: type, form: Callable[P, R]) -> None:
    """Let `form` do what `operation` does where the first array is an `array_type`, or of a
    type derived from it that has no form of its own.

    The form takes the same arguments and returns the same to rounding. Residuals may be its own if
    the backward pass has a form that takes them; the first of them is an array of the type.

    Raises ValueError if the operation cannot have forms.
    """
    formula_of(operation)
    _forms[operation, array_type] = form


def formula_of(operation: Callable[P, R]) -> Callable[P, R]:
    """The operation as the core writes it: what a form falls back on.

    Raises ValueError if the operation cannot have forms.
    """
    if operation not in _formulas:
        raise ValueError(f"operation must be one marked as fusable, got {operation!r}")
    return _formulas[operation]


def _array_type(args: tuple[Any, ...]) -> type:
    """The type of the first array; in residuals, of their first field."""
    first = args[0] if args else None
    while isinstance(first, tuple) and first:
        first = first[0]
    return type(first)
