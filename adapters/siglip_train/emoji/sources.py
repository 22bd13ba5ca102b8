"""What the emoji pack is made of: names from CLDR, drawings from six sets of icons."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import resvg_py
from PIL import Image


class Source(NamedTuple):
    """A package, its version, and the licence of what is taken from it."""

    package: str
    version: str
    licence: str


NAMES = Source("cldr-annotations-full", "48.2.0", "Unicode-3.0")
DERIVED_NAMES = Source("cldr-annotations-derived-full", "48.2.0", "Unicode-3.0")
GROUPS = Source("unicode-emoji-json", "0.9.0", "MIT")
VECTORS = {  # vendor and style to the package with its drawings as SVG
    ("noto", "flat"): Source("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    ("noto", "blob"): Source("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    ("firefox", "flat"): Source("@iconify-json/fxemoji", "1.2.2", "Apache-2.0"),
    ("emojione", "flat"): Source("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
    ("fluent", "flat"): Source("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    ("twemoji", "flat"): Source("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
}
RENDERED = {("fluent", "3d"): Source("@lobehub/fluent-emoji-3d", "1.1.0", "MIT")}
SOURCES = (NAMES, DERIVED_NAMES, GROUPS, *VECTORS.values(), *RENDERED.values())

SIZE = 64  # pixels
_FAINTEST = 230  # a picture with no darker grey level is blank
_PEOPLE = re.compile(r"\b(man|men|woman|women|person|people|boy|girl)\b")


class Concept(NamedTuple):
    """An emoji apart from any drawing of it."""

    codepoints: str
    name: str
    keywords: list[str]
    concept: str
    group: str


class Drawing(NamedTuple):
    """A picture of a concept by a vendor, in a style."""

    concept: Concept
    vendor: str
    style: str
    image: Image.Image


def archive(folder: Path, source: Source) -> Path:
    """The archive of a package as `npm pack PACKAGE@VERSION` names it."""
    return folder / f"{source.package.lstrip('@').replace('/', '-')}-{source.version}.tgz"


def unpacked(folder: Path, source: Source) -> Path:
    """Where the archive is unpacked to: a folder of its name."""
    return archive(folder, source).with_suffix("") / "package"


def read_concepts(folder: Path) -> dict[str, Concept]:
    """Every emoji without a skin tone that CLDR names in English, by code points."""
    annotations: dict[str, Any] = {}
    for source, inner in ((DERIVED_NAMES, "annotationsDerived"), (NAMES, "annotations")):
        path = unpacked(folder, source) / inner / "en" / "annotations.json"
        annotations |= _read_json(path)[inner]["annotations"]
    groups = _read_json(unpacked(folder, GROUPS) / "data-by-emoji.json")
    concepts = {}
    for emoji, entry in groups.items():
        annotation = annotations.get(emoji.replace("\ufe0f", "")) or annotations.get(emoji)
        if annotation is None or "tts" not in annotation or "skin tone" in entry["name"]:
            continue
        name = annotation["tts"][0].lower()
        keywords = [word.lower() for word in annotation.get("default", [])]
        codepoints = _key("-".join(f"{ord(letter):x}" for letter in emoji))
        concepts[codepoints] = Concept(
            codepoints,
            name,
            sorted({word for word in keywords if word != name}),
            base_concept(name),
            entry["group"].lower(),
        )
    return concepts


def base_concept(name: str) -> str:
    """The name without words for people, so that variants of a drawing share their concept."""
    return re.sub(r"[\s:,]+", " ", _PEOPLE.sub("", name)).strip() or name


def read_drawings(folder: Path, concepts: dict[str, Concept]) -> Iterator[Drawing]:
    """Every drawing of these concepts, 64 x 64 on white; blank ones are left out."""
    names = _names_to_codepoints(folder)
    for (vendor, style), source in VECTORS.items():
        icons = _read_json(unpacked(folder, source) / "icons.json")
        for codepoints, icon in _icons_by_codepoints(folder, source, icons, names).items():
            if codepoints in concepts:
                image = _render(icon, icons)
                if not _is_blank(image):
                    yield Drawing(concepts[codepoints], vendor, style, image)
    for (vendor, style), source in RENDERED.items():
        # Some emoji are there twice, with and without the variation selector.
        paths = {_key(path.stem): path for path in sorted(unpacked(folder, source).rglob("*.webp"))}
        for codepoints, path in paths.items():
            if codepoints in concepts:
                with Image.open(path) as opened:
                    image = _on_white(opened)
                yield Drawing(concepts[codepoints], vendor, style, image)


def _key(codepoints: str) -> str:
    parts = (part.lstrip("0").lower() for part in codepoints.split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def _names_to_codepoints(folder: Path) -> dict[str, str]:
    """Icon names of the sets that list code points; the older sets use the same names."""
    names: dict[str, str] = {}
    for source in VECTORS.values():
        own = _read_json(unpacked(folder, source) / "chars.json")
        aliases = _read_json(unpacked(folder, source) / "icons.json").get("aliases", {})
        for codepoints, name in own.items():
            names.setdefault(name, _key(codepoints))
        for alias, target in aliases.items():
            if target["parent"] in names:
                names.setdefault(alias, names[target["parent"]])
    # Firefox's set writes the same names without dashes.
    return names | {name.replace("-", ""): key for name, key in names.items()}


def _icons_by_codepoints(
    folder: Path, source: Source, icons: dict[str, Any], names: dict[str, str]
) -> dict[str, dict[str, Any]]:
    own = _read_json(unpacked(folder, source) / "chars.json")
    pairs = (
        [(_key(codepoints), name) for codepoints, name in own.items()]
        if own
        else [(names[name], name) for name in icons["icons"] if name in names]
    )
    found: dict[str, dict[str, Any]] = {}
    for codepoints, name in pairs:
        target = icons.get("aliases", {}).get(name, {"parent": name})["parent"]
        if target in icons["icons"]:
            found.setdefault(codepoints, icons["icons"][target])
    return dict(sorted(found.items()))


def _render(icon: dict[str, Any], icons: dict[str, Any]) -> Image.Image:
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" color="#000">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as opened:
        return _on_white(opened)


def _is_blank(image: Image.Image) -> bool:
    return bool(np.asarray(image.convert("L")).min() >= _FAINTEST)


def _on_white(image: Image.Image) -> Image.Image:
    """The picture, centred in a white square, at the size of the pack."""
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    offset = ((side - image.width) // 2, (side - image.height) // 2)
    square.alpha_composite(image.convert("RGBA"), offset)
    return square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
