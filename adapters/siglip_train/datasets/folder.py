"""A folder of images with a captions file: CSV, TSV, JSON lines, or a JSON list of objects."""

import csv
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from siglip_train.datasets.dataset import Example, checked_index
from siglip_train.datasets.metadata import (
    CAPTION_KEYS,
    DEFAULT_CAPTION_KEY,
    parse_object,
    with_caption,
)
from siglip_train.datasets.problems import DataError, Report, SampleError

CAPTION_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
IMAGE_COLUMNS = ("file", "filepath", "file_name", "image")


class CaptionFile:
    """The rows of a captions file whose images exist; paths are relative to the file's folder.

    The image is in the column `image_key`, by default the first of IMAGE_COLUMNS that there is; the
    caption in `caption_key`, by default "caption", "captions" (a list), "title" or "text". A CSV
    file has a header; if that has tabs and no commas, so have the rows. Rows are kept as JSON text.

    Raises DataError if the file cannot be read or has no such columns. A row that is not an object
    or does not fit the header, that names no image, or one that is not there, is reported and left
    out.
    """

    def __init__(
        self, path: Path, report: Report, *, caption_key: str, image_key: str | None
    ) -> None:
        self._folder = path.parent
        self._caption_key = caption_key
        self._image_columns = IMAGE_COLUMNS if image_key is None else (image_key,)
        caption_columns = CAPTION_KEYS if caption_key == DEFAULT_CAPTION_KEY else (caption_key,)
        rows, ends, columns = bytearray(), array("q", [0]), dict[str, None]()
        try:
            for number, row in enumerate(_rows(path), 1):
                try:
                    if isinstance(row, SampleError):
                        raise row
                    parsed = parse_object(row)
                    columns.update(dict.fromkeys(parsed))
                    self._image_path(parsed)
                except SampleError as error:
                    report(str(error), f"{path.name}, row {number}")
                else:
                    rows += row
                    ends.append(len(rows))
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"captions file {path} cannot be read: {error}") from error
        if columns:
            for what, wanted in (("image", self._image_columns), ("caption", caption_columns)):
                if not columns.keys() & set(wanted):
                    raise DataError(
                        f"captions file {path} has no column for the {what}: wanted "
                        f"{' or '.join(wanted)}, got {', '.join(columns)}"
                    )
        self._rows = bytes(rows)
        self._ends: npt.NDArray[np.int64] = np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def key(self, index: int) -> str:
        """The path of the image as the file has it."""
        return self._image_name(self._row(index))

    def metadata(self, index: int) -> dict[str, Any]:
        """The row."""
        return with_caption(self._row(index), self._caption_key)

    def read(self, index: int) -> Example:
        """See Dataset."""
        row = self._row(index)
        try:
            image = self._image_path(row).read_bytes()
        except OSError as error:
            raise SampleError(f"image file cannot be read: {error}") from error
        return Example(self._image_name(row), image, with_caption(row, self._caption_key))

    def _row(self, index: int) -> dict[str, Any]:
        index = checked_index(index, len(self))
        return parse_object(self._rows[self._ends[index] : self._ends[index + 1]])

    def _image_name(self, row: dict[str, Any]) -> str:
        name = next((row[column] for column in self._image_columns if row.get(column)), None)
        if not isinstance(name, str):
            raise SampleError(f"row names no image: got {name!r}")
        return name

    def _image_path(self, row: dict[str, Any]) -> Path:
        path = self._folder / self._image_name(row)
        if not os.path.isfile(path):  # False, too, for names that no file can have
            raise SampleError(f"image file does not exist: {path}")
        return path


def _rows(path: Path) -> Iterator[bytes | SampleError]:
    """The rows as JSON text, or what is wrong with them."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _table_rows(path, tabs=kind == ".tsv")
    elif kind == ".jsonl":
        with path.open("rb") as file:
            yield from (line.removeprefix(b"\xef\xbb\xbf") for line in file if line.strip())
    else:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(rows, list):
            raise DataError(
                f"captions file {path} must hold a list of objects, got {type(rows).__name__}"
            )
        yield from (json.dumps(row).encode() for row in rows)


def _table_rows(path: Path, *, tabs: bool) -> Iterator[bytes | SampleError]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        tabs = tabs or ("\t" in header and "," not in header)
        file.seek(0)
        reader = csv.reader(file, delimiter="\t" if tabs else ",")
        columns = [column.strip() for column in next(reader, [])]
        if not any(columns):
            raise DataError(f"captions file {path} has no header")
        for values in reader:
            if values:
                if len(values) > len(columns):
                    yield SampleError(
                        f"row has more values than the header: {len(values)}, not {len(columns)}"
                    )
                else:
                    yield json.dumps(dict(zip(columns, values, strict=False))).encode()
