"""Metadata from JSON text, and where its caption is."""

import json
from typing import Any

from siglip_train.datasets.problems import SampleError

DEFAULT_CAPTION_KEY = "caption"
CAPTION_KEYS = ("caption", "captions", "title", "text")
"""Where captions are looked for, the first found counts, unless another key was asked for."""


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object in a text.

    Raises SampleError if it is not JSON, not an object, or has strings that are not Unicode text
    (half of a surrogate pair), which no tokenizer takes.
    """
    try:
        parsed = json.loads(text)
        if b"\\ud" in text.lower():
            json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise SampleError(f"metadata is not JSON text: {error}") from error
    if not isinstance(parsed, dict):
        raise SampleError(f"metadata is not a JSON object: got {type(parsed).__name__}")
    return parsed


def with_caption(metadata: dict[str, Any], caption_key: str) -> dict[str, Any]:
    """The metadata with the field `caption_key` under "caption", and no other captions.

    With the default key, "title" or "text" stand in if there is neither "caption" nor "captions".
    """
    if caption_key != DEFAULT_CAPTION_KEY:
        caption = metadata.get(caption_key)
        others = {name: metadata[name] for name in metadata if name not in ("caption", "captions")}
        return others if caption is None else {**others, "caption": caption}
    found = next((name for name in CAPTION_KEYS if metadata.get(name)), None)
    if found in ("title", "text"):
        return {**metadata, "caption": metadata[found]}
    return metadata
