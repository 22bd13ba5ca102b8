"""The protocol as files: a prompt to carry to the implementation, a response to carry back."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siglip_spec.operations import Answer
from siglip_spec.protocol.declaration import PROTOCOL, Declaration
from siglip_spec.protocol.question import Question, arrays, keyed, question
from siglip_spec.protocol.reply import check_names, check_status, resolve
from siglip_spec.protocol.tensors import Tensors, decode, encode
from siglip_spec.score import PRECISIONS, DType
from siglip_spec.subject import NotClaimedError, SubjectError
from siglip_spec.suites import Case, manifest

PROMPT = ("prompt.json", "prompt.safetensors")
RESPONSE = ("response.json", "response.safetensors")
QUESTION = {"id", "operation", "outputs", "gradients"}


@dataclass(frozen=True, slots=True)
class Response:
    """What an implementation answered to a prompt.

    asked
        The questions of the prompt, by the id of the case.
    statuses
        What was said of each case; cases of operations not provided may be missing.
    named
        The arrays of each case, by `out/…`, `grad/…` and `probe/…`.
    """

    declaration: Declaration
    asked: Mapping[str, Question]
    statuses: Mapping[str, str]
    named: Mapping[str, Tensors]


class ResponseSubject:
    """A response as a subject, to be run against the cases of its prompt (`Response.asked`)."""

    def __init__(
        self, response: Response, expected_failures: Mapping[str, str] | None = None
    ) -> None:
        self._response = response
        self.name: str = response.declaration.subject
        self.dtype: DType = response.declaration.coarsest
        self.expected_failures: Mapping[str, str] = dict(expected_failures or {})

    def claims(self, operation: str) -> bool:
        """Whether the operation is provided."""
        return operation in self._response.declaration.operations

    def claims_gradient(self, operation: str) -> bool:
        """Whether its gradients are provided too."""
        return operation in self._response.declaration.gradients

    def answer(self, case: Case) -> Answer:
        """The answer that the response holds.

        Raises NotClaimedError, RefusedError or SubjectError as the response says, and
        SubjectError for a case that it does not mention.
        """
        if case.id not in self._response.asked:
            raise NotClaimedError("the case is not in the prompt")
        if case.id not in self._response.statuses:
            raise SubjectError("the response says nothing of the case")
        return resolve(self._response.statuses[case.id], self._response.named.get(case.id, {}))


def export_prompt(cases: Iterable[Case], directory: Path, dtype: DType) -> None:
    """Write `prompt.json` and `prompt.safetensors`, with the inputs in `dtype` and no answer.

    An earlier prompt is replaced, unless it has been answered already.

    Raises ValueError on an unknown dtype, on a case that comes twice, and where replacing would
    lose something else than a prompt.
    """
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype must be one of {', '.join(PRECISIONS)}, got {dtype!r}")
    asked: dict[str, Question] = {}
    tensors: Tensors = {}
    for case in cases:
        if case.id in asked:
            raise ValueError(f"cases must have different ids, got {case.id!r} twice")
        asked[case.id] = question(case)
        tensors |= keyed(case.id, arrays(case))
    versions = manifest()
    head = {
        "protocol": PROTOCOL,
        "spec": versions["spec"],
        "vectors": versions["vectors"],
        "vectors_sha256": versions["sha256"],
        "dtype": dtype,
    }
    prompt = head | {"cases": list(asked.values())}
    text = json.dumps(prompt, indent=1, ensure_ascii=False).encode() + b"\n"
    directory.mkdir(parents=True, exist_ok=True)
    _check_replaceable(directory, text)
    # The arrays first: a prompt.json never stands without them.
    _write(directory / PROMPT[1], encode(tensors, dtype))
    _write(directory / PROMPT[0], text)


def read_response(directory: Path) -> Response:
    """The response in a directory, with the prompt that it answers.

    Raises ValueError, naming the file and the key, if either is missing or malformed, if they
    are of different dtypes, or if the prompt is of other vectors than this kit's.
    """
    dtype, asked = _prompt(directory)
    file = RESPONSE[0]
    said = _json_object(directory, file)
    declaration = Declaration.read(said, file)
    if declaration.dtype != dtype:
        raise ValueError(
            f"{file}: dtype must be the prompt's, {dtype}, got {declaration.dtype}; "
            f"a prompt in {declaration.dtype} asks for answers in it"
        )
    statuses = said.get("cases")
    if not isinstance(statuses, dict):
        raise ValueError(f"{file}: cases must be an object from ids to statuses, got {statuses!r}")
    for case, status in statuses.items():
        if case not in asked:
            raise ValueError(f"{file}: case {case!r} is not in the prompt")
        check_status(status, f"{file}: case {case!r}")
    return Response(declaration, asked, statuses, _answers(directory, asked))


def _prompt(directory: Path) -> tuple[DType, dict[str, Question]]:
    file = PROMPT[0]
    said = _json_object(directory, file)
    if not _is_prompt(said):
        raise ValueError(f"{file} is no prompt of protocol {PROTOCOL}")
    ours = manifest()["sha256"]
    if said.get("vectors_sha256") != ours:
        raise ValueError(
            f"{file}: vectors_sha256 is {said.get('vectors_sha256')!r}, but the vectors of this "
            f"kit have {ours!r}: export the prompt anew"
        )
    return said["dtype"], {asked["id"]: asked for asked in said["cases"]}


def _answers(directory: Path, asked: Mapping[str, Question]) -> dict[str, Tensors]:
    file = RESPONSE[1]
    named: dict[str, Tensors] = {}
    for key, array in decode(_bytes(directory, file), file).items():
        case, _, name = key.partition("#")
        if case not in asked:
            raise ValueError(f"{file}: {key!r} must be <id>#<name> with the id of a case asked")
        named.setdefault(case, {})[name] = array
    return {case: check_names(arrays, asked[case], file) for case, arrays in named.items()}


def _is_prompt(said: object) -> bool:
    return (
        isinstance(said, dict)
        and said.get("protocol") == PROTOCOL
        and said.get("dtype") in PRECISIONS
        and isinstance(said.get("cases"), list)
        and all(isinstance(asked, dict) and asked.keys() >= QUESTION for asked in said["cases"])
    )


def _check_replaceable(directory: Path, text: bytes) -> None:
    found = [directory / name for name in PROMPT if (directory / name).exists()]
    if not found:
        return
    earlier = _bytes(directory, PROMPT[0]) if found[0].name == PROMPT[0] else b""
    try:
        replaceable = _is_prompt(json.loads(earlier))
    except ValueError:
        replaceable = False
    if not replaceable:
        raise ValueError(f"{found[0]} is no prompt of the kit: it is not replaced")
    if earlier != text and (directory / RESPONSE[0]).exists():
        raise ValueError(
            f"{directory / RESPONSE[0]} answers another prompt: remove it, or take a new directory"
        )


def _json_object(directory: Path, file: str) -> dict[str, Any]:
    try:
        said = json.loads(_bytes(directory, file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{file} must be a JSON object, got {type(said).__name__}")
    return said


def _bytes(directory: Path, file: str) -> bytes:
    try:
        return (directory / file).read_bytes()
    except OSError as error:
        raise ValueError(f"{directory / file} cannot be read: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
