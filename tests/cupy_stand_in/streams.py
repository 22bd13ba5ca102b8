"""Streams, which do what they are asked when it can be done, and events on them."""

from collections import deque
from typing import ClassVar

from cupy import cuda as real

from cupy_stand_in.machine import MACHINE
from cupy_stand_in.signatures import like


@like(real)
class Event:
    """A place on a stream."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._stream, self._place = None, 0

    @property
    def done(self):
        return self._stream is None or self._stream._advance() >= self._place


@like(real)
class Stream:
    """An order of things to do; one that waits for a message holds up all after it."""

    _all: ClassVar = {}

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = len(self._all)
        self._all[self.ptr] = self
        self._waiting, self._done = deque(), 0

    def record(self, event=None):
        event = Event() if event is None else event
        event._stream, event._place = self, self._done + len(self._waiting)
        return event

    def wait_event(self, event):
        assert isinstance(event, Event)

    def synchronize(self):
        MACHINE.wait("synchronize")

    def _advance(self):
        """How many things have been done, now that all that can be is."""
        while self._waiting and self._waiting[0]():
            self._waiting.popleft()
            self._done += 1
        return self._done


def enqueue(ptr, attempt):
    """Have the stream at an address do something; `attempt` says whether it could."""
    stream = Stream._all[ptr]
    stream._waiting.append(attempt)
    stream._advance()
