"""Shards and captions files for the tests of what reads them."""

import csv
import gzip
import io
import json
import tarfile

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
COMPLETE = [("a.jpg", b"image a"), ("a.txt", b"caption a"), ("b.png", b"image b"), ("b.txt", b"b")]


def tar_bytes(members, kind=tarfile.PAX_FORMAT, *, gzipped=False):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=kind) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(content.getvalue(), mtime=0) if gzipped else content.getvalue()


def write_tar(path, members, *arguments, **options):
    path.write_bytes(tar_bytes(members, *arguments, **options))
    return path


ROWS = [{"file": f"images/{name}.png", "caption": f'an "{name}", in\ttwo\nlines'} for name in "abc"]
KINDS = (".csv", ".tsv", ".json", ".jsonl")


def write_rows(folder, name, rows):
    """A captions file of the kind that its name says."""
    path = folder / name
    kind = path.suffix
    if kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def everything(dataset):
    return [dataset.read(index) for index in range(len(dataset))]
