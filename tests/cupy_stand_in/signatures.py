"""What a function or method of the real CuPy can be called with."""

import inspect
import re


def signature_of(function):
    """The signature, from the function itself or from the first line of a Cython docstring.

    None where neither says it; ufuncs are looked at by their loops instead.
    """
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return from_docstring(function.__doc__ or "")


def from_docstring(text):
    """`Class.name(self, int a, b=None) -> type` as a signature without self; None if it is none."""
    found = re.match(r"[\w.]+\((.*)\)(?: -> .*)?$", text.splitlines()[0] if text else "")
    if found is None:
        return None
    parameters, kind = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
    for part in re.split(r",\s*(?![^(]*\))", found[1]):
        name, _, default = part.partition("=")
        name = name.split()[-1]  # what stands before it is a C type
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
            parameters.append(inspect.Parameter(name, kind, default=optional))
    return inspect.Signature(parameters)


def check_call(name, function, args, kwargs):
    """Raise TypeError, as the real function would, if it cannot be called like this."""
    signature = signature_of(function)
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"cupy.{name}: {error}") from error
