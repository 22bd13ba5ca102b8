"""From paths to a data set."""

from collections.abc import Sequence
from pathlib import Path

from siglip_train.datasets.dataset import Dataset, Joined
from siglip_train.datasets.folder import CAPTION_SUFFIXES, CaptionFile
from siglip_train.datasets.metadata import DEFAULT_CAPTION_KEY
from siglip_train.datasets.problems import DataError, Skips
from siglip_train.datasets.shards import SHARD_SUFFIXES, Shard


def open_dataset(
    sources: Sequence[Path],
    *,
    caption_key: str = DEFAULT_CAPTION_KEY,
    image_key: str | None = None,
    skips: Skips | None = None,
    strict: bool = False,
) -> Dataset:
    """The samples of all sources, in order.

    A source is a WebDataset shard (.tar, .tar.gz, .tgz), a folder of shards (in order of name), a
    captions file (.csv, .tsv, .jsonl, .json), or a folder with one of the name `captions`; see
    `shards` and `folder`. `caption_key` is the column or JSON key of the caption, `image_key` the
    column or the member's extension of the image, if they are not the usual ones.

    Each file is gone through once. Samples that turn out incomplete then (no image, no image of
    that name, no caption or metadata at all, no JSON) are left out and recorded in `skips`; with
    `strict` they are errors. Captions inside metadata and the images themselves are judged by those
    who read them.

    Raises DataError if a source cannot be read or has no usable sample.
    """
    if not sources:
        raise DataError("sources must hold at least one path, got none")
    recorded = Skips() if skips is None else skips
    report = _raise_for if strict else recorded.record
    parts: list[Dataset] = []
    for source in sources:
        skipped = recorded.total
        opened: list[Dataset] = [
            Shard(path, report, caption_key=caption_key, image_key=image_key)
            if is_shard(path)
            else CaptionFile(path, report, caption_key=caption_key, image_key=image_key)
            for path in _files(source)
        ]
        if not any(map(len, opened)):
            why = f", {recorded.total - skipped} unusable\n{recorded.summary()}"
            raise DataError(
                f"data source {source} has no usable samples"
                + (why if recorded.total > skipped else "")
            )
        parts.extend(opened)
    return parts[0] if len(parts) == 1 else Joined(parts)


def is_shard(path: Path) -> bool:
    """Whether a path has the name of a shard."""
    return path.name.lower().endswith(SHARD_SUFFIXES)


def _files(source: Path) -> list[Path]:
    """The shards or the captions file that a source stands for."""
    try:
        if source.is_dir():
            return _files_in(source)
        exists = source.exists()
    except OSError as error:
        raise DataError(f"data source {source} cannot be read: {error}") from error
    if not exists:
        raise DataError(f"data source {source} does not exist")
    if not is_shard(source) and source.suffix.lower() not in CAPTION_SUFFIXES:
        raise DataError(
            f"data source {source} must be a folder, a shard ({', '.join(SHARD_SUFFIXES)}) "
            f"or a captions file ({', '.join(CAPTION_SUFFIXES)})"
        )
    return [source]


def _files_in(folder: Path) -> list[Path]:
    entries = sorted(path for path in folder.iterdir() if path.is_file())
    captions = [p for p in entries if p.stem == "captions" and p.suffix in CAPTION_SUFFIXES]
    shards = [p for p in entries if is_shard(p)]
    if not captions and not shards:
        raise DataError(
            f"data folder {folder} must hold shards ({', '.join(SHARD_SUFFIXES)}) or a captions "
            f"file (captions{', captions'.join(CAPTION_SUFFIXES)}), got {len(entries)} other files"
        )
    if len(captions) > 1 or (captions and shards):
        raise DataError(
            f"data folder {folder} must hold one captions file or shards, got "
            f"{', '.join(p.name for p in captions)} and {len(shards)} shards; name the one meant"
        )
    return captions or shards


def _raise_for(reason: str, key: str) -> None:
    raise DataError(f"sample {key}: {reason}")
