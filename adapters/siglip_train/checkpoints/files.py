"""Checkpoint files: safetensors, written whole or not at all, and checked when read.

Tensors are named by their path in the trees, `params/img/block/00/attn/query/kernel`. One metadata
key holds canonical JSON (with several keys, their order in the file would be random): what the
caller stores, the paths of empty subtrees, and the hash of both and of all tensors.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from siglip_ref.tree import unflatten
from siglip_ref.types import Tree

METADATA_KEY = "siglip-ref"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_DTYPE = re.compile(r"BOOL|[IU]8|[FIU](16|32|64)")


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
    """Write trees of arrays, and anything that JSON can hold, to `path`.

    The file appears complete, or the old one stays: it is written beside, flushed to the disk and
    then renamed. Equal contents give equal bytes.

    Raises TypeError for leaves that are not arrays of numbers, ValueError for keys that are no
    names, for NaN in the metadata, and, by way of json, TypeError for what JSON cannot hold; and
    OSError as all that write here.
    """
    leaves = dict(_leaves(trees))
    tensors = {
        name: _as_tensor(name, leaf) for name, leaf in leaves.items() if not isinstance(leaf, dict)
    }
    content = {"metadata": dict(metadata), "empty": sorted(leaves.keys() - tensors.keys())}
    record = _canonical({"content": content, "blake2b": _hash(content, tensors)})
    # Streamed: the bytes of all tensors together are never in memory a second time.
    _replace(path, lambda partial: save_file(tensors, partial, {METADATA_KEY: record}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tree], dict[str, Any]]:
    """The trees and the metadata of a checkpoint.

    Raises CheckpointError, naming the file, if it is missing, truncated, altered, or not ours.
    """
    tensors, header = read_safetensors(path)
    if METADATA_KEY not in header:
        shown = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(
            f"checkpoint {path} was not written by siglip-train: it holds {len(tensors)} tensors "
            f"({shown}, …). Weights of Hugging Face models are read by --init-from and by "
            "checkpoints.params_from_huggingface"
        )
    try:
        record = json.loads(header[METADATA_KEY])
        content = record["content"]
        intact = record["blake2b"] == _hash(content, tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path} is corrupt: its metadata cannot be read ({error!r})"
        ) from error
    if not intact:
        raise CheckpointError(
            f"checkpoint {path} is corrupt: its contents have not the hash it says"
        )
    empty: dict[str, Tree] = {name: {} for name in content["empty"]}
    return unflatten(empty | tensors), content["metadata"]


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
    """Remove all checkpoints of a run folder but the newest `count`.

    What a killed process left half-written goes as well. Raises ValueError if `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    for path in [*checkpoints(folder)[:-count], *folder.glob(".step-*.safetensors.partial")]:
        path.unlink()


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises CheckpointError, naming the file, if it is missing, truncated or of another format, or
    holds numbers that NumPy has not, such as bfloat16.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist, or is no file")
    tensors: dict[str, NDArray[Any]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                dtype = file.get_slice(name).get_dtype()
                if not _DTYPE.fullmatch(dtype):
                    raise CheckpointError(
                        f"checkpoint {path} cannot be read: NumPy has no {dtype}, as {name} is"
                    )
                tensors[name] = file.get_tensor(name)
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read as safetensors: {error}"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by new content such that a reader, or a crash, sees the old or the new.

    Raises OSError, naming the file, if that fails.
    """
    _replace(path, lambda partial: partial.write_bytes(data))


def append_whole(path: Path, data: bytes) -> None:
    """Append to a file all of the data.

    Raises OSError, naming the file, if that fails; the file is then as it was.
    """
    with _naming(path), path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with _naming(path):
        try:
            write(partial)
            _flush_to_disk(partial)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        _flush_to_disk(path.parent)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise what goes wrong inside as an OSError that says which file cannot be written, and why.

    Most errors of a full disk name no file, and those of safetensors are no OSError.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise OSError(f"{path} cannot be written: {reason}") from error


def _flush_to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves by path, among them {} for each empty subtree, which `flatten` would drop."""
    for key, value in tree.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(f"keys must be non-empty names without /, got {key!r} in {path!r}")
        name = f"{path}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}/")
        else:
            yield name, {} if isinstance(value, Mapping) else value


def _as_tensor(name: str, leaf: Any) -> NDArray[Any]:
    """The leaf as safetensors wants it: C order, little-endian, at most 64 bits a number."""
    array = np.asarray(leaf)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name} must be an array of numbers of at most 64 bits, got {type(leaf).__name__} "
            f"of dtype {array.dtype}"
        )
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(content: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(_canonical(content).encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()
