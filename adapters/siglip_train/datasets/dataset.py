"""What a data set is: samples by number, each with an encoded image and what is known about it."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol


class Example(NamedTuple):
    """One sample: where it comes from, the encoded bytes of its image, and its metadata.

    Captions are in the metadata, under "caption" (and "captions").
    """

    key: str
    image: bytes
    metadata: dict[str, Any]


class Dataset(Protocol):
    """Samples 0 ... len - 1; nothing changes after it was opened, so threads may share it."""

    def __len__(self) -> int:
        """How many samples."""
        ...

    def key(self, index: int) -> str:
        """What to call a sample in a message: enough to find it."""
        ...

    def metadata(self, index: int) -> dict[str, Any]:
        """What is known about a sample, without reading its image.

        Raises SampleError if it cannot be read, IndexError outside 0 ... len - 1.
        """
        ...

    def read(self, index: int) -> Example:
        """A sample. Raises SampleError if it cannot be read, IndexError outside 0 ... len - 1."""
        ...


class Joined:
    """Data sets one after the other."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self._parts = tuple(parts)
        self._starts = tuple(accumulate((len(part) for part in self._parts), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, index: int) -> str:
        """See Dataset."""
        part, within = self._locate(index)
        return part.key(within)

    def metadata(self, index: int) -> dict[str, Any]:
        """See Dataset."""
        part, within = self._locate(index)
        return part.metadata(within)

    def read(self, index: int) -> Example:
        """See Dataset."""
        part, within = self._locate(index)
        return part.read(within)

    def _locate(self, index: int) -> tuple[Dataset, int]:
        index = checked_index(index, len(self))
        number = bisect_right(self._starts, index) - 1
        return self._parts[number], index - self._starts[number]


def checked_index(index: int, count: int) -> int:
    """The index as an int. Raises IndexError if it is not one of 0 ... count - 1."""
    if not 0 <= index < count:
        raise IndexError(f"sample {index} of a data set of {count}")
    return int(index)
