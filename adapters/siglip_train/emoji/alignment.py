"""Which emoji an icon draws. Two sets list code points, the others have only names.

Names are compared by their letters and digits alone. They are looked up, in this order, among our
corrections, the names in the sets that list code points, Unicode's names of characters and CLDR's.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any

from siglip_train.emoji.concepts import Concept
from siglip_train.emoji.sources import VECTORS, Source, codepoint_key, read_json, unpacked

# Where Firefox's set calls one emoji by the name of another, found by looking at every drawing.
_CORRECTED = {
    "@iconify-json/fxemoji": {
        "bunny": "rabbit face",
        "bunnyside": "rabbit",
        "cat": "cat face",
        "catside": "cat",
        "construction": "building construction",
        "couplekiss": "kiss",
        "dog": "dog face",
        "dogside": "dog",
        "keyboard": None,  # a piano's
        "kiss": None,  # a face
        "mouse": "mouse face",
        "mouseside": "mouse",
        "pig": "pig face",
        "pigside": "pig",
        "sunglasses": "smiling face with sunglasses",
        "tiger": "tiger face",
        "tigerside": "tiger",
        "tramcar": None,  # rendered all black
        "umbrella": "closed umbrella",
        "window": None,  # of a program
    }
}


def known_names(folder: Path, concepts: dict[str, Concept]) -> dict[str, str]:
    """Code points by every name we know of an emoji, the names spelled without separators."""
    listed: dict[str, str] = {}
    for source in VECTORS.values():
        own = read_json(unpacked(folder, source) / "chars.json")
        aliases = read_json(unpacked(folder, source) / "icons.json").get("aliases", {})
        for codepoints, name in own.items():
            listed.setdefault(name, codepoint_key(codepoints))
        for alias, target in aliases.items():
            if target["parent"] in listed:
                listed.setdefault(alias, listed[target["parent"]])
    single = {chr(int(key, 16)): key for key in concepts if "-" not in key}
    unicode = {unicodedata.name(letter, key): key for letter, key in single.items()}
    named = {concept.name: key for key, concept in concepts.items()}
    known: dict[str, str] = {}
    for names in (listed, unicode, named):
        for name, key in names.items():
            known.setdefault(_letters(name), key)
    return known


def icons_by_codepoints(
    folder: Path, source: Source, icons: dict[str, Any], known: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The icons of a set, as iconify describes them, by the code points of what they draw."""
    own = read_json(unpacked(folder, source) / "chars.json")
    if own:
        pairs = [(codepoint_key(codepoints), name) for codepoints, name in own.items()]
    else:
        corrected = _CORRECTED.get(source.package, {})
        called = {name: corrected.get(name, name) for name in icons["icons"]}
        keys = {name: known.get(_letters(emoji)) for name, emoji in called.items() if emoji}
        pairs = [(codepoints, name) for name, codepoints in keys.items() if codepoints]
    found: dict[str, dict[str, Any]] = {}
    for codepoints, name in pairs:
        target = icons.get("aliases", {}).get(name, {"parent": name})["parent"]
        if target in icons["icons"]:
            found.setdefault(codepoints, icons["icons"][target])
    return dict(sorted(found.items()))


def _letters(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    return letters.replace("flagfor", "flag", 1) if letters.startswith("flagfor") else letters
