"""The device that is not there: what it has been asked, and what it must not be asked."""

import threading
from contextlib import contextmanager


class SynchronizationError(Exception):
    """The host waited for the device, or sent something there, where that is forbidden."""


class Machine:
    """Counts of what makes the host wait; inside `forbidding_waits` each is an error.

    devices
        How many the runtime reports.
    """

    def __init__(self):
        self.devices = 1
        self.waits = []
        self.copies_to_device = 0
        self._forbidden = self._copies_forbidden = False
        self._current = threading.local()

    @property
    def device(self):
        """The current device, of which each thread has its own; 0 at first."""
        return getattr(self._current, "device", 0)

    @device.setter
    def device(self, number):
        assert 0 <= number < self.devices, f"device {number} of {self.devices}"
        self._current.device = number

    def wait(self, why):
        """The host waits for the device."""
        if self._forbidden:
            raise SynchronizationError(why)
        self.waits.append(why)

    def copy_to_device(self, why):
        """Something of the host goes to the device."""
        if self._copies_forbidden:
            raise SynchronizationError(why)
        self.copies_to_device += 1

    @contextmanager
    def forbidding_waits(self, *, copies=False):
        """No wait from inside, and no copy to the device unless `copies` allows it."""
        self._forbidden, self._copies_forbidden = True, not copies
        try:
            yield
        finally:
            self._forbidden = self._copies_forbidden = False


MACHINE = Machine()
