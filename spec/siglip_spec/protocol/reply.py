"""What a subject says of a case: one status, and the arrays of an answer."""

import re
from collections.abc import Mapping
from typing import Any

from siglip_spec.operations import Answer
from siglip_spec.protocol.tensors import Tensors
from siglip_spec.subject import Answerer, NotClaimedError, RefusedError, SubjectError
from siglip_spec.suites import Case, part

_STATUS = re.compile(r"ok|(rejected|unsupported|error): (.+)", re.DOTALL)


def check_status(status: object, where: str) -> str:
    """The status if it is one.

    Raises ValueError, naming `where`, if not.
    """
    if not isinstance(status, str) or not _STATUS.fullmatch(status):
        raise ValueError(
            f"{where} must be 'ok', 'rejected: why', 'unsupported: why' or 'error: what', "
            f"got {status!r}"
        )
    return status


def check_names(named: Tensors, asked: Mapping[str, Any], where: str) -> Tensors:
    """The arrays of an answer if nothing but what was asked, and probes, is among them.

    Raises ValueError, naming `where` and the key, if there is.
    """
    wanted = [*asked["outputs"], *asked["gradients"]]
    for name in named:
        if name not in wanted and not name.startswith("probe/"):
            key = f"{asked['id']}#{name}"
            raise ValueError(f"{where}: {key!r} was not asked for; wanted {', '.join(wanted)}")
    return named


def resolve(status: str, named: Tensors) -> Answer:
    """The answer with these arrays, or what the status says instead.

    Raises RefusedError, NotClaimedError or SubjectError.
    """
    found = _STATUS.fullmatch(status)
    if found is None or found[1] is None:
        return Answer(part(named, "out"), part(named, "grad"), part(named, "probe"))
    why = " ".join(found[2].split())
    match found[1]:
        case "rejected":
            raise RefusedError(why)
        case "unsupported":
            raise NotClaimedError(why)
        case _:
            raise SubjectError(why)


def reply(subject: Answerer, case: Case) -> tuple[str, Tensors]:
    """The status and arrays of a Python subject: the inverse of `resolve`."""
    try:
        answer = subject.answer(case)
    except RefusedError as error:
        return f"rejected: {error}", {}
    except NotClaimedError as error:
        return f"unsupported: {error}", {}
    except Exception as error:
        return f"error: {type(error).__name__}: {error}", {}
    named = {"out": answer.out, "grad": answer.grad, "probe": answer.probe}
    return "ok", {
        f"{kind}/{name}": array for kind, group in named.items() for name, array in group.items()
    }
