"""Checkpoint files: safetensors, written whole or not at all, and checked when read.

Tensors are named by their path in the trees, `params/img/block/00/attn/query/kernel`. One metadata
key holds JSON (with several, their order in the file would be random), with the hash of the
tensors' bytes in the order of their names.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from siglip_ref.tree import flatten, unflatten
from siglip_ref.types import Tree

METADATA_KEY = "siglip-ref"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is none of ours."""


def step_path(folder: Path, step: int) -> Path:
    """The file of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a run folder, oldest first."""
    found = [
        (int(match[1]), path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run folder.

    Raises CheckpointError if there is none.
    """
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"folder {folder} has no checkpoint step-….safetensors")
    return found[-1]


def save_checkpoint(path: Path, trees: Mapping[str, Tree], metadata: Mapping[str, Any]) -> None:
    """Write trees of NumPy arrays, and anything that JSON can hold, to `path`.

    The file appears complete, or the old one stays: it is written beside, flushed to the disk and
    then renamed.
    """
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(dict(trees)).items()}
    record = {"metadata": dict(metadata), "blake2b": _hash(tensors), "empty": _empty(trees)}
    contiguous = {
        name: np.ascontiguousarray(leaf).reshape(leaf.shape) for name, leaf in tensors.items()
    }
    write_atomically(path, save(contiguous, {METADATA_KEY: json.dumps(record, sort_keys=True)}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tree], dict[str, Any]]:
    """The trees and the metadata of a checkpoint.

    Raises CheckpointError, naming the file, if it is missing, truncated, altered, or not ours.
    """
    tensors, header = read_safetensors(path)
    if METADATA_KEY not in header:
        shown = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(
            f"checkpoint {path} was not written by siglip-train: it holds {len(tensors)} tensors "
            f"({shown}, …). Weights of Hugging Face models are read by --init-from"
        )
    record = json.loads(header[METADATA_KEY])
    if _hash(tensors) != record["blake2b"]:
        raise CheckpointError(
            f"checkpoint {path} is corrupt: its tensors have not the hash it says"
        )
    trees = unflatten(tensors)
    return {**{name: {} for name in record["empty"]}, **trees}, record["metadata"]


def load_latest(folder: Path) -> tuple[dict[str, Tree], dict[str, Any]]:
    """The newest checkpoint of a run folder.

    Raises CheckpointError if it cannot be read, naming an older one that can: which of them to go
    on from is for a person to say.
    """
    newest = latest_checkpoint(folder)
    try:
        return load_checkpoint(newest)
    except CheckpointError as error:
        for older in reversed(checkpoints(folder)[:-1]):
            try:
                load_checkpoint(older)
            except CheckpointError:
                continue
            raise CheckpointError(
                f"{error}. {older.name} is intact: remove {newest.name} to go on from there"
            ) from error
        raise


def keep_newest(folder: Path, count: int) -> None:
    """Remove all checkpoints of a run folder but the newest `count`."""
    for path in checkpoints(folder)[:-count]:
        path.unlink()


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises CheckpointError, naming the file, if it is missing, truncated or of another format.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read as safetensors: {error}"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by new content such that a reader, or a crash, sees the old or the new."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _hash(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(tensors):
        leaf = tensors[name]
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _empty(trees: Mapping[str, Tree]) -> list[str]:
    return sorted(name for name, tree in trees.items() if isinstance(tree, Mapping) and not tree)
