"""The members of a tar archive by their positions, from one pass over the headers.

POSIX.1-2001 (ustar, pax) and GNU long names. The standard library's `tarfile` keeps a record of
each member, which is too much for ten million samples, and takes a damaged header for the end.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")


class TarError(ValueError):
    """The archive is truncated, damaged, or of a kind that cannot be read in place."""


class Member(NamedTuple):
    """A regular file: its name, where its headers begin, and where its contents are, in bytes."""

    name: str
    start: int
    offset: int
    size: int


def regular_files(file: BinaryIO, end: int, start: int = 0) -> Iterator[Member]:
    """The regular files in an archive of `end` bytes, in order, from the header at `start` on.

    Raises TarError for a damaged header, for members beyond the end, and if the archive stops
    without the block of zeros that marks its end, which is how a truncated one is told.
    """
    offset = first = start
    long_name: str | None = None
    long_size: int | None = None
    while True:
        header = _read(file, offset, _BLOCK, end)
        if not any(header):
            return
        kind = header[156:157]
        size = _checked_size(header, offset)
        contents = offset + _BLOCK
        if kind in (b"x", b"L"):
            extended = _read(file, contents, size, end)
            if kind == b"L":
                long_name = _text(extended)
            else:
                name, long_size = _pax(extended, offset)
                long_name = name if name is not None else long_name
            offset = contents + _padded(size)
            continue
        if kind not in (b"g", b"K"):
            size = long_size if long_size is not None else size
            name = long_name if long_name is not None else _name(header)
            if kind == b"S":
                raise TarError(f"{name!r} is a sparse file, which cannot be read in place")
            if contents + size > end and kind not in _WITHOUT_DATA:
                raise TarError(f"{name!r} ends at byte {contents + size}, the file at byte {end}")
            if kind in _REGULAR and not name.endswith("/"):
                yield Member(name, first, contents, size)
            long_name = long_size = None
        offset = contents + (0 if kind in _WITHOUT_DATA else _padded(size))
        if kind not in (b"g", b"K"):
            first = offset


def _read(file: BinaryIO, offset: int, size: int, end: int) -> bytes:
    file.seek(offset)
    content = file.read(size) if offset + size <= end else b""
    if len(content) != size:
        raise TarError(f"it ends at byte {end} without an end marker")
    return content


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _checked_size(header: bytes, offset: int) -> int:
    """The size in a header whose checksum is right; octal, or binary if the top bit is set."""
    try:
        expected = int(header[148:156].split(b"\0", 1)[0], 8)
        field = header[124:136]
        if field[0] == 0x80:
            size = int.from_bytes(field[1:], "big")
        else:
            size = int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        expected, size = -1, -1
    if size < 0 or expected != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise TarError(f"the header at byte {offset} is damaged")
    return size


def _pax(records: bytes, offset: int) -> tuple[str | None, int | None]:
    """Name and size, if given, from the lines "LENGTH KEY=VALUE" of an extended header."""
    name, size = None, None
    try:
        while records:
            digits, _, rest = records.partition(b" ")
            length = int(digits)
            if not len(digits) + 2 <= length <= len(records):
                raise ValueError(length)
            key, _, value = rest[: length - len(digits) - 2].partition(b"=")
            if key == b"path":
                name = value.decode("utf-8", "replace")
            elif key == b"size":
                size = int(value)
            elif key.startswith(b"GNU.sparse."):
                raise TarError("it has a sparse file, which cannot be read in place")
            records = records[length:]
        if size is not None and size < 0:
            raise ValueError(size)
    except TarError:
        raise
    except ValueError:
        raise TarError(f"the extended header at byte {offset} is damaged") from None
    return name, size
