"""What is drawn: emoji with English names and keywords from CLDR, and the split by concept."""

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from siglip_train.emoji.sources import (
    DERIVED_NAMES,
    GROUPS,
    NAMES,
    codepoint_key,
    read_json,
    unpacked,
)

# The words in which the variants of one drawing differ, with the joints they leave behind.
_VARIANT = re.compile(
    r"^woman and |\b(?:man|men|woman|women|person|people|boy|girl)\b(?:’s)?|: facing right|[\s:,]+"
)
_NO_EMOJI = (None, "components")


class Concept(NamedTuple):
    """An emoji apart from any drawing of it."""

    codepoints: str
    name: str
    keywords: list[str]
    concept: str
    group: str
    subgroup: str


def read_concepts(folder: Path) -> dict[str, Concept]:
    """Every emoji without a skin tone that CLDR names in English, by code points.

    Groups are worded as in emojibase, `food & drink`; subgroups likewise, `musical instruments`.
    """
    annotations: dict[str, Any] = {}
    for source, inner in ((DERIVED_NAMES, "annotationsDerived"), (NAMES, "annotations")):
        path = unpacked(folder, source) / inner / "en" / "annotations.json"
        annotations |= read_json(path)[inner]["annotations"]
    english = unpacked(folder, GROUPS) / "en"
    numbers = read_json(unpacked(folder, GROUPS) / "meta" / "groups.json")
    wording = read_json(english / "messages.json")
    levels = {
        level: {
            int(number): next(e["message"] for e in wording[level] if e["key"] == key)
            for number, key in numbers[level].items()
        }
        for level in ("groups", "subgroups")
    }
    concepts = {}
    for entry in read_json(english / "data.json"):
        annotation = annotations.get(entry["emoji"].replace("\ufe0f", ""), {})
        # Components are bare skin tones, hair and letters of flags.
        if "tts" not in annotation or levels["groups"].get(entry.get("group")) in _NO_EMOJI:
            continue
        name = annotation["tts"][0].lower()
        keywords = [word.lower() for word in annotation.get("default", [])]
        codepoints = codepoint_key(entry["hexcode"])
        concepts[codepoints] = Concept(
            codepoints,
            name,
            sorted({word for word in keywords if word != name}),
            base_concept(name),
            levels["groups"][entry["group"]],
            levels["subgroups"][entry["subgroup"]],
        )
    return concepts


def base_concept(name: str) -> str:
    """The name without words for people and directions, which variants of a drawing differ in.

    `woman surfing` and `person surfing` are both `surfing`, so that they share their split.
    """
    return re.sub(r"\s+", " ", _VARIANT.sub(" ", name)).strip() or name


def is_seen(concept: str) -> bool:
    """Whether a concept is in the training split: nine in ten are, by the hash of their name."""
    return int(hashlib.sha256(concept.encode()).hexdigest(), 16) % 10 != 0
