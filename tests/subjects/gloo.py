"""Rank processes on this machine that talk over gloo, kept for all cases.

    with Ranks(5) as ranks:
        answers = ranks.run("subjects.open_clip_ring:on_a_rank", parts)

The first `len(parts)` ranks form a group of that size, and each calls the function with its rank,
the size of the group, and its part of the arguments.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
import tempfile
import warnings
from datetime import timedelta

from siglip_spec.subject import SubjectError

STARTING = 120.0
"""Seconds in which a rank must have imported PyTorch."""

PATIENCE = 40.0
"""Seconds after which a rank that says nothing is taken for hanging; the runner waits for 60."""


class Ranks:
    """At most `most` processes, started on entering and ended on leaving the block."""

    def __init__(self, most: int, start: str = "spawn") -> None:
        # By default a fresh interpreter each: a forked PyTorch may hang.
        self._most, self._start = most, start
        self._ranks = []
        self._folder = None
        self._size = self._groups = 0

    def __enter__(self) -> "Ranks":
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context(self._start)
        for rank in range(self._most):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, there), daemon=True)
            process.start()
            there.close()
            self._ranks.append((process, here))
        for rank in range(self._most):
            self._answer_of(rank, STARTING)
        return self

    def __exit__(self, *_) -> None:
        for process, pipe in self._ranks:
            pipe.close()
            process.terminate()
            process.join()
            process.close()
        self._ranks, self._size = [], 0
        self._folder.cleanup()

    def run(self, function: str, parts: list[tuple]) -> list:
        """What `function(rank, world_size, *part)` returns on each rank; it is `module:name`.

        Raises SubjectError if one of them fails or hangs; all are then started anew.
        """
        if len(parts) != self._size:
            self._size, self._groups = len(parts), self._groups + 1
        group = f"file://{self._folder.name}/group-{self._groups}"
        for (_, pipe), part in zip(self._ranks, parts, strict=False):
            pipe.send((function, group, len(parts), part))
        try:
            return [self._answer_of(rank, PATIENCE) for rank in range(len(parts))]
        except BaseException:
            self.__exit__()
            self.__enter__()
            raise

    def _answer_of(self, rank: int, patience: float):
        _, pipe = self._ranks[rank]
        if not pipe.poll(patience):
            raise SubjectError(f"rank {rank} gave no answer within {patience:g} s")
        try:
            problem, answer = pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise SubjectError(f"rank {rank} crashed") from error
        if problem:
            raise SubjectError(f"rank {rank}: {problem}")
        return answer


def _serve(rank: int, pipe) -> None:
    """Answer on the pipe until it is closed."""
    import torch

    # Before there is a group: its functions keep the one that is current when they are defined.
    import torch.distributed.nn

    torch.set_num_threads(1)
    if sys.platform == "linux":
        # The loopback is there even where the name of the machine leads nowhere.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Of open_clip's use of functions that PyTorch means to rename.
    warnings.simplefilter("ignore", FutureWarning)
    joined = None
    pipe.send(("", None))
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            function, group, size, part = pipe.recv()
            module, name = function.split(":")
            try:
                if group != joined:
                    _join(torch.distributed, group, rank, size)
                    joined = group
                answer = getattr(importlib.import_module(module), name)(rank, size, *part)
            except Exception as error:
                pipe.send((f"{type(error).__name__}: {error}", None))
            else:
                pipe.send(("", answer))


def _join(distributed, group: str, rank: int, size: int) -> None:
    """Leave the group that the rank is in, if it is in one, for this."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
    distributed.init_process_group(
        "gloo",
        init_method=group,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=PATIENCE / 2),
    )
