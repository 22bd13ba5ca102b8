"""The protocol line by line: a program that is started once and asked case after case."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from siglip_spec.operations import Answer
from siglip_spec.protocol.declaration import Declaration
from siglip_spec.protocol.program import Program, ProgramError
from siglip_spec.protocol.question import Question, arrays, keyed, question
from siglip_spec.protocol.reply import check_names, check_status, resolve
from siglip_spec.protocol.tensors import Tensors, decode, encode
from siglip_spec.score import DType
from siglip_spec.subject import SubjectError
from siglip_spec.suites import Case

TIMEOUT = 30.0
"""Seconds that a program has to start, and for each case."""

_STARTS = 3
_QUOTED = 120


class LiveSubject:
    """A running program as a subject; a context manager that ends it.

    A crash, a time-out or a line that is no reply costs one case: the program is killed and
    started again. If it does not start three times in a row, the other cases fail unasked.

    command
        The program and its arguments.
    timeout
        Seconds to start in, and for each case.

    Raises ValueError if the program cannot be started or its first line is no handshake.
    """

    def __init__(
        self,
        command: Sequence[str],
        timeout: float = TIMEOUT,
        expected_failures: Mapping[str, str] | None = None,
    ) -> None:
        self._command = tuple(command)
        self._timeout = timeout
        self._failed_starts = 0
        self._program: Program | None = None
        try:
            self._program, self._declaration = self._started()
        except (ProgramError, ValueError) as error:
            raise ValueError(f"no handshake from {' '.join(self._command)}: {error}") from error
        self._directory = Path(tempfile.mkdtemp(prefix="siglip-spec-"))
        self.name: str = self._declaration.subject
        self.dtype: DType = self._declaration.coarsest
        self.expected_failures: Mapping[str, str] = dict(expected_failures or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the program and remove the temporary files."""
        self._stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def claims(self, operation: str) -> bool:
        """Whether the operation is provided."""
        return operation in self._declaration.operations

    def claims_gradient(self, operation: str) -> bool:
        """Whether its gradients are provided too."""
        return operation in self._declaration.gradients

    def answer(self, case: Case) -> Answer:
        """The program's answer.

        Raises NotClaimedError or RefusedError as the program says; SubjectError if it says
        error, ends, is late, or breaks the protocol.
        """
        asked = question(case)
        prompt, response = (
            self._directory / f"{name}.safetensors" for name in ("prompt", "response")
        )
        prompt.write_bytes(encode(keyed(case.id, arrays(case)), self._declaration.dtype))
        paths = {"prompt": str(prompt), "response": str(response)}
        try:
            status = self._exchange(asked | paths)
            named = _named(response, case.id) if status == "ok" else {}
            return resolve(status, check_names(named, asked, "the program's response"))
        except ValueError as error:
            raise SubjectError(str(error)) from error
        finally:
            for path in (prompt, response):
                path.unlink(missing_ok=True)

    def _exchange(self, asked: Question) -> str:
        try:
            program = self._running()
            line = program.ask(json.dumps(asked, ensure_ascii=False), self._timeout)
            return _status(line, asked["id"])
        except ProgramError as fault:
            self._stop()
            raise SubjectError(str(fault)) from fault
        except BaseException:
            # The next line would answer the wrong case.
            self._stop()
            raise

    def _running(self) -> Program:
        if self._program is not None:
            return self._program
        if self._failed_starts == _STARTS:
            raise ProgramError(f"the program did not start {_STARTS} times in a row: given up")
        try:
            self._program, declaration = self._started()
        except (ProgramError, ValueError) as fault:
            self._failed_starts += 1
            raise ProgramError(f"started again, {fault}") from fault
        self._failed_starts = 0
        if declaration != self._declaration:
            raise ProgramError("started again, the program gave another handshake")
        return self._program

    def _started(self) -> tuple[Program, Declaration]:
        program = Program(self._command)
        try:
            line = program.ask(None, self._timeout)
            return program, Declaration.read(_json(line), "the handshake")
        except BaseException:
            program.stop()
            raise

    def _stop(self) -> None:
        if self._program is not None:
            self._program.stop()
            self._program = None


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        shown = line if len(line) <= _QUOTED else f"{line[:_QUOTED]}…"
        raise ValueError(f"the program printed {shown!r}, which is no JSON") from None


def _status(line: str, case_id: str) -> str:
    said = _json(line)
    if not isinstance(said, dict) or said.get("id") != case_id:
        raise ValueError(f"the program must reply with the id {case_id!r}, got {said!r}")
    return check_status(said.get("status"), "the program's status")


def _named(response: Path, case_id: str) -> Tensors:
    # Not any other kind of file: reading a pipe would wait for ever.
    if not response.is_file():
        raise ValueError("the program said ok but wrote no response")
    named: Tensors = {}
    for key, array in decode(response.read_bytes(), "the program's response").items():
        case, _, name = key.partition("#")
        if case != case_id:
            raise ValueError(f"the program's response: {key!r} is not of the case {case_id!r}")
        named[name] = array
    return named
