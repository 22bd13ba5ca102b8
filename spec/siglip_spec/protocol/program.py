"""A child process that is asked one line at a time, and that can neither hang nor outlive us."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence

_CHUNK = 1 << 16
_PIPE = 1 << 20
_LONGEST_LINE = 1 << 20
_STDERR_KEPT = 4096
_STDERR_LINES = 5
_SECONDS_TO_END = 1.0


class ProgramError(Exception):
    """The program did not give a line; the message says why, with its last words on stderr."""


class Program:
    """A running program with its three streams; POSIX only, for the process group.

    Raises ValueError if the command cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        if not command:
            raise ValueError("command must name a program, got nothing")
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise ValueError(f"command {list(command)} cannot be started: {error}") from error
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, self._stdout, self._stderr = (stream.fileno() for stream in streams if stream)
        for descriptor in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(descriptor, False)
        self._received = b""
        self._last_words = b""
        self._killed = False

    def ask(self, line: str | None, seconds: float) -> str:
        """Write a line, unless None, and read the next one, all within so many seconds.

        Raises ProgramError if the program ends, is late, or writes a line without end; it is
        then of no further use and wants to be stopped.
        """
        deadline = time.monotonic() + seconds
        unsent = b"" if line is None else line.encode() + b"\n"
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            selector.register(self._stderr, selectors.EVENT_READ)
            if unsent:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._received or unsent:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if time.monotonic() >= deadline:
                    raise self._fault(f"did not answer within {seconds:g} s")
                for key, _ in ready:
                    if key.fd == self._stdin:
                        unsent = self._send(unsent)
                        if not unsent:
                            selector.unregister(self._stdin)
                    elif key.fd == self._stderr:
                        if not self._receive_stderr():
                            selector.unregister(self._stderr)
                    else:
                        self._receive_stdout()
        answer, _, self._received = self._received.partition(b"\n")
        return answer.decode(errors="backslashreplace").rstrip("\r")

    def stop(self) -> None:
        """Let the program end by itself for a moment, then kill all of its process group."""
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        self._kill()

    def _send(self, unsent: bytes) -> bytes:
        try:
            return unsent[os.write(self._stdin, unsent[:_CHUNK]) :]
        except BlockingIOError:
            return unsent
        except BrokenPipeError:  # the program no longer listens; its output says the rest
            return b""

    def _receive_stdout(self) -> None:
        chunk = os.read(self._stdout, _CHUNK)
        if not chunk:
            raise self._fault(self._ending())
        self._received += chunk
        if len(self._received) > _LONGEST_LINE:
            raise self._fault(f"printed {len(self._received)} bytes for one line")

    def _receive_stderr(self) -> bool:
        try:
            chunk = os.read(self._stderr, _CHUNK)
        except BlockingIOError:
            return True
        self._last_words = (self._last_words + chunk)[-_STDERR_KEPT:]
        return bool(chunk)

    def _ending(self) -> str:
        try:
            status = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            return "closed its standard output"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with exit status {status}"

    def _fault(self, what: str) -> ProgramError:
        self._kill()
        with selectors.DefaultSelector() as selector:
            selector.register(self._stderr, selectors.EVENT_READ)
            # At most what a pipe holds: a program that fled its process group may still write.
            for _ in range(_PIPE // _CHUNK):
                if not selector.select(0) or not self._receive_stderr():
                    break
        lines = self._last_words.decode(errors="backslashreplace").split("\n")
        said = " | ".join([line.strip() for line in lines if line.strip()][-_STDERR_LINES:])
        return ProgramError(f"the program {what}" + (f"; its last words: {said}" if said else ""))

    def _kill(self) -> None:
        # Once, since the number of a group that is gone may come again.
        if self._killed:
            return
        self._killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
