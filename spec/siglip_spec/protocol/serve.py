"""The other end of the live protocol for a Python subject, whose crash then costs one case."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from siglip_spec.protocol.declaration import declare
from siglip_spec.protocol.question import case_of, keyed
from siglip_spec.protocol.reply import reply
from siglip_spec.protocol.tensors import decode, encode
from siglip_spec.subject import Answerer


def serve(subject: Answerer, stdin: TextIO, stdout: TextIO) -> None:
    """Give the handshake, then a line for each line until the end of `stdin`.

    Raises ValueError for a line that is no question.
    """
    _print(declare(subject), stdout)
    for line in stdin:
        asked = json.loads(line)
        prompt = Path(asked["prompt"])
        case = case_of(asked, decode(prompt.read_bytes(), prompt.name))
        status, named = reply(subject, case)
        # In float64, whatever the subject's dtype: its numbers arrive unrounded.
        Path(asked["response"]).write_bytes(encode(keyed(case.id, named), "float64"))
        _print({"id": case.id, "status": status}, stdout)


@contextmanager
def protocol_output() -> Iterator[TextIO]:
    """Standard output for the protocol alone: what else is printed goes to standard error.

    To be entered before the subject is imported, which may print too.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _print(said: dict[str, object], stdout: TextIO) -> None:
    stdout.write(json.dumps(said, ensure_ascii=False) + "\n")
    stdout.flush()
