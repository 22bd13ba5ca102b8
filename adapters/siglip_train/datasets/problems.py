"""What is wrong with data: with a whole source (an error), with a sample (an error or a skip)."""

import threading
from collections.abc import Callable

Report = Callable[[str, str], None]
"""Called with a reason and the key of a sample that cannot be used."""

_EXAMPLES_KEPT = 3
_REASONS_KEPT = 100
_OTHER = "other reasons"


class DataError(ValueError):
    """A source of data cannot be used at all."""


class SampleError(ValueError):
    """A sample cannot be used. The message is a reason as `Skips.record` wants it."""


class Skips:
    """Counts the samples that were left out, by reason; threads may record at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def record(self, reason: str, key: str) -> None:
        """Count one sample.

        What follows the first colon of `reason` is detail: reasons that differ only there are
        counted together. After 100 reasons the rest is counted as "other reasons".
        """
        kind, _, detail = reason.partition(":")
        with self._lock:
            if kind not in self._counts and len(self._counts) >= _REASONS_KEPT:
                kind = _OTHER
            self._counts[kind] = self._counts.get(kind, 0) + 1
            examples = self._examples.setdefault(kind, [])
            if len(examples) < _EXAMPLES_KEPT:
                examples.append(f"{key} ({detail.strip()})" if detail.strip() else key)

    @property
    def counts(self) -> dict[str, int]:
        """How many samples by reason, a copy."""
        with self._lock:
            return dict(self._counts)

    @property
    def total(self) -> int:
        """How many samples."""
        return sum(self.counts.values())

    def summary(self) -> str:
        """One line for each reason, the most frequent first, with the first keys; "" for none."""
        with self._lock:
            ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
            return "\n".join(
                f"{count} skipped: {kind}; for example {', '.join(self._examples[kind])}"
                for kind, count in ordered
            )
