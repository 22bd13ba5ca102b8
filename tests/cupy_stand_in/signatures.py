"""What a function or method of the real CuPy can be called with."""

import functools
import inspect
import operator
import re

_WHOLE = ("int", "size_t", "intptr_t", "long")
_BUILT_IN = {"bytes": bytes, "str": str, "tuple": tuple, "list": list}


class Declared(str):
    """The type that Cython declares for a parameter."""


def by_name(*lines):
    """Signatures as Cython's docstrings begin with them, by the names in them."""
    return {line.partition("(")[0]: line for line in lines}


def signature_of(function):
    """The signature, from the function itself or from the first line of a Cython docstring.

    A string is taken as such a line. None where there is none; ufuncs are looked at by their loops
    instead.
    """
    if isinstance(function, str):
        return from_docstring(function)
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return from_docstring(function.__doc__ or "")


def from_docstring(text):
    """`Class.name(self, int a, b=None) -> type` as a signature without self; None if it is none.

    What Cython declares of a parameter is its annotation.
    """
    found = re.match(r"[\w.]+\((.*)\)(?: -> .*)?$", text.splitlines()[0] if text else "")
    if found is None:
        return None
    parameters, kind = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
    for part in filter(None, re.split(r",\s*(?![^(]*\))", found[1])):
        before, _, default = part.partition("=")
        *types, name = before.split()
        if name == "self":
            continue
        if name == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        elif name.startswith("*"):
            star = (
                inspect.Parameter.VAR_KEYWORD if "**" in name else inspect.Parameter.VAR_POSITIONAL
            )
            parameters.append(inspect.Parameter(name.lstrip("*"), star))
            kind = inspect.Parameter.KEYWORD_ONLY
        else:
            optional = default if "=" in part else inspect.Parameter.empty
            declared = Declared(types[0]) if types else inspect.Parameter.empty
            parameters.append(inspect.Parameter(name, kind, default=optional, annotation=declared))
    return inspect.Signature(parameters)


def check_call(name, function, args, kwargs):
    """Raise TypeError, as the real function would, if it cannot be called like this."""
    signature = signature_of(function)
    if signature is None:
        return
    try:
        bound = signature.bind(*args, **kwargs)
        for parameter, value in bound.arguments.items():
            declared = signature.parameters[parameter].annotation
            if isinstance(declared, Declared):
                _check_type(parameter, declared, value)
    except TypeError as error:
        raise TypeError(f"cupy.{name}: {error}") from error


def _check_type(parameter, declared, value):
    """Cython makes a C integer of what has an index, and takes a built-in type or None as it is."""
    if declared in _WHOLE:
        operator.index(value)
    elif declared in _BUILT_IN and value is not None and type(value) is not _BUILT_IN[declared]:
        raise TypeError(
            f"Argument '{parameter}' has incorrect type "
            f"(expected {declared}, got {type(value).__name__})"
        )


def like(real):
    """A decorator that binds every call of a function, or of a class and its public methods, to the
    signature of its namesake.

    real
        Where the namesake is: a module, or the lines of `by_name`.
    """

    def found(path):
        function = real[path] if isinstance(real, dict) else operator.attrgetter(path)(real)
        assert signature_of(function) is not None, f"{path} does not tell its signature"
        return function

    def bound(ours, path):
        function = found(path)
        method = "." in path or ours.__name__ == "__init__"
        named = method and "self" in signature_of(function).parameters

        @functools.wraps(ours)
        def called(*args, **kwargs):
            check_call(path, function, args[method and not named :], kwargs)
            return ours(*args, **kwargs)

        return called

    def decorate(ours):
        if not isinstance(ours, type):
            return bound(ours, ours.__name__)
        for name, value in list(vars(ours).items()):
            if name == "__init__":
                setattr(ours, name, bound(value, ours.__name__))
            elif callable(value) and not name.startswith("_"):
                setattr(ours, name, bound(value, f"{ours.__name__}.{name}"))
        return ours

    return decorate
