"""The packages that the emoji pack is made of: versions, licences, and where they lie unpacked."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Source(NamedTuple):
    """A package, its version, and the licence of what is taken from it.

    For drawings that is the licence of the art, which for Firefox's is not the one of the package.
    """

    package: str
    version: str
    licence: str


NAMES = Source("cldr-annotations-full", "48.2.0", "Unicode-3.0")
DERIVED_NAMES = Source("cldr-annotations-derived-full", "48.2.0", "Unicode-3.0")
GROUPS = Source("emojibase-data", "17.0.0", "MIT")
VECTORS = {  # vendor and style to the package with its drawings as SVG
    ("noto", "flat"): Source("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    ("noto", "blob"): Source("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    ("firefox", "flat"): Source("@iconify-json/fxemoji", "1.2.2", "CC-BY-4.0"),
    ("emojione", "flat"): Source("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
    ("fluent", "flat"): Source("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    ("twemoji", "flat"): Source("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
}
RENDERED = {("fluent", "3d"): Source("@lobehub/fluent-emoji-3d", "1.1.0", "MIT")}
SOURCES = (NAMES, DERIVED_NAMES, GROUPS, *VECTORS.values(), *RENDERED.values())


def archive(folder: Path, source: Source) -> Path:
    """The archive of a package as `npm pack PACKAGE@VERSION` names it."""
    return folder / f"{source.package.lstrip('@').replace('/', '-')}-{source.version}.tgz"


def unpacked(folder: Path, source: Source) -> Path:
    """Where the archive is unpacked to: a folder of its name."""
    return archive(folder, source).with_suffix("") / "package"


def check_sources(folder: Path) -> None:
    """Raise FileNotFoundError naming every package that `folder` has not packed and unpacked."""
    missing = [
        f"{source.package}@{source.version} as {path}"
        for source in SOURCES
        for path in (archive(folder, source), unpacked(folder, source))
        if not path.exists()
    ]
    if missing:
        raise FileNotFoundError("sources are missing: " + "; ".join(missing))


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def codepoint_key(codepoints: str) -> str:
    """Code points such as `1F1EB-1F1F7` in lower case, without FE0F and leading zeros."""
    parts = (part.lstrip("0").lower() for part in codepoints.split("-"))
    return "-".join(part for part in parts if part != "fe0f")
