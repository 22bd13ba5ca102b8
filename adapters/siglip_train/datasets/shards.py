"""WebDataset shards: tar archives in which the files of a sample share a name.

A member's key is its path up to the first dot of the file name, the rest is its extension; those
that follow one another with one key are a sample. Used are the image, `.json` (an object: the
metadata) and `.txt` (UTF-8: the caption); of several of a kind the last counts. Names without a
key (`.hidden`), other extensions, folders and links are passed over.
"""

import gzip
import io
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from siglip_train.datasets.dataset import Example, checked_index
from siglip_train.datasets.metadata import parse_object, with_caption
from siglip_train.datasets.problems import DataError, Report, SampleError
from siglip_train.datasets.tar import Member, TarError, regular_files

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")
_GZIP = b"\x1f\x8b"
_IMAGE, _JSON, _TEXT = range(3)

_Members = list[Member | None]
"""The image, JSON and text members of a sample."""


class Shard:
    """One archive, by an index of 32 bytes a sample.

    A plain tar is read where it is; the file is opened for each read, so that any number of shards
    needs no open files. A gzipped one is held in memory, unpacked.

    Raises DataError if it cannot be read to its end marker. Samples without an image, and without
    metadata and caption, are reported and left out.
    """

    def __init__(
        self, path: Path, report: Report, *, caption_key: str, image_key: str | None
    ) -> None:
        self._path = path
        self._caption_key = caption_key
        self._content: bytes | None = None
        starts, parts = array("q"), array("I")
        try:
            self._content = _unpacked(path)
            self._size = path.stat().st_size if self._content is None else len(self._content)
            with self._open() as file:
                for key, members in _samples(file, self._size, image_key):
                    problem = _problem(members)
                    if problem:
                        report(problem, f"{path.name}/{key}")
                        continue
                    start = min(member.start for member in members if member)
                    starts.append(start)
                    for member in members:
                        parts.extend((member.offset - start, member.size) if member else (0, 0))
        except (OSError, EOFError, zlib.error, TarError) as error:
            raise DataError(f"shard {path} cannot be read: {error}") from error
        self._starts: npt.NDArray[np.int64] = np.frombuffer(starts, np.int64)
        self._parts: npt.NDArray[np.uint32] = np.frombuffer(parts, np.uint32).reshape(-1, 3, 2)

    def __len__(self) -> int:
        return len(self._starts)

    def key(self, index: int) -> str:
        """The name of the shard and the key in it."""
        start = int(self._starts[checked_index(index, len(self))])
        try:
            with self._open() as file:
                for member in regular_files(file, self._size, start):
                    split = _split(member.name)
                    if split:
                        return f"{self._path.name}/{split[0]}"
        except (OSError, TarError):
            pass  # it was changed since; a key is wanted for the message that says so
        return f"{self._path.name}, sample {index}"

    def metadata(self, index: int) -> dict[str, Any]:
        """The object in `.json`, with the caption from `.txt`, if there is one."""
        described, text = self._members(index, _JSON, _TEXT)
        return self._merged(described, text)

    def read(self, index: int) -> Example:
        """See Dataset."""
        image, described, text = self._members(index, _IMAGE, _JSON, _TEXT)
        return Example(self.key(index), image or b"", self._merged(described, text))

    def _merged(self, described: bytes | None, text: bytes | None) -> dict[str, Any]:
        metadata = parse_object(described) if described is not None else {}
        if text is not None:
            try:
                metadata["caption"] = text.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise SampleError(f"caption is not UTF-8 text: {error}") from error
        return with_caption(metadata, self._caption_key)

    def _members(self, index: int, *kinds: int) -> list[bytes | None]:
        """The contents of some members of a sample, None for those that it does not have."""
        start = int(self._starts[checked_index(index, len(self))])
        parts = self._parts[index].tolist()
        contents: list[bytes | None] = []
        try:
            with self._open() as file:
                for relative, size in (parts[kind] for kind in kinds):
                    file.seek(start + relative)
                    contents.append(file.read(size) if relative else None)
                    if len(contents[-1] or b"") != size:
                        raise SampleError(f"shard was truncated: wanted {size} bytes more")
        except OSError as error:
            raise SampleError(f"shard cannot be read any more: {error}") from error
        return contents

    def _open(self) -> BinaryIO:
        return self._path.open("rb") if self._content is None else io.BytesIO(self._content)


def _unpacked(path: Path) -> bytes | None:
    """The archive in a gzipped file, None for another file."""
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            return None
        file.seek(0)
        with gzip.GzipFile(fileobj=file) as unpacked:
            return unpacked.read()


def _split(name: str) -> tuple[str, str] | None:
    """Key and lower-case extension of a member, None if it has no key."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else None


def _samples(file: BinaryIO, end: int, image_key: str | None) -> Iterator[tuple[str, _Members]]:
    """Key and members of each sample."""
    wanted = IMAGE_EXTENSIONS if image_key is None else (image_key.lower().removeprefix("."),)
    kinds = {"txt": _TEXT, "json": _JSON, **dict.fromkeys(wanted, _IMAGE)}
    current = ""
    members: _Members = [None, None, None]
    for member in regular_files(file, end):
        split = _split(member.name)
        if split is None:
            continue
        key, extension = split
        if key != current:
            if current:
                yield current, members
            current, members = key, [None, None, None]
        if extension in kinds:
            members[kinds[extension]] = member
    if current:
        yield current, members


def _problem(members: _Members) -> str:
    if not members[_IMAGE]:
        return "no image in the shard beside the caption or metadata"
    if not members[_JSON] and not members[_TEXT]:
        return "no caption or metadata in the shard beside the image"
    there = [member for member in members if member]
    if max(m.offset + m.size for m in there) - min(m.start for m in there) >= 2**32:
        return "sample is larger than 4 GiB"
    return ""
